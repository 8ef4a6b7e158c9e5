"""Models in half and double precision, where float64 is missing, and what is NaN."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import stt_lite as stt
from models import random_clips, small_model
from stt_lite.evaluation import METRICS, centroid, expected_best
from stt_lite.quantizers import perplexity

KINDS = [torch.float16, torch.bfloat16, torch.float64]
TOKENIZERS = {
    "vq": {},
    "fsq": {"quantizer": "fsq", "codebook_size": 24, "levels": (2, 3, 2, 2)},
}
SHAPES = {"off": {}, "latent": {}, "bottleneck": {}, "token": {"head": "token"}}


def made(shape: str, quantizer: str = "vq"):
    given = {"gaussian": "latent" if shape == "token" else shape, **SHAPES[shape]}
    size = TOKENIZERS[quantizer].get("codebook_size", 11)
    if quantizer == "vq":
        return small_model(**given)
    model = stt.VideoModel(
        stt.Tokenizer(
            stt.TokenizerConfig(
                width=16, latent_channels=4, residual_blocks=0, **TOKENIZERS["fsq"]
            )
        ),
        small_model(
            **given, codebook_size=size, tokenizer={"codebook_size": size}
        ).transformer,
    )
    return model.eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("quantizer", TOKENIZERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_model_of_any_precision_goes_on(shape, quantizer, kind):
    """It generates, streams and reconstructs, alike in float32 as far as it can."""
    clips, model = random_clips(), made(shape, quantizer)
    again = model.tokenizer.reconstruct(clips)
    video = model.generate(clips, 2, seed=0)
    model = model.to(kind)
    half = model.tokenizer.reconstruct(clips)
    assert half.dtype == torch.float32 and (half - again).abs().median() < 0.05
    new = model.generate(clips, 2, seed=0)
    assert new.dtype == torch.float32 and new.isfinite().all()
    frames = list(model.stream(clips, 2, seed=0))
    torch.testing.assert_close(torch.stack(frames, 2), new[:, :, 4:])
    if kind == torch.float64:
        torch.testing.assert_close(new, video, atol=1e-3, rtol=0)


@pytest.mark.parametrize("part", ["tokenizer", "transformer"])
def test_parts_may_differ_in_precision(part):
    model = small_model()
    getattr(model, part).half()
    assert model.generate(random_clips(), 2, seed=0).isfinite().all()


def test_a_half_model_is_evaluated_and_its_own_clips_come_in():
    model = stt.load_pretrained("moving-mnist-tiny").half()
    clips = stt.held_out_clips(model, 2, 20, seed=0)
    full = stt.load_pretrained("moving-mnist-tiny")
    found = [
        stt.evaluate(
            lambda prompt, new: m.generate(prompt, new, 1, 0.0)[:, 0, -new:],
            clips.half(),
            ("15->5",),
        )["15->5"]["squared_error"][0]
        for m in (model, full)
    ]
    assert found[0] == pytest.approx(found[1], rel=0.05)


class NoFloat64(TorchDispatchMode):
    """A device without float64, as MPS is: only what lies on the CPU may be float64."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else [out]:
            if isinstance(one, torch.Tensor) and one.device.type == "meta":
                if one.dtype == torch.float64:
                    raise TypeError("this device has no float64")
        return out


def test_nothing_asks_a_device_for_float64():
    with NoFloat64():
        with pytest.raises(TypeError, match="no float64"):
            torch.zeros(2, device="meta").double()
        model = small_model().to("meta")
        net, latents = model.transformer, torch.zeros(2, 3, 4, 2, 3, device="meta")
        net(latents)
        net.prefill(latents, 4)
        model.tokenizer.decoder(latents[0])
        model.tokenizer.quantizer._nearest(latents[0, 0, :, 0].mT)


def test_float64_is_asked_for_on_the_cpu_only(root):
    """Each `.double()` and `torch.float64` of the package follows `.cpu()`."""
    lines = [
        f"{path.name}: {line.strip()}"
        for path in sorted((root / "stt_lite").glob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if (".double()" in line or "float64" in line) and ".cpu().double()" not in line
    ]
    known = ("as float32, or float64", "to(place, torch.float64)", '"mps"', "arange(")
    known += ("dtype=torch.float64)  # (k i)", "for r in results]).double()")
    assert not [
        line for line in lines if not any(k in line.lower() or k in line for k in known)
    ]


# What is not finite


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_comes_in_nowhere(value, unchecked):
    vq, fsq = stt.VectorQuantizer(5, 4), stt.FiniteScalarQuantizer((2, 3, 2, 2))
    model = small_model()
    flat = torch.zeros(6, 4)
    flat[3, 2] = value
    latents = flat.T.reshape(1, 4, 2, 3)
    calls = {
        "nearest": lambda: vq.nearest(flat),
        "nearest of fsq": lambda: fsq.nearest(flat),
        "forward": lambda: vq.eval()(latents),
        "forward of fsq": lambda: fsq.eval()(latents),
        "quantize": lambda: model.tokenizer.quantize(latents),
        "decode": lambda: model.tokenizer.decode(latents),
        "encode": lambda: model.tokenizer.encode(torch.full((1, 1, 8, 8), value)),
        "generate": lambda: model.generate(torch.full((1, 1, 8, 12), value)),
        "reconstruct": lambda: model.tokenizer.reconstruct(random_clips() * value),
        "ssim": lambda: stt.ssim(torch.full((1, 8, 8), value), torch.zeros(1, 8, 8)),
        "psnr": lambda: stt.psnr(torch.zeros(1, 8, 8), torch.full((1, 8, 8), value)),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match="values"):
            call()
            pytest.fail(f"{name} takes {value}")


@pytest.mark.parametrize("head", ["regression", "token"])
def test_a_prediction_that_is_not_finite_is_an_error(head):
    model = small_model(head=head)
    model.transformer.head.bias.data.fill_(math.nan)
    with pytest.raises(ValueError, match="prediction of frame 4 must have finite"):
        model.generate(random_clips(), 1, seed=0)


@pytest.mark.parametrize("indices", [[-1], [5], [0, 99]])
def test_codes_of_no_codeword_are_refused(indices, unchecked):
    for quantizer in (stt.VectorQuantizer(5, 4), stt.FiniteScalarQuantizer((5,))):
        with pytest.raises(ValueError, match=r"indices must have values in \[0, 4\]"):
            quantizer.codes(torch.tensor(indices))
        with pytest.raises(TypeError, match="whole-number"):
            quantizer.codes(torch.tensor(indices).float())


@pytest.mark.parametrize(
    "levels", [(-4, -4), (), (1, 8), (2.0, 2), "88", None, (2**40,)]
)
def test_odd_levels_are_refused(levels, unchecked):
    with pytest.raises(ValueError, match="levels"):
        stt.FiniteScalarQuantizer(levels)


# What is compared

FRAME = torch.full((1, 8, 8), 0.5)
BAD_PAIRS = {
    "bytes": ((FRAME * 6).byte(), (FRAME * 10).byte(), TypeError, "torch.uint8"),
    "whole numbers": (FRAME.long(), FRAME, TypeError, "torch.int64"),
    "range": (FRAME * 255, FRAME, ValueError, r"video must have values in \[0, 1\]"),
    "negative": (FRAME, -FRAME, ValueError, r"truth must have values in \[0, 1\]"),
    "shape": (FRAME, FRAME[:, :4], ValueError, "one shape"),
    "rank": (FRAME[0], FRAME[0], ValueError, r"shape \(\.\.\. C H W\)"),
    "empty": (FRAME[:0], FRAME[:0], ValueError, "none of it 0"),
    "numpy": (FRAME.numpy(), FRAME, TypeError, "got ndarray"),
}


@pytest.mark.parametrize("case", BAD_PAIRS)
@pytest.mark.parametrize("metric", METRICS)
def test_metrics_refuse_what_they_cannot_compare(metric, case, unchecked):
    video, truth, error, message = BAD_PAIRS[case]
    if (metric, case) == ("ink_ratio", "shape"):
        return  # each is summed by itself
    message = (
        "values in"
        if metric == "ssim_inflated"
        and error is ValueError
        and case in ("range", "negative")
        else message
    )
    with pytest.raises(
        error,
        match=message.replace("truth", "video|truth")
        if metric == "ink_ratio"
        else message,
    ):
        METRICS[metric](video, truth)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("metric", METRICS)
def test_metrics_sum_halves_in_float32(metric, kind):
    video = torch.ones(1, 512, 512)
    video[0, :256] = 0.25  # what halves hold exactly
    truth = 1 - video
    wanted = METRICS[metric](video, truth)
    found = METRICS[metric](video.to(kind), truth.to(kind))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(centroid(video.to(kind)), centroid(video))


def test_small_sums_are_what_they_were():
    assert perplexity(torch.arange(8), 8) == pytest.approx(8)
    best = expected_best(torch.tensor([1.0, 3.0], dtype=torch.float16))
    assert best.dtype == torch.float16 and best.tolist() == [2.0, 3.0]


# The caller's random numbers


@pytest.mark.parametrize(
    "load",
    [
        lambda: stt.load_pretrained("moving-mnist-tiny"),
        lambda: stt.load_tokenizer("moving-mnist"),
        lambda: stt.load_transformer("pong"),
        stt.pretrained,
        lambda: stt.moving_mnist(1, 2, 16, 1, seed=0),
        lambda: stt.held_out_clips(stt.load_pretrained("pong"), 1, 2, 0),
        lambda: small_generation().generate(random_clips(), 1, seed=0),
    ],
)
def test_the_callers_random_numbers_stay(load):
    small_generation()
    before = torch.random.get_rng_state()
    load()
    assert torch.equal(torch.random.get_rng_state(), before)


CACHE = []


def small_generation():
    CACHE[:] = CACHE or [small_model()]
    return CACHE[0]
