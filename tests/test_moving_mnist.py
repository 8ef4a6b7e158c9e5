"""Chapter 02: the sampler follows its rule, repeats itself under a seed, and keeps test digits to itself."""

import hashlib
import math
import sys
import warnings
from pathlib import Path

import numpy as np
import pooch
import pytest
import torch

import stt_lite as stt


def reference_clip(digits, position, velocity, frames, size):
    """The rule of Srivastava et al. written out with loops: one clip, one digit after another."""
    side, video = digits.shape[-1], np.zeros((frames, size, size), np.float32)
    for digit, p, v in zip(digits.numpy(), position, velocity):
        p, v = list(p), list(v)
        for t in range(frames):
            r, c = (int(x * (size - side)) for x in p)
            video[t, r : r + side, c : c + side] = np.maximum(video[t, r : r + side, c : c + side], digit / 255.0)
            for axis in range(2):
                p[axis] += v[axis]
                if p[axis] <= 0 or p[axis] >= 1:
                    p[axis], v[axis] = min(max(p[axis], 0.0), 1.0), -v[axis]
    return video


def test_sampler_equals_the_rule_written_with_loops():
    g = torch.Generator().manual_seed(3)
    bank = stt.mnist_digits("train")
    which = torch.randint(len(bank), (4, 2), generator=g)
    position = torch.rand(4, 2, 2, generator=g)
    angle = 2 * math.pi * torch.rand(4, 2, generator=g)
    velocity = 0.1 * torch.stack([angle.sin(), angle.cos()], -1)
    clips = stt.moving_mnist(4, 30, 64, 2, seed=3)
    for b in range(4):
        expected = reference_clip(bank[which[b]], position[b].tolist(), velocity[b].tolist(), 30, 64)
        different = (clips[b, :, 0] - torch.from_numpy(expected)).abs().flatten(1).amax(1) > 1e-6
        assert different.float().mean() < 0.05  # float32 against float64 may round a position to the next pixel


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("size, digits", [(64, 2), (32, 1), (50, 3), (96, 2)])
def test_shape_range_and_whole_digits(size, digits, stochastic):
    clips = stt.moving_mnist(3, 7, size, digits, stochastic=stochastic, seed=0)
    assert clips.shape == (3, 7, 1, size, size) and clips.dtype == torch.float32
    assert clips.min() == 0 and 0.9 < clips.max() <= 1
    if digits == 1:  # ink neither leaves the frame nor appears
        ink = clips.sum((2, 3, 4))
        torch.testing.assert_close(ink, ink[:, :1].expand_as(ink), rtol=1e-5, atol=1e-3)


def test_seed_generator_and_global_state():
    a, b = stt.moving_mnist(2, seed=5), stt.moving_mnist(2, generator=torch.Generator().manual_seed(5))
    assert torch.equal(a, b) and not torch.equal(a, stt.moving_mnist(2, seed=6))
    torch.manual_seed(5)
    assert torch.equal(a, stt.moving_mnist(2))
    assert not torch.equal(a, stt.moving_mnist(2))  # the global generator moves on
    with pytest.raises(ValueError, match="either seed or generator"):
        stt.moving_mnist(2, seed=1, generator=torch.Generator())


def test_a_large_request_equals_its_parts():
    """Clips are drawn in groups; none may be skipped or drawn twice."""
    bank, g = stt.mnist_digits("test"), torch.Generator().manual_seed(0)
    corners = torch.randint(0, 37, (21, 3, 2, 2), generator=g)
    digits = bank[torch.randint(len(bank), (21, 2), generator=g)]
    whole = stt.render(digits, corners, 64)
    single = torch.cat([stt.render(digits[i : i + 1], corners[i : i + 1], 64) for i in range(21)])
    assert torch.equal(whole, single)


def test_deterministic_bounces_mirror_and_stochastic_ones_do_not():
    mirrored = {False: 0, True: 0}
    for stochastic in mirrored:
        path = stt.bounce(400, 30, 1, stochastic=stochastic, generator=torch.Generator().manual_seed(1))[:, :, 0]
        step = path[:, 1:] - path[:, :-1]
        at_side = ((path <= 0) | (path >= 1))[:, 1:-1]  # (n T-2 2): touching after step t, leaving with step t + 1
        free = ((path > 0) & (path < 1))
        clean = at_side[..., 0] & free[:, 1:-1, 1] & free[:, :-2].all(-1) & free[:, 2:].all(-1)
        along_before, along_after = step[:, :-1, 1][clean], step[:, 1:, 1][clean]
        mirrored[stochastic] = torch.isclose(along_before, along_after, atol=1e-5).float().mean().item()
        assert clean.sum() > 100
        lead_inside = (path[:, 1:-1, 0][clean] == 0) == (step[:, 1:, 0][clean] > 0)
        assert lead_inside.all()
    assert mirrored[False] == 1.0 and mirrored[True] < 0.1


def test_stochastic_and_deterministic_agree_until_the_first_bounce():
    paths = [stt.bounce(100, 20, 1, stochastic=s, generator=torch.Generator().manual_seed(2))[:, :, 0] for s in (False, True)]
    touch = ((paths[0] <= 0) | (paths[0] >= 1)).any(-1)
    before = touch.cumsum(1) - touch.long() == 0  # up to and including the frame of the first touch
    torch.testing.assert_close(paths[0][before], paths[1][before])
    assert not torch.allclose(*paths)


def test_splits_share_no_digit():
    train, test = stt.mnist_digits("train"), stt.mnist_digits("test")
    assert train.shape == (60_000, 28, 28) and test.shape == (10_000, 28, 28) and train.dtype == torch.uint8
    assert not {d.numpy().tobytes() for d in train} & {d.numpy().tobytes() for d in test}


def test_speed_on_one_core():
    """2,000 clips of 20x64x64 with two digits a second on a free core; a busy machine gets half of that."""
    import time

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        stt.moving_mnist(100, seed=0)
        times = []
        for seed in range(8):
            start = time.perf_counter()
            stt.moving_mnist(100, seed=seed)
            times.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    assert 100 / min(times) > 1000


def test_digits_that_are_not_the_authors_are_refused(tmp_path, monkeypatch):
    """One altered pixel, in a file that is whole otherwise."""
    module = sys.modules["stt_lite.moving_mnist"]
    digits = {split: stt.mnist_digits(split).numpy().copy() for split in ("train", "test")}
    digits["test"][17, 14, 14] ^= 1
    (tmp_path / "data").mkdir()
    np.savez_compressed(tmp_path / "data" / "mnist.npz", **digits)
    monkeypatch.setattr(module.importlib.resources, "files", lambda package: tmp_path)
    unread = module.mnist_digits.__wrapped__  # without what is in memory already
    assert torch.equal(unread("train"), stt.mnist_digits("train"))
    with pytest.raises(ValueError, match=r"mnist.npz is damaged: expected md5 2646ac.* of its test digits, got "):
        unread("test")


def offline(*args, **kwargs):
    raise OSError("no network")


def test_offline_downloads_say_so(tmp_path, monkeypatch):
    monkeypatch.setenv("STT_LITE_CACHE", str(tmp_path))
    monkeypatch.setattr(pooch, "retrieve", offline)
    with pytest.raises(ConnectionError, match="could not download mnist_test_seq.npy"):
        stt.canonical_test_set(3, fallback=False)
    with pytest.warns(UserWarning, match="Using 3 clips of stt_lite's own sampler"):
        clips, kind = stt.canonical_test_set(3)
    assert kind == "sampler" and clips.shape == (3, 20, 1, 64, 64)


def test_downloads_are_checked_and_read(tmp_path, monkeypatch):
    """A file in the canonical layout (T n H W) comes back as (n T 1 H W); a file with another hash is refused."""
    module = sys.modules["stt_lite.moving_mnist"]
    monkeypatch.setenv("STT_LITE_CACHE", str(tmp_path))
    stored = np.random.default_rng(0).integers(0, 256, (20, 5, 64, 64), dtype=np.uint8)
    np.save(tmp_path / "source.npy", stored)
    monkeypatch.setattr(module, "CANONICAL_URL", (tmp_path / "source.npy").as_uri())
    real = pooch.retrieve

    def from_disk(url, known_hash, fname, path, progressbar):
        def copy(url, output, _):
            Path(output).write_bytes((tmp_path / "source.npy").read_bytes())

        return real(url, known_hash, fname=fname, path=path, downloader=copy)

    monkeypatch.setattr(pooch, "retrieve", from_disk)
    with pytest.raises(ValueError, match="hash"):
        stt.canonical_test_set(2)
    monkeypatch.setattr(module, "CANONICAL_MD5", hashlib.md5((tmp_path / "source.npy").read_bytes()).hexdigest())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clips, kind = stt.canonical_test_set(2)
    assert kind == "canonical"
    torch.testing.assert_close(clips[1, 7, 0] * 255, torch.from_numpy(stored[7, 1]).float())


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
        stt.moving_mnist(**{"n": 1, **bad})


def test_canonical_n_out_of_range():
    with pytest.raises(ValueError, match=r"n must be a whole number in \[1, 10000\], got 0"):
        stt.canonical_test_set(0)
