"""Chapter 13: whatever a folder of videos holds becomes the same kind of clips, and what can't is skipped by name."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from imageio_ffmpeg import get_ffmpeg_exe
from PIL import Image

import stt_lite as stt
from stt_lite import your_own_video
from stt_lite.vq_autoencoder import TokenizerConfig
from stt_lite.your_own_video import ClipFolder, prepare_clips, train_own

pytestmark = pytest.mark.filterwarnings("error:skipped:UserWarning")  # none may go unnoticed
OPTIONS = {"size": 16, "fps": 10.0, "frames": 5}


def ffmpeg(*arguments) -> None:
    command = [get_ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True)


def make(path: Path, seconds: float = 2.0, rate: int = 10, pattern: str = "testsrc", size: str = "64x48", *more) -> Path:
    """A video of ffmpeg's own making."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ffmpeg("-f", "lavfi", "-i", f"{pattern}=s={size}:d={seconds}:r={rate}", "-pix_fmt", "yuv420p", *more, path)
    return path


def brightening(path: Path, *more) -> Path:
    """Four seconds whose brightness is 60 per second, at 20 frames per second."""
    source = "color=black:s=64x64:d=4:r=20,format=gray,geq=lum='T*60'"
    ffmpeg("-f", "lavfi", "-i", source, *more, "-pix_fmt", "yuv420p", "-crf", "1", path)
    return path


def arrays(out: Path) -> dict[str, np.ndarray]:
    """Each source's frames (T H W C)."""
    index = json.loads((out / "index.json").read_text())
    return {s["source"]: np.load(out / "clips" / s["array"]) for s in index["train"] + index["test"]}


def only(source: Path, out: Path, **options) -> np.ndarray:
    """The frames of a single source, nothing held out."""
    prepare_clips(source, out, **OPTIONS | {"test_share": 0} | options)
    (frames,) = arrays(out).values()
    return frames


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four videos of 2, 2, 2 and 4 seconds in three formats, prepared."""
    source, out = tmp_path_factory.mktemp("videos"), tmp_path_factory.mktemp("prepared")
    for i, name in enumerate(("a.mp4", "b.gif", "deep/c.mkv")):
        make(source / name, pattern="testsrc", rate=(10, 20, 30)[i], seconds=2)
    make(source / "deep/d.mp4", seconds=4, pattern="testsrc2")
    return source, out, prepare_clips(source, out, **OPTIONS)


# --- what comes in


def test_a_folder_is_searched_and_summed_up(folder):
    source, out, summary = folder
    assert summary.shape == (3, 16, 16) and summary.frames == 100 and summary.skipped == {} and summary.reused == 0
    assert summary.train.keys() | summary.test.keys() == {"a.mp4", "b.gif", "deep/c.mkv", "deep/d.mp4"}
    lengths = {name: len(frames) for name, frames in arrays(out).items()}
    assert lengths == {"a.mp4": 20, "b.gif": 20, "deep/c.mkv": 20, "deep/d.mp4": 40}
    for word in ("4 sources", "100 frames of 16x16 pixels, RGB", "train:", "test:", "there already: 0, skipped: 0"):
        assert word in repr(summary)
    assert all(frames.dtype == np.uint8 and frames.shape[1:] == (16, 16, 3) for frames in arrays(out).values())


def test_frames_are_those_of_load_video(tmp_path):
    path = make(tmp_path / "a.mp4", size="96x64")
    for gray in (False, True):
        wanted = stt.load_video(path, size=16, gray=gray).permute(0, 2, 3, 1).numpy() * 255
        got = only(path, tmp_path / "out", gray=gray)
        assert got.shape == wanted.shape and np.abs(got - wanted).mean() < 2


def test_variable_frame_rate_keeps_to_the_clock(tmp_path):
    keep = "select='lt(t,2)+not(mod(n,5))'"  # 20 frames per second at first, then 4
    path = brightening(tmp_path / "vfr.mp4", "-vf", keep, "-fps_mode", "vfr")
    clock = only(path, tmp_path / "out", gray=True).mean((1, 2, 3))
    assert len(clock) == 40
    late = 6 * np.arange(40) - clock  # brighter by 60 per second, 10 frames per second: how old the frame shown is
    assert np.abs(late[:20]).max() < 3 and late[20:].min() > -3 and late[20:].max() < 60 / 4 + 3  # up to a gap; compression
    each = only(path, tmp_path / "every", gray=True, fps=None)
    assert len(each) == 40 + 40 // 5


def numbered(path: Path, frames: int, rate: float) -> Path:
    """A video whose frame i shows the number i in stripes, one for each of eight bits."""
    bits = (torch.arange(frames)[:, None] >> torch.arange(8)) & 1  # (T 8)
    stt.save_video(path, bits.float().repeat_interleave(8, 1)[:, None, None].expand(-1, 3, 64, -1), fps=rate)
    return path


@pytest.mark.parametrize("rate", [8, 12, 25, 30, 60])
@pytest.mark.parametrize("fps", [None, 10.0])
def test_which_frames_are_taken(tmp_path, rate, fps):
    """Each frame once; or at each moment k / fps the latest one by then. Numbers, since a brightness tells no neighbours apart."""
    read = only(numbered(tmp_path / "n.mp4", 3 * rate, rate), tmp_path / "out", size=64, gray=True, fps=fps)
    found = (read[:, 32, 4::8, 0] > 127) @ (1 << np.arange(8))
    expected = np.arange(3 * rate) if fps is None else np.arange(30) * rate // 10
    assert found.tolist() == expected.tolist()


def test_files_of_two_rates_run_at_one_speed(tmp_path):
    fast, slow = brightening(tmp_path / "fast.mp4"), brightening(tmp_path / "slow.gif", "-vf", "fps=10")
    a, b = (only(p, tmp_path / p.stem, gray=True).mean((1, 2, 3)) for p in (fast, slow))
    assert len(a) == len(b) == 40 and np.abs(a - b).max() < 6


def test_portrait_video_stands_upright(tmp_path):
    path, turned = make(tmp_path / "a.mp4", size="96x64"), tmp_path / "phone.mp4"
    ffmpeg("-display_rotation", 90, "-i", path, "-c", "copy", turned)  # the frames lie, a note says so
    lying, upright = only(path, tmp_path / "out"), only(turned, tmp_path / "turned")
    assert np.abs(np.rot90(lying, 1, (1, 2)).astype(int) - upright).mean() < 2
    tall = make(tmp_path / "tall.mp4", size="64x96")
    assert only(tall, tmp_path / "tall").shape == (20, 16, 16, 3)


def test_pixels_that_are_not_square_are_shown_as_they_should_be(tmp_path):
    plain = make(tmp_path / "plain.mp4", 1, 10, "testsrc", "128x64")
    ffmpeg("-i", plain, "-vf", "scale=64:64,setsar=2", "-crf", "1", tmp_path / "squeezed.mp4")
    a, b = (only(tmp_path / f"{name}.mp4", tmp_path / name).astype(int) for name in ("plain", "squeezed"))
    assert np.abs(a - b).mean() < 6


def test_grey_frames_become_rgb_or_stay_grey(tmp_path):
    path = make(tmp_path / "grey.mkv", 1, 10, "testsrc", "64x48", "-vf", "format=gray", "-c:v", "ffv1", "-pix_fmt", "gray")
    colour, grey = only(path, tmp_path / "rgb"), only(path, tmp_path / "gray", gray=True)
    assert colour.shape == (10, 16, 16, 3) and grey.shape == (10, 16, 16, 1)
    assert np.abs(colour.astype(int) - grey).max() <= 2


def test_transparent_becomes_black(tmp_path):
    red = ("-f", "lavfi", "-i", "color=red@0.5:s=64x64:d=1:r=10,format=rgba")
    ffmpeg(*red, "-c:v", "qtrle", tmp_path / "half.mov")
    assert np.abs(only(tmp_path / "half.mov", tmp_path / "out") - np.array([128, 0, 0])).max() <= 3
    for mode, colour in (("RGBA", (255, 0, 0, 128)), ("LA", (255, 128)), ("L", 128)):
        (tmp_path / mode).mkdir()
        for i in range(5):
            Image.new(mode, (40, 30), colour).save(tmp_path / mode / f"{i}.png")
        expected = [128, 0, 0] if mode == "RGBA" else [128] * 3
        assert np.abs(only(tmp_path / mode, tmp_path / f"out {mode}").astype(int) - expected).max() <= 1


def test_a_folder_of_images_counts_as_a_video(tmp_path):
    for i in (10, 9, 2, 1, 30):
        (tmp_path / "set/walk").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 40), (i, 0, 0)).save(tmp_path / f"set/walk/frame{i}.png")
    frames = only(tmp_path / "set", tmp_path / "out")
    assert frames[:, 0, 0, 0].tolist() == [1, 2, 9, 10, 30]
    assert list(arrays(tmp_path / "out")) == ["walk"]
    make(tmp_path / "set/walk/clip.mp4")  # now the images are its thumbnails
    prepare_clips(tmp_path / "set", tmp_path / "out", **OPTIONS | {"test_share": 0})
    assert list(arrays(tmp_path / "out")) == ["walk/clip.mp4"]


def test_fine_stripes_do_not_flicker(tmp_path):
    stripes = "color=black:s=96x96:d=1:r=10,format=gray,geq=lum='127+120*sin(2*PI*(X-2*T)/3.3)'"
    ffmpeg("-f", "lavfi", "-i", stripes, "-c:v", "ffv1", tmp_path / "stripes.mkv")
    for i in range(10):
        x = 127 + 120 * np.sin(2 * np.pi * (np.arange(96) - 0.2 * i) / 3.3)
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(np.broadcast_to(x, (96, 96)).astype(np.uint8)).save(tmp_path / f"images/{i}.png")
    for source in ("stripes.mkv", "images"):
        frames = only(tmp_path / source, tmp_path / f"out {source}", size=32, gray=True).astype(int)
        assert np.abs(np.diff(frames, axis=0)).mean() < 5, source  # every third pixel: 40


# --- what can't be used


def test_bad_files_are_skipped_by_name_and_counted(tmp_path):
    good = make(tmp_path / "in/good.mp4")
    content = good.read_bytes()
    (tmp_path / "in/cut.mp4").write_bytes(content[: len(content) // 2])
    (tmp_path / "in/codec.mp4").write_bytes(content.replace(b"avc1", b"what"))
    (tmp_path / "in/noise.webm").write_bytes(np.random.default_rng(0).bytes(3000))
    (tmp_path / "in/empty.mov").touch()
    damaged = bytearray(content)
    damaged[len(damaged) // 3 : len(damaged) // 2] = np.random.default_rng(0).bytes(len(damaged) // 2 - len(damaged) // 3)
    (tmp_path / "in/damaged.mp4").write_bytes(damaged)
    make(tmp_path / "in/short.mp4", seconds=0.4)
    ffmpeg("-f", "lavfi", "-i", "sine=d=1", tmp_path / "in/sound.mp4")
    for i, size in enumerate(((20, 20), (20, 22))):
        (tmp_path / "in/photos").mkdir(exist_ok=True)
        Image.new("RGB", size).save(tmp_path / f"in/photos/{i}.jpg")
    (tmp_path / "in/notes.txt").write_text("no video")
    (tmp_path / "in/._good.mp4").write_bytes(b"what a Mac leaves behind")
    bad = ["codec.mp4", "cut.mp4", "damaged.mp4", "empty.mov", "noise.webm", "photos", "short.mp4", "sound.mp4"]
    with pytest.warns(UserWarning) as caught:
        summary = prepare_clips(tmp_path / "in", tmp_path / "out", **OPTIONS | {"test_share": 0})
    assert sorted(summary.skipped) == bad and summary.train == {"good.mp4": 16}
    said = [str(w.message) for w in caught]
    assert len(said) == len(bad) and all(any(f"skipped {name}: " in text for text in said) for name in bad)
    assert "skipped: 8" in repr(summary) and "moov atom not found" in repr(summary)
    assert "decoder" in summary.skipped["codec.mp4"]
    assert summary.skipped["short.mp4"] == "too short: 4 frames, a window has 5"
    assert "1.jpg has 20x22 pixels, the first 20x20" in summary.skipped["photos"]
    assert json.loads((tmp_path / "out/index.json").read_text())["skipped"] == summary.skipped
    with pytest.warns(UserWarning) as caught:  # again, since they may be whole by now
        assert prepare_clips(tmp_path / "in", tmp_path / "out", **OPTIONS | {"test_share": 0}).reused == 2
    assert len(caught) == len(bad)


def test_what_is_not_used_is_counted(tmp_path):
    make(tmp_path / "in/a.mp4", 2)
    for name in ("in/beside.png", "in/notes.txt", "in/more.TXT"):
        Image.new("RGB", (8, 8)).save(tmp_path / name, "png")
    summary = prepare_clips(tmp_path / "in", tmp_path / "in/out", **OPTIONS)
    assert summary.ignored == {".png": 1, ".txt": 2} and "ignored, no video and no series of images: 1 .png, 2 .txt" in repr(summary)
    assert prepare_clips(tmp_path / "in", tmp_path / "in/out", **OPTIONS).ignored == summary.ignored  # its own arrays are not


def test_deep_images_and_files_without_video_say_so(tmp_path):
    for i in range(6):
        (tmp_path / "deep").mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8), 9000, np.uint16)).save(tmp_path / f"deep/{i}.png")
    ffmpeg("-f", "lavfi", "-i", "sine=d=1", "-f", "mp4", tmp_path / "sound.mp4")
    (tmp_path / "text.mp4").write_text("no video at all")
    make(tmp_path / "good/a.mp4", 2)
    with pytest.warns(UserWarning):
        skipped = prepare_clips(tmp_path, tmp_path / "out", **OPTIONS).skipped
    assert "images must have 8 bits for each channel, 0.png has more" in skipped["deep"]
    assert skipped["sound.mp4"].startswith("no video in it") and skipped["text.mp4"].startswith(("no mp4 file", "no video"))


def test_nothing_to_prepare(tmp_path):
    (tmp_path / "empty/deep").mkdir(parents=True)
    (tmp_path / "empty/notes.txt").touch()
    Image.new("RGB", (8, 8)).save(tmp_path / "empty/cover.png")  # a single image is no video
    with pytest.raises(ValueError, match=r"source must hold videos \(.*\.mp4.*\) or folders of .* images.*none in .*empty"):
        prepare_clips(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="source must be a video file or a folder, there is nothing at .*missing"):
        prepare_clips(tmp_path / "missing", tmp_path / "out")
    with pytest.warns(UserWarning), pytest.raises(ValueError, match=r"no source in .*short\.mp4 can be used.*4 frames"):
        prepare_clips(make(tmp_path / "short.mp4", 0.4), tmp_path / "out", **OPTIONS)


@pytest.mark.parametrize(
    "option, message",
    [
        ({"size": 0}, "size must be a whole number of at least 1, got 0"),
        ({"frames": -1}, "frames must be .*got -1"),
        ({"stride": 0}, "stride must be .*got 0"),
        ({"size": 16.5}, "size must be .*got 16.5"),
        ({"fps": 0.0}, "fps must be above 0, or None, got 0.0"),
        ({"fps": float("nan")}, "fps must be .*got nan"),
        ({"fps": "10"}, "fps must be above 0, or None, got '10'"),
        ({"test_share": 1.0}, r"test_share must be in \[0, 1\), got 1.0"),
    ],
)
def test_options_out_of_range(tmp_path, unchecked, option, message):
    with pytest.raises(ValueError, match=message):
        prepare_clips(tmp_path, tmp_path / "out", **option)
    assert not (tmp_path / "out").exists()


# --- the split


def test_no_frame_is_on_both_sides(folder):
    _, out, summary = folder
    assert summary.test and not summary.train.keys() & summary.test.keys()
    again = prepare_clips(folder[0], out, **OPTIONS)
    assert (again.train, again.test, again.reused) == (summary.train, summary.test, 4)
    held = {tuple(prepare_clips(folder[0], out, **OPTIONS, seed=seed).test) for seed in range(8)}
    assert len(held) > 1 and all(len(names) == 1 for names in held)
    prepare_clips(folder[0], out, **OPTIONS)


def test_a_single_file_is_split_in_time_with_a_gap(tmp_path):
    path = brightening(tmp_path / "clock.mp4")  # brightness tells the frame
    summary = prepare_clips(path, tmp_path / "out", **OPTIONS | {"gray": True}, test_share=0.25)
    clips = ClipFolder(tmp_path / "out")
    train = clips.draw(500, generator=torch.Generator().manual_seed(0)).mean((2, 3, 4)) * 255 / 6
    test = clips.test_clips(100).mean((2, 3, 4)) * 255 / 6
    assert summary.train == {"clock.mp4": 40 - 10 - 5 - 4} and summary.test == {"clock.mp4": 2}
    assert train.min() < 0.5 and 24 - 0.6 < train.max() < 24 + 0.6  # frames 0 to 24, a gap of 5, frames 30 to 39
    assert 30 - 0.6 < test.min() and test.max() > 38.4
    with pytest.raises(ValueError, match=r"clock\.mp4 has 40 frames: too few .* windows of 20;.* test_share=0"):
        prepare_clips(path, tmp_path / "out", **OPTIONS | {"frames": 20})


def test_groups_stay_together(folder, tmp_path):
    source = folder[0]
    summary = prepare_clips(source, tmp_path, **OPTIONS, test_share=0.5, group=lambda name: str(Path(name).parent))
    sides = {str(Path(name).parent) for name in summary.test}, {str(Path(name).parent) for name in summary.train}
    assert sorted(map(tuple, sides)) == [(".",), ("deep",)]
    with pytest.raises(ValueError, match="group must tell at least two groups apart, got 'x' for all 4 sources"):
        prepare_clips(source, tmp_path, **OPTIONS, group=lambda name: "x")


# --- going on


def test_what_is_done_stays_and_what_changed_is_redone(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    for name in "abc":
        make(source / f"{name}.mp4")
    prepare = lambda **options: prepare_clips(source, out, **OPTIONS | options)  # noqa: E731
    assert prepare().reused == 0 and prepare().reused == 3
    assert prepare(frames=6, stride=2, seed=3, test_share=0.5).reused == 3  # other windows of the same frames
    make(source / "b.mp4", seconds=3)
    changed = prepare()
    assert changed.reused == 2 and changed.frames == 70
    os.utime(source / "c.mp4", (1, 1))
    assert prepare().reused == 2
    for option in ({"size": 8}, {"fps": 5.0}, {"gray": True}):
        assert prepare(**option).reused == 0
        assert len(list((out / "clips").iterdir())) == 3  # the old ones are gone
    (source / "a.mp4").unlink()
    assert prepare(gray=True).reused == 2 and len(list((out / "clips").iterdir())) == 2


def test_interrupted_it_loses_one_file_at_most(tmp_path, monkeypatch):
    source, out = tmp_path / "in", tmp_path / "out"
    for name in "abc":
        make(source / f"{name}.mp4")
    read = your_own_video.read_video

    def stop(path, *arguments):
        for i, frame in enumerate(read(path, *arguments)):
            if path.name == "c.mp4" and i == 7:
                raise KeyboardInterrupt
            yield frame

    monkeypatch.setattr(your_own_video, "read_video", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare_clips(source, out, **OPTIONS)
    assert sorted(path.suffix for path in (out / "clips").iterdir()) == [".npy", ".npy"]
    monkeypatch.undo()
    summary = prepare_clips(source, out, **OPTIONS)
    assert summary.reused == 2 and summary.frames == 60


def test_a_full_disk_stops_it_and_leaves_no_half_array(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(your_own_video.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        prepare_clips(make(tmp_path / "a.mp4"), tmp_path / "out", **OPTIONS)
    assert not list((tmp_path / "out/clips").iterdir())


RUN = """
import sys
from stt_lite.your_own_video import prepare_clips
import resource
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print("ready", flush=True)
prepare_clips(sys.argv[1], sys.argv[2], size=64, fps=float(sys.argv[3]), test_share=0)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(after - before, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def start(*arguments) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUN, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_killed_it_goes_on(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    for name in "abc":
        make(source / f"{name}.mp4")
    make(source / "d.mp4", 120, 30)
    process = start(source, out, 1000)  # frames repeated: the last file takes its time
    until = time.monotonic() + 120
    while not (parts := list(out.glob("clips/d-*.part"))) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL and parts and parts[0].exists()
    done = {path: path.stat().st_mtime_ns for path in out.glob("clips/*.npy")}
    assert len(done) == 3 and not (out / "index.json").exists()
    make(source / "d.mp4", 2)
    summary = prepare_clips(source, out, size=64, fps=1000.0, test_share=0)
    assert summary.reused == 3 and summary.frames == 4 * 2000 and not list(out.glob("clips/*.part"))
    assert {path: path.stat().st_mtime_ns for path in done} == done


def test_memory_does_not_grow_with_the_video(tmp_path):
    make(tmp_path / "long.mp4", 60, 30, "testsrc", "640x360", "-preset", "ultrafast")  # decoded: 1.2 GB
    process = start(tmp_path / "long.mp4", tmp_path / "out", 30)
    printed, errors = process.communicate(timeout=120)
    grown, child = (int(number) / 1024 for number in printed.split()[1:])
    assert process.returncode == 0 and grown < 30 and child < 300, f"{grown:.0f} MB, ffmpeg {child:.0f} MB"
    assert "prepare: 100%" in errors and "long.mp4" in errors  # it shows how far it is


# --- what comes out


def test_the_same_seed_draws_the_same_clips(folder):
    clips = ClipFolder(folder[1])
    a, b, c = (clips.draw(6, 3, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert a.shape == (6, 3, 3, 16, 16) and a.dtype == torch.float32 and 0 <= a.min() and a.max() <= 1
    torch.manual_seed(0)
    d = clips.draw(6)
    torch.manual_seed(0)
    assert torch.equal(d, clips.draw(6)) and d.shape[1] == clips.frames == 5


def test_clips_are_windows_of_the_files(folder):
    _, out, summary = folder
    clips = ClipFolder(out)
    for split, names in (("train", summary.train), ("test", summary.test)):
        windows = {
            frames[i : i + 5].tobytes(): name
            for name, frames in arrays(out).items() if name in names
            for i in range(len(frames) - 4)
        }  # fmt: skip
        drawn = clips.draw(600, split=split, generator=torch.Generator().manual_seed(0))
        found = [(clip * 255).round().byte().permute(0, 2, 3, 1).numpy().tobytes() for clip in drawn]
        assert set(found) <= set(windows)
        assert {windows[window] for window in found} == set(names)
        assert clips.windows("train") == sum(summary.train.values())
    assert len(clips.test_clips(1)) == 1 and len(clips.test_clips(1000)) == clips.windows("test")
    assert torch.equal(clips.test_clips(3), clips.test_clips(3))


def test_stride_thins_out_the_windows(tmp_path):
    path = brightening(tmp_path / "clock.mp4")
    summary = prepare_clips(path, tmp_path / "out", **OPTIONS | {"gray": True}, stride=8, test_share=0)
    drawn = ClipFolder(tmp_path / "out").draw(200, generator=torch.Generator().manual_seed(0))
    first = (drawn[:, 0].mean((1, 2, 3)) * 255 / 6).round().int()
    assert summary.train == {"clock.mp4": 5} and set(first.tolist()) == {0, 8, 16, 24, 32}


def test_wrong_requests_are_named(folder, tmp_path, unchecked):
    clips = ClipFolder(folder[1])
    for n in (0, 1.5):
        with pytest.raises(ValueError, match=f"n must be a whole number of at least 1, got {n}"):
            clips.draw(n)
    for call in (lambda: clips.draw(1, 6), lambda: clips.test_clips(1, 0), lambda: clips.draw(1, 2.5)):
        with pytest.raises(ValueError, match=r"frames must be a whole number in \[1, 5\], got "):
            call()
    with pytest.raises(ValueError, match='split must be "train" or "test", got \'valid\''):
        clips.draw(1, split="valid")
    with pytest.raises(FileNotFoundError, match="path must hold index.json, which prepare_clips writes"):
        ClipFolder(tmp_path)
    prepare_clips(make(tmp_path / "a.mp4"), tmp_path / "out", **OPTIONS, test_share=0)
    with pytest.raises(ValueError, match="split 'test' of .*out holds no windows: prepare with another test_share"):
        ClipFolder(tmp_path / "out").test_clips()
    next((tmp_path / "out/clips").iterdir()).unlink()
    with pytest.raises(FileNotFoundError, match=r"a-.*\.npy of a\.mp4 is missing.*prepare again"):
        ClipFolder(tmp_path / "out")


# --- training


SMALL = {"steps": 4, "width": 16, "layers": 1, "heads": 2, "batch": 2, "codebook_size": 16, "tokenizer_share": 0.5}


@pytest.mark.parametrize("gray", [False, True])
def test_training_writes_what_load_pretrained_reads(folder, tmp_path, gray):
    prepare_clips(folder[0], tmp_path / "clips", **OPTIONS, gray=gray)
    clips, shown = ClipFolder(tmp_path / "clips"), []
    state = torch.get_rng_state()
    assert train_own(clips, tmp_path / "run", watch=lambda *arguments: shown.append(arguments), **SMALL) == tmp_path / "run"
    assert torch.equal(torch.get_rng_state(), state)
    model = stt.load_pretrained(tmp_path / "run")
    assert model.frame_shape == (1 if gray else 3, 16, 16) and model.trained_frames == 5
    video = model.generate(clips.test_clips(2)[:, :3], new_frames=4, samples=2, seed=0)
    assert video.shape == (2, 2, 7, 1 if gray else 3, 16, 16)
    data = model.record["data"]
    assert (data["size"], data["frames"], data["channels"], data["fps"]) == (16, 5, 1 if gray else 3, 10.0)
    assert [name for name, *_ in shown] == ["tokenizer", "transformer"]
    assert torch.equal(shown[0][2]["held-out clip"], clips.test_clips(1)[0])
    weights = (tmp_path / "run/transformer.safetensors").read_bytes()
    train_own(clips, tmp_path / "run", **SMALL)  # done already
    train_own(clips, tmp_path / "again", **SMALL)
    assert (tmp_path / "again/transformer.safetensors").read_bytes() == weights
    tokens = (tmp_path / "run/tokenizer.safetensors").read_bytes()
    train_own(clips, tmp_path / "run", **SMALL | {"steps": 2 * SMALL["steps"]})  # a larger budget: the tokens stay
    assert (tmp_path / "run/tokenizer.safetensors").read_bytes() == tokens
    assert (tmp_path / "run/transformer.safetensors").read_bytes() != weights
    with pytest.raises(ValueError, match="holds a run with the tokenizer .*codebook_size=16.*, got .*codebook_size=32"):
        train_own(clips, tmp_path / "run", **SMALL | {"codebook_size": 32})
    prepare_clips(folder[0], tmp_path / "clips", **OPTIONS | {"frames": 4}, gray=gray)
    with pytest.raises(ValueError, match="out must be empty or hold a run on these clips"):
        train_own(ClipFolder(tmp_path / "clips"), tmp_path / "run", **SMALL)


def test_training_refuses_what_does_not_fit(folder, tmp_path, unchecked):
    clips = ClipFolder(folder[1])
    with pytest.raises(ValueError, match="tokenizer_config must have 3 channels and .* divides 16, got 1 channels"):
        train_own(clips, tmp_path, tokenizer_config=TokenizerConfig())
    with pytest.raises(TypeError, match="widht"):
        train_own(clips, tmp_path, widht=16)
    prepare_clips(folder[0], tmp_path / "single", **OPTIONS | {"frames": 1})
    with pytest.raises(ValueError, match="folder must have windows of at least 2 frames, got 1"):
        train_own(ClipFolder(tmp_path / "single"), tmp_path)
    with pytest.raises(TypeError, match="folder must be a ClipFolder, of a folder that prepare_clips wrote, got str"):
        train_own("clips", tmp_path)


def test_objectives_learn_from_training_files_only(folder, tmp_path):
    clips, config = ClipFolder(folder[1]), stt.TrainingConfig(out=tmp_path, size=16, frames=5, batch=2)
    tokenizer = stt.Tokenizer(TokenizerConfig(channels=3, codebook_size=16))
    net = stt.SpatialTemporalTransformer(stt.TransformerConfig(grid=(4, 4), width=16, layers=1, heads=2, codebook_size=16))
    objectives = stt.TokenizerObjective(tokenizer, config, clips), stt.TransformerObjective(net, tokenizer, config, clips)
    for objective, frames, n in zip(objectives, (1, 5), (8, 2)):
        generator, device = torch.Generator().manual_seed(0), torch.device("cpu")
        wanted = clips.draw(n, frames, torch.Generator().manual_seed(0), split="train")
        assert torch.equal(objective.sample(generator, device), wanted)
        pictures, _ = objective.show(objective.model.eval())
        assert all(clip.shape == (5, 3, 16, 16) for clip in pictures.values())
