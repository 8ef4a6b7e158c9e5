# Extracted from notebooks/02_moving_mnist.ipynb by "make extract": edit the notebook, not this file.
"""Moving MNIST: real handwritten digits that bounce inside a frame. Built in chapter 02."""

import functools
import hashlib
import importlib.resources
import math
import os
import struct
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from stt_lite.video import check_whole

__all__ = ["STEP", "bounce", "canonical_test_set", "mnist_digits", "moving_mnist", "render"]

STEP = 0.1  # a digit moves this share of its range in every frame, as in Srivastava et al. (2015)


MNIST_MD5 = {  # of the authors' uncompressed files, train-images-idx3-ubyte and t10k-images-idx3-ubyte
    "train": "6bbc9ace898e44ae57da46a324031adb",
    "test": "2646ac647ad5339dbf082846283269ea",
}


@functools.lru_cache
def mnist_digits(split: str = "train") -> UInt8[Tensor, "N 28 28"]:
    """Handwritten digits of one split of MNIST (LeCun et al., 1998), in their original order, bytes from 0 to 255.

    Args:
        split: "train", 60,000 digits, or "test", 10,000 others.

    Returns:
        The digits, shape (N 28 28). Shared between calls: do not write into it.

    Raises:
        ValueError: an unknown split, or a file that is not what the authors published.
    """
    if split not in MNIST_MD5:
        raise ValueError(f'split must be "train" or "test", got {split!r}')
    path = Path(str(importlib.resources.files("stt_lite"))) / "data" / "mnist.npz"
    with np.load(path) as arrays:
        digits = arrays[split]
    header = struct.pack(">4i", 0x803, *digits.shape)  # what stands before the pixels in the authors' file
    got = hashlib.md5(header + digits.tobytes()).hexdigest()
    if got != MNIST_MD5[split]:
        raise ValueError(f"{path} is damaged: expected md5 {MNIST_MD5[split]} of its {split} digits, got {got}")
    return torch.from_numpy(digits)


def bounce(
    n: int, frames: int, digits: int, *, stochastic: bool = False, generator: torch.Generator | None = None
) -> Float[Tensor, "n T digits 2"]:
    """Paths of points that start anywhere in the unit square and bounce off its borders.

    Deterministic bounces mirror the velocity, as Srivastava et al. (2015, Section 4.1.2) do; stochastic ones draw a
    new direction that leads back inside, after Denton & Fergus (2018). Each step is `STEP` long, unless a border cuts it.

    Args:
        n: number of clips.
        frames: number of frames T.
        digits: number of digits in each clip.
        stochastic: draw a new direction at each bounce.
        generator: a CPU generator; None takes torch's global one.

    Returns:
        Positions (row, column) in [0, 1], shape (n T digits 2).
    """
    position = torch.rand(n, digits, 2, generator=generator)
    angles = 2 * math.pi * torch.rand(frames if stochastic else 1, n, digits, generator=generator)
    direction = torch.stack([angles.sin(), angles.cos()], dim=-1)  # (T or 1, n, digits, 2)
    velocity = STEP * direction[0]
    path = [position]
    for t in range(1, frames):
        position = position + velocity
        below, above = position <= 0, position >= 1
        position = position.clamp(0, 1)
        if stochastic:  # one border touched: both components of the velocity are drawn again, and then turned inside
            velocity = torch.where((below | above).any(-1, keepdim=True), STEP * direction[t], velocity)
        velocity = torch.where(below, velocity.abs(), torch.where(above, -velocity.abs(), velocity))
        path.append(position)
    return torch.stack(path, dim=1)


def render(
    pictures: UInt8[Tensor, "n digits d d"], corners: Int[Tensor, "n T digits 2"], size: int
) -> Float[Tensor, "n T 1 size size"]:
    """Draw digits at whole-pixel positions; where two overlap the brighter pixel wins.

    Instead of writing digits into frames it reads windows out of padded digits: one gather per digit for a group of clips
    and all their frames, on any device.

    Args:
        pictures: of the digits, d x d bytes each, on the device to draw on.
        corners: row and column of each digit's upper left pixel, in [0, size - d].
        size: height and width of a frame in pixels.

    Returns:
        Clips with values in [0, 1] on the pictures' device, shape (n T 1 size size).
    """
    (n, frames, digits), device = corners.shape[:3], pictures.device
    reach = size - pictures.shape[-1]
    video = torch.empty(n, frames, 1, size, size, device=device)
    chunk = 8 if device.type == "cpu" else 1024  # 8 clips fit into a CPU core's cache
    for start in range(0, n, chunk):
        padded = F.pad(pictures[start : start + chunk], (reach,) * 4)
        windows = padded.unfold(2, size, 1).unfold(3, size, 1)  # a view: (chunk digits reach+1 reach+1 size size)
        offset = reach - corners[start : start + chunk].to(device)
        row = torch.arange(len(offset), device=device)[:, None]  # each clip reads its own windows
        layers = [windows[row, k, offset[:, :, k, 0], offset[:, :, k, 1]] for k in range(digits)]
        torch.mul(functools.reduce(torch.maximum, layers), 1 / 255, out=video[start : start + chunk, :, 0])
    return video


@functools.lru_cache
def _scaled_digits(split: str, side: int) -> UInt8[Tensor, "N d d"]:
    """The digits of a split, resized to `side` pixels."""
    digits = mnist_digits(split)
    if side == 28:
        return digits
    mode = "area" if side < 28 else "bicubic"
    resized = F.interpolate(digits[:, None].float(), size=(side, side), mode=mode)
    return resized[:, 0].round().clamp(0, 255).to(torch.uint8)


def moving_mnist(
    n: int = 16,
    frames: int = 20,
    size: int = 64,
    digits: int = 2,
    *,
    split: str = "train",
    stochastic: bool = False,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> Float[Tensor, "n T 1 size size"]:
    """Clips of handwritten digits that move in straight lines and bounce off the frame's borders.

    Moving MNIST after Srivastava et al. (2015), drawn anew on every call. Digits are 28/64 of a frame's size. Random
    numbers are drawn on the CPU whatever the device, so one seed gives the same clips everywhere.

    Args:
        n: number of clips B.
        frames: number of frames T of each clip.
        size: height and width of a frame in pixels, at least 16.
        digits: number of digits in each clip.
        split: "train" or "test" digits; the two never share one.
        stochastic: bounce into a random direction instead of mirroring the path (Denton & Fergus, 2018).
        seed: the same seed gives the same clips; None continues `generator` or torch's global generator.
        generator: a CPU generator to draw from; not together with `seed`.
        device: where the frames are drawn and returned.

    Returns:
        Clips with values in [0, 1], shape (B T 1 size size), float32.

    Raises:
        ValueError: a number out of range, an unknown split, or both seed and generator.
    """
    for name, value, least in (("n", n, 1), ("frames", frames, 1), ("size", size, 16), ("digits", digits, 1)):
        check_whole(value, name, least)
    if seed is not None and generator is not None:
        raise ValueError("give either seed or generator, not both")
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
    side = round(size * 28 / 64)
    bank = _scaled_digits(split, side)
    which = torch.randint(len(bank), (n, digits), generator=generator)
    path = bounce(n, frames, digits, stochastic=stochastic, generator=generator)
    corners = (path * (size - side)).long()  # rounded down to whole pixels, as in the canonical set
    return render(bank[which].to(device), corners, size)


CANONICAL_URL = "http://www.cs.toronto.edu/~nitish/unsupervised_video/mnist_test_seq.npy"
CANONICAL_MD5 = "be083ec986bfe91a449d63653c411eb2"


def _cache_folder() -> Path:
    """Where downloaded data lies: $STT_LITE_CACHE, or the user's cache folder."""
    import pooch

    folder = Path(os.environ.get("STT_LITE_CACHE") or pooch.os_cache("stt_lite"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _download(url: str, name: str, md5: str) -> Path:
    """Fetch a file into the cache, its hash checked; a later call finds it there. Raises ConnectionError."""
    import pooch

    try:
        return Path(pooch.retrieve(url, known_hash=f"md5:{md5}", fname=name, path=_cache_folder(), progressbar=True))
    except OSError as error:  # requests' errors are OSErrors
        raise ConnectionError(f"could not download {name} from {url}: {type(error).__name__}") from error


def canonical_test_set(n: int = 10_000, *, fallback: bool = True) -> tuple[Float[Tensor, "n 20 1 64 64"], str]:
    """The test set that published tables use: 10,000 clips of two digits, 64x64, 20 frames.

    Downloaded once (820 MB, md5 checked). Offline the sampler stands in, with held-out digits and seed 0; the second
    return value says which of the two it is, so that a table can name its source.

    Args:
        n: number of clips, 1 to 10,000: the first n.
        fallback: False raises instead of falling back to the sampler.

    Returns:
        The clips, values in [0, 1], and "canonical" or "sampler".

    Raises:
        ValueError: n out of range, or a download whose hash is wrong.
        ConnectionError: no way to download the set, and fallback is False.
    """
    n = check_whole(n, "n", most=10_000)
    try:
        path = _download(CANONICAL_URL, "mnist_test_seq.npy", CANONICAL_MD5)
    except ConnectionError as error:
        if not fallback:
            raise
        warnings.warn(f"{error}. Using {n} clips of stt_lite's own sampler with held-out digits instead.", stacklevel=2)
        return moving_mnist(n, 20, 64, 2, split="test", seed=0), "sampler"
    clips = np.load(path, mmap_mode="r")[:, :n]  # (T n H W) bytes
    return torch.from_numpy(clips.transpose(1, 0, 2, 3).copy())[:, :, None].float() / 255, "canonical"
