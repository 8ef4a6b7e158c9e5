"""Whatever a public function is given: a result, or an exception that it names."""

import builtins
import functools
import inspect
import math
import re
from fractions import Fraction

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import stt_lite as stt
from models import SHAPE, TOKENS, small_model
from stt_lite.moving_mnist import Source, moving_mnist
from stt_lite.runs import Run
from stt_lite.training import TokenizerObjective

CLIPS = moving_mnist(2, 6, 16, 1, seed=0)  # (B T 1 H W)
DIGITS = stt.MovingDigits(size=16, frames=4)
TINY = {"steps": 1, "width": 16, "layers": 1, "heads": 2, "batch": 1}
RECORD = {"data": {"size": 16, "digits": 1, "frames": 20}}


@pytest.fixture(scope="module", autouse=True)
def alone(tmp_path_factory):
    """A folder to write into, and no checks of annotations, as users have it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("misuse"))
        patch.setenv("STT_LITE_CACHE", "cache")
        jaxtyping.config.update("jaxtyping_disable", True)
        stt.save_video("clip", CLIPS[0])
        stt.prepare_clips("clip", "clips", 16, None, 2, gray=True, test_share=0)
        stt.play_games("games", ("pong",), 1, 1, 2, skip=1)
        yield
    jaxtyping.config.update("jaxtyping_disable", False)


@functools.lru_cache
def model():
    return small_model((4, 4), RECORD)


@functools.lru_cache
def pong():
    return stt.load_pretrained("pong")


def rolled() -> dict:
    """Arguments of `rollout`."""
    made, latent = model(), torch.zeros(1, 4, 4, 4)
    net, draws = made.transformer, [made.transformer.draw_noise(1, 1)[:, 0]]
    cache = net.prefill(latent[:, None], 4)
    return dict(
        net=net,
        tokenizer=made.tokenizer,
        latent=latent,
        cache=cache,
        noise=draws,
        sampling=stt.Sampling(),
        generators=None,
    )


def fitted() -> dict:
    """Arguments of `fit`."""
    config = stt.TrainingConfig(out="fitted", **TINY)
    objective = TokenizerObjective(stt.Tokenizer(TOKENS), config, DIGITS)
    return dict(objective=objective, run=Run(config, "tokenizer"), watch=None)


def tensors(*names, shape=(2, 3, 4, 6)):
    return dict.fromkeys(names, torch.rand(shape))


# By name: good arguments of each public function, made anew for each call.
GOOD = {
    "Batch": lambda: dict(clips=CLIPS, actions=None),
    "ClipFolder": lambda: dict(path="clips"),
    "FiniteScalarQuantizer": lambda: dict(levels=(3, 4)),
    "GameClips": lambda: dict(folder="games", size=16, frames=2),
    "GaussianLayer": lambda: dict(
        width=8, kernel_size=3, mode="latent", noise_channels=2
    ),
    "MovingDigits": lambda: dict(size=16, digits=1, frames=2, stochastic=False),
    "Photographs": lambda: dict(size=16, split="test"),
    "PongWorld": lambda: dict(train=1, test=1, length=20, frames=4),
    "Sampling": lambda: dict(temperature=1.0, top_k=2, seed=0, window=3),
    "SpatialAttention": lambda: dict(width=8, heads=2, grid=(2, 3)),
    "SpatialTemporalTransformer": lambda: dict(config=SHAPE),
    "TemporalAttention": lambda: dict(width=8, heads=2),
    "Tokenizer": lambda: dict(config=TOKENS),
    "TokenizerConfig": lambda: dict(vars(TOKENS)),
    "TrainingConfig": lambda: dict(vars(stt.TrainingConfig(**TINY))),
    "TransformerConfig": lambda: dict(vars(SHAPE)),
    "VQGANConfig": lambda: dict(vars(stt.VQGANConfig())),
    "VectorQuantizer": lambda: dict(
        codebook_size=4,
        latent_channels=2,
        decay=0.9,
        dead_below=0.1,
        kmeans_iterations=1,
    ),
    "VideoModel": lambda: dict(
        tokenizer=model().tokenizer, transformer=model().transformer, record={}
    ),
    "attention": lambda: tensors("q", "k", "v") | dict(mask=None, causal=False),
    "evaluate": lambda: dict(
        forecast=lambda prompt, new: prompt[:, :1].expand(-1, new, -1, -1, -1),
        clips=moving_mnist(1, 20, 16, 1, seed=0),
        protocols=("15->5",),
    ),
    "evaluate_model": lambda: dict(model=model(), n=1, seeds=(1,)),
    "explore": lambda: dict(model=model(), clips=CLIPS, prompt_frames=3),
    "film_strip": lambda: dict(
        videos=CLIPS, labels=["a", "b"], prompt_frames=2, every=1, width=80
    ),
    "fit": fitted,
    "futures": lambda: dict(
        videos=CLIPS[:, None, None],
        truth=CLIPS,
        prompt_frames=2,
        temperatures=[1.0],
        fps=5.0,
    ),
    "held_out_clips": lambda: dict(model=model(), n=1, frames=2, seed=0),
    "live_view": lambda: dict(every=2),
    "load_pretrained": lambda: dict(name="moving-mnist-tiny", device="cpu"),
    "load_tokenizer": lambda: dict(name="moving-mnist-tiny", device="cpu"),
    "load_transformer": lambda: dict(name="moving-mnist-tiny", device="cpu"),
    "load_video": lambda: dict(
        path="clip", frames=2, size=8, gray=True, fps=None, last=None
    ),
    "moving_mnist": lambda: dict(
        n=1,
        frames=2,
        size=16,
        digits=1,
        split="train",
        stochastic=False,
        seed=0,
        generator=None,
        device="cpu",
    ),
    "play": lambda: dict(model=pong(), seed=0, temperature=0.0, ghost=False),
    "play_games": lambda: dict(
        folder="games", games=("pong",), train=1, test=1, frames=2, seed=0, skip=1
    ),
    "prepare_clips": lambda: dict(
        source="clip",
        out="clips",
        size=16,
        fps=None,
        frames=2,
        gray=True,
        test_share=0.0,
        seed=0,
        group=str,
    ),
    "pretrained": dict,
    "psnr": lambda: dict(video=CLIPS, truth=CLIPS),
    "records": lambda: dict(pattern="compare-*"),
    "rollout": rolled,
    "save_tokenizer": lambda: dict(
        module=model().tokenizer, path="tokenizer.safetensors", record={}
    ),
    "save_transformer": lambda: dict(
        module=model().transformer, path="transformer.safetensors", record={}
    ),
    "save_video": lambda: dict(path="clip.gif", clip=CLIPS[0], fps=8.0, scale=1),
    "scrub": lambda: dict(
        videos=CLIPS, labels=None, prompt_frames=2, fps=5.0, width=80
    ),
    "side_by_side": lambda: dict(videos=CLIPS, prompt_frames=2, truth=CLIPS[0]),
    "ssim": lambda: dict(video=CLIPS, truth=CLIPS, data_range=1.0, window=3),
    "train": lambda: dict(
        config=stt.TrainingConfig(out="run", **TINY),
        source=DIGITS,
        tokenizer=TOKENS,
        watch=None,
    ),
    "train_tokenizer": lambda: dict(
        config=stt.TrainingConfig(out="run", **TINY),
        source=DIGITS,
        tokenizer=TOKENS,
        watch=None,
        share=1.0,
    ),
    "VideoModel.generate": lambda: dict(
        self=model(),
        prompt=CLIPS,
        new_frames=1,
        samples=1,
        temperature=1.0,
        seed=0,
        top_k=None,
        window=None,
        progress=False,
        actions=None,
    ),
    "VideoModel.stream": lambda: dict(
        self=model(),
        prompt=CLIPS,
        new_frames=1,
        samples=1,
        actions=None,
        temperature=1.0,
        seed=0,
        top_k=None,
        window=None,
    ),
    "Tokenizer.encode": lambda: dict(self=model().tokenizer, frames=CLIPS[0]),
    "Tokenizer.quantize": lambda: dict(
        self=model().tokenizer, latents=torch.rand(1, 4, 2, 3)
    ),
    "Tokenizer.decode": lambda: dict(
        self=model().tokenizer, latents=torch.rand(1, 4, 2, 3)
    ),
    "Tokenizer.codes": lambda: dict(
        self=model().tokenizer, indices=torch.ones(1, 2, 3, dtype=torch.long)
    ),
    "Tokenizer.reconstruct": lambda: dict(self=model().tokenizer, clips=CLIPS),
    "VectorQuantizer.nearest": lambda: dict(
        self=stt.VectorQuantizer(4, 2), z=torch.rand(5, 2)
    ),
    "FiniteScalarQuantizer.nearest": lambda: dict(
        self=stt.FiniteScalarQuantizer((3, 4)), z=torch.rand(5, 2)
    ),
    "VectorQuantizer.codes": lambda: dict(
        self=stt.VectorQuantizer(4, 2), indices=torch.arange(4)
    ),
    "FiniteScalarQuantizer.codes": lambda: dict(
        self=stt.FiniteScalarQuantizer((3, 4)), indices=torch.arange(4)
    ),
    "SpatialTemporalTransformer.forward": lambda: dict(
        self=model().transformer, latents=torch.rand(1, 2, 4, 4, 4)
    ),
    "SpatialTemporalTransformer.prefill": lambda: dict(
        self=model().transformer, latents=torch.rand(1, 2, 4, 4, 4), slots=3
    ),
    "MovingDigits.draw": lambda: dict(
        self=DIGITS, n=1, frames=2, generator=None, device="cpu"
    ),
    "MovingDigits.held_out": lambda: dict(
        self=DIGITS, n=1, frames=2, seed=0, device="cpu"
    ),
    "PongWorld.held_out": lambda: dict(
        self=stt.PongWorld(), n=1, frames=2, seed=0, device="cpu"
    ),
    "ClipFolder.held_out": lambda: dict(
        self=stt.ClipFolder("clips"), n=1, frames=2, seed=0, device="cpu"
    ),
    "Photographs.held_out": lambda: dict(
        self=stt.Photographs(16, "test"), n=1, frames=1, seed=0, device="cpu"
    ),
}
LONG = {"train", "train_tokenizer", "fit", "play_games", "evaluate_model", "play"}


def odd_tensors():
    like = st.sampled_from([(), (0,), (3,), (2, 0, 1, 4, 4), (1, 1, 8, 8), (2,) * 5])
    kinds = [torch.float64, torch.float16, torch.uint8, torch.long, torch.bool]
    kinds = st.sampled_from([*kinds, torch.complex64, torch.float32])
    return st.builds(lambda shape, kind: torch.ones(shape, dtype=kind), like, kinds)


def odd_values():
    """What is never meant, or hardly ever."""
    numbers = [-1, 0, 1, 1.0, 2.5, 2**64, -(2**70), 10**400, math.nan, math.inf]
    numbers += [True, 1j, Fraction(1, 3), np.float32(0.5), np.int64(2), -0.5]
    others = [None, "", "abc", "a\0b", b"x", [], [1], (), (2, 3), {}, {"a": 1}, object]
    arrays = [np.zeros(3), np.zeros((1, 6, 1, 16, 16)), [None], [[1.0]], ["x"]]
    return st.sampled_from(numbers) | st.sampled_from(others + arrays) | odd_tensors()


def damaged(good):
    """Tensors like a good one, in another precision or with a value that is none."""
    if not isinstance(good, torch.Tensor):
        return st.nothing()
    kinds = [torch.float64, torch.bfloat16, torch.uint8, torch.bool, torch.complex64]
    made = [good.to(kind) for kind in kinds] + [good[None], good[0], good[:0]]
    made += [
        good.clone().fill_(x) for x in (math.nan, math.inf) if good.is_floating_point()
    ]
    return st.sampled_from([*made, good.numpy(), good.tolist()])


def documented(function) -> tuple[type, ...]:
    """The exceptions that a docstring names."""
    name = function.__name__  # a source's methods do what the protocol says
    parts = (function, getattr(function, "__init__", None), getattr(Source, name, None))
    text = " ".join(inspect.getdoc(part) or "" for part in parts if part)
    found = (getattr(builtins, n, None) for n in re.findall(r"\w+Error", text))
    return tuple(kind for kind in found if kind)


def public(name: str):
    function = stt
    for part in name.split("."):
        function = getattr(function, part)
    return function


def test_every_public_function_is_misused():
    known = {name for name in stt.__all__ if callable(getattr(stt, name))}
    assert known == {name for name in GOOD if "." not in name}


@pytest.mark.parametrize("name", GOOD)
def test_good_arguments_are_good(name):
    call(public(name), GOOD[name]())


def call(function, arguments):
    result = function(**arguments)
    return next(result, None) if inspect.isgenerator(result) else result


@pytest.mark.parametrize("name", GOOD)
def test_misuse_gives_a_result_or_a_documented_exception(name):
    function, good = public(name), GOOD[name]()
    kinds = documented(function)

    @settings(
        max_examples=4 if name in LONG else 40,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def misuse(data):
        arguments = GOOD[name]()
        place = data.draw(st.sampled_from([a for a in good if a != "self"]))
        bad = data.draw(odd_values() | damaged(good[place]))
        try:
            call(function, arguments | {place: bad})
        except kinds:
            pass

    if set(good) - {"self"}:
        misuse()
