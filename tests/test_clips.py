"""Chapter 15: a folder of videos becomes clips; what can't is skipped by name."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from imageio_ffmpeg import get_ffmpeg_exe
from PIL import Image

from stt_lite.bundles import load_pretrained
from stt_lite.clips import ClipFolder, prepare_clips
from stt_lite.contexts import TrainingConfig
from stt_lite.pipeline import train
from stt_lite.tokenizer import TokenizerConfig
from stt_lite.video import load_video, save_video

pytestmark = pytest.mark.filterwarnings("error:skipped:UserWarning")  # all noticed
OPTIONS = {"size": 16, "fps": 10.0, "frames": 5}
ALL = OPTIONS | {"test_share": 0}


def ffmpeg(*arguments) -> None:
    command = [get_ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True)


def make(path: Path, seconds=2.0, rate=10, size="64x48", *more) -> Path:
    """A video of ffmpeg's own making."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pattern = f"testsrc=s={size}:d={seconds}:r={rate}"
    ffmpeg("-f", "lavfi", "-i", pattern, "-pix_fmt", "yuv420p", *more, path)
    return path


def clock(path: Path) -> Path:
    """Four seconds of 10 frames; frame k has brightness 6 k of 255."""
    bright = torch.arange(40)[:, None, None, None] * 6 / 255
    return save_video(path, bright.expand(-1, 1, 16, 16), fps=10)


def stills(folder: Path, numbers) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in numbers:
        Image.new("RGB", (30, 40), (i, 0, 0)).save(folder / f"frame{i}.png")
    return folder


def arrays(out: Path) -> dict[str, np.ndarray]:
    """Each source's frames (T H W C)."""
    index = json.loads((out / "index.json").read_text())
    parts = index["train"] + index["test"]
    folder = ClipFolder(out)
    return {source: np.array(folder.array(array)) for source, array, *_ in parts}


def counts(sources: dict[str, range]) -> dict[str, int]:
    return {name: len(starts) for name, starts in sources.items()}


def frames_of(out: Path) -> int:
    return sum(map(len, arrays(out).values()))


def written(out: Path) -> dict[str, int]:
    """When each array was written."""
    return {path.name: path.stat().st_mtime_ns for path in out.glob("clips/*.bytes")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four videos of 2, 2, 2 and 4 seconds in three formats, prepared."""
    source, out = tmp_path_factory.mktemp("in"), tmp_path_factory.mktemp("out")
    for name, rate in (("a.mp4", 10), ("b.gif", 20), ("deep/c.mkv", 30)):
        make(source / name, rate=rate)
    make(source / "deep/d.mp4", seconds=4)
    return source, out, prepare_clips(source, out, **OPTIONS)


# --- what comes in


def test_a_folder_is_searched_and_summed_up(folder):
    source, out, summary = folder
    assert summary.skipped == {} == summary.ignored
    names = {"a.mp4", "b.gif", "deep/c.mkv", "deep/d.mp4"}
    assert summary.train.keys() | summary.test.keys() == names
    lengths = {name: len(frames) for name, frames in arrays(out).items()}
    assert lengths == {"a.mp4": 20, "b.gif": 20, "deep/c.mkv": 20, "deep/d.mp4": 40}
    shapes = {(x.dtype.name, *x.shape[1:]) for x in arrays(out).values()}
    assert shapes == {("uint8", 16, 16, 3)}
    kinds = [
        f"{sum(map(len, x.values()))} windows of 5 frames from {len(x)} sources"
        for x in (summary.train, summary.test)
    ]
    words = "4 sources, 100 frames of 16x16 pixels, RGB\ntrain: {}\ntest: {}"
    assert repr(summary) == repr(ClipFolder(out)) == words.format(*kinds)


@pytest.mark.parametrize("gray", [False, True])
def test_frames_are_those_of_load_video(tmp_path, gray):
    path = make(tmp_path / "a.mp4", 2, 12, "96x64")
    wanted = load_video(path, size=16, gray=gray, fps=10)
    prepare_clips(path, tmp_path / "out", gray=gray, **ALL)
    got = torch.from_numpy(arrays(tmp_path / "out")["a.mp4"]).movedim(-1, 1)
    assert torch.equal(got.float() / 255, wanted)


def test_each_frame_once_where_no_rate_is_asked_for(tmp_path):
    make(tmp_path / "in/a.mp4", 2, 12)
    for fps, count in ((None, 24), (6, 12)):
        options = ALL | {"fps": fps}
        prepare_clips(tmp_path / "in", tmp_path / "out", **options)
        assert frames_of(tmp_path / "out") == count
        assert ClipFolder(tmp_path / "out").fps == fps


def test_a_folder_of_images_counts_as_a_video(tmp_path):
    stills(tmp_path / "set/walk", (10, 9, 2, 1, 30))
    prepare_clips(tmp_path / "set", tmp_path / "out", **ALL)
    (name, frames), *others = arrays(tmp_path / "out").items()
    assert name == "walk" and not others
    assert frames[:, 0, 0, 0].tolist() == [1, 2, 9, 10, 30]
    make(tmp_path / "set/walk/clip.mp4")  # now the images are its thumbnails
    summary = prepare_clips(tmp_path / "set", tmp_path / "out", **ALL)
    assert list(arrays(tmp_path / "out")) == ["walk/clip.mp4"]
    assert summary.ignored == {".png": 5}


def test_what_is_a_video_and_what_is_not(tmp_path):
    """By suffix, by content where there is none, and images that move."""
    source = tmp_path / "in"
    video = make(source / "a.mp4").read_bytes()
    for name in ("b.M4V", "c", "d.3gp", "e/clip.mts", "f/.hidden.mp4", ".trash/g.mp4"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(video)
    frames = [Image.new("RGB", (20, 12), (v,) * 3) for v in (0, 60, 120, 180, 240)]
    for name in ("moves.webp", "moves.png"):
        more = {"append_images": frames[1:], "duration": 100, "save_all": True}
        frames[0].save(source / name, **more)
    for name in ("LICENSE", "notes.txt", "more.TXT"):
        (source / name).write_text("no video")
    frames[0].save(source / "photo.png")
    frames[0].save(source / "still", "png")
    os.symlink(source / "e", source / "linked")
    os.symlink(source, source / "e/round")  # the same folders again
    (tmp_path / "far").mkdir()
    (tmp_path / "far/h.mp4").write_bytes(video)
    os.symlink(tmp_path / "far", source / "far")
    summary = prepare_clips(source, source / "out", **ALL)
    once = {"e/clip.mts", "linked/clip.mts"} & summary.train.keys()
    names = {"a.mp4", "b.M4V", "c", "d.3gp", "far/h.mp4", "moves.webp", "moves.png"}
    assert summary.train.keys() == names | once and len(once) == 1
    assert summary.ignored == {".png": 1, ".txt": 2, "": 2}
    assert "neither video nor series of images: " in repr(summary)
    assert "2 others" in repr(summary) and "2 .txt" in repr(summary)
    before = written(source / "out")
    again = prepare_clips(source, source / "out", **ALL)
    assert again.ignored == summary.ignored  # its own arrays: not
    assert before == written(source / "out") and len(before) == 8


# --- what can't be used


def test_bad_files_are_skipped_by_name(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    content = make(source / "good.mp4").read_bytes()
    (source / "cut.mp4").write_bytes(content[: len(content) // 2])
    (source / "codec.mp4").write_bytes(content.replace(b"avc1", b"what"))
    (source / "noise.webm").write_bytes(np.random.default_rng(0).bytes(3000))
    (source / "empty.mov").touch()
    make(source / "short.mp4", seconds=0.4)
    for i, size in enumerate(((20, 20), (20, 22))):
        (source / "photos").mkdir(exist_ok=True)
        Image.new("RGB", size).save(source / f"photos/{i}.jpg")
    for _ in range(2):  # again, since the bad ones may be whole by now
        with pytest.warns(UserWarning, match="skipped: ") as caught:
            summary = prepare_clips(source, out, **ALL)
        assert counts(summary.train) == {"good.mp4": 16} and len(written(out)) == 2
        told = {f"skipped: {name} {why}" for name, why in summary.skipped.items()}
        assert {str(warning.message) for warning in caught} == told and len(told) == 6
    words = {
        "cut.mp4": "is not a readable video: .*moov atom",
        "codec.mp4": "is not a readable video: .*decoder",
        "noise.webm": "is not a readable video: ",
        "empty.mov": "is not a readable video: ",
        "short.mp4": "^has 4 frames, a window has 5$",
        "photos": "1.jpg has 20x22 pixels, the first 20x20",
    }
    for name, pattern in words.items():
        assert re.search(pattern, summary.skipped[name]), name
    assert "skipped: 6\n  codec.mp4 is not" in repr(summary)


def test_nothing_to_prepare(tmp_path):
    (tmp_path / "empty/deep").mkdir(parents=True)
    (tmp_path / "empty/notes.txt").touch()
    Image.new("RGB", (8, 8)).save(tmp_path / "empty/cover.png")  # one is no video
    words = r"source must hold videos \(.*\.mp4.*\) or folders of .* images.*in .*empty"
    with pytest.raises(ValueError, match=words):
        prepare_clips(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="source must be a video or .*missing"):
        prepare_clips(tmp_path / "missing", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    path = make(tmp_path / "short.mp4", 0.4)
    with pytest.raises(ValueError, match=r"no source can be used: short\.mp4 has 4"):
        prepare_clips(path, tmp_path / "out", **OPTIONS)


@pytest.mark.parametrize(
    "option, message",
    [
        ({"size": 0}, "size must be a whole number of at least 1, got 0"),
        ({"frames": -1}, "frames must be .*got -1"),
        ({"size": 16.5}, "size must be .*got 16.5"),
        ({"fps": 0.0}, "fps must be a number above 0, or None, got 0.0"),
        ({"fps": "10"}, "fps must be a number above 0, or None, got '10'"),
        ({"fps": float("nan")}, "fps must be .*got nan"),
        ({"test_share": 1.0}, r"test_share must be in \[0, 1\), got 1.0"),
    ],
)
def test_options_out_of_range(tmp_path, unchecked, option, message):
    with pytest.raises(ValueError, match=message):
        prepare_clips(tmp_path, tmp_path / "out", **option)
    assert not (tmp_path / "out").exists()


# --- the split


def test_no_frame_is_on_both_sides(folder):
    source, out, summary = folder
    assert len(summary.test) == 1 and not summary.train.keys() & summary.test.keys()
    before = written(out)
    again = prepare_clips(source, out, **OPTIONS)
    assert (again.train, again.test) == (summary.train, summary.test)
    assert written(out) == before and len(before) == 4
    held = [prepare_clips(source, out, **OPTIONS, seed=s).test for s in range(8)]
    assert len(set(map(tuple, held))) > 1 and {len(names) for names in held} == {1}
    prepare_clips(source, out, **OPTIONS)


def test_a_single_file_is_split_in_time_with_a_gap(tmp_path):
    path, out = clock(tmp_path / "clock.gif"), tmp_path / "out"  # brightness tells k
    summary = prepare_clips(path, out, **ALL | {"gray": True, "test_share": 0.25})
    clips, generator = ClipFolder(out), torch.Generator().manual_seed(0)
    seen = clips.draw(500, None, generator).clips.mean((2, 3, 4)) * 255 / 6
    held = clips.held_out(2).mean((2, 3, 4)) * 255 / 6
    assert counts(summary.train) == {"clock.gif": 40 - 10 - 5 - 4}
    assert counts(summary.test) == {"clock.gif": 2}
    assert seen.unique().round().tolist() == list(range(25))  # then a gap of 5
    assert held.sort(0).values.round().tolist() == [[*range(30, 35)], [*range(35, 40)]]
    words = r"clock\.gif has 40 frames: too few .* windows of 20;.* test_share=0"
    with pytest.raises(ValueError, match=words):
        prepare_clips(path, out, **OPTIONS | {"frames": 20})


def test_groups_stay_together(folder, tmp_path):
    def place(name):
        return str(Path(name).parent)

    more = OPTIONS | {"test_share": 0.5}
    summary = prepare_clips(folder[0], tmp_path, **more, group=place)
    sides = [{place(name) for name in part} for part in (summary.test, summary.train)]
    assert sorted(map(tuple, sides)) == [(".",), ("deep",)]
    words = "group must tell at least two groups apart, got 'x' for all 4 sources"
    with pytest.raises(ValueError, match=words):
        prepare_clips(folder[0], tmp_path, **OPTIONS, group=lambda name: "x")


# --- going on


def test_what_is_done_stays_and_what_changed_is_redone(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    for name in "abc":
        make(source / f"{name}.mp4")

    def reused(**options):
        before = written(out).items()
        prepare_clips(source, out, **OPTIONS | options)
        return len(before & written(out).items())

    assert reused() == 0 and reused() == 3
    assert reused(frames=6, seed=3, test_share=0.5) == 3  # other windows
    make(source / "b.mp4", seconds=3)
    assert reused() == 2
    os.utime(source / "c.mp4", (1, 1))
    assert reused() == 2
    for option in ({"size": 8}, {"fps": 5}, {"gray": True}):
        assert reused(**option) == 0
        assert len(list((out / "clips").iterdir())) == 3  # the old ones are gone
    (out / "clips/mine.npy").touch()
    (source / "a.mp4").unlink()
    assert reused(gray=True) == 2
    assert len(list((out / "clips").iterdir())) == 3  # not ours: it stays


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left")])
def test_stopped_it_leaves_no_half_array(tmp_path, monkeypatch, error):
    source, out = tmp_path / "in", tmp_path / "out"
    for name in "abc":
        make(source / f"{name}.mp4")
    fsync = os.fsync

    def stop(descriptor):
        if len(written(out)) == 2:
            raise error
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(type(error)):
        prepare_clips(source, out, **OPTIONS)
    before = written(out)
    assert len(list((out / "clips").iterdir())) == len(before) == 2
    monkeypatch.undo()
    prepare_clips(source, out, **OPTIONS)
    assert before.items() <= written(out).items() and frames_of(out) == 60


RUN = """
import resource, sys
from stt_lite.clips import prepare_clips
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
prepare_clips(sys.argv[1], sys.argv[2], size=64, fps=float(sys.argv[3]), test_share=0)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # at least before
print(after - before, child - before)
"""


def start(*arguments) -> subprocess.Popen:
    command = [sys.executable, "-c", RUN, *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **pipes)


def test_killed_it_goes_on(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    make(source / "a.mp4")
    make(source / "b.mp4", 120, 30)
    process, until = start(source, out, 1000), time.monotonic() + 120  # repeats frames
    parts = []
    while not (written(out) and (parts := list(out.glob("clips/.part-*/*")))):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL and parts and parts[0].exists()
    done = written(out)
    assert len(done) == 1 and not (out / "index.json").exists()
    make(source / "b.mp4", 2)
    for age in (0, 4000):
        for path in (*parts, parts[0].parent):
            os.utime(path, (time.time() - age,) * 2)
        prepare_clips(source, out, size=64, fps=1000, test_share=0)
        assert frames_of(out) == 2 * 2000
        assert parts[0].exists() == (age == 0)  # a young one may be another run's
    assert done.items() <= written(out).items()


def test_two_at_once_do_not_hinder_each_other(tmp_path):
    for name in "abc":
        make(tmp_path / f"in/{name}.mp4")
    runs = [start(tmp_path / "in", tmp_path / "out", 10) for _ in range(2)]
    errors = [run.communicate(timeout=240)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], errors
    assert ClipFolder(tmp_path / "out").windows() == 3
    assert {path.suffix for path in (tmp_path / "out/clips").iterdir()} == {".bytes"}


def test_memory_does_not_grow_with_the_video(tmp_path):
    path = make(tmp_path / "long.mp4", 60, 30, "640x360", "-preset", "ultrafast")
    process = start(path, tmp_path / "out", 30)  # decoded: 1.2 GB
    printed, errors = process.communicate(timeout=240)
    grown, child = (int(number) / 1024 for number in printed.split())
    assert process.returncode == 0 and grown < 30 and child < 150, (grown, child)
    assert "prepare: 100%" in errors and "long.mp4" in errors  # how far it is


# --- what comes out


def test_the_same_seed_draws_the_same_clips(folder):
    clips = ClipFolder(folder[1])
    seeded = [torch.Generator().manual_seed(seed) for seed in (0, 0, 1)]
    a, b, c = (clips.draw(6, 3, generator).clips for generator in seeded)
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert a.shape == (6, 3, 3, 16, 16) and a.dtype == torch.float32
    assert 0 <= a.min() and a.max() <= 1
    assert clips.draw(6).clips.shape[1] == clips.frames == 5
    held = [clips.held_out(2, 4, seed) for seed in (0, 0, 1)]
    assert torch.equal(held[0], held[1]) and not torch.equal(held[0], held[2])


def test_clips_are_windows_of_the_files(folder):
    _, out, summary = folder
    clips, generator = ClipFolder(out), torch.Generator().manual_seed(0)
    test = clips.windows("test")
    sides = (
        (summary.train, clips.draw(600, None, generator).clips),
        (summary.test, clips.held_out(test)),
    )
    for names, drawn in sides:
        windows = {
            frames[i : i + 5].tobytes(): name
            for name, frames in arrays(out).items()
            if name in names
            for i in range(len(frames) - 4)
        }
        drawn = (drawn * 255).round().byte().permute(0, 1, 3, 4, 2).numpy()
        found = [clip.tobytes() for clip in drawn]
        assert {windows[window] for window in found} == set(names)
    assert len(set(found)) == test  # held out: each window once
    assert clips.windows() == sum(counts(summary.train).values())


def test_wrong_requests_are_named(folder, tmp_path, unchecked):
    clips = ClipFolder(folder[1])
    for n in (0, 1.5):
        with pytest.raises(ValueError, match=f"n must be .* at least 1, got {n}"):
            clips.draw(n)
    for call in (clips.draw, clips.held_out):
        for frames in (6, 0, 2.5):
            words = rf"frames must be a whole number in \[1, 5\], got {frames}"
            with pytest.raises(ValueError, match=words):
                call(1, frames)
    with pytest.raises(
        ValueError, match=r"n must be a whole number in \[1, \d+\], got"
    ):
        clips.held_out(1000)
    for content in (None, "{}"):
        if content:
            (tmp_path / "index.json").write_text(content)
        with pytest.raises(FileNotFoundError, match="index.json, which prepare_clips"):
            ClipFolder(tmp_path)
    out = tmp_path / "out"
    prepare_clips(make(tmp_path / "a.mp4"), out, **ALL)
    with pytest.warns(UserWarning, match="nothing is held out: clips of training"):
        assert ClipFolder(out).held_out(1).shape == (1, 5, 3, 16, 16)
    [array] = (out / "clips").iterdir()
    content = array.read_bytes()
    for rest in (content[:-1], content[: -3 * 16 * 16], b"", None):
        array.write_bytes(rest) if rest is not None else array.unlink()
        with pytest.raises(FileNotFoundError, match="a.mp4 is missing or cut.*again"):
            ClipFolder(out)


ODD = {
    "list of numbers": lambda index: index | {"train": [1, 2]},
    "number": lambda index: index | {"test": 3},
    "text": lambda index: index | {"train": "clips"},
    "earlier version": lambda index: index | {"train": [{"source": "a", "windows": 2}]},
    "parts in words": lambda index: index | {"train": [["a.mp4", "a", "one", "two"]]},
    "no size": lambda index: {k: v for k, v in index.items() if k != "size"},
    "size in words": lambda index: index | {"size": "sixteen"},
    "nothing skipped": lambda index: {k: v for k, v in index.items() if k != "skipped"},
}


@pytest.mark.parametrize("case", ODD)
def test_an_odd_index_is_refused_and_written_anew(folder, tmp_path, case):
    source, out = folder[0], tmp_path / "out"
    prepare_clips(source / "a.mp4", out, **ALL)
    index = ODD[case](json.loads((out / "index.json").read_text()))
    (out / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="out must be prepared again: "):
        ClipFolder(out)
    (out / "index.json").write_text("{cut")
    with pytest.raises(ValueError, match="index.json is not a record"):
        ClipFolder(out)
    prepare_clips(source / "a.mp4", out, **ALL)
    assert ClipFolder(out).windows() == 16


def test_no_array_lies_outside_of_the_folder(folder, tmp_path):
    out = tmp_path / "out"
    prepare_clips(folder[0] / "a.mp4", out, **ALL)
    index = json.loads((out / "index.json").read_text())
    (tmp_path / "secret").write_bytes(bytes(20 * 16 * 16 * 3))
    index["train"][0][1] = "../../secret"
    (out / "index.json").write_text(json.dumps(index))
    with pytest.raises(FileNotFoundError, match="missing or cut"):
        ClipFolder(out)


# --- training


TINY = dict(width=16, layers=1, heads=2, batch=2, steps=4, tokenizer_share=0.5)
SHAPE = dict(width=16, latent_channels=4, codebook_size=16, residual_blocks=0)


def test_a_folder_is_a_source_to_train_on(folder, tmp_path):
    source, out = folder[0], tmp_path / "clips"
    prepare_clips(source, out, **OPTIONS)
    clips, config = ClipFolder(out), TrainingConfig(out=tmp_path / "run", **TINY)
    shape, shown = TokenizerConfig(channels=3, **SHAPE), []
    train(config, clips, shape, watch=lambda *a: shown.append(a))
    model = load_pretrained(tmp_path / "run")
    assert model.frame_shape == (3, 16, 16) and model.trained_frames == 5
    video = model.generate(clips.held_out(2)[:, :3], new_frames=4, samples=2, seed=0)
    assert video.shape == (2, 2, 7, 3, 16, 16)
    assert model.record["data"] == clips.data and len(clips.data["clips_sha256"]) == 64
    told = {k: clips.data[k] for k in ("size", "frames", "channels", "fps", "sources")}
    assert told == dict(size=16, frames=5, channels=3, fps=10.0, sources=3)
    assert {name for name, *_ in shown} == {"tokenizer", "transformer"}
    held = clips.held_out(1, 5, seed=1)[0]
    assert torch.equal(shown[0][2]["truth"], held)
    weights = (tmp_path / "run/transformer.safetensors").read_bytes()
    train(config, clips, shape)  # done already
    assert (tmp_path / "run/transformer.safetensors").read_bytes() == weights
    prepare_clips(source, out, **OPTIONS | {"seed": 1})  # other sources are held out
    with pytest.raises(ValueError, match="is of another config: clips_sha256 = "):
        train(config, ClipFolder(out), shape)
