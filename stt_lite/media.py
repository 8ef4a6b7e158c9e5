# Made from notebooks/01_video.ipynb by "make extract".
"""Frames as bytes, in and out of files, by Pillow and ffmpeg. Built in chapter 01."""

import math
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from imageio_ffmpeg import get_ffmpeg_exe
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

__all__ = ["image_frames", "numbered_images", "read_frames", "write_frames"]

IMAGES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")
MOST_PIXELS = 2**26  # of a frame; a larger one is refused before it is decoded


def image_frames(path: Path) -> int:
    """Frames of an image file: 1 of a still or damaged one, 0 of what is no image."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return image.n_frames if image.format in ("GIF", "PNG", "WEBP") else 1
    except UnidentifiedImageError:
        return 0
    except Exception:  # reading it will tell what is wrong
        return 1


def numbered_images(folder: Path) -> list[Path]:
    """The images of a folder, frame_9 before frame_10, without hidden files."""

    def order(path: Path) -> tuple:
        parts = re.split(r"(\d+)", path.name)  # words and numbers take turns
        return [int(part) if i % 2 else part for i, part in enumerate(parts)], path.name

    images = [path for path in folder.iterdir() if path.suffix.lower() in IMAGES]
    return sorted((p for p in images if p.is_file() and p.name[0] != "."), key=order)


def _open(path: Path) -> Image.Image:
    """An image, undecoded as yet; ValueError: a GIF without the byte that ends it."""
    file = Image.open(path, formats=FORMATS)
    if file.format == "GIF" and not path.read_bytes().rstrip(b"\0").endswith(b";"):
        raise ValueError("a GIF that was cut off")
    return file


def _upright(file: Image.Image) -> Image.Image:
    """An open image as it is meant to be seen, RGBA; odd ones are refused undecoded."""
    if file.width * file.height > MOST_PIXELS or file.mode[0] in "IF":
        wanted = f"at most {MOST_PIXELS:,} pixels of 8 bits per channel"
        got = f"{file.width}x{file.height}, mode {file.mode}"
        raise ValueError(f"images must have {wanted}, got {got}")
    return ImageOps.exif_transpose(file).convert("RGBA")


def _to_array(image: Image.Image, size, channels: int) -> UInt8[np.ndarray, "H W C"]:
    """An RGBA image as bytes, on black; its centre square where `size` is given."""
    if size:
        (W, H), edge = image.size, min(image.size)
        box = (W - edge) / 2, (H - edge) / 2, (W + edge) / 2, (H + edge) / 2
        image = image.resize((size, size), Image.Resampling.BILINEAR, box)
    image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(*pixels.shape[:2], channels)


def _read_stills(paths: list[Path], size, channels: int) -> Iterator:
    """Images without a clock: each is one frame."""
    first = None
    for i, path in enumerate(paths):
        if image_frames(path) > 1:
            raise ValueError(f"{path.name} moves: it is a video by itself")
        with _open(path) as file:
            image = _upright(file)
        if image.size != (first := first or image.size):
            sizes = (
                f"{image.width}x{image.height} pixels, the first {first[0]}x{first[1]}"
            )
            raise ValueError(f"images of different sizes: {path.name} has {sizes}")
        yield _to_array(image, size, channels), (i + 1) / len(paths)


def _read_moving(path: Path, size, channels: int, fps: float | None) -> Iterator:
    """A GIF, WebP or PNG that moves: each frame once, or for as long as it lasts."""
    with _open(path) as file:
        clock, shown = 0.0, 0  # milliseconds, and frames given so far
        for t in range(bool(file.info.get("default_image")), file.n_frames):
            file.seek(t)
            frame = _to_array(_upright(file), size, channels)
            duration = file.info.get("duration", 0)
            clock += duration if duration > 10 else 100  # as browsers do
            until = math.ceil(clock * fps / 1000) if fps else shown + 1
            for _ in range(shown, until):
                yield frame, (t + 1) / file.n_frames
            shown = until


QUIET = ("-nostdin", "-nostats", "-loglevel", "level+error", "-xerror")
EACH_FRAME = ("-fps_mode", "passthrough")


def _complaint(log: bytes) -> str:
    """The first error that ffmpeg's log tells of."""
    errors = re.findall(r"\[(?:error|fatal)\] (.+)", log.decode(errors="replace"))
    return errors[0].strip() if errors else "ffmpeg failed without a word"


def _ask(source: list[str]) -> tuple[float, float, list[str]]:
    """What ffmpeg knows of a video: seconds, frames per second, the decoder to take."""
    told = subprocess.run([get_ffmpeg_exe(), *source], capture_output=True).stderr
    told = told.decode(errors="replace")
    time = re.search(r"Duration: (\d+):(\d+):([\d.]+)", told)
    rate = re.search(r"([\d.]+) fps", told)
    hours, minutes, seconds = map(float, time.groups()) if time else (0, 0, 0)
    alpha = re.search(r"Video: vp([89]).*alpha_mode +: 1", told, re.DOTALL)
    decoder = {"8": "libvpx", "9": "libvpx-vp9"}[alpha[1]] if alpha else None
    length = 3600 * hours + 60 * minutes + seconds
    return length, float(rate[1]) if rate else 25.0, ["-c:v", decoder] if alpha else []


def _read_video(path: Path, size, channels: int, fps: float | None) -> Iterator:
    """Any other file: ffmpeg turns, keeps to the clock, crops and shrinks frames."""
    source = ["-protocol_whitelist", "file", "-i", f"file:{path}"]
    seconds, rate, decoder = _ask(source)
    shape = f"{size}:{size}" if size else "'iw*max(1,sar)':'ih/min(1,sar)'"
    steps = [
        *([f"fps={fps}:round=up"] if fps else []),  # at each moment the latest frame
        *(["crop='min(iw,ih/sar)':'min(iw*sar,ih)'"] if size else []),
        f"scale={shape}:flags=bilinear+accurate_rnd+full_chroma_int",
        "format=gbrap,premultiply=inplace=1",  # transparent becomes black
    ]
    pixels, codec = ("gray", "pgm") if channels == 1 else ("rgb24", "ppm")
    limits = ["-threads", "4", "-max_pixels", str(MOST_PIXELS)]
    result = ["-pix_fmt", pixels, "-c:v", codec, "-f", "image2pipe", "-"]
    command = [get_ffmpeg_exe(), *QUIET, *limits, *decoder, *source, "-map", "0:V:0"]
    command += [*EACH_FRAME, "-vf", ",".join(steps), *result]
    first, count = None, 0
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log) as ffmpeg,
    ):
        try:
            while ffmpeg.stdout.readline():  # P5 or P6, "W H", 255, and the bytes
                W, H = map(int, ffmpeg.stdout.readline().split())
                ffmpeg.stdout.readline()
                if (W, H) != (first := first or (W, H)):
                    raise ValueError(
                        f"frame {count} has {W}x{H} pixels, the first {first}"
                    )
                data = np.frombuffer(ffmpeg.stdout.read(W * H * channels), np.uint8)
                count += 1
                share = count / (seconds * (fps or rate)) if seconds else 0.0
                yield data.reshape(H, W, channels), min(1.0, share)
            if ffmpeg.wait():
                log.seek(0)
                raise ValueError(_complaint(log.read()))
        finally:
            ffmpeg.kill()


def read_frames(
    path: str | Path, size: int | None = None, channels: int = 3, fps=None
) -> Iterator[tuple[UInt8[np.ndarray, "H W C"], float]]:
    """The frames of a video, of an image or of a folder of images, one by one.

    They are as a player shows them: upright, with square pixels, black where they are
    transparent. Images of a folder are taken by the numbers in their names.

    Args:
        size: the centre square of each frame becomes size x size pixels.
        channels: 1 (luma) or 3 (RGB).
        fps: at each moment k / fps the latest frame: some are left out or repeated;
            None: each frame once. Still images have no clock: each is a frame.

    Yields each frame with the share of the whole that is read, in [0, 1]. Raises
    FileNotFoundError, and ValueError for what is not readable (`__cause__` says why).
    """
    path = Path(path).expanduser()
    if not path.is_file() and not path.is_dir():
        raise FileNotFoundError(f"no video file or folder of images at {path}")
    found = False
    try:
        if path.is_dir():
            frames = _read_stills(numbered_images(path), size, channels)
        elif (count := image_frames(path)) == 1:
            frames = _read_stills([path], size, channels)
        else:
            frames = (_read_moving if count else _read_video)(path, size, channels, fps)
        for frame in frames:
            found = True
            yield frame
    except Exception as error:  # a damaged file can make a reader say anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} is not a readable video: {reason}") from error
    if not found:
        raise ValueError(f"{path} holds no frames: expected a video or images")


def write_frames(
    path: Path, pixels: UInt8[np.ndarray, "T H W *rgb"], fps: float
) -> None:
    """Pipe frames into a .gif or an .mp4; OSError where ffmpeg does not end well."""
    if path.suffix == ".mp4":  # wants even sizes: repeat the last row or column
        odd = [(0, size % 2) for size in pixels.shape[1:3]]
        pixels = np.pad(pixels, [(0, 0), *odd, (0, 0)][: pixels.ndim], "edge")
        how = ["-c:v", "libx264", "-crf", "5", "-pix_fmt", "yuv420p"]
    elif pixels.ndim == 3:
        how = ["-pix_fmt", "gray"]  # all 256 shades
    else:  # each frame's own best 256 colours
        palette = "palettegen=stats_mode=single:reserve_transparent=0"
        how = ["-vf", f"split[a][b];[a]{palette}[p];[b][p]paletteuse=new=1:dither=none"]
    kind = "gray" if pixels.ndim == 3 else "rgb24"
    size = f"{pixels.shape[2]}x{pixels.shape[1]}"
    source = ["-f", "rawvideo", "-pix_fmt", kind, "-s", size, "-framerate", str(fps)]
    command = [get_ffmpeg_exe(), *QUIET, *source, "-i", "-", *how, *EACH_FRAME, path]
    done = subprocess.run(command, input=pixels.tobytes(), capture_output=True)
    if done.returncode:
        raise OSError(_complaint(done.stderr))
