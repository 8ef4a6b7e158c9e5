"""Chapter 01: clips survive files, files are read alike everywhere, or refused."""

import contextlib
import math
import os
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from imageio_ffmpeg import get_ffmpeg_exe
from PIL import Image

from stt_lite import media
from stt_lite.media import image_frames, numbered_images, read_frames
from stt_lite.video import (
    bouncing_square,
    check_frames,
    check_whole,
    load_video,
    save_video,
)


@pytest.fixture
def clip():
    clip = torch.rand(6, 3, 24, 32, generator=torch.Generator().manual_seed(0))
    return (clip * 255).round() / 255


def ffmpeg(*arguments) -> None:
    command = [get_ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True)


def same(a, b, within=1e-6) -> None:
    torch.testing.assert_close(a, b, atol=within, rtol=0)


# --- written and read again


@pytest.mark.parametrize("width", [3, 4, 20])
@pytest.mark.parametrize("name", ["clip.gif", "clip", "deep/down/clip.gif"])
def test_grey_clips_survive_exactly(tmp_path, name, width):
    clip = torch.rand(5, 1, 16, width, generator=torch.Generator().manual_seed(0))
    clip = (clip * 255).round() / 255
    path = save_video(tmp_path / name, clip)
    same(load_video(path, gray=True), clip)
    same(load_video(path), clip.expand(-1, 3, -1, -1))


@pytest.mark.parametrize("name", ["clip.gif", "clip.mp4", "clip"])
def test_a_clip_with_pauses_keeps_its_frames(tmp_path, name):
    moving = bouncing_square(4, 16, 4)
    paused = moving[[0, 0, 0, 1, 2, 2, 2, 2, 3, 3]]
    again = load_video(save_video(tmp_path / name, paused, fps=10), gray=True)
    same(again, paused, 0.1)
    still = moving[:1].expand(10, -1, -1, -1)
    assert len(load_video(save_video(tmp_path / f"still {name}", still))) == 10


def test_folder_of_images_keeps_colours_exactly(tmp_path, clip):
    same(load_video(save_video(tmp_path / "clip", clip)), clip)


def test_gif_takes_the_best_colours_of_each_frame(tmp_path):
    colours = torch.rand(4, 3, 1, 200)  # another 200 in each frame
    clip = (colours * 255).round().expand(-1, -1, 3, -1) / 255
    same(load_video(save_video(tmp_path / "clip.gif", clip)), clip, 1.5 / 255)


def test_mp4_keeps_shape_and_comes_close(tmp_path):
    smooth = torch.linspace(0, 1, 32).expand(8, 3, 24, 32)
    again = load_video(save_video(tmp_path / "clip.mp4", smooth))
    assert again.shape == smooth.shape
    assert (again - smooth).abs().mean() < 0.02


def test_mp4_of_odd_size_is_padded_not_refused(tmp_path):
    odd = torch.full((3, 1, 15, 17), 0.5)
    again = load_video(save_video(tmp_path / "odd.mp4", odd))
    assert again.shape == (3, 3, 16, 18)
    same(again, torch.full_like(again, 0.5), 0.02)


@pytest.mark.parametrize("fps", [0.5, 3, 8, 12.5, 24, 30, 50])
def test_gif_runs_at_the_speed_asked_for(tmp_path, fps):
    path = save_video(tmp_path / "clip.gif", torch.rand(30, 1, 8, 8), fps=fps)
    durations = []
    with Image.open(path) as file:
        for t in range(file.n_frames):
            file.seek(t)
            durations.append(file.info["duration"])
    assert abs(sum(durations) - 30_000 / fps) <= 20
    assert max(durations) - min(durations) <= 10


@pytest.mark.parametrize("name, fps", [("a.gif", 60), ("a.gif", 50.1), ("a.mp4", 1001)])
def test_speed_that_a_file_cannot_hold_is_refused(tmp_path, clip, name, fps):
    with pytest.raises(
        ValueError, match=rf"fps must be in \[0.01, .*\] for {name}, got"
    ):
        save_video(tmp_path / name, clip, fps=fps)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fps", [0.01, 24000 / 1001, 1000])
def test_mp4_of_any_speed_can_be_read(tmp_path, clip, fps):
    assert len(load_video(save_video(tmp_path / "a.mp4", clip, fps=fps))) == 6


def test_scale_enlarges_by_whole_pixels(tmp_path, clip):
    big = load_video(save_video(tmp_path / "big", clip, scale=3))
    same(big, clip.repeat_interleave(3, 2).repeat_interleave(3, 3))


def test_home_is_found(tmp_path, clip, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = save_video("~/clip.gif", clip)
    assert path == tmp_path / "clip.gif" and path.is_file()
    assert load_video("~/clip.gif").shape == clip.shape


# --- what was there before


@pytest.mark.parametrize("name", ["clip.gif", "clip.mp4", "clip", "n" * 240 + ".gif"])
def test_what_is_there_is_replaced_whole(tmp_path, clip, name):
    save_video(tmp_path / name, clip)
    save_video(tmp_path / name, clip[:2])
    assert len(load_video(tmp_path / name)) == 2
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["clip.gif", "clip.mp4", "clip"])
def test_a_failed_write_keeps_what_was_there(tmp_path, clip, monkeypatch, name):
    path = save_video(tmp_path / name, clip)
    before = load_video(path)

    def full_disk(*arguments, **options):
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "replace", full_disk)
    monkeypatch.setattr(Path, "rename", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_video(path, clip[:2])
    same(load_video(path), before)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_folder_comes_back_if_the_new_one_cannot_take_its_place(tmp_path, clip):
    path = save_video(tmp_path / "clip", clip)

    def not_now(self, target):
        raise OSError("not now")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match="not now"):
        patch.setattr(Path, "replace", not_now)
        save_video(path, clip[:2])
    assert len(load_video(path)) == 6 and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["clip.gif", "clip.mp4"])
def test_how_ffmpeg_ends_is_looked_at(tmp_path, clip, monkeypatch, name):
    path = save_video(tmp_path / name, clip)
    before = path.read_bytes()
    monkeypatch.setattr(media, "EACH_FRAME", ("-fps_mode", "nonsense"))
    with pytest.raises(OSError, match="nonsense"):
        save_video(path, clip[:2])
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_a_folder_of_other_files_is_left_alone(tmp_path, clip):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.txt").write_text("years of work")
    with pytest.raises(ValueError, match="must hold frames only, holds chapter.txt"):
        save_video(tmp_path / "thesis", clip)
    assert (tmp_path / "thesis/chapter.txt").read_text() == "years of work"
    (tmp_path / "file").write_text("a file without a suffix")
    with pytest.raises(OSError):
        save_video(tmp_path / "file", clip)
    assert (tmp_path / "file").read_text() == "a file without a suffix"
    assert len(list(tmp_path.iterdir())) == 2


# --- one reader: what makes a source, its frames' mean colours, options


def colours(*values) -> list[tuple]:
    return [value if isinstance(value, tuple) else (value,) * 3 for value in values]


def images(folder: Path, mode: str, *values, suffix="png", **options) -> Path:
    folder.mkdir()
    for i, value in enumerate(values):
        image = Image.new(mode, (20, 12), value)
        image.save(folder / f"{i}.{suffix}", **options)
    return folder


def animation(path: Path, durations=100, **options) -> Path:
    """Four frames of growing brightness."""
    first, *rest = (Image.new("RGB", (20, 12), (v,) * 3) for v in (0, 60, 120, 240))
    options |= {"save_all": True, "append_images": rest, "duration": durations}
    first.save(path, **options)
    return path


def red_half(path: Path, *codec) -> Path:
    """Red, half transparent, for four frames."""
    kind = "color=red@0.5:s=32x32:d=0.4:r=10,format=yuva444p10le"
    ffmpeg("-f", "lavfi", "-i", kind, *codec, path)
    return path


def steps(path: Path, *more) -> Path:
    """A video of four frames of growing brightness; at its left a white stripe."""
    grey = "color=black:s=32x32:d=0.4:r=10,format=gray,geq=lum='if(lt(X,4),255,N*60)'"
    codec = ["-c:v", "libx264", "-crf", "5", "-pix_fmt", "yuv420p"]
    ffmpeg("-f", "lavfi", "-i", grey, *more, *codec, path)
    return path


def named(folder: Path) -> Path:
    folder.mkdir()
    for value, name in enumerate(("1", "2", "9²", "10", "10_9", "10_10", "10²0", "²")):
        Image.new("L", (8, 8), 20 * value).save(folder / f"{name}.png")
    Image.new("L", (8, 8), 250).save(folder / "._1.png")  # what a Mac leaves behind
    return folder


def turned(folder: Path) -> Path:
    """A bright stripe that camera and reader see at different sides, twice."""
    folder.mkdir()
    upright = np.zeros((16, 16, 3), np.uint8)
    upright[:8] = 200
    lying = Image.fromarray(np.rot90(upright, 1).copy())
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it by 90 degrees, clockwise, to see it as it was
    for i in range(2):
        lying.save(folder / f"{i}.png", exif=exif)
    return folder


def transparent_gif(path: Path) -> Path:
    frames = [Image.new("RGBA", (20, 12), (200, 0, 0, 0)) for _ in range(3)]
    for i, frame in enumerate(frames):
        frame.paste((0, 90, 60 * i, 255), (0, 0, 10, 12))
    options = {"save_all": True, "append_images": frames[1:], "disposal": 2}
    frames[0].save(path, **options)
    return path


GREYS = colours(0, 60, 120, 240)
CASES = {  # what makes the source; the frames' mean colours; options
    "alpha": (
        lambda at: images(at / "a", "RGBA", (255, 0, 0, 128), (0, 80, 0, 255)),
        [(128, 0, 0), (0, 80, 0)],
    ),
    "grey with alpha": (
        lambda at: images(at / "a", "LA", (255, 128), (90, 0)),
        colours(128, 0),
    ),
    "palette": (lambda at: images(at / "a", "P", 0, 0), colours(0, 0)),
    "one bit": (lambda at: images(at / "a", "1", 0, 1), colours(0, 255)),
    "ink": (
        lambda at: images(at / "a", "CMYK", (0, 0, 0, 0), (0, 0, 0, 255), suffix="jpg"),
        colours(255, 0),
    ),
    "capital suffix": (
        lambda at: images(at / "a", "L", 9, 99, suffix="PNG"),
        colours(9, 99),
    ),
    "transparent gif": (
        lambda at: transparent_gif(at / "a.gif"),
        [(0, 45, 0), (0, 45, 30), (0, 45, 60)],
    ),
    "prores 4444": (
        lambda at: red_half(at / "a.mov", "-c:v", "prores_ks", "-profile:v", "4444"),
        [(127, 0, 0)] * 4,
    ),
    "vp9 with alpha": (
        lambda at: red_half(
            at / "a.webm", "-pix_fmt", "yuva420p", "-c:v", "libvpx-vp9"
        ),
        [(127, 0, 0)] * 4,
    ),
    "camera on its side": (lambda at: turned(at / "a"), colours(100, 100)),
    "numbers in names": (
        lambda at: named(at / "a"),
        colours(0, 20, 40, 60, 80, 100, 120, 140),
    ),
    "gif": (lambda at: animation(at / "a.gif"), GREYS),
    "webp": (lambda at: animation(at / "a.webp", lossless=True), GREYS),
    "png that moves": (lambda at: animation(at / "a.png"), GREYS),
    "png with a still for others": (
        lambda at: animation(at / "a.png", default_image=True, durations=[100] * 3),
        GREYS[1:],
    ),
    "gif without a suffix": (
        lambda at: animation(at / "a.gif").rename(at / "a"),
        GREYS,
    ),
    "gif by the clock": (
        lambda at: animation(at / "a.gif", [100, 300, 50, 100]),
        [GREYS[i] for i in (0, 1, 1, 1, 2, 3)],
        10.0,
    ),
    "webp by the clock": (
        lambda at: animation(at / "a.webp", [50, 100, 150, 100], lossless=True),
        [GREYS[i] for i in (0, 1, 2, 3)],
        10.0,
    ),
    "png by the clock": (
        lambda at: animation(at / "a.png", [200, 100, 100, 200]),
        [GREYS[i] for i in (0, 0, 1, 2, 3, 3)],
        10.0,
    ),
    "gif without durations": (
        lambda at: animation(at / "a.gif", 0),
        [GREYS[i] for i in (0, 0, 1, 1, 2, 2, 3, 3)],
        20.0,
    ),
    "stills have no clock": (
        lambda at: images(at / "a", "L", 9, 99),
        colours(9, 99),
        50.0,
    ),
}
for suffix in (".m4v", ".ts", ".mts", ".3gp", ".mkv", ".mp4"):
    kind = () if suffix not in (".mts",) else ("-f", "mpegts")
    bright = [(v * 7 + 255) / 8 for v in (0, 60, 120, 180)]
    CASES[suffix] = (
        lambda at, suffix=suffix, kind=kind: steps(at / f"a{suffix}", *kind),
        colours(*bright),
    )
CASES["no suffix"] = (
    lambda at: steps(at / "a.mp4").rename(at / "a"),
    CASES[".mp4"][1],
)
CASES["video by the clock"] = (
    CASES[".mp4"][0],
    [CASES[".mp4"][1][i] for i in (0, 0, 1, 1, 2, 2, 3, 3)],
    20.0,
)


def by_load_video(path, size, fps, frames, tmp_path):
    return load_video(path, size=size, fps=fps)


def by_prepare_clips(path, size, fps, frames, tmp_path):
    clips = pytest.importorskip("stt_lite.clips")
    options = {"size": size, "fps": fps, "frames": frames, "test_share": 0}
    clips.prepare_clips(path, tmp_path / "out", **options)
    folder = clips.ClipFolder(tmp_path / "out")
    return folder.draw(1, frames, torch.Generator(), "cpu").clips[0]


@pytest.mark.parametrize("entrance", [by_load_video, by_prepare_clips])
@pytest.mark.parametrize("case", CASES)
def test_all_entrances_see_the_same(tmp_path, case, entrance):
    make, expected, *fps = CASES[case]
    path = make(tmp_path)
    clip = entrance(path, 8, fps[0] if fps else None, len(expected), tmp_path)
    assert len(clip) == len(expected)
    within = 2 if path.is_dir() or image_frames(path) else 6  # lossy
    same(clip.mean((2, 3)) * 255, torch.tensor(expected).float(), within)


REFUSED = {
    "16 bits": (
        lambda at: images(at / "a", "I;16", 300, 9000),
        r"8 bits per channel, got 20x12, mode I;16",
    ),
    "two sizes": (
        lambda at: two_sizes(at / "a"),
        "1.png has 8x9 pixels, the first 8x8",
    ),
    "text": (lambda at: text(at / "a.mp4"), "moov atom|Invalid data"),
    "text as an image": (lambda at: text(at / "a.png"), "Format not on whitelist"),
    "a cut video": (lambda at: cut(steps(at / "a.mp4"), 0.5), "moov atom not found"),
    "a damaged video": (lambda at: damaged(at / "a.mp4"), "Invalid|error|corrupt"),
    "a cut gif": (lambda at: cut(save_noise(at / "a.gif"), 0.6), "cut off"),
    "a gif cut between frames": (lambda at: cut_between(at / "a.gif"), "cut off"),
    "a cut image": (lambda at: cut_image(at / "a"), "truncated|unrecognized"),
    "sound": (lambda at: sound(at / "a.mp4"), "matches no streams"),
    "too many pixels": (lambda at: huge(at / "a.png"), "at most 67,108,864 pixels"),
}


def two_sizes(folder: Path) -> Path:
    folder.mkdir()
    for i, size in enumerate(((8, 8), (8, 9))):
        Image.new("L", size).save(folder / f"{i}.png")
    return folder


def text(path: Path) -> Path:
    path.write_text("no video at all")
    return path


def cut(path: Path, share: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def damaged(path: Path) -> Path:
    """A video with zeros in the middle of its frames; all else is whole."""
    content = bytearray(save_video(path, torch.rand(20, 1, 64, 64)).read_bytes())
    middle = content.index(b"mdat") + 4000
    content[middle : middle + 3000] = bytes(3000)
    path.write_bytes(content)
    return path


def cut_between(path: Path) -> Path:
    """A GIF that lost its last byte, which says that no frame follows."""
    save_noise(path).write_bytes(path.read_bytes()[:-1])
    return path


def save_noise(path: Path) -> Path:
    return save_video(path, torch.rand(6, 1, 24, 32))


def cut_image(folder: Path) -> Path:
    save_video(folder, torch.rand(2, 3, 24, 32))
    cut(folder / "frame_00001.png", 0.6)
    return folder


def sound(path: Path) -> Path:
    ffmpeg("-f", "lavfi", "-i", "sine=d=1", path)
    return path


def huge(path: Path) -> Path:
    Image.new("1", (8200, 8200)).save(path)  # 9 kB
    return path


@pytest.mark.parametrize("entrance", [by_load_video, by_prepare_clips])
@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.filterwarnings("ignore:skipped")
def test_all_entrances_refuse_the_same(tmp_path, case, entrance):
    make, message = REFUSED[case]
    path = make(tmp_path)
    with pytest.raises(ValueError, match=message):
        entrance(path, 8, None, 2, tmp_path)


def test_what_moves_is_no_frame_of_a_folder(tmp_path):
    images(tmp_path / "a", "L", 9, 99)
    animation(tmp_path / "a/2.webp", lossless=True)
    with pytest.raises(ValueError, match="2.webp moves: it is a video by itself"):
        load_video(tmp_path / "a")
    counts = {path.name: image_frames(path) for path in numbered_images(tmp_path / "a")}
    assert counts == {"0.png": 1, "1.png": 1, "2.webp": 4}
    assert image_frames(steps(tmp_path / "video.mp4")) == 0


def numbers(path: Path, frames: int, rate: float) -> Path:
    """A video whose frame i shows the number i in stripes, one for each bit."""
    bits = (torch.arange(frames)[:, None] >> torch.arange(8)) & 1  # (T 8)
    stripes = bits.float().repeat_interleave(8, 1)[:, None, None]
    return save_video(path, stripes.expand(-1, 3, 64, -1), fps=rate)


@pytest.mark.parametrize("rate", [8, 12, 25, 30, 60])
@pytest.mark.parametrize("fps", [None, 10.0])
def test_which_frames_are_taken(tmp_path, rate, fps):
    """Each frame once; or at each moment k / fps the latest one by then."""
    path = numbers(tmp_path / "n.mp4", 3 * rate, rate)
    read = load_video(path, size=64, gray=True, fps=fps)
    found = (read[:, 0, 32, 4::8] > 0.5).long() @ (1 << torch.arange(8))
    expected = torch.arange(30) * rate // 10 if fps else torch.arange(3 * rate)
    assert found.tolist() == expected.tolist()


def test_variable_frame_rate_keeps_to_the_clock(tmp_path):
    bright = "color=black:s=64x64:d=4:r=20,format=gray,geq=lum='T*60'"
    keep = "select='lt(t,2)+not(mod(n,5))'"  # 20 frames per second at first, then 4
    options = ["-fps_mode", "vfr", "-pix_fmt", "yuv420p", "-crf", 1]
    ffmpeg("-f", "lavfi", "-i", bright, "-vf", keep, *options, tmp_path / "a.mp4")
    clock = load_video(tmp_path / "a.mp4", gray=True, fps=10).mean((1, 2, 3)) * 255
    assert len(clock) == 40
    late = 6 * torch.arange(40) - clock  # how old, in levels, the frame shown is
    assert late[:20].abs().max() < 3
    assert late[20:].min() > -3 and late[20:].max() < 60 / 4 + 3  # up to a gap
    assert len(load_video(tmp_path / "a.mp4")) == 40 + 40 // 5


@pytest.mark.parametrize("name", ["stripes.mkv", "stripes"])
def test_fine_stripes_do_not_flicker(tmp_path, name):
    x = (torch.arange(96) - 0.2 * torch.arange(10)[:, None]) * 2 * math.pi / 3.3
    stripes = (0.5 + 0.47 * x.sin())[:, None, None].expand(-1, 1, 96, -1)
    path = save_video(tmp_path / "stripes", stripes)
    if name.endswith("mkv"):
        source = ["-framerate", 10, "-i", path / "frame_%05d.png"]
        ffmpeg(*source, "-c:v", "ffv1", tmp_path / name)
    small = load_video(tmp_path / name, size=32, gray=True)
    assert small.diff(dim=0).abs().mean() < 0.02  # every third pixel: 0.16


def test_camera_on_its_side_is_turned_upright(tmp_path):
    clip = load_video(turned(tmp_path / "a"), size=8)
    assert clip[:, :, :3].min() > 0.7 and clip[:, :, 5:].max() < 0.1


def test_frames_keep_their_size_and_show_pixels_square(tmp_path, clip):
    path = save_video(tmp_path / "clip", clip)
    assert load_video(path).shape == (6, 3, 24, 32)
    assert load_video(path, size=12, gray=True).shape == (6, 1, 12, 12)
    wide = steps(tmp_path / "wide.mp4", "-vf", "setsar=2")
    assert load_video(wide).shape == (4, 3, 32, 64)
    assert load_video(wide, size=16)[0].max() < 0.2  # the stripe is cut off
    phone = tmp_path / "phone.mp4"
    ffmpeg("-display_rotation", 90, "-i", wide, "-c", "copy", phone)
    assert load_video(phone).shape == (4, 3, 64, 32)


def test_reading_stops_where_enough_is_read(tmp_path):
    path = save_video(tmp_path / "long.mp4", torch.rand(40, 1, 64, 64))
    assert load_video(path, frames=3).shape[0] == 3
    damaged = path.read_bytes()
    stream = read_frames(path)
    with contextlib.closing(stream):
        frame = next(stream)
        assert frame.shape == (64, 64, 3) and frame.dtype == np.uint8
    assert len(list(read_frames(path, 8, 1, fps=4.0))) == 20
    assert path.read_bytes() == damaged


def test_a_clip_that_fills_the_memory_is_refused(tmp_path, clip, monkeypatch):
    monkeypatch.setattr("stt_lite.video.MOST_VALUES", 5 * 3 * 24 * 32)
    path = save_video(tmp_path / "clip.gif", clip)
    with pytest.raises(ValueError, match="too long: give fewer frames or a smaller"):
        load_video(path)
    assert len(load_video(path, frames=5)) == 5 and len(load_video(path, size=8)) == 6


def test_nothing_hangs_on_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe.gif")
    start = time.monotonic()
    with pytest.raises(FileNotFoundError, match="no video file or folder of images at"):
        load_video(tmp_path / "pipe.gif")
    assert time.monotonic() - start < 5


def test_a_playlist_reaches_nothing_else(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        head = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:1\n#EXTINF:1.0,\n"
        address = f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"
        (tmp_path / "list.m3u8").write_text(f"{head}{address}\n#EXT-X-ENDLIST\n")
        with pytest.raises(ValueError, match="Format not on whitelist"):
            load_video(tmp_path / "list.m3u8")
        with pytest.raises(TimeoutError):
            server.accept()


def test_no_file_and_no_frames(tmp_path):
    with pytest.raises(FileNotFoundError, match="no video file .* at .*missing.mp4"):
        load_video(tmp_path / "missing.mp4")
    (tmp_path / "none.mp4").touch()
    with pytest.raises(ValueError, match="none.mp4 is not a readable video: "):
        load_video(tmp_path / "none.mp4")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no frames"):
        load_video(tmp_path / "empty")


# --- numbers and tensors


BAD_CLIPS = {
    "rank": (torch.zeros(3, 8, 8), ValueError, r"shape \(T C H W\).*got \(3, 8, 8\)"),
    "channels last": (torch.zeros(3, 8, 8, 3), ValueError, "1 or 3 channels.*got"),
    "bytes": (torch.zeros(3, 1, 8, 8).byte(), TypeError, "floating-.*got torch.uint8"),
    "too bright": (torch.full((3, 1, 8, 8), 255.0), ValueError, "from 255 to 255"),
    "negative": (torch.full((3, 1, 8, 8), -0.1), ValueError, r"values in \[0, 1\]"),
    "nan": (torch.full((3, 1, 8, 8), math.nan), ValueError, "got values from nan"),
    "empty": (torch.zeros(0, 1, 8, 8), ValueError, "none of it 0, got"),
    "numpy": (np.zeros((3, 1, 8, 8)), TypeError, "must be a .*Tensor, got ndarray"),
}


@pytest.mark.parametrize("case", BAD_CLIPS)
def test_bad_clips_are_refused(case, tmp_path, unchecked):
    clip, error, message = BAD_CLIPS[case]
    with pytest.raises(error, match=message):
        save_video(tmp_path / "clip.gif", clip)
    assert not list(tmp_path.iterdir())


def test_size_that_does_not_divide_is_named():
    with pytest.raises(ValueError, match="H and W divisible by 4, got .*30, 32"):
        check_frames(torch.zeros(1, 1, 30, 32), multiple=4)
    with pytest.raises(ValueError, match="frames must have 3 channels in"):
        check_frames(torch.zeros(1, 1, 8, 8), channels=3)
    check_frames(torch.zeros(2, 1, 1, 8, 8), dims="B T C H W", channels=1, multiple=4)


def test_whole_numbers_come_back_as_pythons_own():
    for value in (3, np.int64(3), np.uint8(3)):
        assert (
            type(check_whole(value, "n")) is int and check_whole(value, "n", 3, 3) == 3
        )
    for wrong in (True, 3.0, "3", None, math.nan, torch.tensor(3)):
        with pytest.raises(ValueError, match="n must be a whole number of at least 1"):
            check_whole(wrong, "n")
    with pytest.raises(
        ValueError, match=r"n must be a whole number in \[0, 4\], got 5"
    ):
        check_whole(5, "n", 0, 4)
    with pytest.raises(ValueError, match="n must be .* of at least 0, got -1"):
        check_whole(-1, "n", 0)


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"fps": 0}, r"fps must be in \[0.01, 50\] for clip.gif, got 0"),
        ({"fps": 1e-5}, "fps must be in .*got 1e-05"),
        ({"fps": math.nan}, "fps must be in .*got nan"),
        ({"scale": 0}, "scale must be a whole number of at least 1, got 0"),
        ({"scale": 1.5}, "scale must be a whole number of at least 1, got 1.5"),
    ],
)
def test_save_refuses_bad_numbers(tmp_path, clip, bad, message, unchecked):
    with pytest.raises(ValueError, match=message):
        save_video(tmp_path / "clip.gif", clip, **bad)
    with pytest.raises(ValueError, match=r"must end in .gif, .mp4 or no.*clip.avi"):
        save_video(tmp_path / "clip.avi", clip)


def test_load_refuses_bad_numbers(tmp_path, clip, unchecked):
    path = save_video(tmp_path / "clip.gif", clip)
    for bad in ({"frames": 0}, {"size": 0}, {"size": 1.5}, {"fps": 0.0}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))} must be"):
            load_video(path, **bad)


def test_bouncing_square_stays_whole_and_inside():
    clip = bouncing_square(50, 32, side=7)
    assert (clip.sum((1, 2, 3)) == 49).all()
    with pytest.raises(ValueError, match=r"side must be a whole number in \[1, 31\]"):
        bouncing_square(5, 32, side=32)
