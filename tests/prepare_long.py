"""Time and memory of preparing a long video: `python tests/prepare_long.py [minutes] [width]`, 10 minutes of 1920x1080 by default.

ffmpeg makes the video in a temporary folder: 20 seconds of a test pattern under noise, at a phone's bit rate, repeated.
Prints the seconds, the largest memory of this process (all of it, and what preparation added) and of ffmpeg, and what the
arrays take on the disk.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from imageio_ffmpeg import get_ffmpeg_exe


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
    from stt_lite.your_own_video import ClipFolder, prepare_clips

    before, clock = peak(resource.RUSAGE_SELF), time.perf_counter()
    summary = prepare_clips(path, out, size=64, fps=10.0)
    seconds, after = time.perf_counter() - clock, peak(resource.RUSAGE_SELF)
    print(f"{summary}\n{seconds:.0f} s; ffmpeg computed {resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime:.0f} s of them")
    print(f"memory: Python {after:.0f} MB, of which {after - before:.0f} MB new; ffmpeg at most {peak(resource.RUSAGE_CHILDREN):.0f} MB")  # it starts as a copy of Python
    clock, clips = time.perf_counter(), ClipFolder(out).draw(64)
    print(f"a batch of {tuple(clips.shape)} drawn in {1000 * (time.perf_counter() - clock):.0f} ms")
    print(f"arrays: {sum(p.stat().st_size for p in (out / 'clips').iterdir()) / 1e6:.0f} MB")


def main(minutes: float = 10.0, width: int = 1920) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "videos" / "long.mp4"
        path.parent.mkdir()
        make(path, minutes, width)
        print(f"{minutes:g} minutes of {width}x{width * 9 // 16}, 30 frames per second, {path.stat().st_size / 1e6:.0f} MB", flush=True)
        subprocess.run([sys.executable, __file__, "measure", str(path), str(Path(scratch) / "out")], check=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        measure(*map(Path, sys.argv[2:]))
    else:
        main(*(kind(text) for kind, text in zip((float, int), sys.argv[1:])))
