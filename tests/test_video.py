"""Chapter 01: clips survive files, bad ones are refused with a clear message, and the widget says what it shows."""

import base64
import io
import math
import re

import imageio.v3 as iio
import numpy as np
import pytest
import torch

import stt_lite as stt


@pytest.fixture
def clip():
    return torch.rand(6, 3, 24, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["clip.gif", "clip", "deep/down/clip.gif"])
def test_grey_clips_survive_exactly(tmp_path, name):
    clip = (torch.rand(5, 1, 16, 20, generator=torch.Generator().manual_seed(0)) * 255).round() / 255
    again = stt.load_video(stt.save_video(tmp_path / name, clip), gray=True)
    torch.testing.assert_close(again, clip, atol=1e-6, rtol=0)


def test_folder_of_images_keeps_colours_exactly(tmp_path, clip):
    clip = (clip * 255).round() / 255
    torch.testing.assert_close(stt.load_video(stt.save_video(tmp_path / "clip", clip)), clip, atol=1e-6, rtol=0)


def test_mp4_keeps_shape_and_comes_close(tmp_path):
    smooth = torch.linspace(0, 1, 32).expand(8, 3, 24, 32)
    again = stt.load_video(stt.save_video(tmp_path / "clip.mp4", smooth))
    assert again.shape == smooth.shape
    assert (again - smooth).abs().mean() < 0.02


def test_mp4_of_odd_size_is_padded_not_refused(tmp_path):
    again = stt.load_video(stt.save_video(tmp_path / "odd.mp4", torch.full((3, 1, 15, 17), 0.5)))
    assert again.shape == (3, 3, 16, 18)


def test_a_shorter_clip_leaves_no_old_images(tmp_path, clip):
    stt.save_video(tmp_path / "clip", clip)
    stt.save_video(tmp_path / "clip", clip[:2])
    assert len(stt.load_video(tmp_path / "clip")) == 2


def test_images_are_read_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 9, 1):
        iio.imwrite(tmp_path / f"shot{number}.png", np.full((4, 4, 3), number, np.uint8))
    assert (stt.load_video(tmp_path)[:, 0, 0, 0] * 255).round().tolist() == [1, 9, 10]


def test_frames_and_size(tmp_path, clip):
    path = stt.save_video(tmp_path / "clip", clip)
    assert stt.load_video(path, frames=4).shape == (4, 3, 24, 32)
    assert stt.load_video(path, size=12, gray=True).shape == (6, 1, 12, 12)
    constant = stt.save_video(tmp_path / "grey", torch.full((1, 3, 24, 32), 0.4))
    torch.testing.assert_close(stt.load_video(constant, size=7), torch.full((1, 3, 7, 7), 0.4), atol=1e-2, rtol=0)


def test_scale_enlarges_by_whole_pixels(tmp_path, clip):
    clip = (clip * 255).round() / 255
    big = stt.load_video(stt.save_video(tmp_path / "big", clip, scale=3))
    torch.testing.assert_close(big, clip.repeat_interleave(3, 2).repeat_interleave(3, 3), atol=1e-6, rtol=0)


def test_a_failed_write_keeps_the_old_file(tmp_path, clip, monkeypatch):
    path = stt.save_video(tmp_path / "clip.gif", clip)
    before = path.read_bytes()

    def full_disk(part, *args, **kwargs):
        part.write_bytes(b"half a file")
        raise OSError("No space left on device")

    monkeypatch.setattr(iio, "imwrite", full_disk)
    with pytest.raises(OSError, match="No space left"):
        stt.save_video(path, clip[:2])
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["clip.gif"]


BAD_CLIPS = {
    "rank": (torch.zeros(3, 8, 8), ValueError, r"clip must have shape \(T C H W\), got 3 dimensions: \(3, 8, 8\)"),
    "channels last": (torch.zeros(3, 8, 8, 3), ValueError, "clip must have 1 or 3 channels.*got 8"),
    "bytes": (torch.zeros(3, 1, 8, 8, dtype=torch.uint8), TypeError, "floating point.*got torch.uint8"),
    "too bright": (torch.full((3, 1, 8, 8), 255.0), ValueError, r"values in \[0, 1\], got values from 255 to 255"),
    "negative": (torch.full((3, 1, 8, 8), -0.1), ValueError, r"values in \[0, 1\]"),
    "nan": (torch.full((3, 1, 8, 8), float("nan")), ValueError, r"values in \[0, 1\], got values from nan"),
    "empty": (torch.zeros(0, 1, 8, 8), ValueError, "must not be empty"),
    "numpy": (np.zeros((3, 1, 8, 8)), TypeError, "must be a torch.Tensor.*got ndarray"),
}


@pytest.mark.parametrize("case", BAD_CLIPS)
def test_bad_clips_are_refused(case, tmp_path, unchecked):
    clip, error, message = BAD_CLIPS[case]
    with pytest.raises(error, match=message):
        stt.save_video(tmp_path / "clip.gif", clip)
    assert not list(tmp_path.iterdir())


def test_size_that_does_not_divide_is_named():
    with pytest.raises(ValueError, match="frames must have height and width divisible by 4, got 30x32"):
        stt.check_frames(torch.zeros(1, 1, 30, 32), multiple=4)


def test_whole_numbers_come_back_as_pythons_own():
    for value in (3, np.int64(3), np.uint8(3)):
        assert type(stt.check_whole(value, "n")) is int and stt.check_whole(value, "n", 3, 3) == 3
    for wrong in (True, 3.0, "3", None, math.nan, torch.tensor(3)):
        with pytest.raises(ValueError, match="n must be a whole number of at least 1, got "):
            stt.check_whole(wrong, "n")
    with pytest.raises(ValueError, match=r"n must be a whole number in \[0, 4\], got 5"):
        stt.check_whole(5, "n", 0, 4)
    with pytest.raises(ValueError, match="n must be a whole number of at least 0, got -1"):
        stt.check_whole(-1, "n", 0)


def test_bad_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no video file or folder of images at .*missing.mp4"):
        stt.load_video(tmp_path / "missing.mp4")
    for name in ("text.mp4", "text.gif"):
        (tmp_path / name).write_text("not a video")
        with pytest.raises(ValueError, match=f"{name} is not a readable video"):
            stt.load_video(tmp_path / name)
    (tmp_path / "none.mp4").touch()
    with pytest.raises(ValueError, match="none.mp4 is not a readable video"):
        stt.load_video(tmp_path / "none.mp4")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no frames"):
        stt.load_video(tmp_path / "empty")


def test_a_truncated_video_is_refused_or_shorter(tmp_path):
    path = stt.save_video(tmp_path / "clip.mp4", torch.rand(30, 3, 32, 32))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="clip.mp4 is not a readable video"):
        stt.load_video(path)


def test_images_of_two_sizes_are_refused(tmp_path):
    for name, size in (("a1.png", 8), ("a2.png", 9)):
        iio.imwrite(tmp_path / name, np.zeros((size, size, 3), np.uint8))
    with pytest.raises(ValueError, match=r"frame 1 has shape \(3, 9, 9\), the first \(3, 8, 8\)"):
        stt.load_video(tmp_path)


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"fps": 0}, "fps must be above 0, got 0"),
        ({"fps": math.nan}, "fps must be above 0, got nan"),
        ({"scale": 0}, "scale must be a whole number of at least 1, got 0"),
        ({"scale": 1.5}, "scale must be a whole number of at least 1, got 1.5"),
    ],
)
def test_save_refuses_bad_numbers(tmp_path, clip, bad, message, unchecked):
    with pytest.raises(ValueError, match=message):
        stt.save_video(tmp_path / "clip.gif", clip, **bad)
    with pytest.raises(ValueError, match=r"must end in .gif, .mp4 or nothing.*'.avi'"):
        stt.save_video(tmp_path / "clip.avi", clip)


def strip_pixels(strip) -> np.ndarray:
    return iio.imread(io.BytesIO(strip.data)).astype(int)


def test_film_strip_shows_whole_pixels_and_tells_prompt_from_generated(clip):
    strip = stt.film_strip(torch.zeros(6, 1, 8, 8), prompt_frames=4, width=400)
    colours = {tuple(c) for c in strip_pixels(strip).reshape(-1, 3)}
    assert colours == {(0, 0, 0), (255, 255, 255), (90, 111, 143), (214, 106, 19)}  # nothing in between: no smoothing
    assert "6 frames" in strip.alt
    unmarked = {tuple(c) for c in strip_pixels(stt.film_strip(torch.zeros(6, 1, 8, 8))).reshape(-1, 3)}
    assert unmarked == {(0, 0, 0), (255, 255, 255)}
    assert strip_pixels(stt.film_strip({"a": clip, "b": clip})).shape[0] > strip_pixels(stt.film_strip(clip)).shape[0]


@pytest.mark.parametrize("show", [stt.film_strip, stt.scrub])
def test_what_cannot_be_shown_is_refused(show, clip):
    with pytest.raises(ValueError, match="labels must name each of the 2 clips, got 1"):
        show([clip, clip], labels=["one"])
    with pytest.raises(ValueError, match=r"prompt_frames must be a whole number in \[0, 6\], got 7"):
        show(clip, prompt_frames=7)
    with pytest.raises(ValueError, match="at least one clip"):
        show([])
    with pytest.raises(ValueError, match=r"videos must have shape \(T C H W\) or \(S T C H W\), got \(24, 32\)"):
        show(clip[0, 0])
    with pytest.raises(ValueError, match="labels must be None when videos is a dict"):
        show({"a": clip}, labels=["a"])


def test_scrub_is_linked_in_the_browser(clip):
    box = stt.scrub({"truth": clip, "model": clip.flip(0)}, prompt_frames=4, fps=10)
    controls, stack = box.children
    play, slider = controls.children
    assert (play.interval, play.max, slider.max, len(stack.children)) == (100, 5, 5, 6)
    first, last = stack.children[0].value, stack.children[-1].value
    assert first.count("<img") == 2 and "truth · prompt" in first and "solid" in first
    assert "model · generated" in last and "dashed" in last and "pixelated" in last
    png = base64.b64decode(re.search(r"base64,([^\"]+)", first).group(1))
    assert np.array_equal(iio.imread(png), (clip[0].permute(1, 2, 0) * 255).round().numpy().astype(np.uint8))


def test_scrub_offers_a_film_strip_where_widgets_cannot_show(clip):
    bundle = stt.scrub(clip)._repr_mimebundle_()
    assert base64.b64decode(bundle["image/png"])[:4] == b"\x89PNG"
    assert "application/vnd.jupyter.widget-view+json" in bundle


def test_labels_cannot_inject_html(clip):
    box = stt.scrub({"<script>alert(1)</script>": clip})
    assert "<script>" not in box.children[1].children[0].value


def test_samples_of_one_prompt(clip):
    box = stt.scrub(torch.stack([clip] * 3), prompt_frames=2)
    assert box.children[1].children[0].value.count("<img") == 3


def test_bouncing_square_stays_whole_and_inside():
    clip = stt.bouncing_square(50, 32, side=7)
    assert (clip.sum((1, 2, 3)) == 49).all()
    with pytest.raises(ValueError, match=r"side must be a whole number in \[1, 31\], got 32"):
        stt.bouncing_square(5, 32, side=32)
