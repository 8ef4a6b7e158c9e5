"""Chapter 02: the sampler follows its rule, repeats itself, and keeps test digits."""

import hashlib
import math
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pooch
import pytest
import torch

from stt_lite.moving_mnist import (
    Batch,
    MovingDigits,
    bounce,
    canonical_test_set,
    mnist_digits,
    moving_mnist,
    render,
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def digest(clips: torch.Tensor) -> str:
    pixels = clips.mul(255).round().to(torch.uint8)
    return hashlib.sha256(pixels.numpy().tobytes()).hexdigest()[:12]


def reference_clip(digits, position, velocity, frames, size):
    """The rule of Srivastava et al. written out with loops: one digit after another."""
    side, video = digits.shape[-1], np.zeros((frames, size, size), np.float32)
    for digit, p, v in zip(digits.numpy(), position, velocity):
        p, v = list(p), list(v)
        for t in range(frames):
            r, c = (int(x * (size - side)) for x in p)
            place = video[t, r : r + side, c : c + side]
            place[:] = np.maximum(place, digit / 255.0)
            for axis in range(2):
                p[axis] += v[axis]
                if p[axis] <= 0 or p[axis] >= 1:
                    p[axis], v[axis] = min(max(p[axis], 0.0), 1.0), -v[axis]
    return video


def test_sampler_equals_the_rule_written_with_loops():
    g = seeded(3)
    bank = mnist_digits("train")
    which = torch.randint(len(bank), (4, 2), generator=g)
    position = torch.rand(4, 2, 2, generator=g)
    angle = 2 * math.pi * torch.rand(4, 2, generator=g)
    velocity = 0.1 * torch.stack([angle.sin(), angle.cos()], -1)
    clips = moving_mnist(4, 30, 64, 2, seed=3)
    for b in range(4):
        start = position[b].tolist(), velocity[b].tolist()
        expected = torch.from_numpy(reference_clip(bank[which[b]], *start, 30, 64))
        different = (clips[b, :, 0] - expected).abs().flatten(1).amax(1) > 1e-6
        assert different.float().mean() < 0.05  # float64 may round to the next pixel


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("size, digits", [(64, 2), (32, 1), (50, 3), (96, 2)])
def test_shape_range_and_whole_digits(size, digits, stochastic):
    clips = moving_mnist(3, 7, size, digits, stochastic=stochastic, seed=0)
    assert clips.shape == (3, 7, 1, size, size) and clips.dtype == torch.float32
    assert clips.min() == 0 and 0.9 < clips.max() <= 1
    if digits == 1:  # ink neither leaves the frame nor appears
        ink = clips.sum((2, 3, 4))
        torch.testing.assert_close(ink, ink[:, :1].expand_as(ink), rtol=1e-5, atol=1e-3)


def test_seed_generator_and_global_state():
    a, b = moving_mnist(2, seed=5), moving_mnist(2, generator=seeded(5))
    assert torch.equal(a, b) and not torch.equal(a, moving_mnist(2, seed=6))
    torch.manual_seed(5)
    assert torch.equal(a, moving_mnist(2))
    assert not torch.equal(a, moving_mnist(2))  # the global generator moves on
    with pytest.raises(ValueError, match="either seed or generator"):
        moving_mnist(2, seed=1, generator=torch.Generator())


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, "446684f18cfb"),
        ({"size": 32, "digits": 1, "split": "test"}, "b3e032c73f59"),
        ({"size": 50, "digits": 3, "stochastic": True}, "22989114240c"),
    ],
)
def test_clips_are_those_of_the_first_edition(options, expected):
    """Records and bundled weights rest on them."""
    assert digest(moving_mnist(3, 9, seed=0, **options)) == expected


def test_a_large_request_equals_its_parts():
    """Clips are drawn in groups; none may be skipped or drawn twice."""
    bank, g = mnist_digits("test"), seeded(0)
    corners = torch.randint(0, 37, (21, 3, 2, 2), generator=g)
    digits = bank[torch.randint(len(bank), (21, 2), generator=g)]
    whole = render(digits, corners, 64)
    some = [slice(i, i + 1) for i in range(21)]
    parts = torch.cat([render(digits[i], corners[i], 64) for i in some])
    assert torch.equal(whole, parts)


def test_deterministic_bounces_mirror_and_stochastic_ones_do_not():
    mirrored = {False: 0, True: 0}
    for stochastic in mirrored:
        paths = bounce(400, 30, 1, stochastic=stochastic, generator=seeded(1))
        path = paths[:, :, 0]
        step = path[:, 1:] - path[:, :-1]
        free = (path > 0) & (path < 1)
        touching = ~free[:, 1:-1, 0]  # after step t; it leaves with step t + 1
        around = free[:, :-2].all(-1) & free[:, 2:].all(-1) & free[:, 1:-1, 1]
        clean = touching & around
        along_before, along_after = step[:, :-1, 1][clean], step[:, 1:, 1][clean]
        kept = torch.isclose(along_before, along_after, atol=1e-5)
        mirrored[stochastic] = kept.float().mean().item()
        assert clean.sum() > 100
        lead_inside = (path[:, 1:-1, 0][clean] == 0) == (step[:, 1:, 0][clean] > 0)
        assert lead_inside.all()
    assert mirrored[False] == 1.0 and mirrored[True] < 0.1


def test_stochastic_and_deterministic_agree_until_the_first_bounce():
    ways = [
        bounce(100, 20, 1, stochastic=s, generator=seeded(2)) for s in (False, True)
    ]
    a, b = (path[:, :, 0] for path in ways)
    touch = ((a <= 0) | (a >= 1)).any(-1)
    before = touch.cumsum(1) - touch.long() == 0  # the first touch included
    torch.testing.assert_close(a[before], b[before])
    assert not torch.allclose(a, b)


def test_splits_share_no_digit():
    train, test = mnist_digits("train"), mnist_digits("test")
    assert train.shape == (60_000, 28, 28) and test.shape == (10_000, 28, 28)
    assert train.dtype == torch.uint8
    known = {digit.numpy().tobytes() for digit in train}
    assert not known & {digit.numpy().tobytes() for digit in test}


def test_speed_on_one_core():
    """The aim is 2,000 clips of 20x64x64 a second; a busy machine gets half of that."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        moving_mnist(100, seed=0)
        times = []
        for seed in range(8):
            start = time.process_time()
            moving_mnist(100, seed=seed)
            times.append(time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    assert 100 / min(times) > 1000


# --- the source


@pytest.mark.parametrize("stochastic", [False, True])
def test_moving_digits_draws_what_the_sampler_draws(stochastic):
    source = MovingDigits(48, 3, frames=9, stochastic=stochastic)
    shape = {"size": 48, "digits": 3, "stochastic": stochastic}
    batch = source.draw(4, 7, seeded(3), "cpu")
    assert isinstance(batch, Batch) and batch.actions is None
    assert torch.equal(batch.clips, moving_mnist(4, 7, **shape, generator=seeded(3)))
    held_out = moving_mnist(4, 7, **shape, split="test", seed=5)
    assert torch.equal(source.held_out(4, 7, seed=5), held_out)
    assert torch.equal(source.held_out(4, 7), source.held_out(4, 7, 0, "cpu"))
    assert (source.size, source.frames, source.channels) == (48, 9, 1)
    assert source.data == {**shape, "frames": 9}


def test_moving_digits_draws_on_where_its_generator_stands():
    source, generator = MovingDigits(), seeded(0)
    a, b = (source.draw(2, 5, generator).clips for _ in range(2))
    assert a.shape == (2, 5, 1, 32, 32) and not torch.equal(a, b)
    assert hash(source) == hash(MovingDigits(32, 1, 20, False))


@pytest.mark.parametrize("bad", [{"size": 8}, {"digits": 0}, {"frames": 1.5}])
def test_moving_digits_is_checked_when_it_is_made(bad, unchecked):
    with pytest.raises(ValueError, match=f"{next(iter(bad))} must be a whole number"):
        MovingDigits(**bad)


# --- files


def test_digits_that_are_not_the_authors_are_refused(tmp_path, monkeypatch):
    """One altered pixel, in a file that is whole otherwise."""
    module = sys.modules["stt_lite.moving_mnist"]
    digits = {split: mnist_digits(split).numpy().copy() for split in ("train", "test")}
    digits["test"][17, 14, 14] ^= 1
    (tmp_path / "data").mkdir()
    np.savez_compressed(tmp_path / "data" / "mnist.npz", **digits)
    monkeypatch.setattr(module.importlib.resources, "files", lambda package: tmp_path)
    unread = module.mnist_digits.__wrapped__  # without what is in memory already
    assert torch.equal(unread("train"), mnist_digits("train"))
    with pytest.raises(ValueError, match="mnist.npz is damaged: test has md5 .*2646ac"):
        unread("test")


def offline(*args, **kwargs):
    raise OSError("no network")


def test_offline_downloads_say_so(tmp_path, monkeypatch):
    monkeypatch.setenv("STT_LITE_CACHE", str(tmp_path))
    monkeypatch.setattr(pooch, "retrieve", offline)
    with pytest.raises(ConnectionError, match="not download .*mnist_test_seq.npy: OSE"):
        canonical_test_set(3, fallback=False)
    with pytest.warns(UserWarning, match="Using 3 clips of stt_lite's own sampler"):
        clips, origin = canonical_test_set(3)
    assert origin == "sampler"
    assert torch.equal(clips, moving_mnist(3, 20, 64, 2, split="test", seed=0))


def test_downloads_are_checked_and_read(tmp_path, monkeypatch):
    """A file in the canonical layout (T n H W) is read; one of another hash refused."""
    module = sys.modules["stt_lite.moving_mnist"]
    cache = tmp_path / "not/there/yet"
    monkeypatch.setenv("STT_LITE_CACHE", str(cache))
    shape = (20, 5, 64, 64)
    stored = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.save(tmp_path / "source.npy", stored)
    content, retrieve = (tmp_path / "source.npy").read_bytes(), pooch.retrieve

    def from_disk(url, **options):
        def copy(url, output, _):
            Path(output).write_bytes(content)

        return retrieve(url, **options, downloader=copy)

    monkeypatch.setattr(pooch, "retrieve", from_disk)
    with pytest.raises(ValueError, match="hash"):
        canonical_test_set(2)
    monkeypatch.setattr(module, "CANONICAL_MD5", hashlib.md5(content).hexdigest())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clips, origin = canonical_test_set(2)
    assert origin == "canonical" and [p.name for p in cache.iterdir()]
    torch.testing.assert_close(clips[1, 7, 0] * 255, torch.tensor(stored[7, 1]).float())


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"n": 0}, "n must be a whole number of at least 1, got 0"),
        ({"frames": 0}, "frames must be"),
        ({"size": 8}, "size must be a whole number of at least 16, got 8"),
        ({"digits": 0}, "digits must be"),
        ({"split": "val"}, 'split must be "train" or "test", got \'val\''),
    ],
)
def test_bad_input(bad, message):
    with pytest.raises(ValueError, match=message):
        moving_mnist(**{"n": 1, **bad})


def test_canonical_n_out_of_range():
    with pytest.raises(ValueError, match=r"n must be a whole number in \[1, 10000\]"):
        canonical_test_set(0)
