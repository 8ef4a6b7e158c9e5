# Made by "make extract" from the public names that pyproject.toml lists.
"""stt_lite: generate video with a small spatial-temporal transformer.

Each module is built in a notebook of the book; these are the names it uses most.
"""

from contextlib import suppress

with suppress(Exception):
    from stt_lite.files import records
with suppress(Exception):
    from stt_lite.gaussian_parameterization import GaussianLayer
with suppress(Exception):
    from stt_lite.layer import TransformerConfig
with suppress(Exception):
    from stt_lite.moving_mnist import moving_mnist
with suppress(Exception):
    from stt_lite.spatial_attention import SpatialAttention, attention
with suppress(Exception):
    from stt_lite.temporal_attention import TemporalAttention
with suppress(Exception):
    from stt_lite.training import (
        PRESETS,
        TrainingConfig,
        fit,
        live_view,
        save_transformer,
        train,
    )
with suppress(Exception):
    from stt_lite.transformer import SpatialTemporalTransformer, load_transformer
with suppress(Exception):
    from stt_lite.video import film_strip, load_video, save_video, scrub
with suppress(Exception):
    from stt_lite.vq_autoencoder import (
        FiniteScalarQuantizer,
        Tokenizer,
        TokenizerConfig,
        VectorQuantizer,
        load_tokenizer,
        save_tokenizer,
    )

__version__ = "0.1.0"

__all__ = [
    "PRESETS",
    "FiniteScalarQuantizer",
    "GaussianLayer",
    "SpatialAttention",
    "SpatialTemporalTransformer",
    "TemporalAttention",
    "Tokenizer",
    "TokenizerConfig",
    "TrainingConfig",
    "TransformerConfig",
    "VectorQuantizer",
    "attention",
    "film_strip",
    "fit",
    "live_view",
    "load_tokenizer",
    "load_transformer",
    "load_video",
    "moving_mnist",
    "records",
    "save_tokenizer",
    "save_transformer",
    "save_video",
    "scrub",
    "train",
]
