# Made from notebooks/02_moving_mnist.ipynb by "make extract".
"""Moving MNIST: real handwritten digits that bounce in a frame. Built in chapter 02."""

import functools
import hashlib
import importlib.resources
import math
import struct
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from stt_lite.files import cache_folder
from stt_lite.video import check_whole, new_generator

__all__ = [
    "STEP",
    "Batch",
    "MovingDigits",
    "Source",
    "bounce",
    "canonical_test_set",
    "mnist_digits",
    "moving_mnist",
    "render",
]

STEP = 0.1  # of its range a digit moves in a frame, as in Srivastava et al. (2015)


MNIST_MD5 = {  # of the authors' train-images-idx3-ubyte and t10k-images-idx3-ubyte
    "train": "6bbc9ace898e44ae57da46a324031adb",
    "test": "2646ac647ad5339dbf082846283269ea",
}


@functools.lru_cache
def mnist_digits(split: str = "train") -> UInt8[Tensor, "N 28 28"]:
    """MNIST's 60,000 "train" or 10,000 "test" digits (LeCun et al., 1998), in order.

    Shared between calls: do not write into them. ValueError: an unknown split, or a
    file that is not what the authors published.
    """
    if split not in MNIST_MD5:
        raise ValueError(f'split must be "train" or "test", got {split!r}')
    path = Path(str(importlib.resources.files("stt_lite"))) / "data" / "mnist.npz"
    with np.load(path) as arrays:
        digits = arrays[split]
    header = struct.pack(">4i", 0x803, *digits.shape)  # of the authors' file
    got, expected = hashlib.md5(header + digits.tobytes()).hexdigest(), MNIST_MD5[split]
    if got != expected:
        raise ValueError(
            f"{path} is damaged: {split} has md5 {got}, expected {expected}"
        )
    return torch.from_numpy(digits)


def bounce(
    n: int, frames: int, digits: int, *, stochastic: bool = False, generator=None
) -> Float[Tensor, "n T digits 2"]:
    """Paths, rows and columns in [0, 1], of points that bounce off the borders.

    A bounce mirrors the velocity (Srivastava et al., 2015, Section 4.1.2), or draws a
    new direction that leads back inside (`stochastic`; after Denton & Fergus, 2018).
    Each step is `STEP` long, unless a border cuts it. `generator` is on the CPU; None
    takes torch's global one.
    """
    position = torch.rand(n, digits, 2, generator=generator)
    draws = frames if stochastic else 1
    angles = 2 * math.pi * torch.rand(draws, n, digits, generator=generator)
    direction = torch.stack([angles.sin(), angles.cos()], dim=-1)  # (draws n digits 2)
    velocity = STEP * direction[0]
    path = [position]
    for t in range(1, frames):
        position = position + velocity
        below, above = position <= 0, position >= 1
        position = position.clamp(0, 1)
        if stochastic:  # both components are drawn anew, and then turned inside
            touches = (below | above).any(-1, keepdim=True)
            velocity = torch.where(touches, STEP * direction[t], velocity)
        inside = torch.where(below, velocity.abs(), -velocity.abs())
        velocity = torch.where(below | above, inside, velocity)
        path.append(position)
    return torch.stack(path, dim=1)


def render(
    pictures: UInt8[Tensor, "n digits d d"],
    corners: Int[Tensor, "n T digits 2"],
    size: int,
) -> Float[Tensor, "n T 1 size size"]:
    """Frames in [0, 1] of `size` pixels, read as windows out of padded digits.

    `corners` are rows and columns, in [0, size - d], of the digits' upper left pixels.
    Where two digits overlap the brighter pixel wins. Runs where the pictures lie.
    """
    (n, T, digits), device = corners.shape[:3], pictures.device
    reach = size - pictures.shape[-1]
    video = torch.empty(n, T, 1, size, size, device=device)
    chunk = 8 if device.type == "cpu" else 1024  # 8 clips fit into a CPU core's cache
    for start in range(0, n, chunk):
        some = slice(start, start + chunk)
        padded = F.pad(pictures[some], (reach,) * 4)
        windows = padded.unfold(2, size, 1).unfold(3, size, 1)  # no pixel is copied
        row, column = (reach - corners[some].to(device)).unbind(-1)  # (chunk T digits)
        clip = torch.arange(len(row), device=device)[:, None]  # reads its own windows
        layers = [windows[clip, k, row[..., k], column[..., k]] for k in range(digits)]
        brightest = functools.reduce(torch.maximum, layers)
        torch.mul(brightest, 1 / 255, out=video[some, :, 0])
    return video


def _resized(pictures: UInt8[Tensor, "n digits 28 28"], side: int) -> Tensor:
    """Digits of `side` pixels, bytes."""
    if side == 28:
        return pictures
    mode = "area" if side < 28 else "bicubic"
    resized = F.interpolate(pictures.float(), size=(side, side), mode=mode)
    return resized.round().clamp(0, 255).to(torch.uint8)


def _check_numbers(frames: int, size: int, digits: int) -> None:
    check_whole(frames, "frames")
    check_whole(size, "size", least=16)
    check_whole(digits, "digits")


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
    """Clips of digits that move in straight lines and bounce off the frame's borders.

    Moving MNIST after Srivastava et al. (2015), drawn anew on every call. One seed
    gives the same clips everywhere: random numbers come from the CPU on any device.

    Args:
        n, frames, digits: numbers of clips B, of frames T, and of digits in a clip.
        size: height and width of a frame, at least 16 pixels; a digit has 28/64 of it.
        split: "train" or "test" digits; the two never share one.
        stochastic: bounce into a random direction (Denton & Fergus, 2018).
        seed: the same seed gives the same clips; None goes on with `generator`.
        generator: a CPU generator, not together with `seed`; None: torch's global one.
        device: where the frames are drawn.

    Returns clips in [0, 1], float32. ValueError: a number out of range, an unknown
    split, or both seed and generator. TypeError, RuntimeError: what is no generator, no
    device.
    """
    check_whole(n, "n")
    _check_numbers(frames, size, digits)
    if seed is not None:
        if generator is not None:
            raise ValueError("give either seed or generator, not both")
        generator = new_generator(seed)
    side = round(size * 28 / 64)
    bank = mnist_digits(split)
    which = torch.randint(len(bank), (n, digits), generator=generator)
    path = bounce(n, frames, digits, stochastic=stochastic, generator=generator)
    corners = (path * (size - side)).long()  # rounded down, as in the canonical set
    return render(_resized(bank[which], side).to(device), corners, size)


class Batch(NamedTuple):
    """What a source draws: clips in [0, 1] and, where a world has them, actions."""

    clips: Float[Tensor, "B T C H W"]
    actions: Int[Tensor, "B T"] | None = None


@runtime_checkable
class Source(Protocol):
    """Where clips come from; `data` says what they are, `actions` (if any) its keys."""

    size: int
    frames: int  # of a clip that is trained on
    channels: int
    data: dict

    def draw(
        self, n: int, frames: int, generator: torch.Generator | None, device="cpu"
    ) -> Batch:
        """Clips to train on; `generator` is on the CPU, the clips on `device`.

        ValueError: a number out of range. TypeError, RuntimeError: what is no
        generator, no device.
        """

    def held_out(
        self, n: int, frames: int, seed: int = 0, device="cpu"
    ) -> Float[Tensor, "n T C H W"]:
        """Clips that are never trained on, the same for the same seed.

        ValueError: a number out of range. TypeError, RuntimeError: no device.
        """


@dataclass(frozen=True)
class MovingDigits:
    """Moving MNIST as a source: one digit at 32x32, unless you say otherwise.

    Args:
        size: height and width of a frame in pixels.
        digits: how many move in a clip.
        frames: of a clip to train on.
        stochastic: a digit that bounces off draws a new direction.

    Raises:
        ValueError: a number out of range.
    """

    size: int = 32
    digits: int = 1
    frames: int = 20
    stochastic: bool = False
    channels: ClassVar[int] = 1

    def __post_init__(self):
        _check_numbers(self.frames, self.size, self.digits)

    @property
    def data(self) -> dict:
        return asdict(self)

    def draw(self, n, frames, generator=None, device="cpu") -> Batch:
        return Batch(self._clips(n, frames, generator=generator, device=device))

    def held_out(self, n, frames, seed=0, device="cpu") -> Float[Tensor, "n T 1 H W"]:
        return self._clips(n, frames, split="test", seed=seed, device=device)

    def _clips(self, n, frames, **options) -> Float[Tensor, "n T 1 H W"]:
        options["stochastic"] = self.stochastic
        return moving_mnist(n, frames, self.size, self.digits, **options)


CANONICAL_URL = (
    "http://www.cs.toronto.edu/~nitish/unsupervised_video/mnist_test_seq.npy"
)
CANONICAL_MD5 = "be083ec986bfe91a449d63653c411eb2"


def canonical_test_set(
    n: int = 10_000, *, fallback: bool = True
) -> tuple[Float[Tensor, "n 20 1 64 64"], str]:
    """The test set of published tables: 10,000 clips of two digits, 64x64, 20 frames.

    Downloaded once (820 MB, md5 checked) into $STT_LITE_CACHE or the user's cache.

    Returns the first n clips and their origin, "canonical", or "sampler" where there is
    no network and held-out clips of `moving_mnist` stand in; without `fallback` that is
    a ConnectionError. ValueError: n out of range, or a wrong hash.
    """
    import pooch

    n = check_whole(n, "n", most=10_000)
    known = {"known_hash": f"md5:{CANONICAL_MD5}", "fname": "mnist_test_seq.npy"}
    try:
        path = pooch.retrieve(
            CANONICAL_URL, path=cache_folder(), progressbar=True, **known
        )
    except OSError as error:  # requests' errors are OSErrors
        failed = f"could not download {CANONICAL_URL}: {type(error).__name__}"
        if not fallback:
            raise ConnectionError(failed) from error
        instead = (
            f"Using {n} clips of stt_lite's own sampler with held-out digits instead"
        )
        warnings.warn(f"{failed}. {instead}.", stacklevel=2)
        return moving_mnist(n, split="test", seed=0), "sampler"
    clips = np.load(path, mmap_mode="r")[:, :n].transpose(1, 0, 2, 3)  # (n T H W) bytes
    return torch.from_numpy(clips.copy())[:, :, None].float() / 255, "canonical"
