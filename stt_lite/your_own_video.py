# Extracted from notebooks/13_your_own_video.ipynb by "make extract": edit the notebook, not this file.
"""Your own video: clips from any files, and a tokenizer and a transformer trained on them. Built in chapter 13."""

import hashlib
import json
import math
import os
import re
import subprocess
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

from stt_lite.evaluation import fit_model
from stt_lite.training import (
    TokenizerObjective, TrainingConfig, new_accelerator, seed_everything, settled, train_transformer,
)  # fmt: skip
from stt_lite.video import check_whole
from stt_lite.vq_autoencoder import Tokenizer, TokenizerConfig, save_tokenizer, write_file

__all__ = ["ClipFolder", "Prepared", "prepare_clips", "train_own"]

VIDEOS = (".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpg", ".webm")
IMAGES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
MEANING = {  # of what ffmpeg says
    "matches no streams": "no video in it", "moov atom not found": "no mp4 file, or one that was cut off",
    "no decoder found": "a codec that ffmpeg does not know", "Invalid data found": "no video, or a damaged one",
}  # fmt: skip


def find_sources(source: Path) -> dict[str, list[Path]]:
    """Every source by its name: a video file, or the images of a folder that holds images and no video.

    Raises:
        FileNotFoundError: nothing at this path.
        ValueError: a folder in which there is no video and no series of images.
    """
    if source.is_file():
        return {source.name: [source]}
    if not source.is_dir():
        raise FileNotFoundError(f"source must be a video file or a folder, there is nothing at {source}")
    files = sorted(p for p in source.rglob("*") if p.is_file() and not p.name.startswith("."))
    found = {p.relative_to(source).as_posix(): [p] for p in files if p.suffix.lower() in VIDEOS}
    with_video, images = {paths[0].parent for paths in found.values()}, {}
    for p in files:
        if p.suffix.lower() in IMAGES and p.parent not in with_video:
            images.setdefault(p.parent, []).append(p)
    for folder, paths in images.items():
        if len(paths) > 1:
            name = source.name if folder == source else folder.relative_to(source).as_posix()
            found[name] = sorted(paths, key=by_number)
    if not found:
        wanted = f"videos ({', '.join(VIDEOS)}) or folders of at least two images ({', '.join(IMAGES)})"
        raise ValueError(f"source must hold {wanted}, in itself or further down; found none in {source}")
    return dict(sorted(found.items()))


def by_number(path: Path) -> list:
    """A key that sorts frame_9 before frame_10."""
    return [int(s) if s.isdecimal() else s for s in re.split(r"(\d+)", path.name)]


def read_images(paths: list[Path], size: int, channels: int) -> Iterator[tuple[UInt8[np.ndarray, "H W C"], float]]:
    """The centre squares of images, one by one, and the share of them that is read."""
    from PIL import Image, ImageOps

    first = None
    for i, path in enumerate(paths):
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            (W, H), edge = image.size, min(image.size)
            if (first := first or (W, H)) != (W, H):
                raise ValueError(f"images of different sizes: {path.name} has {W}x{H} pixels, the first {first[0]}x{first[1]}")
            if image.mode[0] in "IF":
                raise ValueError(f"images must have 8 bits for each channel, {path.name} has more: mode {image.mode}")
            box = ((W - edge) / 2, (H - edge) / 2, (W + edge) / 2, (H + edge) / 2)
            small = image.convert("RGBA").resize((size, size), Image.BILINEAR, box)
            solid = Image.alpha_composite(Image.new("RGBA", small.size, "black"), small).convert("RGB")
            yield np.asarray(solid.convert("L" if channels == 1 else "RGB")).reshape(size, size, channels), (i + 1) / len(paths)


def read_video(path: Path, size: int, channels: int, fps: float | None) -> Iterator[tuple[UInt8[np.ndarray, "H W C"], float]]:
    """The centre squares of a video's frames, one by one, and the share of it that is read.

    ffmpeg turns, drops or repeats, crops and shrinks; only small frames come through the pipe.
    """
    from imageio_ffmpeg import get_ffmpeg_exe

    steps = [
        *([f"fps={fps}:round=up"] if fps else []),  # at each moment the latest frame; or every frame once
        "crop='min(iw,ih/sar)':'min(iw*sar,ih)'",  # a square as shown: pixels need not be square
        f"scale={size}:{size}:flags=bilinear+accurate_rnd+full_chroma_int",
        "format=gbrap,premultiply=inplace=1",  # transparent becomes black
    ]
    command = [
        get_ffmpeg_exe(), "-nostdin", "-nostats", "-loglevel", "level+info", "-xerror", "-threads", "4", "-i", f"file:{path}",
        "-map", "0:V:0", "-fps_mode", "passthrough", "-vf", ",".join(steps), "-f", "rawvideo", "-pix_fmt", "gray" if channels == 1 else "rgb24", "-",
    ]  # fmt: skip
    count, expected, length = 0, None, size * size * channels
    with tempfile.TemporaryFile("a+b") as log, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log) as process:

        def said(pattern: str) -> list[str]:
            log.seek(0)
            return re.findall(pattern, log.read().decode(errors="replace"), re.MULTILINE)

        try:
            while len(data := process.stdout.read(length)) == length:
                if expected is None:
                    duration, rate = said(r"Duration: (\d+:\d+:[\d.]+)"), fps or float((said(r"([\d.]+) fps") or [25])[0])
                    seconds = sum(float(n) * 60**i for i, n in enumerate(reversed(duration[0].split(":")))) if duration else 0
                    expected = seconds * rate or math.inf
                count += 1
                yield np.frombuffer(data, np.uint8).reshape(size, size, channels), min(1.0, count / expected)
            if process.wait():
                errors = said(r"\[(?:error|fatal)\] (.+)") or [f"ffmpeg stopped with exit code {process.returncode}"]
                meant = [meaning for words, meaning in MEANING.items() if any(words in error for error in errors)]
                raise ValueError(f"{meant[0]} ({errors[0].strip()})" if meant else errors[0].strip())
        finally:
            process.kill()


BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total:.1f} MB [{elapsed}<{remaining}] {postfix}"


@dataclass
class Prepared:
    """What `prepare_clips` did: sources in use, frames and windows, reused and skipped sources (name to reason), and files
    that were ignored (how many of each suffix).
    """

    out: Path
    shape: tuple[int, int, int]  # C H W
    frames: int
    window: int
    train: dict[str, int]  # source to number of windows
    test: dict[str, int]
    reused: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, int] = field(default_factory=dict)

    def __repr__(self) -> str:
        (C, H, W), sources = self.shape, len(self.train.keys() | self.test.keys())
        lines = [
            f"{sources} sources, {self.frames:,} frames of {H}x{W} pixels, {'grey' if C == 1 else 'RGB'}",
            f"train: {sum(self.train.values()):,} windows of {self.window} frames from {len(self.train)} sources",
            f"test: {sum(self.test.values()):,} windows from {len(self.test)} sources",
            f"there already: {self.reused}, skipped: {len(self.skipped)}" + "".join(f"\n  {name}: {reason}" for name, reason in self.skipped.items()),
        ]
        if self.ignored:
            kinds = ", ".join(f"{n} {suffix or 'without suffix'}" for suffix, n in self.ignored.items())
            lines.append(f"ignored, no video and no series of images: {kinds}")
        return "\n".join(lines)


def write_array(path: Path, frames: Iterator[UInt8[np.ndarray, "H W C"]], shape: tuple[int, int, int]) -> None:
    """Write frames of a number not known beforehand as one .npy file (T H W C), in one step."""
    part, count = path.with_suffix(".part"), 0

    def header(file) -> int:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)})
        return file.tell()

    try:
        with open(part, "wb") as file:
            start = header(file)
            for frame in frames:
                file.write(frame.tobytes())
                count += 1
            if not count:
                raise ValueError("no frames in it")
            file.seek(0)
            if header(file) != start:  # padded to a multiple of 64 bytes, so both are equally long
                raise ValueError(f"too many frames: {count}")
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def split_sources(
    lengths: dict[str, int], frames: int, test_share: float, seed: int, group: Callable[[str], str] | None
) -> dict[str, list[tuple[str, int, int]]]:
    """Which frames of which source are for training and which for testing, as (source, first, one past the last)."""
    whole, groups = [(name, 0, T) for name, T in lengths.items()], {name: (group or str)(name) for name in lengths}
    order = sorted(set(groups.values()), key=lambda g: hashlib.sha256(f"{seed} {g}".encode()).digest())
    if test_share == 0:
        return {"train": whole, "test": []}
    if len(order) > 1:
        held = set(order[: min(len(order) - 1, max(1, round(test_share * len(order))))])
        parts = {True: [], False: []}
        for segment in whole:
            parts[groups[segment[0]] in held].append(segment)
        return {"train": parts[False], "test": parts[True]}
    if len(lengths) > 1:
        raise ValueError(f"group must tell at least two groups apart, got {order[0]!r} for all {len(lengths)} sources")
    ((name, T),) = lengths.items()
    first = T - max(frames, round(test_share * T))
    if first - frames < frames:
        more = "take shorter windows, a higher fps, a second file, or test_share=0"
        raise ValueError(f"{name} has {T} frames: too few to train on and, after a gap, to test on windows of {frames}; {more}")
    return {"train": [(name, 0, first - frames)], "test": [(name, first, T)]}  # no window reaches over the gap


def prepare_clips(
    source: str | os.PathLike, out: str | os.PathLike, size: int = 64, fps: float | None = 10.0, frames: int = 20,
    stride: int = 1, gray: bool = False, test_share: float = 0.1, seed: int = 0, group: Callable[[str], str] | None = None,
) -> Prepared:
    """Turn video files into arrays of small frames that training can draw clips from; see `ClipFolder`.

    Reads one frame at a time. Called again, it keeps what is done, also after it was interrupted or killed, and redoes
    sources whose size, time of change, or options changed. `out` holds one preparation: another one replaces it.

    Args:
        source: a video file, or a folder that is searched for videos and for folders of images, all the way down.
        out: folder for one .npy file per source, bytes (T H W C), and index.json.
        size: the centre square of each frame becomes size x size pixels.
        fps: frames per second; of each moment k / fps the latest frame by then is taken, so frames are dropped or
            repeated. None takes each frame once. Images have no time stamps: each is a frame.
        frames: frames of a window, what training sees at once.
        stride: frames from the start of one training window to the next; test windows do not overlap.
        gray: one channel (luma) instead of RGB.
        test_share: share of the sources held out for testing, in [0, 1); of a single source its last frames, after a
            gap of one window. 0 holds nothing out.
        seed: which sources are held out.
        group: from a source's name, its path below `source`, to the name of what must stay on one side of the split.

    Returns:
        A summary. What could not be used is in `skipped`, with the reason, and a warning names it; files that are neither
        videos nor images of a series, and images beside a video, are counted in `ignored`.

    Raises:
        FileNotFoundError: nothing at `source`.
        ValueError: no source in the folder, none that can be used, one too short to split, or an option out of range.
        OSError: a folder that cannot be written, a full disk.
    """
    size, frames, stride = check_whole(size, "size"), check_whole(frames, "frames"), check_whole(stride, "stride")
    if fps is not None and not (isinstance(fps, (int, float)) and 0 < fps < math.inf):
        raise ValueError(f"fps must be above 0, or None, got {fps!r}")
    if not 0 <= test_share < 1:
        raise ValueError(f"test_share must be in [0, 1), got {test_share!r}")
    fps = fps if fps is None else float(fps)
    sources, arrays, shape = find_sources(Path(source)), Path(out) / "clips", (1 if gray else 3, size, size)
    arrays.mkdir(parents=True, exist_ok=True)
    stats = {name: [path.stat() for path in paths] for name, paths in sources.items()}
    files = {}
    for name, paths in sources.items():  # a file's name says all that its content depends on
        stamps = [(path.name, stat.st_size, stat.st_mtime_ns) for path, stat in zip(paths, stats[name])]
        key = hashlib.sha256(json.dumps([name, stamps, size, fps, gray]).encode()).hexdigest()[:16]
        files[name] = arrays / f"{re.sub(r'[^A-Za-z0-9]+', '_', Path(name).stem)[:40]}-{key}.npy"
    skipped, todo = {}, [name for name in sources if not files[name].exists()]
    megabytes = {name: sum(stat.st_size for stat in stats[name]) / 1e6 for name in todo}

    def skip(name: str, reason: str) -> None:
        skipped[name] = reason
        warnings.warn(f"skipped {name}: {reason}", stacklevel=3)

    with tqdm(desc="prepare", total=sum(megabytes.values()), unit="MB", bar_format=BAR, disable=not todo) as bar:
        for name in todo:
            bar.set_postfix_str(name)
            before, images = bar.n, len(sources[name]) > 1 or sources[name][0].suffix.lower() in IMAGES
            read = (sources[name] if images else sources[name][0], size, shape[0])
            stream = read_images(*read) if images else read_video(*read, fps)

            def watched(stream=stream, name=name, before=before) -> Iterator[UInt8[np.ndarray, "H W C"]]:
                try:
                    for frame, share in stream:
                        bar.update(before + share * megabytes[name] - bar.n)
                        yield frame
                except Exception as error:  # a damaged file can make a reader say anything
                    raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error
                finally:
                    stream.close()

            try:
                write_array(files[name], watched(), (size, size, shape[0]))
            except ValueError as error:
                skip(name, str(error))
            bar.update(before + megabytes[name] - bar.n)
    lengths = {name: np.load(files[name], mmap_mode="r").shape[0] for name in sources if name not in skipped}
    for name in [name for name, T in lengths.items() if T < frames]:
        skip(name, f"too short: {lengths.pop(name)} frames, a window has {frames}")
    if not lengths:
        raise ValueError(f"no source in {source} can be used: {'; '.join(f'{n}: {r}' for n, r in skipped.items())}")
    splits, steps = split_sources(lengths, frames, test_share, seed, group), {"train": stride, "test": frames}
    index = {"size": size, "channels": shape[0], "fps": fps, "frames": frames, "skipped": skipped}
    for split, segments in splits.items():
        index[split] = [
            {"source": name, "array": files[name].name, "first": first, "stride": steps[split],
             "windows": (stop - first - frames) // steps[split] + 1}
            for name, first, stop in segments
        ]  # fmt: skip
    write_file(Path(out) / "index.json", (json.dumps(index, indent=1) + "\n").encode())
    for path in arrays.iterdir():  # left over from other options, from changed sources, or from a killed run
        if re.fullmatch(r"\w+-[0-9a-f]{16}\.(npy|part)", path.name) and path not in files.values():
            path.unlink()
    counts = ({s["source"]: s["windows"] for s in index[split]} for split in ("train", "test"))
    used, ours = {path for paths in sources.values() for path in paths}, Path(out).resolve()
    others = [p for p in Path(source).rglob("*") if p.is_file() and not p.name.startswith(".") and ours not in p.resolve().parents]
    ignored = dict(sorted(Counter(p.suffix.lower() for p in others if p not in used).items()))
    return Prepared(Path(out), shape, sum(lengths.values()), frames, *counts, len(sources) - len(todo), skipped, ignored)


class ClipFolder:
    """Clips from a folder that `prepare_clips` wrote. The arrays stay on the disk; a batch reads its own frames only.

    Args:
        path: that folder.

    Attributes:
        size, channels, frames, fps: of the clips; `frames` is the length of a window.

    Raises:
        FileNotFoundError: no index.json there, or an array that it names is missing.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        if not (self.path / "index.json").is_file():
            raise FileNotFoundError(f"path must hold index.json, which prepare_clips writes; there is none in {self.path}")
        self.index = json.loads((self.path / "index.json").read_text())
        self.size, self.channels, self.frames, self.fps = (self.index[k] for k in ("size", "channels", "frames", "fps"))
        for segment in self.index["train"] + self.index["test"]:
            if not (self.path / "clips" / segment["array"]).is_file():
                raise FileNotFoundError(f"{segment['array']} of {segment['source']} is missing in {self.path}: prepare again")

    @property
    def data(self) -> dict:
        """What a run's record says of these clips; another hash means other clips to train on."""
        train = json.dumps([self.index[key] for key in ("train", "size", "fps", "frames")])
        noted = {name: getattr(self, name) for name in ("size", "channels", "frames", "fps")} | {"content": "own video"}
        return noted | {"sources": len(self.index["train"]), "clips_sha256": hashlib.sha256(train.encode()).hexdigest()}

    def __repr__(self) -> str:
        shape = f"{self.frames} frames, {self.channels} channels, {self.size}x{self.size} pixels"
        return f"ClipFolder({self.windows('train'):,} windows to train on, {self.windows('test'):,} to test on: {shape})"

    def windows(self, split: str = "train") -> int:
        """Number of windows in "train" or "test"."""
        if split not in ("train", "test"):
            raise ValueError(f'split must be "train" or "test", got {split!r}')
        return sum(segment["windows"] for segment in self.index[split])

    def draw(
        self, n: int, frames: int | None = None, generator: torch.Generator | None = None,
        device: torch.device | str = "cpu", split: str = "train",
    ) -> Float[Tensor, "n T C H W"]:
        """Random clips, every window equally likely.

        Args:
            n: number of clips.
            frames: at most those of a window, None: all; a shorter clip comes from a random place in its window.
            generator: a CPU generator; None draws from torch's global one.
            device: where the clips go; they travel as bytes.
            split: "train" or "test".

        Returns:
            Clips with values in [0, 1], float32.

        Raises:
            ValueError: a number out of range, an unknown split, or one without windows.
        """
        frames, windows = self._length(n, frames), self._some(split)
        chosen = torch.randint(windows, (n,), generator=generator)
        inside = torch.randint(self.frames - frames + 1, (n,), generator=generator)
        return self._read(split, chosen, inside, frames, device)

    def test_clips(
        self, n: int = 16, frames: int | None = None, device: torch.device | str = "cpu"
    ) -> Float[Tensor, "n T C H W"]:
        """Held-out clips that do not overlap, the same at every call, spread evenly over all that there are.

        Args:
            n: how many; all where there are fewer.
            frames: the first so many of each window; None: all.

        Raises:
            ValueError: a number out of range, or nothing held out.
        """
        frames, windows = self._length(n, frames), self._some("test")
        chosen = torch.linspace(0, windows - 1, min(n, windows)).round().long()
        return self._read("test", chosen, torch.zeros_like(chosen), frames, device)

    def example(self, device: torch.device | str = "cpu") -> Float[Tensor, "T C H W"]:
        """A held-out clip, the same at every call; a training clip where nothing is held out."""
        if self.windows("test"):
            return self.test_clips(1, device=device)[0]
        return self.draw(1, generator=torch.Generator().manual_seed(0), device=device)[0]

    def _some(self, split: str) -> int:
        if not (windows := self.windows(split)):
            raise ValueError(f"split {split!r} of {self.path} holds no windows: prepare with another test_share")
        return windows

    def _length(self, n: int, frames: int | None) -> int:
        check_whole(n, "n")
        return check_whole(self.frames if frames is None else frames, "frames", 1, self.frames)

    def _read(self, split: str, chosen: Tensor, inside: Tensor, frames: int, device) -> Tensor:
        segments = self.index[split]
        ends = torch.tensor([segment["windows"] for segment in segments]).cumsum(0)
        batch = np.empty((len(chosen), frames, self.size, self.size, self.channels), np.uint8)
        owners = torch.searchsorted(ends, chosen, right=True)
        for clip, owner, window, offset in zip(batch, owners.tolist(), chosen.tolist(), inside.tolist()):
            segment = segments[owner]
            window -= ends[owner].item() - segment["windows"]
            start = segment["first"] + window * segment["stride"] + offset
            clip[:] = np.load(self.path / "clips" / segment["array"], mmap_mode="r")[start : start + frames]
        return torch.from_numpy(batch).to(device).permute(0, 1, 4, 2, 3).float().div(255).contiguous()


def train_own(
    folder: ClipFolder, out: str | os.PathLike, minutes: float | None = 10.0, steps: int | None = None,
    tokenizer_config: TokenizerConfig | None = None, watch: Callable | None = None, **options,
) -> Path:
    """Train a tokenizer, then a transformer on its latents, on the clips of a folder. `load_pretrained(out)` loads both.

    Called again with the same arguments, it goes on where the last checkpoint stands.

    Args:
        folder: the clips.
        out: folder for weights, records and checkpoints.
        minutes: time budget for both; `tokenizer_share` of it is the tokenizer's.
        steps: step budget, in place of minutes.
        tokenizer_config: None takes the default one, with the clips' channels and `codebook_size` codewords.
        watch: see `live_view`.
        options: further fields of `TrainingConfig`, such as width, layers, batch, tokenizer_share or seed.

    Returns:
        `out`: tokenizer.safetensors, transformer.safetensors, a record of each, and the checkpoints.

    Raises:
        TypeError: an option that `TrainingConfig` does not know, or something else than a `ClipFolder`.
        ValueError: an option out of range, windows of one frame, a tokenizer that does not fit the clips, or an `out` that
            holds a run on other clips or with other options.
        FloatingPointError, OSError: as `fit`.
    """
    from accelerate import PartialState

    if not isinstance(folder, ClipFolder):
        raise TypeError(f"folder must be a ClipFolder, of a folder that prepare_clips wrote, got {type(folder).__name__}")
    if folder.frames < 2:
        raise ValueError(f"folder must have windows of at least 2 frames, got {folder.frames}: prepare again with more frames")
    minutes = None if steps else minutes
    config = TrainingConfig(out=Path(out), size=folder.size, frames=folder.frames, minutes=minutes, steps=steps, **options)
    shape = tokenizer_config or TokenizerConfig(channels=folder.channels, codebook_size=config.codebook_size)
    if shape.channels != folder.channels or folder.size % shape.downsample:
        wanted = f"{folder.channels} channels and a downsample that divides {folder.size}"
        got = f"{shape.channels} channels and downsample={shape.downsample}"
        raise ValueError(f"tokenizer_config must have {wanted}, got {got}; or prepare clips of a size that it divides")
    kept, data = config.out / "data.json", folder.data
    if kept.exists() and json.loads(kept.read_text()) != data:
        raise ValueError(f"out must be empty or hold a run on these clips, {config.out} holds one on others")

    main, cuda = PartialState().is_main_process, list(range(torch.cuda.device_count()))
    if main:
        write_file(kept, json.dumps(data).encode())
    with torch.random.fork_rng(devices=cuda):  # the caller's generators stay
        seed_everything(config.seed, -1, torch.device("cpu"))
        tokenizer = Tokenizer(shape).to(memory_format=torch.channels_last)
        notes, budget = {"licence": None}, config.part(1 - config.tokenizer_share)
        if not settled(tokenizer, config):
            objective = TokenizerObjective(tokenizer, config, folder)
            tokenizer, record = fit_model(objective, "tokenizer", config.part(config.tokenizer_share), watch)
            if main:
                save_tokenizer(tokenizer, config.out / "tokenizer.safetensors", record | notes)
        train_transformer(budget, tokenizer.eval(), new_accelerator(budget), source=folder, watch=watch, notes=notes)
    return config.out
