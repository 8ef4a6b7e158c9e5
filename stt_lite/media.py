# Made from notebooks/01_video.ipynb by "make extract".
"""Frames as bytes, in and out of files, by Pillow and ffmpeg. Built in chapter 01."""

import contextlib
import math
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from imageio_ffmpeg import get_ffmpeg_exe
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

__all__ = [
    "WRITERS",
    "image_frames",
    "numbered_images",
    "read_frames",
    "replacing",
    "write_frames",
]

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
        return re.sub(r"\d+", lambda number: number[0].zfill(30), path.name), path.name

    images = [path for path in folder.iterdir() if path.suffix.lower() in IMAGES]
    return sorted((p for p in images if p.is_file() and p.name[0] != "."), key=order)


def _to_array(image: Image.Image, size, channels: int) -> UInt8[np.ndarray, "H W C"]:
    """An image as bytes, on black; its centre square where `size` is given."""
    image = image.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    if size:
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(*pixels.shape[:2], channels)


def _read_images(paths: list[Path], size, channels: int, fps: float | None) -> Iterator:
    """Images, each a frame; or one that moves, its frames for as long as they last."""
    first, clock, shown = None, 0.0, 0  # milliseconds, and frames given so far
    for path in paths:
        count = image_frames(path)
        if count > 1 and len(paths) > 1:
            raise ValueError(f"{path.name} moves: it is a video by itself")
        with Image.open(path, formats=FORMATS) as file:
            is_gif = file.format == "GIF"  # which has a last byte of its own
            if is_gif and not path.read_bytes().rstrip(b"\0").endswith(b";"):
                raise ValueError("a GIF that was cut off")
            for t in range(bool(file.info.get("default_image")), count):
                file.seek(t)
                if file.width * file.height > MOST_PIXELS or file.mode[0] in "IF":
                    wanted = f"at most {MOST_PIXELS:,} pixels of 8 bits per channel"
                    got = f"{file.width}x{file.height}, mode {file.mode}"
                    raise ValueError(f"images must have {wanted}, got {got}")
                image = ImageOps.exif_transpose(file)  # upright
                if image.size != (first := first or image.size):
                    sizes = "{}x{} pixels, the first {}x{}".format(*image.size, *first)
                    raise ValueError(f"images of many sizes: {path.name} has {sizes}")
                duration = file.info.get("duration", 0)
                clock += duration if duration > 10 else 100  # as browsers do
                timed = fps and count > 1
                until = math.ceil(clock * fps / 1000 - 1e-6) if timed else shown + 1
                frame = _to_array(image, size, channels) if until > shown else None
                for _ in range(shown, until):
                    yield frame
                shown = until


QUIET = ("-y", "-nostdin", "-nostats", "-loglevel", "level+error", "-xerror")
EACH_FRAME = ("-fps_mode", "passthrough")
KINDS = "asf,avi,dv,flv,h264,hevc,ivf,matroska,mov,mpeg,mpegts,mpegvideo,mxf,ogg"
ALPHA = {b"V_VP8": "libvpx", b"V_VP9": "libvpx-vp9"}  # decoders that see transparency


def _complaint(log: bytes) -> str:
    """The first error that ffmpeg's log tells of."""
    errors = re.findall(r"\[(?:error|fatal)\] (.+)", log.decode(errors="replace"))
    return errors[0].strip() if errors else "ffmpeg failed without a word"


def _source(path: Path, fps: float | None, last: int | None) -> list[str]:
    """What ffmpeg is to read, and how."""
    with open(path, "rb") as file:
        head = file.read(2**16)
    if head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis", b"heic", b"mif1"):
        raise ValueError("AVIF and HEIC images can't be read")
    decoder = [word for n in ALPHA if n in head for word in ("-c:v", ALPHA[n])]
    near = ["-sseof", f"{-last / (fps or 10) - 2}"] if last else []  # seconds
    clock = ["-copyts", "-start_at_zero"]  # the file's own, wherever reading starts
    only = ["-protocol_whitelist", "file", "-format_whitelist", KINDS]
    return [*decoder, *clock, *near, *only, "-i", f"file:{path}"]


def _read_video(path: Path, size, channels: int, fps, last) -> Iterator:
    """Any other file: ffmpeg turns, keeps to the clock, crops and shrinks frames."""
    shape = f"{size}:{size}" if size else "'iw*max(1,sar)':'ih/min(1,sar)'"
    steps = [
        *([f"fps={fps}:round=up"] if fps else []),  # at each moment the latest frame
        *(["crop='min(iw,ih/sar)':'min(iw*sar,ih)'"] if size else []),
        f"scale={shape}:flags=bilinear+accurate_rnd+full_chroma_int",
        "format=gbrap,premultiply=inplace=1",  # transparent becomes black
    ]
    pixels, codec = ("gray", "pgm") if channels == 1 else ("rgb24", "ppm")
    # One thread decodes: with several it is left to chance what is seen of a damage.
    limits = ["-max_pixels", str(MOST_PIXELS), "-threads", "1"]
    result = ["-pix_fmt", pixels, "-c:v", codec, "-f", "image2pipe", "-"]
    command = [get_ffmpeg_exe(), *QUIET, *limits, *_source(path, fps, last)]
    command += ["-map", "0:V:0", *EACH_FRAME, "-vf", ",".join(steps), *result]
    first = None
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log) as ffmpeg,
    ):
        try:
            while ffmpeg.stdout.readline():  # P5 or P6, "W H", 255, and the bytes
                W, H = map(int, ffmpeg.stdout.readline().split())
                ffmpeg.stdout.readline()
                if (W, H) != (first := first or (W, H)):
                    raise ValueError(f"a frame has {W}x{H} pixels, the first {first}")
                data = np.frombuffer(ffmpeg.stdout.read(W * H * channels), np.uint8)
                yield data.reshape(H, W, channels)
            failed = ffmpeg.wait()
            log.seek(0)
            told = log.read()
            if failed or b"ended prematurely" in told:  # a cut .mkv is no failure to it
                raise ValueError(_complaint(told))
        finally:
            ffmpeg.kill()


def read_frames(
    path: str | Path, size: int | None = None, channels: int = 3, fps=None, last=None
) -> Iterator[UInt8[np.ndarray, "H W C"]]:
    """The frames of a video, of an image or of a folder of images, one by one.

    They are as a player shows them: upright, with square pixels, black where they are
    transparent. Images of a folder are taken by the numbers in their names.

    Args:
        size: the centre square of each frame becomes size x size pixels.
        channels: 1 (luma) or 3 (RGB).
        fps: at each moment k / fps the latest frame: some are left out or repeated;
            None: each frame once. Still images have no clock: each is a frame.
        last: how many frames at the end matter: earlier ones may be left out, unread.

    Raises FileNotFoundError, and ValueError for what is not readable (`__cause__` says
    why): cut or damaged, larger than MOST_PIXELS, 16 bits deep, or no video at all.
    """
    path = Path(path).expanduser()
    if not path.is_file() and not path.is_dir():
        raise FileNotFoundError(f"no video file or folder of images at {path}")
    found = False
    try:
        if path.is_dir():
            images = numbered_images(path)[-last if last else 0 :]
            frames = _read_images(images, size, channels, None)
        elif image_frames(path):
            frames = _read_images([path], size, channels, fps)
        else:
            frames = _read_video(path, size, channels, fps, last)
        for frame in frames:
            found = True
            yield frame
    except Exception as error:  # a damaged file can make a reader say anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} is not a readable video: {reason}") from error
    if not found:
        raise ValueError(f"{path} holds no frames: expected a video or images")


PALETTE = "palettegen=stats_mode=single:reserve_transparent=0"  # each frame's own best
WRITERS = {  # the most frames per second, and how ffmpeg is to encode them
    ".gif": (50, f"-vf split[a][b];[a]{PALETTE}[p];[b][p]paletteuse=new=1:dither=none"),
    ".mp4": (1000, "-c:v libx264 -crf 5 -pix_fmt yuv420p"),
}


def write_frames(
    path: Path, pixels: UInt8[np.ndarray, "T H W *rgb"], fps: float
) -> None:
    """Pipe frames into a file; OSError where ffmpeg does not end well."""
    how, grey = WRITERS[path.suffix.lower()][1], pixels.ndim == 3
    if path.suffix.lower() != ".gif":  # even sizes: repeat the last row or column
        odd = [(0, size % 2) for size in pixels.shape[1:3]]
        pixels = np.pad(pixels, [(0, 0), *odd, (0, 0)][: pixels.ndim], "edge")
    elif grey:
        how = "-pix_fmt gray"  # all 256 shades
    kind, size = "gray" if grey else "rgb24", f"{pixels.shape[2]}x{pixels.shape[1]}"
    source = ["-f", "rawvideo", "-pix_fmt", kind, "-s", size, "-framerate", str(fps)]
    result = ["-i", "-", *how.split(), *EACH_FRAME, f"file:{path}"]
    command = [get_ffmpeg_exe(), *QUIET, *source, *result]
    done = subprocess.run(command, input=pixels.tobytes(), capture_output=True)
    if done.returncode:
        raise OSError(_complaint(done.stderr))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields where to write a file or folder; when it is whole it replaces `path`.

    At any error the old one stays. Missing folders are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".part-", dir=path.parent) as folder:
        new, old = Path(folder, "new" + path.suffix), Path(folder, "old")
        yield new
        if new.is_file():
            with open(new, "rb") as file:
                os.fsync(file.fileno())  # on the disk, not only on its way there
        elif path.is_dir():
            path.rename(old)  # a folder can't be replaced in one step
        try:
            new.replace(path)
        except OSError:
            if old.is_dir():
                old.rename(path)
            raise
