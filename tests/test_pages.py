"""The built pages in Chromium, opened from disk with the network off."""

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

import pages
import stt_lite as stt
from conftest import ROOT

PAGES = ROOT / "_build" / "html"
REQUIRED = os.environ.get("STT_REQUIRE_PAGES") == "1"
FLAGS = """--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync
    --disable-background-networking --disable-component-update""".split()
VIEW = "widget-view+json"
LAPTOP = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}


def html(name) -> str:
    return (PAGES / name).read_text(encoding="utf-8")


FOUND = [*(PAGES / "book").rglob("*.html"), *(PAGES / "notebooks").rglob("*.html")]
NAMES = sorted(path.relative_to(PAGES).as_posix() for path in FOUND)
NAMES = [name for name in NAMES if 'http-equiv="refresh"' not in html(name)]
CHAPTERS = [name for name in NAMES if re.match(r"notebooks/[0-8]", name)]
WITH_WIDGETS = [name for name in NAMES if VIEW in html(name)]
WITH_PLAYERS = [name for name in WITH_WIDGETS if "stt-scrubber" in html(name)]


@pytest.fixture(scope="module")
def browser():
    programs = ("chromium", "chromium-browser", "google-chrome")
    chromium = next(filter(None, map(shutil.which, programs)), None)
    missing = "" if NAMES else 'no pages: run "make book"'
    missing = missing if chromium else "no Chromium on this machine"
    if missing:
        pytest.fail(missing) if REQUIRED else pytest.skip(missing)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


def watch(page) -> tuple[list[str], list[str]]:
    """What a page asks for, and what it complains about, from now on."""
    asked, errors = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))

    def log(message):
        if message.type == "error":
            errors.append(f"{message.text} {message.location}")

    page.on("console", log)
    return asked, errors


class Opened:
    """A page opened from disk, with what it asked for and what it complained about."""

    def __init__(self, context, name):
        self.page = context.new_page()
        self.requests, self.errors = watch(self.page)
        self.page.goto((PAGES / name).as_uri())
        # widgets.js rebuilds the widgets after "load", one place for each stored one
        stored = f'script[type="application/vnd.jupyter.{VIEW}"]'
        self.page.wait_for_function(
            "n => document.querySelectorAll('.widget-subarea > *').length >= n",
            arg=self.page.locator(stored).count(),
        )
        self.page.wait_for_timeout(300)

    def elsewhere(self):
        local = ("file", "data", "blob")
        return [url for url in self.requests if urlparse(url).scheme not in local]

    def megabytes(self):
        urls = [url for url in self.requests if url.startswith("file:")]
        files = {Path(unquote(urlparse(url).path)) for url in urls}
        return sum(file.stat().st_size for file in files if file.is_file()) / 1e6

    def unfold(self):
        """Open folded cells and solutions."""
        all_of = "document.querySelectorAll"
        self.page.evaluate(f"{all_of}('details').forEach(e => e.open = true)")
        self.page.evaluate(f"{all_of}('.toggle-button-hidden').forEach(e => e.click())")


@pytest.fixture
def open_page(browser):
    contexts = []

    def open_one(name, **options):
        context = browser.new_context(offline=True, **options)
        context.set_default_timeout(120_000)
        contexts.append(context)
        elsewhere = re.compile(r"^(?!file:|data:|blob:)")
        context.route(elsewhere, lambda route: route.abort())
        return Opened(context, name)

    yield open_one
    for context in contexts:
        context.close()


def test_every_page_stands_alone(open_page):
    assert len(NAMES) > 3
    problems = []
    for name in NAMES:
        opened = open_page(name)
        size = opened.megabytes()
        formulas = html(name).count('class="math notranslate')
        typeset = opened.page.locator("mjx-container").count()
        problems += [f"{name} asks for {url}" for url in opened.elsewhere()]
        problems += [f"{name} logs: {error}" for error in opened.errors]
        if size > 3:
            problems.append(f"{name}: {size:.2f} MB, over 3 MB")
        if typeset < formulas:
            problems.append(f"{name}: {typeset} of {formulas} formulas are typeset")
        if opened.page.locator("mjx-merror").count():
            problems.append(f"{name}: a formula with an error")
        alone = len(html(name).encode()) / 1e6
        print(f"{name}: {size:.2f} MB with all it loads, {alone:.2f} MB alone")
        opened.page.close()
    assert not problems, "\n".join(problems)


def test_pages_with_formulas_and_widgets_exist(browser):
    assert WITH_WIDGETS
    assert any('class="math notranslate' in html(name) for name in NAMES)


# Code: how much of a page it is, and whether it can be read

CODE = """() => {
    const article = document.querySelector('article.bd-article');
    const seen = e => e.checkVisibility({visibilityProperty: true});
    const inputs = [...article.querySelectorAll('div.cell_input')].filter(seen);
    return inputs.reduce((sum, e) => sum + e.offsetHeight, 0) / article.offsetHeight;
}"""
CUT = """() => [...document.querySelectorAll('article.bd-article pre')]
    .filter(e => e.scrollWidth > e.clientWidth)
    .map(e => e.textContent.split('\\n').sort((a, b) => b.length - a.length)[0])"""
LOST = """() => [...document.querySelectorAll('article.bd-article div.cell_input pre')]
    .filter(e => !e.checkVisibility({visibilityProperty: true})
        || e.offsetHeight < 10 || e.scrollWidth > e.clientWidth + 1)
    .map(e => e.textContent.slice(0, 80))"""


@pytest.mark.parametrize("name", CHAPTERS)
def test_visible_code_is_a_third_of_a_chapter(open_page, name):
    share = open_page(name, viewport=LAPTOP).page.evaluate(CODE)
    assert 0 < share <= 0.35, f"{share:.0%} of the page's height is visible code"


@pytest.mark.parametrize("name", NAMES)
def test_no_line_of_code_is_cut_on_a_laptop(open_page, name):
    opened = open_page(name, viewport=LAPTOP)
    opened.unfold()
    cut = opened.page.evaluate(CUT)
    assert not cut, f"{len(cut)} boxes with a line too long:\n" + "\n".join(cut)


@pytest.mark.parametrize("name", CHAPTERS)
def test_no_code_is_lost_in_print(open_page, name):
    page = open_page(name, viewport={"width": 720, "height": 1000}).page
    page.emulate_media(media="print")
    page.wait_for_timeout(500)  # folds open slowly
    assert not page.evaluate(LOST)


# Pages of the first edition


@pytest.mark.parametrize("old", pages.REDIRECTS)
def test_old_pages_lead_to_new_ones(open_page, old):
    new = pages.REDIRECTS[old]
    text = html(f"{old}.html")
    (canonical,) = re.findall(r'<link rel="canonical" href="([^"]+)">', text)
    (refresh,) = re.findall(r'http-equiv="refresh" content="0; url=([^"]+)"', text)
    (link,) = re.findall(r'<a href="([^"]+)">', text)
    assert canonical == refresh == link and '"robots" content="noindex"' in text
    there = (PAGES / old).parent / link
    assert there.is_file() and there.samefile(PAGES / f"{new}.html")

    asked = f"stt_lite.{Path(old).name}.Thing" if "/api/" in old else "a-heading"
    wanted = f"stt_lite.{Path(new).name}.Thing" if "/api/" in new else "a-heading"
    page = open_page("book/index.html").page
    page.goto(f"{(PAGES / old).as_uri()}.html#{asked}")
    page.wait_for_url(f"{(PAGES / new).as_uri()}.html#{wanted}")


# Widgets


def visible_frame(scrubber) -> str:
    """The pictures that one player shows now."""
    images = scrubber.locator(".stt-frame img")
    return "\n".join(i.get_attribute("src") for i in images.all() if i.is_visible())


VISIBLE = """() => [...document.querySelectorAll('.jupyter-widgets img')]
    .filter(i => i.offsetParent).map(i => i.src).join()"""


def test_every_other_widget_follows_its_slider(open_page):
    """Widgets that are no players, such as chapter 04's attention maps."""
    others = [name for name in WITH_WIDGETS if name not in WITH_PLAYERS]
    assert others
    for name in others:
        page = open_page(name).page
        handle = page.locator(".noUi-handle").first
        handle.scroll_into_view_if_needed()
        first = page.evaluate(VISIBLE)
        handle.focus()
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowLeft")
        page.wait_for_timeout(200)
        assert first and page.evaluate(VISIBLE) != first, name


@pytest.mark.parametrize("name", WITH_PLAYERS)
def test_players_drag_and_play(open_page, name):
    opened = open_page(name)
    opened.unfold()
    page = opened.page
    assert page.locator(".stt-scrubber").count()
    for scrubber in page.locator(".stt-scrubber").all():
        scrubber.scroll_into_view_if_needed()
        first = visible_frame(scrubber)
        assert first

        bar = scrubber.locator(".noUi-target").bounding_box()
        handle = scrubber.locator(".noUi-handle").bounding_box()
        height = handle["y"] + handle["height"] / 2
        page.mouse.move(handle["x"] + handle["width"] / 2, height)
        page.mouse.down()
        page.mouse.move(bar["x"] + bar["width"] * 0.6, height, steps=4)
        page.mouse.up()
        dragged = visible_frame(scrubber)
        assert dragged and dragged != first, "dragging the slider changes nothing"

        play = scrubber.locator(".widget-play button").first
        play.click()
        seen = set()
        for _ in range(60):  # a player of few frames is soon back where it was
            page.wait_for_timeout(50)
            seen.add(visible_frame(scrubber))
        play.click()
        assert seen - {dragged, ""}, "play does not advance"


@pytest.mark.parametrize("name", WITH_WIDGETS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_players_fit_a_phone(open_page, name, scheme):
    page = open_page(name, viewport=PHONE, color_scheme=scheme).page
    for scrubber in page.locator(".stt-scrubber").all():
        box = scrubber.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390
        assert scrubber.evaluate("e => e.scrollWidth <= e.clientWidth + 1"), (
            "a player wider than the phone"
        )
        for part in scrubber.locator(".noUi-target, .widget-play, .stt-frame").all():
            if part.is_visible():
                inner = part.bounding_box()
                assert inner["x"] >= 0 and inner["x"] + inner["width"] <= 390


def test_no_page_is_wider_than_a_phone(open_page):
    widths = {}
    for name in NAMES:
        page = open_page(name, viewport=PHONE).page
        widths[name] = page.evaluate("document.documentElement.scrollWidth")
        page.close()
    assert not {name: width for name, width in widths.items() if width > 390}


# The generator of chapter 08. It needs pages that are served: a browser lets none from
# disk load a model.

GENERATOR = "notebooks/08_generation.html"
PICTURES = """() => [...document.querySelectorAll('.stt-generate canvas')]
    .map(c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data)
    .map(data => [...data].filter((_, i) => i % 4 == 0))"""


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
    """Choose, press the button, wait for the last frame; each panel's pixels (h w)."""
    done = page.locator(".stt-generate").get_attribute("data-done")
    for label, value in chosen.items():
        page.get_by_label(label.replace("_", " "), exact=True).select_option(value)
    page.get_by_role("button", name="Generate").click()
    page.wait_for_function(
        "was => (document.querySelector('.stt-generate').dataset.done ?? '') != was",
        arg=done or "",
    )
    return torch.tensor(page.evaluate(PICTURES)).view(-1, 32, 32)


def test_a_page_generates_what_the_package_does(browser, address):
    context = browser.new_context(viewport=PHONE)
    context.set_default_timeout(60_000)
    page = context.new_page()
    asked, errors = watch(page)
    page.goto(f"{address}/{GENERATOR}")
    assert not any("/generate/" in url for url in asked)  # no model before it is wanted
    model = stt.load_pretrained("moving-mnist-tiny")
    clips = stt.held_out_clips(model, 8, 45, seed=1)
    for clip, frames in ((3, 5), (5, 30)):  # thirty are more than the cache holds
        truth, *futures = generate(
            page, clip=str(clip), futures="2", temperature="0", new_frames=str(frames)
        )
        assert (truth - 255 * clips[clip - 1, 14 + frames, 0]).abs().max() < 1
        prompt = clips[clip - 1, :15]
        wanted = 255 * model.generate(prompt, frames, temperature=0.0, seed=0)
        assert len(futures) == 2
        assert all((f - wanted[0, 0, -1, 0]).abs().max() <= 1 for f in futures)
    _, *warm = generate(page, temperature="1", new_frames="5")
    assert warm[0].max() > 150 and (warm[0] - warm[1]).abs().max() > 5  # two futures
    assert "10 frames in" in page.get_by_role("status").inner_text()
    place = page.locator(".stt-generate").bounding_box()
    assert place["x"] >= 0 and place["x"] + place["width"] <= 390
    page.get_by_label("frame", exact=True).fill("0")
    first = torch.tensor(page.evaluate(PICTURES)).view(-1, 32, 32)
    assert (first - 255 * clips[4, 0]).abs().max() < 1  # scrubbed back to the prompt
    # Browsers ask a server for a favicon.
    assert not [error for error in errors if "favicon.ico" not in error]
    hosts = {urlparse(url).hostname for url in asked if url.startswith("http")}
    assert hosts == {"127.0.0.1"}
    context.close()


def test_a_page_from_disk_says_why_it_does_not_generate(open_page):
    page = open_page(GENERATOR).page
    page.get_by_role("button", name="Generate").click()
    page.wait_for_function(
        "document.querySelector('.stt-status').textContent.includes('make serve')"
    )
