# Made from notebooks/15_your_own_video.ipynb by "make extract".
"""Clips of your own videos: prepared once, drawn a thousand times. Chapter 15."""

import hashlib
import json
import math
import os
import re
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from stt_lite.files import read_record, write_file
from stt_lite.moving_mnist import Batch
from stt_lite.prepare import array_files, find_sources, read_all, split_sources, usable
from stt_lite.video import check_whole

__all__ = ["ClipFolder", "Prepared", "prepare_clips"]


@dataclass
class Prepared:
    """What `prepare_clips` did.

    Args:
        index: what index.json holds.
        frames: of all sources.
        reused: how many arrays were there already.
        skipped: why a source is not used.
        ignored: how many other files there are of each suffix.
    """

    index: dict
    frames: int
    reused: int
    skipped: dict[str, str]
    ignored: dict[str, int]

    @property
    def train(self) -> dict[str, int]:
        """How many windows to train on come from which source."""
        return {part["source"]: part["windows"] for part in self.index["train"]}

    @property
    def test(self) -> dict[str, int]:
        """How many windows that are held out come from which source."""
        return {part["source"]: part["windows"] for part in self.index["test"]}

    def __repr__(self) -> str:
        size, T = self.index["size"], self.index["frames"]
        colours = "grey" if self.index["channels"] == 1 else "RGB"
        sources = len(self.train.keys() | self.test.keys())
        total = f"{self.frames:,} frames of {size}x{size} pixels, {colours}"
        lines = [f"{sources} sources, {total}"]
        for split, found in (("train", self.train), ("test", self.test)):
            windows = f"{sum(found.values()):,} windows of {T} frames"
            lines.append(f"{split}: {windows} from {len(found)} sources")
        lines.append(f"there already: {self.reused}, skipped: {len(self.skipped)}")
        lines += [f"  {name} {reason}" for name, reason in self.skipped.items()]
        if self.ignored:
            kinds = [f"{n} {kind or 'others'}" for kind, n in self.ignored.items()]
            lines.append(f"neither video nor series of images: {', '.join(kinds)}")
        return "\n".join(lines)


def write_index(out: Path, index: dict, splits: dict, files: dict[str, Path]) -> dict:
    """Write which windows there are; remove arrays of before. Returns the index."""
    for split, parts in splits.items():
        stride = 1 if split == "train" else index["frames"]  # held out: no overlap
        index[split] = [
            {
                "source": name,
                "array": files[name].name,
                "first": first,
                "stride": stride,
                "windows": (stop - first - index["frames"]) // stride + 1,
            }
            for name, first, stop in parts
        ]
    if read_record(out / "index.json") != index:
        write_file(out / "index.json", (json.dumps(index, indent=1) + "\n").encode())
    for path in (out / "clips").iterdir():
        ours = re.fullmatch(r"\w+-[0-9a-f]{16}(\.npy|-\d+\.part)", path.name)
        if not ours or path in files.values():
            continue
        with suppress(FileNotFoundError):  # another run's, which may be writing now
            if path.suffix == ".npy" or time.time() - path.stat().st_mtime > 60:
                path.unlink()
    return index


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
) -> Prepared:
    """Turn videos into arrays of small frames that a `ClipFolder` draws clips from.

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
        test_share: share of the sources held out, in [0, 1); of a single source its
            last frames, after a gap of one window.
        seed: which sources are held out.
        group: from a source's name, its path below `source`, to the name of what must
            stay on one side of the split.

    Returns:
        A summary. A warning names each source that is skipped.

    Raises:
        FileNotFoundError: nothing at `source`.
        ValueError: nothing that can be used, too few frames to split, a bad option.
        OSError: a folder that cannot be written, a full disk.
    """
    size, frames = check_whole(size, "size"), check_whole(frames, "frames")
    fps = fps if fps is None else float(fps)
    if fps is not None and not 0 < fps < math.inf:
        raise ValueError(f"fps must be above 0, or None, got {fps}")
    if not 0 <= test_share < 1:
        raise ValueError(f"test_share must be in [0, 1), got {test_share}")
    out, options = Path(out).expanduser(), (size, 1 if gray else 3, fps)
    sources, ignored = find_sources(Path(source).expanduser(), out)
    files = array_files(sources, out / "clips", options)
    reused = sum(file.exists() for file in files.values())
    skipped = read_all(sources, files, options)
    lengths = usable(files, frames, skipped)
    splits = split_sources(lengths, frames, test_share, seed, group)
    index = dict(size=size, channels=options[1], fps=fps, frames=frames)
    index = write_index(out, index, splits, files)
    for name, reason in skipped.items():
        warnings.warn(f"skipped: {name} {reason}", stacklevel=2)
    return Prepared(index, sum(lengths.values()), reused, skipped, dict(ignored))


class ClipFolder:
    """Clips from a folder that `prepare_clips` wrote: a source (see `Source`).

    The arrays stay on the disk; a batch reads its own frames only.

    Args:
        path: that folder.

    Attributes:
        size, channels, frames, fps: of the clips; `frames` is the length of a window.

    Raises:
        FileNotFoundError: no index.json there, or an array that it names is missing.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path).expanduser()
        self.index = read_record(self.path / "index.json")
        names = "size", "channels", "frames", "fps"
        if not self.index.keys() >= {*names, "train", "test"}:
            raise FileNotFoundError(
                "path must hold index.json, which prepare_clips writes; there is none "
                f"in {self.path}"
            )
        self.size, self.channels, self.frames, self.fps = map(self.index.get, names)
        for part in self.index["train"] + self.index["test"]:
            if not (self.path / "clips" / part["array"]).is_file():
                missing = f"{part['array']} of {part['source']} is missing"
                raise FileNotFoundError(f"{missing} in {self.path}: prepare again")

    @property
    def data(self) -> dict:
        """What a run's record says of these clips; another hash means other clips."""
        train = json.dumps(
            [self.index[key] for key in ("train", "size", "fps", "frames")]
        )
        return {
            "content": "own video",
            "size": self.size,
            "channels": self.channels,
            "frames": self.frames,
            "fps": self.fps,
            "sources": len(self.index["train"]),
            "clips_sha256": hashlib.sha256(train.encode()).hexdigest(),
        }

    def __repr__(self) -> str:
        train, test = (f"{self.windows(split):,}" for split in ("train", "test"))
        shape = (
            f"{self.frames} frames, {self.channels} channels, {self.size}x{self.size}"
        )
        return f"ClipFolder({train} windows to train on, {test} held out: {shape})"

    def windows(self, split: str = "train") -> int:
        """Number of windows in "train" or "test"."""
        return sum(part["windows"] for part in self.index[split])

    def length(self, n: int, frames: int | None) -> int:
        """Frames of n clips; ValueError where one of the numbers is out of range."""
        check_whole(n, "n")
        frames = self.frames if frames is None else frames
        return check_whole(frames, "frames", most=self.frames)

    def draw(self, n, frames=None, generator=None, device="cpu") -> Batch:
        """Clips to train on, all windows equally likely.

        A clip shorter than a window comes from a random place in it.
        """
        frames = self.length(n, frames)
        chosen = torch.randint(self.windows(), (n,), generator=generator)
        inside = torch.randint(self.frames - frames + 1, (n,), generator=generator)
        return Batch(self.read("train", chosen, inside, frames, device))

    def held_out(
        self, n, frames=None, seed=0, device="cpu"
    ) -> Float[Tensor, "n T C H W"]:
        """Held-out windows that do not overlap, their first so many frames.

        Where nothing is held out, a warning, and windows that are trained on.
        """
        frames = self.length(n, frames)
        split = "test" if self.index["test"] else "train"
        if split == "train":
            warnings.warn("nothing is held out: clips of training", stacklevel=2)
        check_whole(n, "n", most=self.windows(split))
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(self.windows(split), generator=generator)[:n]
        return self.read(split, chosen, torch.zeros_like(chosen), frames, device)

    def read(self, split: str, chosen: Tensor, inside: Tensor, frames: int, device):
        """Clips (n T C H W) from the numbers of their windows and places inside."""
        parts, shape = self.index[split], (self.size, self.size, self.channels)
        batch = np.empty((len(chosen), frames, *shape), np.uint8)
        ends = np.cumsum([part["windows"] for part in parts])
        for clip, number, offset in zip(batch, chosen.tolist(), inside.tolist()):
            owner = np.searchsorted(ends, number, side="right")
            part = parts[owner]
            window = number - ends[owner] + part["windows"]
            start = part["first"] + window * part["stride"] + offset
            array = np.load(self.path / "clips" / part["array"], mmap_mode="r")
            clip[:] = array[start : start + frames]
        clips = torch.from_numpy(batch).to(device)  # they travel as bytes
        return clips.permute(0, 1, 4, 2, 3).float().div(255).contiguous()
