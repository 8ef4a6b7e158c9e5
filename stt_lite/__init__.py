# Made by "make extract" from the modules' __all__: edit the notebooks, not this file.
"""stt_lite: generate video with a small spatial-temporal transformer; each module is built in a notebook."""

from stt_lite.video import (
    bouncing_square,
    check_frames,
    film_strip,
    load_video,
    save_video,
    scrub,
)
from stt_lite.moving_mnist import (
    STEP,
    bounce,
    canonical_test_set,
    mnist_digits,
    moving_mnist,
    render,
)
from stt_lite.vq_autoencoder import (
    FiniteScalarQuantizer,
    Tokenizer,
    TokenizerConfig,
    VectorQuantizer,
    codebook_usage,
    load_tokenizer,
    perplexity,
    save_tokenizer,
    token_colours,
    training_step,
    weights_folder,
)

__version__ = "0.1.0"

__all__ = [
    "bouncing_square",
    "check_frames",
    "film_strip",
    "load_video",
    "save_video",
    "scrub",
    "STEP",
    "bounce",
    "canonical_test_set",
    "mnist_digits",
    "moving_mnist",
    "render",
    "FiniteScalarQuantizer",
    "Tokenizer",
    "TokenizerConfig",
    "VectorQuantizer",
    "codebook_usage",
    "load_tokenizer",
    "perplexity",
    "save_tokenizer",
    "token_colours",
    "training_step",
    "weights_folder",
]
