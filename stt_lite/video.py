# Made from notebooks/01_video.ipynb by "make extract".
"""Video as tensors: check, load and save clips. Built in chapter 01."""

import contextlib
import itertools
import math
import numbers
import os
import re
from collections import deque
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from stt_lite.media import WRITERS, read_frames, replacing, write_frames

__all__ = [
    "bouncing_square",
    "check_frames",
    "check_number",
    "check_pair",
    "check_rate",
    "check_shape",
    "check_tensor",
    "check_type",
    "check_whole",
    "check_wholes",
    "full_precision",
    "load_video",
    "new_generator",
    "save_video",
]


def bouncing_square(
    frames: int = 20, size: int = 64, side: int = 16
) -> Float[Tensor, "T 1 H W"]:
    """A white square of `side` pixels that bounces off the borders; values 0 or 1."""
    check_whole(frames, "frames")
    check_whole(size, "size", least=2)
    check_whole(side, "side", most=size - 1)
    reach = size - side  # the square's corner moves in [0, reach]
    t = torch.arange(frames)
    corner = torch.stack([5 * t + 4, 7 * t + 11], dim=1) % (2 * reach)
    corner = reach - (corner - reach).abs()  # (T 2): folded at the borders
    pixel = torch.arange(size)
    inside = (pixel >= corner[..., None]) & (pixel < corner[..., None] + side)
    return (inside[:, 0, :, None] & inside[:, 1, None, :])[:, None].float()


def check_shape(x, name: str, dims: str, whole: bool = False, **sizes) -> tuple:
    """The shape; TypeError or ValueError unless `x` is what it should be.

    That is a floating-point tensor (`whole`: of whole numbers) of shape `dims`, such as
    "B T C H W" or "... C H W", with these `sizes`, no side 0.
    """
    if torch.compiler.is_compiling():  # or exporting: a graph can't refuse
        return tuple(x.shape)
    wanted = "whole-number" if whole else "floating-point"
    good = isinstance(x, Tensor) and x.is_floating_point() != whole
    if not good or x.is_complex() or x.dtype == torch.bool:
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{name} must be a {wanted} torch.Tensor, got {got}")
    shape, letters = tuple(x.shape), dims.split()
    if letters[0] == "...":
        letters[:1] = ["..."] * (len(shape) - len(letters) + 1)
    found = dict(zip(letters, shape))
    if len(letters) != len(shape) or 0 in shape or found | sizes != found:
        known = "".join(f", {letter} = {n}" for letter, n in sizes.items())
        wanted = f"({dims}){known}, none of it 0"
        raise ValueError(f"{name} must have shape {wanted}, got {shape}")
    return shape


def check_tensor(
    x, name: str, dims: str, low=-math.inf, high=math.inf, whole=False, **sizes
) -> None:
    """Like `check_shape`; and all values must be finite and lie in [low, high]."""
    check_shape(x, name, dims, whole, **sizes)
    if torch.compiler.is_compiling():
        return
    x = x.detach() if whole else x.detach().float()
    least, most = torch.stack(x.aminmax()).tolist()
    if not (low <= least and most <= high and math.isfinite(most - least)):
        limits = f"values in [{low:g}, {high:g}]"
        wanted = limits if high < math.inf else "finite values"
        got = f"values from {least:.4g} to {most:.4g}"
        raise ValueError(f"{name} must have {wanted}, got {got}")


def check_frames(
    frames: Tensor, name="frames", dims="T C H W", channels=None, multiple=1
) -> None:
    """Raise TypeError or ValueError unless `frames` is what it should be.

    That is a floating-point tensor of shape `dims`, no side 0, with values in [0, 1], 1
    or 3 channels (or `channels`), and height and width divisible by `multiple`.
    """
    check_tensor(frames, name, dims, 0, 1)
    shape = tuple(frames.shape)
    size = dict(zip(dims.split(), shape))
    if size["C"] not in ((1, 3) if channels is None else (channels,)):
        wanted = channels or "1 or 3"
        raise ValueError(f"{name} must have {wanted} channels in ({dims}), got {shape}")
    if size["H"] % multiple or size["W"] % multiple:
        raise ValueError(
            f"{name} must have H and W divisible by {multiple}, got {shape}"
        )


def check_wholes(values, name: str, least: int = 1, count: int | None = None) -> tuple:
    """Whole numbers (so many, or one at least) as Python's own; else a ValueError."""
    if not isinstance(values, tuple | list) or len(values) != (count or len(values)):
        wanted = f"{count or 'some'} whole numbers"
        raise ValueError(f"{name} must be a tuple of {wanted}, got {values!r}")
    return tuple(check_whole(value, name, least) for value in values)


def full_precision(x: Tensor) -> Tensor:
    """As float32, or float64 where it is that: what sums and distances are taken in."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def check_pair(video, truth, most: float = 1.0) -> tuple[Tensor, Tensor]:
    """Two videos to compare, in `full_precision`.

    TypeError or ValueError unless both are (... C H W) with values in [0, most], of one
    shape, on one device.
    """
    most, pair = check_number(most, "data_range"), {"video": video, "truth": truth}
    for name, x in pair.items():
        check_tensor(x, name, "... C H W", 0, most)
    got = [f"{tuple(x.shape)} on {x.device}" for x in pair.values()]
    if got[0] != got[1]:
        wanted = "one shape, (... C H W), on one device"
        raise ValueError(f"video and truth must have {wanted}, got {' and '.join(got)}")
    return full_precision(video), full_precision(truth)


MOST = 2**31  # nothing here counts further


def check_whole(value, name: str, least: int = 1, most: int = MOST) -> int:
    """A whole number in [least, most] as Python's own, which JSON can hold.

    ValueError for anything else, True and 3.0 included; numpy's numbers are welcome.
    """
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or not least <= value <= most:
        wanted = f"of at least {least}" if most == MOST else f"in [{least}, {most}]"
        raise ValueError(f"{name} must be a whole number {wanted}, got {value!r}")
    return int(value)


def check_number(value, name: str, least: float = 0.0, most: float = MOST) -> float:
    """A number in [least, most] as Python's own; ValueError for anything else."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real or not least <= value <= most:  # NaN fails too
        wanted = (
            f"of at least {least:g}" if most == MOST else f"in [{least:g}, {most:g}]"
        )
        raise ValueError(f"{name} must be a number {wanted}, got {value!r}")
    return float(value)


def check_rate(fps: float | None) -> float | None:
    """Frames per second as Python's own number, or None; ValueError unless above 0."""
    if fps is not None and (not isinstance(fps, numbers.Real) or not 0 < fps <= MOST):
        raise ValueError(f"fps must be a number above 0, or None, got {fps!r}")
    return None if fps is None else float(fps)


def check_type(value, kind: type, name: str) -> None:
    """TypeError unless a value is of this class, or answers to this protocol."""
    if not isinstance(value, kind):
        got = type(value).__name__
        raise TypeError(f"{name} must be of type {kind.__name__}, got {got}")


def new_generator(seed: int) -> torch.Generator:
    """A generator on the CPU; ValueError for a seed that has not at most 64 bits."""
    return torch.Generator().manual_seed(check_whole(seed, "seed", -(2**63), 2**64 - 1))


MOST_VALUES = 2**30  # of a clip in memory: 4 GiB


def _stack(path, frames, last, *options) -> Float[Tensor, "T C H W"]:
    """The first so many frames of a video, or the last."""
    clip = deque(maxlen=last)
    with contextlib.closing(read_frames(path, *options)) as stream:
        for frame in itertools.islice(stream, frames):
            clip.append(frame)
            if len(clip) * frame.size > MOST_VALUES:
                wanted = "give fewer frames or a smaller size"
                raise ValueError(f"{path} is too long: {wanted}")
    pixels = torch.from_numpy(np.stack(clip)).movedim(-1, 1).contiguous()
    return pixels.float().div_(255)


def load_video(
    path: str | os.PathLike,
    frames: int | None = None,
    size: int | None = None,
    gray: bool = False,
    fps: float | None = None,
    last: int | None = None,
) -> Float[Tensor, "T C H W"]:
    """Read a video (mp4, gif and whatever else ffmpeg knows) or a folder of images.

    Args:
        path: the file or folder; images come in the order of their numbers.
        frames: read at most this many frames; None reads all.
        size: the centre square becomes size x size pixels; None leaves frames as shown.
        gray: one channel (luma) instead of RGB.
        fps: at each moment k / fps the latest frame; None: every frame once.
        last: only the last so many frames; a long video is read from near its end.

    Returns the clip, values in [0, 1]. Raises FileNotFoundError, TypeError for what is
    no path, ValueError for a number out of range or what `read_frames` can't read.
    """
    for name, value in (("frames", frames), ("size", size), ("last", last)):
        if value is not None:
            check_whole(value, name)
    check_type(gray, bool, "gray")
    if frames and last:
        raise ValueError(f"last must be None where frames is given, got {last}")
    options = size, 1 if gray else 3, check_rate(fps)
    if last:
        with contextlib.suppress(ValueError):  # some files are read from their start
            clip = _stack(path, None, last, *options, last)
            if len(clip) == last:
                return clip
    return _stack(path, frames, last, *options)


def to_bytes(clip: Float[Tensor, "T C H W"]) -> UInt8[np.ndarray, "T H W *rgb"]:
    """Frames as bytes, channels last: (T H W 3) for RGB, (T H W) for grey."""
    pixels = clip.detach().cpu().float().mul(255).round().byte().permute(0, 2, 3, 1)
    return (pixels[..., 0] if pixels.shape[-1] == 1 else pixels).numpy()


def save_video(
    path: str | os.PathLike, clip: Tensor, fps: float = 8.0, scale: int = 1
) -> Path:
    """Write a clip as .gif, .mp4 or, where `path` has no suffix, as a folder of .png.

    The old one is replaced when the new one is whole; a failed write leaves it.

    Args:
        path: where to write; missing folders are made.
        clip: (T C H W), values in [0, 1], 1 or 3 channels.
        fps: frames per second, at least 0.01; at most 50 in a GIF, whose frames last
            whole hundredths of a second, some longer than others if need be.
        scale: each pixel becomes scale x scale pixels.

    Raises:
        TypeError, ValueError: a bad clip, fps, scale or suffix; a folder of more.
        OSError: a path that cannot be written.
    """
    check_frames(clip, "clip")
    check_whole(scale, "scale")
    path = Path(path).expanduser()
    kind = path.suffix.lower()
    if kind not in (*WRITERS, ""):
        wanted = f"{', '.join(WRITERS)} or no suffix (images)"
        raise ValueError(f"path must end in {wanted}, got {path}")
    most = WRITERS[kind][0] if kind else 1000
    if not isinstance(fps, numbers.Real) or not 0.01 <= fps <= most:
        raise ValueError(f"fps must be in [0.01, {most}] for {path.name}, got {fps}")
    others = [p.name for p in path.iterdir()] if not kind and path.is_dir() else []
    if others := [n for n in others if not re.fullmatch(r"frame_\d+\.png", n)]:
        raise ValueError(f"path must hold frames only, holds {others[0]}: {path}")
    pixels = to_bytes(clip).repeat(scale, axis=1).repeat(scale, axis=2)
    with replacing(path) as new:
        if kind:
            write_frames(new, pixels, fps)
        else:
            new.mkdir()
            for t, frame in enumerate(pixels):
                Image.fromarray(frame).save(new / f"frame_{t:05d}.png")
    return path
