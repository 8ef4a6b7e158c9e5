"""Appendix 93: strips and players show each pixel, say what is real, and are linked."""

import base64
import html
import io
import json
import re
import shutil
import subprocess
from types import SimpleNamespace

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
    pick,
    scrub,
    side_by_side,
)

BLACK, WHITE = (0, 0, 0), (255, 255, 255)


@pytest.fixture
def clip():
    return torch.rand(6, 3, 24, 32, generator=torch.Generator().manual_seed(0))


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def colours(strip) -> set:
    return {tuple(map(int, colour)) for colour in pixels(strip.data).reshape(-1, 3)}


def data_of(player) -> dict:
    """What a player's script is given."""
    (found,) = re.findall(r'data-player="([^"]*)"', player.html)
    return json.loads(html.unescape(found))


def shown(player, page: int, panel: int) -> np.ndarray:
    """A panel's frames (T H W 3), cut out of its sheet as the script does."""
    data = data_of(player)
    panel = data["pages"][page][panel]
    sheet = data["sheets"][panel["sheet"]]
    picture = pixels(base64.b64decode(sheet["src"].split(",")[1]))
    h, w, columns = sheet["height"], sheet["width"], sheet["columns"]
    places = [(h * (n // columns), w * (n % columns)) for n in panel["tiles"]]
    return np.stack([picture[y : y + h, x : x + w] for y, x in places])


def as_bytes(clip: torch.Tensor) -> np.ndarray:
    return (clip.expand(-1, 3, -1, -1).movedim(1, -1) * 255).round().byte().numpy()


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
    panels = data_of(scrub({name: black, "model": black}, prompt_frames=2))["pages"][0]
    assert [panel["after"] for panel in panels] == ["real", "generated"]


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
    player = scrub([clip, clip[:2, :1, :12, :8]], width=64)
    for i, one in enumerate((clip, clip[:2, :1, :12, :8])):
        assert np.array_equal(shown(player, 0, i), as_bytes(one))


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
    line = torch.isclose(255 * top[3, :, 1], made[:, None], atol=1.0).all(0)
    assert (top[2] == top[2, :, :, :1]).all() and line.any() and not line.all()
    assert torch.equal(side_by_side(videos, 3), row[..., 18:])


# --- players


def test_a_player_holds_every_frame_once_and_no_script_of_others(clip):
    player = scrub({"truth": clip, "model": clip.flip(0)}, prompt_frames=4, fps=10)
    data = data_of(player)
    assert [data["prompt"], data["fps"], len(data["sheets"])] == [4, 10, 1]
    assert isinstance(data["wanted"], int)  # frames are enlarged by whole numbers
    assert sorted(set(data["pages"][0][0]["tiles"])) == list(range(6))
    assert data["pages"][0][1]["tiles"] == data["pages"][0][0]["tiles"][::-1]
    for i, video in enumerate((clip, clip.flip(0))):
        assert np.array_equal(shown(player, 0, i), as_bytes(video))
    assert "http" not in player.html and 'src="data:' in player.html
    assert data["axes"] == [
        {"name": "frame", "values": [f"{t} of 6" for t in range(1, 7)]}
    ]


def test_text_is_short_and_a_strip_lies_in_the_html(clip):
    player = scrub({"one": clip, "two": clip})
    assert repr(player) == "Player of 6 frames: one, two"
    (strip,) = re.findall(r'<img class="stt-strip" src="[^,]*,([^"]*)"', player.html)
    assert pixels(base64.b64decode(strip)).shape[2] == 3
    assert player._repr_html_() == player.html


def test_what_a_clip_is_called_is_no_html(clip):
    name = "</script><img src=x onerror=alert(1)>\" '"
    player = scrub({name: clip, "": clip})
    assert "<img src=x" not in player.html and player.html.count("</script>") == 1
    assert [panel["name"] for panel in data_of(player)["pages"][0]] == [name, ""]


@pytest.mark.parametrize("labels", [["", ""], ["a", "a"]])
def test_clips_may_have_one_name(clip, labels):
    player = scrub([clip, clip.flip(0)], labels)
    assert [panel["name"] for panel in data_of(player)["pages"][0]] == labels


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
def test_bad_speeds_are_refused(clip, fps):
    with pytest.raises(ValueError, match="fps must be a number above 0, or None, got"):
        scrub(clip, fps=fps)


def test_futures_lie_in_the_order_of_their_sliders():
    videos, truth = torch.rand(2, 3, 2, 5, 1, 8, 8), torch.rand(2, 5, 1, 8, 8)
    videos[..., :2, :, :, :] = truth[:, None, None, :2]
    player = futures(videos, truth, 2, [0.0, 0.5, 1.0])
    data = data_of(player)
    assert [(a["name"], a["values"][:3]) for a in data["axes"]] == [
        ("clip", ["1", "2"]),
        ("temperature", ["0", "0.5", "1"]),
        ("frame", ["1 of 5", "2 of 5", "3 of 5"]),
    ]
    for n in range(2):
        for a in range(3):
            page = [truth[n], *videos[n, a]]
            for i, video in enumerate(page):
                assert np.array_equal(shown(player, 3 * n + a, i), as_bytes(video))
    sheet = data["sheets"][0]
    tiles = {t for page in data["pages"] for panel in page for t in panel["tiles"]}
    assert len(tiles) == 2 * 5 + 2 * 3 * 2 * 3  # each prompt once
    assert (sheet["width"], sheet["height"], sheet["columns"]) == (8, 8, 8)


# --- players in a browser


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no Chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        yield started
        started.close()


@pytest.fixture
def opened(browser, tmp_path):
    """Opens players in one file, as a notebook's outputs lie in an exported page."""
    contexts = []

    def show(*players, **options):
        path = tmp_path / "page.html"
        body = "".join(f"<div>{player.html}</div>" for player in players)
        path.write_text(f"<!doctype html><meta charset=utf-8><body>{body}")
        contexts.append(browser.new_context(offline=True, **options))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: pytest.fail(str(error)))
        page.goto(path.as_uri())
        if options.get("java_script_enabled", True):
            page.wait_for_function(
                "n => document.querySelectorAll('[data-shown]').length == n",
                arg=len(players),
            )
        return page

    yield show
    for context in contexts:
        context.close()


CANVAS = "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"


def seen(canvas, shape) -> np.ndarray:
    return np.array(canvas.evaluate(CANVAS)).reshape(*shape, 4)[..., :3]


def test_players_drag_play_stop_and_do_not_clash(clip, opened):
    page = opened(*[scrub({"truth": c}, fps=50) for c in (clip, clip.flip(0))])
    first, second = page.locator(".stt-player").all()
    canvas, slider = first.locator("canvas"), first.get_by_label("frame")
    assert np.array_equal(seen(canvas, (24, 32)), as_bytes(clip)[0])
    box = slider.bounding_box()
    height = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 12, height)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 1, height, steps=4)
    page.mouse.up()
    assert np.array_equal(seen(canvas, (24, 32)), as_bytes(clip)[5])
    page.keyboard.press("ArrowLeft")
    assert np.array_equal(seen(canvas, (24, 32)), as_bytes(clip)[4])
    assert slider.get_attribute("aria-valuetext") == "5 of 6"
    assert canvas.get_attribute("aria-label") == "truth, 5"
    other = second.locator("canvas")
    assert np.array_equal(seen(other, (24, 32)), as_bytes(clip)[5])  # it stayed

    first.get_by_role("button", name="Repeat").click()  # off: it plays to the end
    first.get_by_role("button", name="Play").click()
    first.get_by_role("button", name="Play").wait_for()
    assert np.array_equal(seen(canvas, (24, 32)), as_bytes(clip)[5])
    first.get_by_role("button", name="Stop").click()
    assert np.array_equal(seen(canvas, (24, 32)), as_bytes(clip)[0])


def test_sliders_of_choices_choose(opened):
    pictures = torch.rand(2, 3, 1, 1, 8, 8)
    choices = {"row": [1, 2], "column": [1, 2, 3]}
    player = pick(choices, lambda i, j: {"map": pictures[i, j]}, start=(0, 1))
    page = opened(player)
    begun = as_bytes(pictures[0, 1])[0]
    assert np.array_equal(seen(page.locator("canvas"), (8, 8)), begun)
    (strip,) = re.findall(r'<img class="stt-strip" src="[^,]*,([^"]*)"', player.html)
    assert {*map(tuple, begun[0])} <= {*map(tuple, pixels(base64.b64decode(strip))[24])}
    page.get_by_label("row").fill("1")
    page.get_by_label("column").fill("2")
    wanted = as_bytes(pictures[1, 2])[0]
    assert np.array_equal(seen(page.locator("canvas"), (8, 8)), wanted)
    assert page.get_by_role("button").count() == 0  # there is nothing to play


@pytest.mark.parametrize(
    "choices, start",
    [
        ({"row": []}, ()),
        ({"frame": [1]}, ()),
        ({"row": [1]}, (1,)),
        ({"row": [1]}, (-1,)),
        ({"row": [1]}, (0, 0)),
    ],
)
def test_choices_that_do_not_fit_are_refused(choices, start):
    clip = torch.rand(2, 1, 8, 8)
    with pytest.raises(ValueError, match="start must number a value of each choice"):
        pick(choices, lambda *_: {"clip": clip}, start=start)


@pytest.mark.parametrize("room, motion", [(1280, "reduce"), (390, "no-preference")])
def test_pixels_are_enlarged_by_whole_numbers_and_controls_can_be_hit(
    clip, opened, room, motion
):
    options = {"reduced_motion": motion, "viewport": {"width": room, "height": 844}}
    page = opened(scrub([clip] * 5), **options)
    for canvas in page.locator("canvas").all():
        box = canvas.bounding_box()
        assert (box["width"] - 6) % 32 == 0 and (box["height"] - 6) % 24 == 0
        assert box["x"] >= 0 and box["x"] + box["width"] <= room
    least = 24 if room > 480 else 44
    for control in page.locator("button, input:visible").all():
        box = control.bounding_box()
        assert min(box["width"], box["height"]) >= least
    repeat = page.get_by_role("button", name="Repeat")
    wanted = "false" if motion == "reduce" else "true"
    assert repeat.get_attribute("aria-pressed") == wanted


def test_the_strip_shows_without_scripts_and_in_print(clip, opened):
    assert opened(scrub(clip), java_script_enabled=False).locator("img").is_visible()
    page = opened(scrub(clip))
    assert not page.locator("img").is_visible() and page.locator("canvas").is_visible()
    page.emulate_media(media="print")
    assert page.locator("img").is_visible() and not page.locator("canvas").is_visible()


def test_clips_stand_in_rows_of_equal_length(root):
    node = shutil.which("node")
    if not node:
        pytest.skip("no node on this machine")
    # n clips of 64x64, enlarged twice, in a room of 700 pixels: 5 fit into a row
    code = f"""const {{ arrange }} = require({json.dumps(str(root))} +
        "/stt_lite/data/player.js");
        console.log(JSON.stringify([1, 4, 5, 6, 7, 9].map((n) =>
        arrange(n, 64, 64, 2, 700, 900))),
        JSON.stringify(arrange(1, 480, 9, 3, 390, 900)))"""
    found = subprocess.run([node, "-e", code], capture_output=True, check=True)
    columns, wide = found.stdout.decode().split()
    assert [row["columns"] for row in json.loads(columns)] == [1, 4, 5, 3, 4, 5]
    assert json.loads(wide) == {"scale": 1, "columns": 1}


class Model:
    """Generates its seed, as grey levels."""

    def stream(self, prompt, new_frames, samples, temperature, seed):
        self.asked = (prompt, new_frames, samples, temperature, seed)
        for _ in range(new_frames):
            yield torch.full((1, samples, 1, 8, 8), seed / 255)


def test_explore_generates_when_pressed():
    model, real = Model(), torch.rand(2, 8, 1, 8, 8)
    box = explore(model, real, prompt_frames=5)
    for choice, value in zip(box.children[:5], (2, 2, 0.5, 6, 70)):
        choice.value = value
    box.manual_button.click()
    assert not box.manual_button.disabled
    assert torch.equal(model.asked[0], real[1:, :5])
    assert model.asked[1:] == (6, 2, 0.5, 70)
    truth, future = (shown(box.result, 0, i) for i in (0, 1))
    assert len(truth) == 11 and np.array_equal(truth[:8], as_bytes(real[1]))
    assert (truth[8:] == 0).all() and (future[5:] == 70).all()  # the truth has ended


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
