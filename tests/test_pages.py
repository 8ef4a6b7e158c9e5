"""The built pages in Chromium, opened from disk with the network off: formulas, widgets, no request to another host."""

import os
import re
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
import torch
from conftest import ROOT

import stt_lite as stt

PAGES = ROOT / "_build" / "html"
REQUIRED = os.environ.get("STT_REQUIRE_PAGES") == "1"
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
NAMES = sorted(
    p.relative_to(PAGES).as_posix() for folder in ("book", "notebooks") for p in (PAGES / folder).rglob("*.html")
)
WITH_WIDGETS = [name for name in NAMES if "widget-view+json" in (PAGES / name).read_text(encoding="utf-8")]


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    missing = "no Chromium on this machine" if not chromium else 'no pages: run "make book"' if not NAMES else ""
    if missing:
        pytest.fail(missing) if REQUIRED else pytest.skip(missing)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


class Opened:
    """A page opened from disk, with what it asked for and what it complained about."""

    def __init__(self, context, name):
        self.requests, self.errors = [], []
        self.page = context.new_page()
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        self.page.goto((PAGES / name).as_uri())
        # widgets.js rebuilds the widgets after "load", one place for each that the page stores
        stored = self.page.locator('script[type="application/vnd.jupyter.widget-view+json"]').count()
        self.page.wait_for_function("n => document.querySelectorAll('.widget-subarea > *').length >= n", arg=stored)
        self.page.wait_for_timeout(300)

    def elsewhere(self):
        return [url for url in self.requests if urlparse(url).scheme not in ("file", "data", "blob")]

    def megabytes(self):
        files = {Path(unquote(urlparse(url).path)) for url in self.requests if url.startswith("file:")}
        return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


@pytest.fixture
def open_page(browser):
    contexts = []

    def open_one(name, **options):
        context = browser.new_context(offline=True, **options)
        context.set_default_timeout(120_000)
        contexts.append(context)
        context.route(re.compile(r"^(?!file:|data:|blob:)"), lambda route: route.abort())
        return Opened(context, name)

    yield open_one
    for context in contexts:
        context.close()


def test_every_page_stands_alone(open_page):
    assert len(NAMES) > 3
    problems = []
    for name in NAMES:
        opened = open_page(name)
        html = (PAGES / name).read_text(encoding="utf-8")
        problems += [f"{name} asks for {url}" for url in opened.elsewhere()]
        problems += [f"{name} logs: {error}" for error in opened.errors]
        problems += [f"{name}: {opened.megabytes():.2f} MB, over 3 MB"] * (opened.megabytes() > 3)
        formulas, typeset = html.count('class="math notranslate'), opened.page.locator("mjx-container").count()
        problems += [f"{name}: {typeset} of {formulas} formulas are typeset"] * (typeset < formulas)
        problems += [f"{name}: a formula with an error"] * opened.page.locator("mjx-merror").count()
        print(f"{name}: {opened.megabytes():.2f} MB with all it loads, {len(html.encode()) / 1e6:.2f} MB alone")
        opened.page.close()
    assert not problems, "\n".join(problems)


def test_pages_with_formulas_and_widgets_exist(browser):
    assert WITH_WIDGETS
    assert any('class="math notranslate' in (PAGES / name).read_text(encoding="utf-8") for name in NAMES)


def visible_frame(scrubber) -> str:
    """The pictures that one player shows now."""
    images = scrubber.locator(".stt-frame img")
    return "\n".join(i.get_attribute("src") for i in images.all() if i.is_visible())


WITH_PLAYERS = [name for name in WITH_WIDGETS if "stt-scrubber" in (PAGES / name).read_text(encoding="utf-8")]


def test_every_other_widget_follows_its_slider(open_page):
    """Widgets that are no players, such as chapter 04's attention maps: a slider changes what is visible."""
    others = [name for name in WITH_WIDGETS if name not in WITH_PLAYERS]
    assert others
    for name in others:
        page = open_page(name).page
        visible = "() => [...document.querySelectorAll('.jupyter-widgets img')].filter(i => i.offsetParent).map(i => i.src).join()"
        handle = page.locator(".noUi-handle").first
        handle.scroll_into_view_if_needed()
        first = page.evaluate(visible)
        handle.focus()
        page.keyboard.press("ArrowLeft"), page.keyboard.press("ArrowLeft")
        page.wait_for_timeout(200)
        assert first and page.evaluate(visible) != first, name


@pytest.mark.parametrize("name", WITH_PLAYERS)
def test_players_drag_and_play(open_page, name):
    page = open_page(name).page
    assert page.locator(".stt-scrubber").count()
    page.evaluate("document.querySelectorAll('.toggle-button-hidden').forEach(b => b.click())")  # folded solutions too
    for scrubber in page.locator(".stt-scrubber").all():
        scrubber.scroll_into_view_if_needed()
        first = visible_frame(scrubber)
        assert first

        bar = scrubber.locator(".noUi-target").bounding_box()
        handle = scrubber.locator(".noUi-handle").bounding_box()
        page.mouse.move(handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2)
        page.mouse.down()
        page.mouse.move(bar["x"] + bar["width"] * 0.6, handle["y"] + handle["height"] / 2, steps=4)
        page.mouse.up()
        dragged = visible_frame(scrubber)
        assert dragged and dragged != first, "dragging the slider changes nothing"

        play = scrubber.locator(".widget-play button").first
        play.click()
        page.wait_for_timeout(900)
        play.click()
        assert visible_frame(scrubber) not in (dragged, ""), "play does not advance"


@pytest.mark.parametrize("name", WITH_WIDGETS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_players_fit_a_phone(open_page, name, scheme):
    page = open_page(name, viewport={"width": 390, "height": 844}, color_scheme=scheme).page
    for scrubber in page.locator(".stt-scrubber").all():
        box = scrubber.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390
        assert scrubber.evaluate("e => e.scrollWidth <= e.clientWidth + 1"), "a player wider than the phone"
        for part in scrubber.locator(".noUi-target, .widget-play, .stt-frame").all():
            if part.is_visible():
                inner = part.bounding_box()
                assert inner["x"] >= 0 and inner["x"] + inner["width"] <= 390


def test_no_page_is_wider_than_a_phone(open_page):
    widths = {}
    for name in NAMES:
        page = open_page(name, viewport={"width": 390, "height": 844}).page
        widths[name] = page.evaluate("document.documentElement.scrollWidth")
        page.close()
    assert not {name: width for name, width in widths.items() if width > 390}


# The generator of chapter 09, which needs pages that are served: a browser lets none from disk load a model

GENERATOR = "notebooks/09_generation.html"
PICTURES = """() => [...document.querySelectorAll('.stt-generate canvas')].map(
    c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data].filter((_, i) => i % 4 == 0))"""


@pytest.fixture(scope="module")
def address():
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=PAGES))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def generate(page, **chosen):
    """Choose, press the button, wait for the last frame; each panel's pixels (h w) there."""
    done = page.locator(".stt-generate").get_attribute("data-done")
    for label, value in chosen.items():
        page.get_by_label(label.replace("_", " "), exact=True).select_option(value)
    page.get_by_role("button", name="Generate").click()
    page.wait_for_function("was => (document.querySelector('.stt-generate').dataset.done ?? '') != was", arg=done or "")
    return torch.tensor(page.evaluate(PICTURES)).view(-1, 32, 32)


def test_a_page_generates_what_the_package_does(browser, address):
    context = browser.new_context(viewport={"width": 390, "height": 844})
    context.set_default_timeout(60_000)
    page, asked, errors = context.new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda m: errors.append(f"{m.text} {m.location}") if m.type == "error" else None)
    page.goto(f"{address}/{GENERATOR}")
    assert not any("/generate/" in url for url in asked)  # the model is not loaded before it is wanted
    model = stt.load_pretrained("moving-mnist-tiny")
    clips = stt.held_out_clips(model, 8, 45, seed=1)
    for clip, frames in ((3, 5), (5, 30)):  # thirty frames are more than the cache holds
        truth, *futures = generate(page, clip=str(clip), futures="2", temperature="0", new_frames=str(frames))
        assert (truth - 255 * clips[clip - 1, 14 + frames, 0]).abs().max() < 1
        wanted = model.generate(clips[clip - 1, :15], frames, temperature=0.0, seed=0)[0, 0, -1, 0]
        assert len(futures) == 2 and all((pixels - 255 * wanted).abs().max() <= 1 for pixels in futures)
    _, *warm = generate(page, temperature="1", new_frames="5")
    assert warm[0].max() > 150 and (warm[0] - warm[1]).abs().max() > 5  # two futures
    assert "10 frames in" in page.get_by_role("status").inner_text()
    place = page.locator(".stt-generate").bounding_box()
    assert place["x"] >= 0 and place["x"] + place["width"] <= 390
    page.get_by_label("frame", exact=True).fill("0")
    first = torch.tensor(page.evaluate(PICTURES)).view(-1, 32, 32)
    assert (first - 255 * clips[4, 0]).abs().max() < 1  # scrubbed back to the prompt
    errors = [error for error in errors if "favicon.ico" not in error]  # browsers ask a server for one
    assert not errors and all(urlparse(url).hostname == "127.0.0.1" for url in asked if url.startswith("http"))
    context.close()


def test_a_page_from_disk_says_why_it_does_not_generate(open_page):
    page = open_page(GENERATOR).page
    page.get_by_role("button", name="Generate").click()
    page.wait_for_function("document.querySelector('.stt-status').textContent.includes('make serve')")
