# Made from notebooks/15_your_own_video.ipynb by "make extract".
"""From files to arrays of small frames, and which are held out. Built in chapter 15."""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from pathlib import Path

from tqdm import tqdm

from stt_lite.media import image_frames, numbered_images, read_frames, replacing

__all__ = ["array_name", "find_sources", "read_all", "split_sources", "write_array"]


VIDEOS = (
    ".3gp .apng .asf .avi .dv .f4v .flv .gif .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts "
    ".mxf .ogv .ts .vob .webm .wmv"
)
NO_FOLDERS = ("$RECYCLE.BIN", "@eaDir", "__MACOSX")  # trash, thumbnails, a Mac's notes


def is_video(path: Path) -> bool:
    """Whether a file is a video, by its name; one without a suffix is tried."""
    suffix = path.suffix.lower()
    if suffix in (".png", ".webp"):
        return image_frames(path) > 1
    if suffix == "" and image_frames(path) != 1:
        with suppress(ValueError), closing(read_frames(path, size=1)) as frames:
            return next(frames) is not None
    return suffix in VIDEOS.split()


def find_sources(source: Path, out: Path) -> tuple[dict[str, Path], Counter]:
    """What can be clips, by name: videos, and folders of images that hold no video.

    Args:
        source: a file, or a folder that is searched all the way down, linked files and
            folders too, each once; but not `out`, nor what is hidden.

    Returns:
        The sources; and of the other files, how many there are of each suffix.

    Raises:
        FileNotFoundError: nothing at this path.
        ValueError: a folder without any video or series of images.
    """
    if source.is_file():
        return {source.name: source}, Counter()
    if not source.is_dir():
        raise FileNotFoundError(f"source must be a video or a folder, got {source}")
    found, ignored = {}, Counter()
    seen = {os.path.realpath(path) for path in (out, source)}

    def new(folder: str, names: list[str]) -> list[Path]:
        """What is not hidden, and was not seen before under whatever name."""
        paths = []
        for path in (Path(folder, name) for name in sorted(names)):
            hidden = path.name[0] == "." or path.name in NO_FOLDERS
            if not hidden and (real := os.path.realpath(path)) not in seen:
                seen.add(real)
                paths.append(path)
        return paths

    def unreadable(error: OSError) -> None:
        ignored["unreadable folders"] += 1

    for folder, below, names in os.walk(source, onerror=unreadable, followlinks=True):
        below[:] = [path.name for path in new(folder, below)]
        files, images = new(folder, names), numbered_images(Path(folder))
        videos = [path for path in files if path.is_file() and is_video(path)]
        series = len(images) > 1 and not videos
        for path in [Path(folder)] if series else videos:
            name = path.relative_to(source).as_posix()
            found[source.resolve().name if path == source else name] = path
        others = set(files) - set(images if series else videos)
        ignored.update(path.suffix.lower() for path in others)
    if not found:
        wanted = f"videos ({VIDEOS}) or folders of at least two images"
        raise ValueError(f"source must hold {wanted}; there are none in {source}")
    return dict(sorted(found.items())), ignored


def write_array(path: Path, frames: Iterable) -> None:
    """Write the bytes of frames (H W C), however many, as one file, in one step."""
    with replacing(path) as new, open(new, "wb") as file:
        for frame in frames:
            file.write(frame.tobytes())


def split_sources(
    lengths: dict[str, int],
    frames: int,
    test_share: float,
    seed: int,
    group: Callable[[str], str],
) -> dict[str, list[tuple[str, int, int]]]:
    """What is for "train" and what for "test": a source, its first frame, and the end.

    Arguments as in `prepare_clips`; `lengths` are in frames.
    """

    def at_random(name: str) -> bytes:
        return hashlib.sha256(f"{seed} {name}".encode()).digest()

    groups = sorted({group(name) for name in lengths}, key=at_random)
    most = max(1, round(test_share * len(groups))) if test_share else 0
    held = groups[: min(len(groups) - 1, most)]
    parts = {"train": [], "test": []}
    for name, length in lengths.items():
        parts["test" if group(name) in held else "train"].append((name, 0, length))
    if held or test_share == 0:
        return parts
    if len(lengths) > 1:
        only = f"{groups[0]!r} for all {len(lengths)} sources"
        raise ValueError(f"group must tell at least two groups apart, got {only}")
    [(name, _, length)] = parts["train"]
    first = length - max(frames, round(test_share * length))
    if first < 2 * frames:
        raise ValueError(
            f"{name} has {length} frames: too few to train on and, after a gap, to "
            f"test on windows of {frames}; take shorter windows, a higher fps, a "
            "second file, or test_share=0"
        )
    return {"train": [(name, 0, first - frames)], "test": [(name, first, length)]}


def array_name(name: str, source: Path, options: tuple) -> str:
    """The name of a source's array: it has a hash of all that the array depends on."""
    files = numbered_images(source) if source.is_dir() else [source]
    stats = [(path.name, path.stat()) for path in files]
    stamps = [(file, stat.st_size, stat.st_mtime_ns) for file, stat in stats]
    told = json.dumps([name, stamps, *options]).encode()
    stem = re.sub(r"[^A-Za-z0-9]+", "_", Path(name).stem)[:40]
    return f"{stem}-{hashlib.sha256(told).hexdigest()[:16]}.bytes"


def read_all(
    sources: dict[str, Path], files: dict[str, Path], options: tuple, least: int
) -> tuple[dict[str, int], dict[str, str]]:
    """Write the arrays that are missing.

    Returns how many frames each source has, and why others can't be used.
    """
    skipped, todo = {}, [name for name in sources if not files[name].exists()]
    for name in tqdm(todo, "prepare", disable=not todo):
        frames = read_frames(sources[name], *options)
        try:
            with closing(frames):
                bar = tqdm(frames, name, leave=False, unit=" frames")
                write_array(files[name], bar)
        except ValueError as error:
            skipped[name] = str(error).removeprefix(f"{sources[name]} ")
    size, channels, _ = options
    there = {name: file.stat() for name, file in files.items() if name not in skipped}
    lengths = {n: stat.st_size // (size * size * channels) for n, stat in there.items()}
    short = {name: length for name, length in lengths.items() if length < least}
    for name, length in short.items():
        skipped[name] = f"has {length} frames, a window has {least}"
    return {name: lengths[name] for name in lengths if name not in short}, skipped
