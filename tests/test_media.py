"""Media that are cut, damaged or odd, and disks that are full: an error or the frames.

Both entrances, `load_video` and `prepare_clips`, see the same or refuse the same. As
many mutated files as STT_MUTATIONS says (300) go through both.
"""

import collections
import errno
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from imageio_ffmpeg import get_ffmpeg_exe
from PIL import Image

from stt_lite import media
from stt_lite.clips import ClipFolder, prepare_clips
from stt_lite.video import bouncing_square, load_video, save_video

MUTATIONS = int(os.environ.get("STT_MUTATIONS", 300))
pytestmark = pytest.mark.filterwarnings("ignore:skipped", "ignore::RuntimeWarning")


def ffmpeg(*arguments) -> None:
    command = [get_ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True)


def noise(frames=6, channels=3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(frames, channels, 24, 32, generator=generator)


def moving(path: Path, **options) -> Path:
    """An image of four frames."""
    frames = [
        Image.fromarray(np.uint8(255 * frame)) for frame in noise(4)[:, 0].numpy()
    ]
    frames[0].save(
        path, save_all=True, append_images=frames[1:], duration=90, **options
    )
    return path


def make_all(folder: Path) -> list[Path]:
    """A small file of each kind that is read."""
    folder.mkdir()
    made = [save_video(folder / name, noise()) for name in ("a.gif", "a.mp4")]
    made.append(save_video(folder / "grey.gif", noise(channels=1)))
    for name, *how in (
        ("a.mkv", "-c", "copy"),
        ("a.ts", "-c", "copy"),
        ("a.avi", "-c:v", "mpeg4"),
        ("a.webm", "-c:v", "libvpx-vp9"),
        ("a.mpg", "-c:v", "mpeg2video", "-r", "25"),
    ):
        ffmpeg("-i", folder / "a.mp4", *how, folder / name)
        made.append(folder / name)
    made += [moving(folder / "a.webp", lossless=True), moving(folder / "b.png")]
    return made


# --- mutated files


def mutate(content: bytes, chance: random.Random) -> bytes:
    """Bytes changed, cut, doubled, left out or filled with zeros."""
    content = bytearray(content)
    at = chance.randrange(len(content))
    length = min(chance.choice((1, 4, 100)), len(content) - at)
    match chance.randrange(6):
        case 0:
            del content[at:]
        case 1:
            content[at : at + length] = bytes(length)
        case 2:
            del content[at : at + length]
        case 3:
            content[at:at] = content[at : at + length]
        case 4:  # among the first bytes, where sizes and counts stand
            content[at % 200 % len(content)] = chance.randrange(256)
        case _:
            for _ in range(length):
                content[chance.randrange(len(content))] = chance.randrange(256)
    return bytes(content)


def children() -> set[str]:
    """Processes that this one started and that still run."""
    own = Path(f"/proc/self/task/{os.getpid()}/children")
    return set(own.read_text().split()) if own.exists() else set()


def through_load_video(path: Path):
    """Frames, or None where they are refused, and the seconds it took."""
    start = time.monotonic()
    try:
        clip = load_video(path, size=8)
    except ValueError as error:
        assert "not a readable video: " in str(error) or "holds no frames" in str(error)
        clip = None
    return clip, time.monotonic() - start


def test_mutated_files_are_read_alike_or_refused_alike(tmp_path, monkeypatch):
    """A result or the documented error; no hang, and nothing is left."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temp"))
    (tmp_path / "temp").mkdir()
    originals = make_all(tmp_path / "whole")
    contents = {path: path.read_bytes() for path in originals}
    frames = {
        path.suffix + ("grey" in path.name) * " grey": load_video(path, size=8)
        for path in originals
    }
    chance, counts, slowest = random.Random(0), collections.Counter(), 0.0
    started = children()
    for batch in range(0, MUTATIONS, 100):
        folder, out = tmp_path / f"in{batch}", tmp_path / f"out{batch}"
        folder.mkdir()
        for i in range(batch, min(MUTATIONS, batch + 100)):
            path = originals[i % len(originals)]
            name = f"{path.stem}{i}{path.suffix}"
            (folder / name).write_bytes(mutate(contents[path], chance))
        shutil.copy(originals[0], folder / "whole.gif")  # one can be used at least
        start = time.monotonic()
        options = {"size": 8, "fps": None, "frames": 1, "test_share": 0}
        summary = prepare_clips(folder, out, **options)
        counts["seconds"] += time.monotonic() - start
        parts = summary.index["train"]
        arrays = {source: summary.array(array) for source, array, *_ in parts}
        found = {*arrays, *summary.skipped}
        for path in sorted(folder.iterdir()):
            clip, seconds = through_load_video(path)
            slowest = max(slowest, seconds)
            if path.name not in found:  # what does not move any more is no source
                assert path.suffix in (".png", ".webp"), path
                counts["still"] += 1
                continue
            assert (clip is None) == (path.name in summary.skipped), path
            counts["refused" if clip is None else "read"] += 1
            if clip is not None:
                pixels = (255 * clip).round().byte().movedim(1, -1).numpy()
                assert np.array_equal(pixels, arrays[path.name]), path
                kind = path.suffix + ("grey" in path.name) * " grey"
                first = frames[kind][: len(clip)]
                counts["other frames" + path.suffix] += not torch.equal(clip, first)
        assert not list(out.glob("**/.part-*"))
        shutil.rmtree(folder)
        shutil.rmtree(out)
    assert counts["read"] and counts["refused"]
    assert slowest < 60 and children() <= started
    assert not list((tmp_path / "temp").iterdir())
    print(dict(counts), f"slowest {slowest:.1f} s")


def test_a_gif_cut_anywhere_is_refused_by_both(tmp_path):
    whole = save_video(tmp_path / "whole.gif", bouncing_square(4, 12, 4)).read_bytes()
    taken = []
    for length in (*range(1, len(whole) - 40, 6), *range(len(whole) - 40, len(whole))):
        (tmp_path / "cut.gif").write_bytes(whole[:length])
        if through_load_video(tmp_path / "cut.gif")[0] is not None:
            taken.append(length)
    assert not taken
    for length in range(20, len(whole), 300):
        (tmp_path / "cut.gif").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="cut.gif is not a readable video"):
            prepare_clips(tmp_path / "cut.gif", tmp_path / "out")


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".avi", ".mpg"])
def test_a_video_cut_in_the_middle_is_refused_or_a_beginning(tmp_path, suffix):
    whole = next(p for p in make_all(tmp_path / "in") if p.suffix == suffix)
    frames, content = load_video(whole, size=8), whole.read_bytes()
    (tmp_path / f"cut{suffix}").write_bytes(content[: len(content) * 2 // 3])
    clip, _ = through_load_video(tmp_path / f"cut{suffix}")
    assert clip is None or torch.equal(clip[:-1], frames[: len(clip) - 1])


# --- near the end of a long video


def numbered(path: Path, *how, frames=300, rate=30) -> Path:
    """A video whose brightness and stripe tell the time."""
    clock = f"color=black:s=32x32:d={frames / rate}:r={rate},format=gray"
    ffmpeg("-f", "lavfi", "-i", f"{clock},geq=lum='mod(N*7+X*8,256)'", *how, path)
    return path


CONTAINERS = {
    ".mp4": ["-pix_fmt", "yuv420p", "-g", "50"],
    ".mkv": ["-pix_fmt", "yuv420p", "-g", "300"],
    ".ts": ["-pix_fmt", "yuv420p", "-g", "50"],
    ".avi": ["-c:v", "mpeg4"],
    ".webm": ["-c:v", "libvpx-vp9", "-g", "60"],
    ".mpg": ["-c:v", "mpeg2video"],
    ".mov": ["-c:v", "prores_ks"],
    ".flv": ["-pix_fmt", "yuv420p"],
    ".h264": ["-pix_fmt", "yuv420p"],  # has no clock, and no length
}


@pytest.mark.parametrize("suffix", CONTAINERS)
@pytest.mark.parametrize("fps", [None, 10.0, 24000 / 1001, 60])
def test_the_last_frames_are_those_of_the_whole(tmp_path, suffix, fps):
    path = numbered(tmp_path / f"a{suffix}", *CONTAINERS[suffix])
    whole = load_video(path, size=16, gray=True, fps=fps)
    last = load_video(path, size=16, gray=True, fps=fps, last=15)
    assert torch.equal(last, whole[-15:])
    assert torch.equal(load_video(path, size=16, gray=True, fps=fps, last=999), whole)


def test_a_long_video_is_not_decoded_for_its_end(tmp_path):
    path = numbered(tmp_path / "a.mp4", "-pix_fmt", "yuv420p", "-g", "30", frames=900)
    assert len(list(media.read_frames(path, 8, 1))) == 900
    assert 15 <= len(list(media.read_frames(path, 8, 1, last=15))) < 200
    slow = list(media.read_frames(path, 8, 1, 10.0, last=15))
    assert 15 <= len(slow) < 60


def test_a_still_end_is_found_all_the_same(tmp_path):
    """One frame lasts for half a minute: near the end there is nothing to see."""
    hold = "select='lt(n,20)+eq(n,390)'"
    how = ["-vf", hold, "-fps_mode", "vfr", "-pix_fmt", "yuv420p"]
    path = numbered(tmp_path / "a.mp4", *how, frames=400, rate=10)
    for fps in (None, 10):
        whole = load_video(path, size=8, fps=fps)
        assert torch.equal(load_video(path, size=8, fps=fps, last=15), whole[-15:])


@pytest.mark.parametrize("name", ["clip", "clip.gif"])
def test_the_last_images_are_those_of_the_whole(tmp_path, name, unchecked):
    path = save_video(tmp_path / name, noise(9))
    assert torch.equal(load_video(path, last=4), load_video(path)[-4:])
    assert torch.equal(load_video(path, last=40), load_video(path))
    for bad in ({"last": 0}, {"last": 2.5}, {"last": 3, "frames": 2}):
        with pytest.raises(ValueError, match="last must be"):
            load_video(path, **bad)


# --- what is no video, whatever ffmpeg makes of it


def text(path: Path, words="hello world\n" * 30) -> Path:
    path.write_text(words)
    return path


NO_VIDEO = {
    "text": lambda at: text(at / "notes.txt"),
    "text art": lambda at: text(at / "x.ans", "\x1b[31mhello"),
    "a list of files": lambda at: text(at / "x", "ffconcat version 1.0\nfile a.mp4\n"),
    "a drawing": lambda at: text(at / "a.svg", "<svg width='9' height='9'></svg>"),
    "avif": lambda at: picture(at / "a.avif"),
    "tiff": lambda at: picture(at / "a.tiff"),
}


def picture(path: Path) -> Path:
    try:
        Image.new("RGBA", (20, 12), (255, 0, 0, 128)).save(path)
    except (KeyError, OSError, ValueError):
        pytest.skip("Pillow was built without it")
    return path


@pytest.mark.parametrize("case", NO_VIDEO)
def test_what_is_no_video_is_refused_by_both(tmp_path, case):
    save_video(tmp_path / "a.mp4", noise())
    path = NO_VIDEO[case](tmp_path)
    with pytest.raises(ValueError, match="not a readable video"):
        load_video(path)
    with pytest.raises(ValueError, match="no source can be used"):
        prepare_clips(path, tmp_path / "out", frames=1, test_share=0)


# --- names


NAMES = ["-x/c", "a:b/c", "%03d/c", "[x]'\"/c", "ü ²/c", "c" * 240, "http://c"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ending", ["", ".gif", ".mp4"])
def test_any_name_will_do(tmp_path, monkeypatch, name, ending):
    monkeypatch.chdir(tmp_path)
    path = save_video(name + ending, noise())
    assert len(load_video(path)) == 6
    clips = prepare_clips(path, name + "-out" * (len(name) < 200), frames=2, size=8)
    assert clips.windows() and not list(tmp_path.glob("**/.part-*"))


def test_home_is_found_by_all(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save_video("~/in/a.gif", noise(40))
    prepare_clips("~/in", "~/out", size=8, fps=None, frames=2)
    assert ClipFolder("~/out").windows() and (tmp_path / "out/index.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


# --- a folder is its contents


def test_each_file_counts_once_and_the_hidden_not_at_all(tmp_path):
    source = tmp_path / "in"
    video = save_video(source / "a.mp4", noise(8))
    for hidden in (
        ".Trash-1000",
        ".thumbnails",
        "@eaDir/a.mp4",
        "$RECYCLE.BIN",
        ".g/x",
    ):
        shutil.copytree(save_video(tmp_path / "stills", noise()), source / hidden)
        shutil.copy(video, source / hidden / "b.mp4")
    os.symlink("a.mp4", source / "link.mp4")  # the same once more would leak
    os.symlink("nowhere.mp4", source / "broken.mp4")
    os.symlink("loop.mp4", source / "loop.mp4")
    os.mkfifo(source / "pipe.mp4")
    os.symlink(tmp_path / "stills", source / "linked")
    summary = prepare_clips(source, tmp_path / "out", size=8, fps=None, frames=2)
    assert summary.train.keys() | summary.test.keys() == {"a.mp4", "linked"}
    assert summary.ignored == {".mp4": 3} and not summary.skipped


def test_out_may_be_the_source_or_lie_in_it(tmp_path):
    save_video(tmp_path / "a.gif", noise(40))
    for out in (tmp_path, tmp_path / "deep/out"):
        for _ in range(2):
            clips = prepare_clips(tmp_path, out, size=8, fps=None, frames=2)
            assert clips.train.keys() == {"a.gif"}


def test_a_folder_that_cannot_be_read_is_told(tmp_path, monkeypatch):
    save_video(tmp_path / "in/a.gif", noise(40))
    (tmp_path / "in/closed").mkdir()
    scan = os.scandir

    def closed(path):
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", closed)
    clips = prepare_clips(tmp_path / "in", tmp_path / "out", size=8, frames=2)
    assert clips.ignored == {"unreadable folders": 1}
    assert "1 unreadable folders" in repr(clips)


# --- disks that are full, folders that are gone, places that are read-only


@pytest.mark.parametrize("ending", [".gif", ".mp4"])
@pytest.mark.parametrize("frames", [1, 200])
def test_ffmpeg_on_a_full_disk_is_an_error(tmp_path, ending, frames):
    os.symlink("/dev/full", tmp_path / f"full{ending}")
    pixels = np.random.default_rng(0).integers(0, 255, (frames, 32, 32, 3), np.uint8)
    with pytest.raises(OSError, match="No space left"):
        media.write_frames(tmp_path / f"full{ending}", pixels, 8.0)


def full(*arguments, **options):
    raise OSError(errno.ENOSPC, "No space left on device")


def gone(folder: Path):
    def remove(*arguments, **options):
        shutil.rmtree(folder)
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    return remove


STEPS = {
    "making a place": ["tempfile.mkdtemp"],
    "writing": ["subprocess.run", "PIL.Image.Image.save", "stt_lite.prepare.open"],
    "waiting for the disk": ["os.fsync", "PIL.Image.Image.save"],
    "taking the place": ["os.replace", "pathlib.Path.replace"],
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", ["c.gif", "c.mp4", "c", "clips"])
def test_the_last_good_state_outlives_a_full_disk(tmp_path, monkeypatch, name, step):
    source, path = tmp_path / "a.gif", tmp_path / "out" / name
    save_video(source, noise(40))

    def write(frames):
        if name == "clips":
            prepare_clips(source, tmp_path / "out", size=8, fps=None, frames=frames)
        else:
            save_video(path, noise(frames))

    def content():
        files = [file for file in path.parent.glob("**/*") if file.is_file()]
        return {file: file.read_bytes() for file in files}

    write(4)
    before = content()
    os.utime(source, (1, 1))  # so that its array is written anew
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        for place in STEPS[step]:
            patch.setattr(place, full, raising=False)
        write(3)
    assert content() == before
    write(3)


@pytest.mark.parametrize("name", ["c.gif", "c.mp4", "c"])
def test_a_folder_removed_meanwhile_is_an_error(tmp_path, monkeypatch, name):
    write = "stt_lite.video.write_frames" if "." in name else "PIL.Image.Image.save"
    monkeypatch.setattr(write, gone(tmp_path / "out"))
    with pytest.raises(FileNotFoundError):
        save_video(tmp_path / "out" / name, noise())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["c.gif", "c.mp4", "c"])
def test_a_place_that_takes_no_files_is_an_error(name):
    with pytest.raises(OSError):
        save_video(f"/proc/{name}", noise())


# --- large things


def test_a_large_moving_image_is_read_frame_by_frame(tmp_path):
    """100 frames of 1000x1000 in 40 kB would take 300 MB at once."""
    first, *rest = (Image.new("L", (1000, 1000), i) for i in range(100))
    first.save(tmp_path / "a.gif", save_all=True, append_images=rest, optimize=False)
    command = (
        "import resource, sys; from stt_lite.video import load_video;"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "print(len(load_video(sys.argv[1], size=32)));"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    arguments = [sys.executable, "-c", command, tmp_path / "a.gif"]
    told = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
    frames, kilobytes = map(int, told.split())
    assert frames == 100 and kilobytes < 100_000, told
    assert len(load_video(tmp_path / "a.gif", frames=2, size=32)) == 2


def test_a_large_still_is_refused_undecoded(tmp_path):
    Image.new("1", (13_000, 13_000)).save(tmp_path / "a.png")
    with warnings.catch_warnings(), pytest.raises(ValueError, match="67,108,864 pix"):
        warnings.simplefilter("ignore")
        load_video(tmp_path / "a.png", frames=1, size=32)
