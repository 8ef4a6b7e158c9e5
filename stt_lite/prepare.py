# Made from notebooks/15_your_own_video.ipynb by "make extract".
"""From files to arrays of small frames, and which are held out. Built in chapter 15."""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from stt_lite.media import image_frames, numbered_images, read_frames

__all__ = [
    "array_files",
    "find_sources",
    "read_all",
    "split_sources",
    "usable",
    "write_array",
]


VIDEOS = ".3gp .avi .gif .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv"


def folders(top: Path, left_out: Path) -> Iterator[Path]:
    """A folder and all below, linked ones too, each once; hidden ones are left out."""
    seen = {left_out.resolve()}
    for folder, below, _ in os.walk(top, followlinks=True):
        real = Path(folder).resolve()
        below[:] = [] if real in seen else sorted(n for n in below if n[0] != ".")
        if real not in seen:
            yield Path(folder)
        seen.add(real)


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
        source: a file, or a folder that is searched all the way down, but for hidden
            files and folders, and `out`.

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
    for folder in folders(source, out):
        files = [p for p in folder.iterdir() if p.is_file() and p.name[0] != "."]
        videos, images = [p for p in files if is_video(p)], numbered_images(folder)
        series = len(images) > 1 and not videos
        for path in [folder] if series else videos:
            name = path.relative_to(source).as_posix()
            found[source.resolve().name if path == source else name] = path
        others = set(files) - set(images if series else videos)
        ignored.update(p.suffix.lower() for p in others)
    if not found:
        wanted = f"videos ({VIDEOS}) or folders of at least two images"
        raise ValueError(f"source must hold {wanted}; there are none in {source}")
    return dict(sorted(found.items())), ignored


def write_header(file, count: int, frame: UInt8[np.ndarray, "H W C"]) -> None:
    """What a .npy file begins with."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *frame.shape)}
    np.lib.format.write_array_header_1_0(file, header)


def write_array(path: Path, frames: Iterable[UInt8[np.ndarray, "H W C"]]) -> None:
    """Write frames, however many there are, as one .npy file (T H W C), in one step."""
    part, count = path.with_name(f"{path.stem}-{os.getpid()}.part"), 0
    try:
        with open(part, "wb") as file:
            for count, frame in enumerate(frames, 1):
                if count == 1:
                    write_header(file, 0, frame)
                file.write(frame.tobytes())
            file.seek(0)
            write_header(file, count, frame)  # as long as before: it has room
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


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
    whole = [(name, 0, length) for name, length in lengths.items()]

    def at_random(name: str) -> bytes:
        return hashlib.sha256(f"{seed} {name}".encode()).digest()

    order = sorted({group(name) for name in lengths}, key=at_random)
    if test_share == 0:
        return {"train": whole, "test": []}
    if len(order) > 1:
        most = max(1, round(test_share * len(order)))
        held = order[: min(len(order) - 1, most)]
        parts = {"train": [], "test": []}
        for part in whole:
            parts["test" if group(part[0]) in held else "train"].append(part)
        return parts
    if len(lengths) > 1:
        only = f"{order[0]!r} for all {len(lengths)} sources"
        raise ValueError(f"group must tell at least two groups apart, got {only}")
    ((name, _, length),) = whole
    first = length - max(frames, round(test_share * length))
    if first < 2 * frames:
        raise ValueError(
            f"{name} has {length} frames: too few to train on and, after a gap, to "
            f"test on windows of {frames}; take shorter windows, a higher fps, a "
            "second file, or test_share=0"
        )
    return {"train": [(name, 0, first - frames)], "test": [(name, first, length)]}


def files_of(source: Path) -> list[Path]:
    """The files of a source: the images of a folder, or the one video."""
    return numbered_images(source) if source.is_dir() else [source]


def array_files(
    sources: dict[str, Path], folder: Path, options: tuple
) -> dict[str, Path]:
    """Where each source's array lies: its name has a hash of all that it depends on."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, source in sources.items():
        stats = [(path.name, path.stat()) for path in files_of(source)]
        stamps = [(file, stat.st_size, stat.st_mtime_ns) for file, stat in stats]
        told = json.dumps([name, stamps, *options]).encode()
        stem = re.sub(r"[^A-Za-z0-9]+", "_", Path(name).stem)[:40]
        files[name] = folder / f"{stem}-{hashlib.sha256(told).hexdigest()[:16]}.npy"
    return files


BAR = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}] {postfix}"


def watched(path: Path, options: tuple, bar: tqdm, size: int) -> Iterator[np.ndarray]:
    """The frames of a source, while a bar moves on by its size."""
    start = bar.n
    with closing(read_frames(path, *options)) as stream:
        for frame, share in stream:
            bar.update(start + int(share * size) - bar.n)
            yield frame
        bar.update(start + size - bar.n)


def read_all(
    sources: dict[str, Path], files: dict[str, Path], options: tuple
) -> dict[str, str]:
    """Write the arrays that are missing; tell which sources can't be read, and why."""
    skipped, todo = {}, [name for name in sources if not files[name].exists()]
    parts = {name: files_of(sources[name]) for name in todo}
    sizes = {name: sum(p.stat().st_size for p in parts[name]) for name in todo}
    total, off = sum(sizes.values()), not todo
    with tqdm(desc="prepare", total=total, bar_format=BAR, disable=off) as bar:
        for name in todo:
            bar.set_postfix_str(name)
            frames = watched(sources[name], options, bar, sizes[name])
            try:
                write_array(files[name], frames)
            except ValueError as error:
                skipped[name] = str(error).removeprefix(f"{sources[name]} ")
    return skipped


def usable(
    files: dict[str, Path], frames: int, skipped: dict[str, str]
) -> dict[str, int]:
    """Frames of each source that has a window's; the others are added to `skipped`.

    ValueError where no source is left.
    """
    read = [name for name in files if name not in skipped]
    lengths = {name: len(np.load(files[name], mmap_mode="r")) for name in read}
    for name in read:
        if lengths[name] < frames:
            skipped[name] = f"has {lengths.pop(name)} frames, a window has {frames}"
    if not lengths:
        reasons = "; ".join(f"{name} {reason}" for name, reason in skipped.items())
        raise ValueError(f"no source can be used: {reasons}")
    return lengths
