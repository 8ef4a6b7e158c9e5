"""Time and memory of preparing a long video: `python tests/prepare_long.py [minutes] [width]`, by default 10 minutes of 1920x1080.

ffmpeg makes the video in a temporary folder: 20 seconds of a test pattern under noise, at a phone's bit rate, repeated.
Prints the seconds, the largest memory of this process (all of it, and what preparation added) and of ffmpeg, and what the
arrays take on the disk, and writes them to book/results/prepare-long.json, which chapter 13 reads.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from imageio_ffmpeg import get_ffmpeg_exe

RECORD = Path(__file__).resolve().parents[1] / "book" / "results" / "prepare-long.json"


def make(path: Path, minutes: float, width: int) -> None:
    """A video of 16 to 9, 30 frames per second."""
    ffmpeg, once = [get_ffmpeg_exe(), "-v", "error", "-y"], path.with_name("once.mp4")
    pattern = f"testsrc=s={width}x{width * 9 // 16}:d=20:r=30,noise=alls=20:allf=t"
    coding = ["-pix_fmt", "yuv420p", "-preset", "ultrafast", "-b:v", f"{17 * width * width // 1920**2 + 1}M"]
    subprocess.run([*ffmpeg, "-f", "lavfi", "-i", pattern, *coding, once], check=True)
    times = max(1, round(3 * minutes)) - 1
    subprocess.run([*ffmpeg, "-stream_loop", str(times), "-i", once, "-c", "copy", path], check=True)
    once.unlink()


def peak(who: int) -> float:
    """Largest resident memory so far, in MB."""
    return resource.getrusage(who).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def measure(path: Path, out: Path) -> None:
    """Prepare `path`; in a process of its own, so that its peaks are its own."""
    from stt_lite.training import hardware
    from stt_lite.vq_autoencoder import write_file
    from stt_lite.your_own_video import ClipFolder, prepare_clips

    before, clock = peak(resource.RUSAGE_SELF), time.perf_counter()
    summary = prepare_clips(path, out, size=64, fps=10.0)
    seconds, after = time.perf_counter() - clock, peak(resource.RUSAGE_SELF)
    clock, clips = time.perf_counter(), ClipFolder(out).draw(64)
    drawn = time.perf_counter() - clock
    record = {
        "video": path.stem, "source_megabytes": round(path.stat().st_size / 1e6), "frames": summary.frames,
        "seconds": round(seconds), "python_megabytes": round(after), "python_megabytes_before": round(before),
        "ffmpeg_megabytes": round(peak(resource.RUSAGE_CHILDREN)),  # it starts as a copy of Python
        "arrays_megabytes": round(sum(p.stat().st_size for p in (out / "clips").iterdir()) / 1e6),
        "batch": list(clips.shape), "batch_milliseconds": round(1000 * drawn),
        "hardware": hardware(torch.device("cpu")),
    }  # fmt: skip
    text = json.dumps(record, indent=2) + "\n"
    write_file(RECORD, text.encode())
    print(summary, text, sep="\n")


def main(minutes: float = 10.0, width: int = 1920) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "videos" / f"{minutes:g} minutes of {width}x{width * 9 // 16}, 30 frames per second.mp4"
        path.parent.mkdir()
        make(path, minutes, width)
        subprocess.run([sys.executable, __file__, "measure", str(path), str(Path(scratch) / "out")], check=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        measure(*map(Path, sys.argv[2:]))
    else:
        main(*(kind(text) for kind, text in zip((float, int), sys.argv[1:])))
