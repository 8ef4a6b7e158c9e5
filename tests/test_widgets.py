"""Appendix 93: strips and players show each pixel, say what is real, and are linked."""

import base64
import io
import re
from types import SimpleNamespace

import ipywidgets
import numpy as np
import pytest
import torch
from PIL import Image

from stt_lite.strips import GENERATED_COLOUR, PROMPT_COLOUR
from stt_lite.widgets import (
    explore,
    film_strip,
    futures,
    live_view,
    scrub,
    side_by_side,
)

BLACK, WHITE = (0, 0, 0), (255, 255, 255)


@pytest.fixture
def clip():
    return torch.rand(6, 3, 24, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def links(monkeypatch):
    """What the browser is told to keep equal: pairs of widgets."""
    found = []
    link = lambda a, b: found.append((a[0], b[0]))  # noqa: E731
    monkeypatch.setattr(ipywidgets, "jslink", link)
    return found


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def colours(strip) -> set:
    return {tuple(map(int, colour)) for colour in pixels(strip.data).reshape(-1, 3)}


def pictures(html: str) -> list[np.ndarray]:
    found = re.findall(r"base64,([^\"]+)", html)
    return [pixels(base64.b64decode(picture)) for picture in found]


# --- strips


def test_film_strip_shows_whole_pixels_and_tells_prompt_from_generated(clip):
    black = torch.zeros(6, 1, 8, 8)
    strip = film_strip(black, prompt_frames=4, width=400)
    assert colours(strip) == {BLACK, WHITE, PROMPT_COLOUR, GENERATED_COLOUR}  # no blur
    assert "6 frames" in strip.alt
    assert colours(film_strip(black)) == {BLACK, WHITE}
    one, two = film_strip({"a": clip}), film_strip({"a": clip, "b": clip})
    assert pixels(two.data).shape[0] > 1.8 * pixels(one.data).shape[0]


@pytest.mark.parametrize("name", ["real", "truth"])
def test_what_is_real_stays_so_after_the_prompt(name):
    black = torch.zeros(6, 1, 8, 8)
    assert GENERATED_COLOUR not in colours(film_strip({name: black}, prompt_frames=2))
    assert GENERATED_COLOUR in colours(film_strip({"model": black}, prompt_frames=2))
    box = scrub({name: black, "model": black}, prompt_frames=2)
    last = box.children[1].children[-1].value
    assert f"{name} · real" in last and "model · generated" in last


def test_film_strip_holds_every_frame_in_its_place(clip):
    strip = pixels(film_strip(clip, every=2, width=150).data)  # enlarged: not at all
    assert strip.shape[0] == 24 + 12 and strip.shape[1] == 3 * (32 + 9) + 3
    for column, t in enumerate((0, 2, 4)):
        left = 6 + column * 41
        shown = torch.tensor(strip[6:30, left : left + 32]).movedim(-1, 0) / 255
        torch.testing.assert_close(shown, clip[t], atol=0.5 / 255, rtol=0)


def test_every_other_frame_keeps_its_mark():
    black = torch.zeros(8, 1, 8, 8)
    strip = pixels(film_strip(black, prompt_frames=4, every=2, width=70).data)
    marks = [tuple(map(int, strip[3, left])) for left in (3, 20, 46, 63)]
    assert marks == [PROMPT_COLOUR] * 2 + [GENERATED_COLOUR] * 2


def test_clips_of_any_size_and_length_stand_together(clip):
    strip = film_strip([clip, clip[:2, :1, :12, :8]], ["long", "short"], width=300)
    assert strip.alt == "Film strip of 6 frames: long, short"
    stack = scrub([clip, clip[:2, :1, :12, :8]], width=64).children[1]
    last = pictures(stack.children[-1].value)
    assert [picture.shape for picture in last] == [(24, 32, 3), (12, 8, 3)]


@pytest.mark.parametrize("show", [film_strip, scrub])
def test_what_cannot_be_shown_is_refused(show, clip):
    with pytest.raises(ValueError, match=r"must name each of 2 clips, got \['one'\]"):
        show([clip, clip], labels=["one"])
    with pytest.raises(
        ValueError, match=r"prompt_frames must be .* in \[0, 6\], got 7"
    ):
        show(clip, prompt_frames=7)
    with pytest.raises(ValueError, match="each of 0 clips"):
        show([])
    with pytest.raises(ValueError, match=r"videos\[0\] must have shape \(T C H W\)"):
        show(clip[0, 0])
    with pytest.raises(ValueError, match=r"videos\[1\] must have values in \[0, 1\]"):
        show([clip, clip * 255])


def test_side_by_side_marks_what_is_generated():
    videos, truth = torch.rand(2, 4, 1, 8, 14), torch.rand(4, 1, 8, 14)
    row = side_by_side(videos, 3, truth)
    assert row.shape == (4, 3, 10, 3 * 18) and row.min() >= 0 and row.max() <= 1
    tiles = row.unflatten(-1, (3, 18))[..., 1:-1]  # T 3 H+2 S W+2
    inside = tiles[:, :, 1:-1, :, 1:-1]
    assert torch.equal(inside[..., 0, :], truth.expand(-1, 3, -1, -1))
    for s in range(2):
        assert torch.equal(inside[..., s + 1, :], videos[s].expand(-1, 3, -1, -1))
    corner = tiles[:, :, 0, :, 0] * 255  # T 3 S
    real, made = torch.tensor([PROMPT_COLOUR, GENERATED_COLOUR]).float()
    torch.testing.assert_close(corner[:3], real[:, None].expand(3, 3, 3))
    torch.testing.assert_close(corner[3], torch.stack([real, made, made], 1))
    top = tiles[:, :, 0]  # T 3 S W+2: solid before, dashed after, so it reads in grey
    assert (top[2] == top[2, :, :, :1]).all() and not (
        top[3, :, 1] == made[:, None]
    ).all()
    assert torch.equal(side_by_side(videos, 3), row[..., 18:])


# --- players


def test_scrub_is_linked_in_the_browser(clip, links):
    box = scrub({"truth": clip, "model": clip.flip(0)}, prompt_frames=4, fps=10)
    controls, stack, _ = box.children
    play, slider = controls.children
    assert (play.interval, play.max, slider.max, len(stack.children)) == (100, 5, 5, 6)
    assert {(play, slider), (slider, stack)} <= set(links)
    first, last = stack.children[0].value, stack.children[-1].value
    assert "truth · prompt" in first and "model · generated" in last
    assert "stt-prompt" in first and "stt-generated" in last
    shown = [clip, clip.flip(0)]
    for t, html in ((0, first), (5, last)):
        for picture, video in zip(pictures(html), shown):
            expected = (video[t].permute(1, 2, 0) * 255).round().numpy()
            assert np.array_equal(picture, expected.astype(np.uint8))


def test_a_style_keeps_pixels_and_borders(clip):
    style = scrub(clip).children[-1]
    assert style.layout.display == "none"
    for rule in ("image-rendering: pixelated", "3px dashed rgb(214, 106, 19)"):
        assert rule in style.value


def test_frames_are_enlarged_by_whole_numbers(clip):
    for width in (100, 192, 256):
        stack = scrub(clip, width=width).children[1]
        edge = int(re.search(r"width:(\d+)px", stack.children[0].value)[1]) - 6
        assert edge % 32 == 0 and abs(edge - width) <= 16


def test_film_strip_stands_in_and_the_text_is_short(clip):
    box = scrub(clip)
    bundle = box._repr_mimebundle_()
    assert base64.b64decode(bundle["image/png"])[:4] == b"\x89PNG"
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert bundle["text/plain"] == repr(box) and len(repr(box)) < 100


def test_labels_cannot_inject_html(clip):
    box = scrub({"<script>alert(1)</script>": clip})
    page = box.children[1].children[0].value
    assert "script" in page and "<script>" not in page


def test_samples_of_one_prompt(clip):
    box = scrub(torch.stack([clip] * 3), prompt_frames=2)
    page = box.children[1].children[0].value
    assert page.count("<img") == 3 and "sample 3 · prompt" in page


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
def test_bad_speeds_are_refused(clip, fps):
    with pytest.raises(ValueError, match="fps must be above 0, got"):
        scrub(clip, fps=fps)


def test_futures_follow_their_links(links):
    videos, truth = torch.rand(2, 3, 2, 5, 1, 8, 8), torch.rand(2, 5, 1, 8, 8)
    box = futures(videos, truth, 2, [0.0, 0.5, 1.0])
    clip, temperature, player, outer, _ = box.children
    slider = player.children[1]
    inner = [stack for by_value in outer.children for stack in by_value.children]
    assert [len(outer.children), len(inner), len(inner[0].children)] == [2, 6, 5]
    assert clip.options == ("1", "2") and temperature.options == ("0", "0.5", "1")
    one, other = (outer.children[1].children[a].children for a in (0, 2))
    assert one[:2] == other[:2] and not set(one[2:]) & set(other[2:])  # one prompt
    assert "truth · real" in one[2].value and "future 2 · generated" in one[2].value
    shown = torch.tensor(pictures(other[3].value)[2])[..., 0] / 255
    torch.testing.assert_close(shown, videos[1, 2, 1, 3, 0], atol=0.5 / 255, rtol=0)
    assert (clip, outer) in links
    assert all((temperature, stack) in links for stack in outer.children)
    assert all((slider, frames) in links for frames in inner)


class Model:
    """Generates its seed, as grey levels."""

    def stream(self, prompt, new_frames, samples, temperature, seed):
        self.asked = (prompt, new_frames, samples, temperature, seed)
        for _ in range(new_frames):
            yield torch.full((1, samples, 1, 8, 8), seed / 255)


def test_explore_generates_when_pressed():
    model, real = Model(), torch.rand(2, 8, 1, 8, 8)
    box = explore(model, real, prompt_frames=5)
    assert box.view.children == () and "image/png" in box._repr_mimebundle_()
    for choice, value in zip(box.children[:5], (2, 2, 0.5, 6, 70)):
        choice.value = value
    box.button.click()
    assert not box.button.disabled
    assert torch.equal(model.asked[0], real[1:, :5])
    assert model.asked[1:] == (6, 2, 0.5, 70)
    (shown,) = box.view.children
    assert "stt-scrubber" in shown._dom_classes
    pages = shown.children[-2].children
    assert len(pages) == 11
    truth, future, _ = pictures(pages[-1].value)
    assert (truth == 0).all() and (future == 70).all()  # the truth has ended


def test_what_goes_wrong_is_shown_and_the_button_works_again():
    box = explore(SimpleNamespace(), torch.rand(2, 8, 1, 8, 8), prompt_frames=5)
    box.button.click()
    assert "has no attribute" in box.view.children[0].value
    assert not box.button.disabled


def test_live_view_draws_curves_and_a_strip(monkeypatch):
    shown, updates = [], []

    def display(picture, display_id):
        shown.append(type(picture).__name__)
        return SimpleNamespace(update=lambda new: updates.append(type(new).__name__))

    monkeypatch.setattr("IPython.display.display", display)
    watch, clips = live_view(), {"clip": torch.rand(6, 1, 8, 8)}
    watch("tokenizer", SimpleNamespace(history=[(1, 0.5, 2.0)]), clips, None)
    watch("tokenizer", SimpleNamespace(history=[(1, 0.5, 2.0), (2, 1, 1)]), clips, None)
    watch("transformer", SimpleNamespace(history=[(1, 0.5, 3.0)]), clips, 4)
    assert shown == ["Figure", "Image", "Image"]
    assert updates == ["Figure", "Image", "Figure"]
