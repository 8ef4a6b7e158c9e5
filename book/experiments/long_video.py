"""Time and memory of preparing a long video, for chapter 15: `long_video.py`.

ffmpeg makes the video in a temporary folder: 20 seconds of a test pattern under noise,
at a phone's bit rate, repeated. Seconds, the largest memory of this process (all of it,
and before preparing) and of ffmpeg, and what the arrays take on the disk go into
book/results/prepare-long.json.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from imageio_ffmpeg import get_ffmpeg_exe

from stt_lite.clips import ClipFolder, prepare_clips
from stt_lite.files import write_file
from stt_lite.machines import hardware

RECORD = Path(__file__).resolve().parents[1] / "results" / "prepare-long.json"


def make(path: Path, minutes: float, width: int) -> None:
    """A video of 16 to 9, 30 frames per second."""
    ffmpeg, once = [get_ffmpeg_exe(), "-v", "error", "-y"], path.with_name("once.mp4")
    height = width * 9 // 16
    pattern = f"testsrc=s={width}x{height}:d=20:r=30,noise=alls=20:allf=t"
    rate = f"{17 * width * width // 1920**2 + 1}M"
    coding = ["-pix_fmt", "yuv420p", "-preset", "ultrafast", "-b:v", rate]
    subprocess.run([*ffmpeg, "-f", "lavfi", "-i", pattern, *coding, once], check=True)
    again = ["-stream_loop", str(max(1, round(3 * minutes)) - 1)]
    subprocess.run([*ffmpeg, *again, "-i", once, "-c", "copy", path], check=True)
    once.unlink()


def peak(who: int) -> int:
    """Largest resident memory so far, in MB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return round(resource.getrusage(who).ru_maxrss / unit)


def measure(path: Path, out: Path) -> None:
    """Prepare `path`; in a process of its own, so that its peaks are its own."""
    before, clock = peak(resource.RUSAGE_SELF), time.perf_counter()
    summary = prepare_clips(path, out)
    seconds, after = time.perf_counter() - clock, peak(resource.RUSAGE_SELF)
    clock, clips = time.perf_counter(), ClipFolder(out).draw(64).clips
    drawn = time.perf_counter() - clock
    arrays = sum(file.stat().st_size for file in (out / "clips").iterdir())
    record = {
        "video": path.stem,
        "source_megabytes": round(path.stat().st_size / 1e6),
        "frames": summary.frames,
        "seconds": round(seconds),
        "python_megabytes": after,
        "python_megabytes_before": before,
        "ffmpeg_megabytes": peak(resource.RUSAGE_CHILDREN),  # starts as a copy of us
        "arrays_megabytes": round(arrays / 1e6),
        "batch": list(clips.shape),
        "batch_milliseconds": round(1000 * drawn),
        "hardware": hardware(torch.device("cpu")),
    }
    text = json.dumps(record, indent=2) + "\n"
    write_file(RECORD, text.encode())
    print(summary, text, sep="\n")


@dataclass
class LongVideo:
    """Make a long video and prepare it, in a process of its own.

    Args:
        minutes: how long.
        width: of its frames in pixels.
    """

    minutes: float = 10.0
    width: int = 1920

    def run(self) -> None:
        shape = f"{self.width}x{self.width * 9 // 16}, 30 frames per second"
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch, "videos", f"{self.minutes:g} minutes of {shape}.mp4")
            path.parent.mkdir()
            make(path, self.minutes, self.width)
            command = [sys.executable, __file__, "measure", path, Path(scratch, "out")]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        measure(*map(Path, sys.argv[2:]))
    else:
        tyro.cli(LongVideo).run()
