# Made from notebooks/15_your_own_video.ipynb by "make extract".
"""Clips of your own videos: prepared once, drawn a thousand times. Chapter 15."""

import hashlib
import json
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from stt_lite.files import read_record, write_file
from stt_lite.moving_mnist import Batch
from stt_lite.prepare import array_name, find_sources, read_all, split_sources
from stt_lite.video import (
    check_number,
    check_rate,
    check_type,
    check_whole,
    new_generator,
)

__all__ = ["ClipFolder", "prepare_clips"]


def clear_up(folder: Path, kept: set[Path]) -> None:
    """Remove arrays of before, and what a killed run left an hour ago or earlier."""
    for path in folder.iterdir():
        with suppress(OSError):  # another run's
            if re.fullmatch(r"\w+-[0-9a-f]{16}\.(bytes|npy)", path.name):
                if path not in kept:
                    path.unlink()
            elif path.name.startswith(".part-"):
                times = [p.stat().st_mtime for p in (path, *path.iterdir())]
                if max(times) < time.time() - 3600:
                    shutil.rmtree(path)


def prepare_clips(
    source: str | os.PathLike,
    out: str | os.PathLike,
    size: int = 64,
    fps: float | None = 10.0,
    frames: int = 20,
    gray: bool = False,
    test_share: float = 0.1,
    seed: int = 0,
    group: Callable[[str], str] = str,
) -> "ClipFolder":
    """Turn videos into arrays of small frames, which a `ClipFolder` draws clips from.

    Called again it keeps what is done, also after it was killed, and redoes sources
    whose size, time of change or options changed; `out` holds one preparation.

    Args:
        source: a video, or a folder with videos and folders of images, however deep.
        out: folder for an array per source, bytes (T H W C), and index.json.
        size: the centre square of each frame becomes size x size pixels.
        fps: at each moment k / fps the latest frame is taken; None: each frame once.
            Images have no clock: each is a frame.
        frames: of a window, what training sees at once.
        gray: one channel (luma) instead of RGB.
        test_share: share of the groups held out, in [0, 1); of a single source its
            last frames, after a gap of one window.
        seed: which sources are held out.
        group: from a source's name, its path below `source`, to the name of what must
            stay on one side of the split.

    Returns:
        The clips; printed, a summary. A warning names each source that is skipped.

    Raises:
        FileNotFoundError, TypeError: nothing at `source`, or what is no path.
        ValueError: nothing that can be used, too few frames to split, a bad option.
        OSError: a folder that cannot be written, a full disk.
    """
    size, frames = check_whole(size, "size"), check_whole(frames, "frames")
    check_type(gray, bool, "gray")
    options = size, (channels := 1 if gray else 3), (fps := check_rate(fps))
    if check_number(test_share, "test_share", most=1) == 1:
        raise ValueError(f"test_share must be in [0, 1), got {test_share}")
    out = Path(out).expanduser()
    sources, ignored = find_sources(Path(source).expanduser(), out)
    names = {name: array_name(name, at, options) for name, at in sources.items()}
    files = {name: out / "clips" / file for name, file in names.items()}
    lengths, skipped = read_all(sources, files, options, frames)
    if not lengths:
        reasons = "; ".join(f"{name} {reason}" for name, reason in skipped.items())
        raise ValueError(f"no source can be used: {reasons}")
    index = dict(size=size, channels=channels, fps=fps, frames=frames)
    for split, parts in split_sources(lengths, frames, test_share, seed, group).items():
        index[split] = [(name, names[name], *part) for name, *part in parts]
    index |= {"skipped": skipped, "ignored": ignored}
    write_file(out / "index.json", (json.dumps(index, indent=1) + "\n").encode())
    clear_up(out / "clips", set(files.values()))
    for name, reason in skipped.items():
        warnings.warn(f"skipped: {name} {reason}", stacklevel=2)
    return ClipFolder(out)


class ClipFolder:
    """Clips from a folder that `prepare_clips` wrote: a source (see `Source`).

    The arrays stay on the disk; a batch reads its own frames only.

    Args:
        path: that folder.

    Attributes:
        size, channels, frames, fps: of the clips; `frames` is the length of a window.
        train, test: at which frames windows start, in each source.
        skipped: why a source is not used.
        ignored: how many other files there are of each suffix.

    Raises:
        FileNotFoundError: no index.json there, or an array is missing or cut.
        TypeError: what is no path.
        ValueError: an index.json that `prepare_clips` of this version did not write.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path).expanduser()
        self.index = read_record(self.path / "index.json")
        if not self.index:
            wanted = "path must hold index.json, which prepare_clips writes"
            raise FileNotFoundError(f"{wanted}; there is none in {self.path}")
        try:
            for name in ("size", "channels", "frames", "fps", "skipped", "ignored"):
                setattr(self, name, self.index[name])
            self.train, self.test = {}, {}
            for split, stride in (("train", 1), ("test", self.frames)):  # no overlap
                for source, _, first, stop in self.index[split]:
                    starts = range(first, stop - self.frames + 1, stride)
                    getattr(self, split)[source] = starts
            parts = self.index["train"] + self.index["test"]
            lost = [part[0] for part in parts if not self.holds(*part)]
        except (KeyError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(f"{self.path} must be prepared again: {reason}") from error
        if lost:
            missing = f"the array of {lost[0]} is missing or cut"
            raise FileNotFoundError(f"{missing} in {self.path}: prepare again")

    def array(self, name: str) -> UInt8[np.ndarray, "T H W C"]:
        """The frames of an array, by its name in the index; they stay on the disk."""
        path = self.path / "clips" / Path(name).name
        shape = -1, self.size, self.size, self.channels
        return np.memmap(path, np.uint8, "r").reshape(shape)

    def holds(self, source: str, array: str, first: int, stop: int) -> bool:
        """Whether the frames of an entry of the index are there."""
        with suppress(OSError, ValueError):
            return 0 <= first < stop <= len(self.array(array))
        return False

    @property
    def data(self) -> dict:
        """What a run's record says of these clips; another hash means other clips."""
        names = ("train", "size", "fps", "frames")
        train = json.dumps([self.index[name] for name in names])
        return {
            "content": "own video",
            **{
                name: self.index[name] for name in ("size", "channels", "frames", "fps")
            },
            "sources": len(self.train),
            "clips_sha256": hashlib.sha256(train.encode()).hexdigest(),
        }

    def windows(self, split: str = "train") -> int:
        """Number of windows in "train" or "test"."""
        return sum(map(len, getattr(self, split).values()))

    def length(self, frames: int | None) -> int:
        """Frames of a clip, by default as many as a window has; ValueError for more."""
        frames = self.frames if frames is None else frames
        return check_whole(frames, "frames", most=self.frames)

    def __repr__(self) -> str:
        parts = self.index["train"] + self.index["test"]
        sources = len(self.train | self.test)
        total = sum(stop - first for *_, first, stop in parts)
        kind = f"{self.size}x{self.size} pixels, {('grey', 'RGB')[self.channels > 1]}"
        lines = [f"{sources} sources, {total:,} frames of {kind}"]
        for split, found in (("train", self.train), ("test", self.test)):
            windows = f"{self.windows(split):,} windows of {self.frames} frames"
            lines.append(f"{split}: {windows} from {len(found)} sources")
        if self.skipped:
            lines.append(f"skipped: {len(self.skipped)}")
        lines += [f"  {name} {reason}" for name, reason in self.skipped.items()]
        if self.ignored:
            kinds = [f"{n} {kind or 'others'}" for kind, n in self.ignored.items()]
            lines.append(f"neither video nor series of images: {', '.join(kinds)}")
        return "\n".join(lines)

    def draw(self, n, frames=None, generator=None, device="cpu") -> Batch:
        """Clips to train on, all windows equally likely.

        A clip shorter than a window comes from a random place in it.
        """
        check_whole(n, "n")
        frames = self.length(frames)
        chosen = torch.randint(self.windows(), (n,), generator=generator)
        inside = torch.randint(self.frames - frames + 1, (n,), generator=generator)
        return Batch(self.read("train", chosen, inside, frames, device))

    def held_out(
        self, n, frames=None, seed=0, device="cpu"
    ) -> Float[Tensor, "n T C H W"]:
        """Held-out windows that do not overlap, their first so many frames.

        Where nothing is held out, a warning, and windows that are trained on.
        """
        frames = self.length(frames)
        split = "test" if self.test else "train"
        if split == "train":
            warnings.warn("nothing is held out: clips of training", stacklevel=2)
        check_whole(n, "n", most=self.windows(split))
        generator = new_generator(seed)
        chosen = torch.randperm(self.windows(split), generator=generator)[:n]
        return self.read(split, chosen, torch.zeros_like(chosen), frames, device)

    def read(self, split: str, chosen: Tensor, inside: Tensor, frames: int, device):
        """Clips (n T C H W) from the numbers of their windows and places inside."""
        parts = list(zip(self.index[split], getattr(self, split).values()))
        ends = np.cumsum([len(starts) for _, starts in parts])
        shape = len(chosen), frames, self.size, self.size, self.channels
        batch = np.empty(shape, np.uint8)
        for clip, number, offset in zip(batch, chosen.tolist(), inside.tolist()):
            owner = np.searchsorted(ends, number, side="right")
            (_, array, *_), starts = parts[owner]
            start = starts[number - ends[owner]] + offset  # counted from the end
            clip[:] = self.array(array)[start : start + frames]
        clips = torch.from_numpy(batch).to(device)  # they travel as bytes
        return clips.permute(0, 1, 4, 2, 3).float().div(255).contiguous()
