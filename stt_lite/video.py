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
    "check_rate",
    "check_whole",
    "load_video",
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


def check_frames(
    frames: Tensor, name="frames", dims="T C H W", channels=None, multiple=1
) -> None:
    """Raise TypeError or ValueError unless `frames` is what it should be.

    That is a floating-point tensor of shape `dims`, no side 0, with values in [0, 1], 1
    or 3 channels (or `channels`), and height and width divisible by `multiple`.
    """
    if not isinstance(frames, Tensor) or not frames.is_floating_point():
        got = frames.dtype if isinstance(frames, Tensor) else type(frames).__name__
        raise TypeError(f"{name} must be a floating-point torch.Tensor, got {got}")
    shape, letters = tuple(frames.shape), dims.split()
    if len(shape) != len(letters) or 0 in shape:
        raise ValueError(f"{name} must have shape ({dims}), none of it 0, got {shape}")
    size = dict(zip(letters, shape))
    if size["C"] not in ((1, 3) if channels is None else (channels,)):
        wanted = channels or "1 or 3"
        raise ValueError(f"{name} must have {wanted} channels in ({dims}), got {shape}")
    if size["H"] % multiple or size["W"] % multiple:
        raise ValueError(
            f"{name} must have H and W divisible by {multiple}, got {shape}"
        )
    low, high = (value.item() for value in frames.detach().aminmax())
    if not (low >= 0.0 and high <= 1.0):  # written so that NaN fails too
        got = f"values from {low:.4g} to {high:.4g}"
        raise ValueError(f"{name} must have values in [0, 1], got {got}")


def check_whole(value, name: str, least: int = 1, most: float = math.inf) -> int:
    """A whole number in [least, most] as Python's own, which JSON can hold.

    ValueError for anything else, True and 3.0 included; numpy's numbers are welcome.
    """
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or not least <= value <= most:
        wanted = f"of at least {least}" if most == math.inf else f"in [{least}, {most}]"
        raise ValueError(f"{name} must be a whole number {wanted}, got {value!r}")
    return int(value)


def check_rate(fps: float | None) -> float | None:
    """Frames per second as Python's own number, or None; ValueError unless above 0."""
    if fps is None:
        return None
    if not isinstance(fps, numbers.Real) or not 0 < fps < math.inf:
        raise ValueError(f"fps must be a number above 0, or None, got {fps!r}")
    return float(fps)


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

    Returns the clip, values in [0, 1]. Raises FileNotFoundError, and ValueError for a
    number out of range or what `read_frames` can't read.
    """
    for name, value in (("frames", frames), ("size", size), ("last", last)):
        if value is not None:
            check_whole(value, name)
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
    if not 0.01 <= fps <= most:
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
