"""The built pages in Chromium, opened from disk with the network off."""

import itertools
import math
import os
import re
import shutil
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

import imageio.v3 as iio
import numpy as np
import pytest
import torch

import browser as browser_export
import pages
import stt_lite as stt
import vendor
from conftest import ROOT
from stt_lite.sampling import keep_start, prefill
from stt_lite.worlds import find_paddle

PAGES = ROOT / "_build" / "html"
REQUIRED = os.environ.get("STT_REQUIRE_PAGES") == "1"
FLAGS = """--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync
    --disable-background-networking --disable-component-update""".split()
LAPTOP = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}


def html(name) -> str:
    return (PAGES / name).read_text(encoding="utf-8")


FOUND = [*(PAGES / "book").rglob("*.html"), *(PAGES / "notebooks").rglob("*.html")]
NAMES = sorted(path.relative_to(PAGES).as_posix() for path in FOUND)
NAMES = [name for name in NAMES if 'http-equiv="refresh"' not in html(name)]
CHAPTERS = [name for name in NAMES if re.match(r"notebooks/[0-8]", name)]
GENERATOR = "notebooks/08_generation.html"
FRONT = "book/index.html"
PONG = "notebooks/17_a_world_you_play.html"
WITH_PLAYERS = [name for name in NAMES if 'class="stt-player"' in html(name)]


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


MOVING = "document.getAnimations().filter(a => a.transitionProperty).length"


def still(page):
    """Wait until no colour and no fold is on its way, however busy the machine."""
    page.wait_for_function("new Promise(requestAnimationFrame)")  # they begin here
    page.wait_for_function(f"!{MOVING}")


def until(page, happened) -> bool:
    """Whether it happens within half a minute."""
    end = time.monotonic() + 30
    while not (come := happened()) and time.monotonic() < end:
        page.wait_for_timeout(50)
    return bool(come)


PLAYERS_SHOW = "!document.querySelector('.stt-player:not([data-shown])')"


class Opened:
    """A page opened from disk, with what it asked for and what it complained about."""

    def __init__(self, context, name):
        self.page = context.new_page()
        self.requests, self.errors = watch(self.page)
        self.page.goto((PAGES / name).as_uri())
        self.page.wait_for_function(PLAYERS_SHOW)
        self.page.wait_for_timeout(300)

    def elsewhere(self):
        local = ("file", "data", "blob")
        return [url for url in self.requests if urlparse(url).scheme not in local]

    def megabytes(self):
        urls = [url for url in self.requests if url.startswith("file:")]
        files = {Path(unquote(urlparse(url).path)) for url in urls}
        return sum(file.stat().st_size for file in files if file.is_file()) / 1e6

    def darken(self):
        """As for a reader who prefers the dark."""
        self.page.emulate_media(color_scheme="dark")
        self.page.evaluate("document.documentElement.dataset.theme = 'dark'")
        still(self.page)

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
        context.set_default_timeout(60_000)
        contexts.append(context)
        elsewhere = re.compile(r"^(?!file:|data:|blob:)")
        context.route(elsewhere, lambda route: route.abort())
        return Opened(context, name)

    yield open_one
    for context in contexts:
        context.close()


def test_pages_with_formulas_and_players_exist(browser):
    assert WITH_PLAYERS
    assert any('class="math notranslate' in html(name) for name in NAMES)


def test_no_page_waits_for_a_kernel(browser):
    assert not [name for name in NAMES if "widget-view+json" in html(name)]


# One visit of each page, for all that can be seen without pressing anything

OPENING = """() => {
    const article = document.querySelector('article.bd-article');
    const seen = e => e.checkVisibility({visibilityProperty: true});
    const all = name => [...article.querySelectorAll(name)].filter(seen);
    const first = name => all(name)[0].getBoundingClientRect().top;
    const code = all('div.cell_input').reduce((sum, e) => sum + e.offsetHeight, 0);
    const result = first('div.cell_output, .stt-pong');
    return [result, first('details'), code / article.offsetHeight];
}"""
CUT = """() => [...document.querySelectorAll('article.bd-article pre')]
    .filter(e => e.scrollWidth > e.clientWidth)
    .map(e => e.textContent.split('\\n').sort((a, b) => b.length - a.length)[0])"""
LOST = """() => [...document.querySelectorAll('article.bd-article div.cell_input pre')]
    .filter(e => !e.checkVisibility({visibilityProperty: true})
        || e.offsetHeight < 10 || e.scrollWidth > e.clientWidth + 1)
    .map(e => e.textContent.slice(0, 80))"""
WIDER = """() => [...document.querySelectorAll('.stt-player')].flatMap(player => [
    ...(player.scrollWidth > player.clientWidth + 1 ? [player] : []),
    ...[player, ...player.querySelectorAll('input, button, canvas')].filter(part => {
        const {x, width} = part.getBoundingClientRect();
        return part.checkVisibility() && (x < 0 || x + width > innerWidth);
    })]).map(e => e.outerHTML.slice(0, 80))"""
ON_CARDS = """() => [...document.querySelectorAll('div.cell_output img')]
    .filter(e => e.checkVisibility() && getComputedStyle(e).backgroundColor
        != 'rgba(0, 0, 0, 0)').map(e => e.src)"""
DRAWN_FOR = """() => [...document.querySelectorAll('img[data-paper]')]
    .filter(e => e.checkVisibility()).map(e => e.dataset.paper)"""

AXE = vendor.WORK / "node_modules" / "axe-core" / "axe.min.js"
ACCESS = [FRONT, *CHAPTERS, "book/symbols.html", "book/api/video.html"]
LEFT = {  # of the theme and of Sphinx
    "label-content-name-mismatch": "two buttons of the theme, search and colour mode, "
    "are named by what they do; their text is a key and a state",
    "definition-list": "Sphinx nests the fields of an entry in its description",
}
FOUND_BY_AXE = """async ([scheme, whole]) => {  // in the dark only colours are others
    const rules = {resultTypes: ['violations']};
    if (scheme == 'dark') rules.runOnly = ['color-contrast'];
    // code and formulas are alike on all pages: they are looked at once
    const alike = document.querySelectorAll('div.highlight pre, mjx-container > *');
    if (!whole) alike.forEach(e => e.replaceChildren());
    const found = await axe.run(document, rules);
    return found.violations
        .filter(v => ['critical', 'serious'].includes(v.impact))
        .map(v => [v.id, v.nodes.map(n => n.html.slice(0, 120))]);
}"""


def what_it_loads(opened, name):
    """A page stands alone, has no errors, and its formulas are typeset."""
    yield from (f"asks for {url}" for url in opened.elsewhere())
    yield from (f"logs: {error}" for error in opened.errors)
    yield from (f"loads {url}" for url in opened.requests if ".dark." in url)
    size, formulas = opened.megabytes(), html(name).count('class="math notranslate')
    typeset = opened.page.locator("mjx-container").count()
    print(f"{size:.2f} MB with all it loads, {len(html(name)) / 1e6:.2f} MB alone")
    if size > 2.5:
        yield f"{size:.2f} MB, over 2.5 MB"
    if typeset < formulas or opened.page.locator("mjx-merror").count():
        yield f"{typeset} of {formulas} formulas are typeset, or one with an error"


def first_screen(opened, name):
    """A chapter's result comes first, and a third of the page is code."""
    result, fold, share = opened.page.evaluate(OPENING)
    if result > 0.8 * LAPTOP["height"] or result > fold:
        yield f"its result is {result} pixels down, the first fold {fold}"
    if not 0 < share <= 0.35:
        yield f"{share:.0%} of its height is visible code"


def on_a_phone(opened, name):
    opened.page.set_viewport_size(PHONE)
    width = opened.page.evaluate("document.documentElement.scrollWidth")
    if width > PHONE["width"]:
        yield f"{width} pixels wide on a phone"
    yield from (f"wider than a phone: {part}" for part in opened.page.evaluate(WIDER))


def on_paper(opened, name):
    """No code is folded, cut or lost."""
    opened.page.set_viewport_size({"width": 720, "height": 1000})
    opened.page.emulate_media(media="print")
    still(opened.page)  # folds open slowly
    yield from (f"lost in print: {code}" for code in opened.page.evaluate(LOST))
    opened.page.emulate_media(media="screen")


def figures_for(opened, scheme):
    for other in {*opened.page.evaluate(DRAWN_FOR)} - {scheme}:
        yield f"a figure drawn for {other} is shown in {scheme}"
    if scheme == "dark":
        drawn = (".png", ".jpg", ".webp")  # players' and cells' own are "data:"
        for url in opened.page.evaluate(ON_CARDS):
            if url.endswith(drawn):
                yield f"{url} lies on a light card"


def accessible(opened, scheme, name):
    """Axe finds nothing critical or serious that is ours."""
    found = opened.page.evaluate(FOUND_BY_AXE, [scheme, name == CHAPTERS[5]])
    yield from (f"{what}, {scheme}: {at}" for what, at in found if what not in LEFT)


@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_sound(open_page, name):
    """As it comes, unfolded, on a phone, on paper, in the dark, and by axe."""
    opened = open_page(name, viewport=LAPTOP)
    problems = [*what_it_loads(opened, name), *figures_for(opened, "light")]
    if name in CHAPTERS:
        problems += first_screen(opened, name)
    opened.unfold()
    problems += (f"a line is cut: {line}" for line in opened.page.evaluate(CUT))
    problems += on_a_phone(opened, name)
    if name in CHAPTERS:
        problems += on_paper(opened, name)
    opened.page.set_viewport_size(LAPTOP)
    if name in ACCESS:
        if not AXE.is_file():
            pytest.fail("no axe-core") if REQUIRED else pytest.skip("no axe-core")
        opened.page.add_script_tag(path=AXE)
        problems += accessible(opened, "light", name)
    opened.darken()
    problems += figures_for(opened, "dark")
    if name in ACCESS:
        problems += accessible(opened, "dark", name)
    problems += on_a_phone(opened, name)
    assert not problems, "\n".join(problems)


def test_a_dark_page_is_what_its_reader_gets(open_page):
    """`Opened.darken` does what a reader's own choice of the dark does."""
    colour = "getComputedStyle(document.querySelector('article.bd-article')).color"
    opened = open_page(FRONT, viewport=LAPTOP)
    light = opened.page.evaluate(colour)
    opened.darken()
    dark = open_page(FRONT, viewport=LAPTOP, color_scheme="dark").page.evaluate(colour)
    assert opened.page.evaluate(colour) == dark != light


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
    page = open_page("404.html").page
    page.goto(f"{(PAGES / old).as_uri()}.html#{asked}", wait_until="commit")
    page.wait_for_url(f"{(PAGES / new).as_uri()}.html#{wanted}", wait_until="commit")


# Players

SEEN = """player => [...player.querySelectorAll('canvas')]
    .map(canvas => canvas.toDataURL()).join()"""


def sliders(player) -> list:
    return [s for s in player.locator("input[type=range]").all() if s.is_visible()]


def drag(page, slider) -> None:
    """Take a handle to 90 % of its way, past a prompt; from the right half to 20 %."""
    box = slider.bounding_box()
    value, most = (float(slider.evaluate(f"s => s.{key}")) for key in ("value", "max"))
    middle, thumb = box["y"] + box["height"] / 2, 12
    way = box["width"] - 2 * thumb
    page.mouse.move(box["x"] + thumb + way * value / most, middle)
    page.mouse.down()
    goal = 0.9 if value < most / 2 else 0.2
    page.mouse.move(box["x"] + thumb + way * goal, middle, steps=4)
    page.mouse.up()


@pytest.mark.parametrize("name", WITH_PLAYERS)
def test_players_drag_and_play(open_page, name):
    opened = open_page(name)
    opened.unfold()
    page = opened.page
    for player in page.locator(".stt-player").all():
        player.scroll_into_view_if_needed()
        assert not player.locator(".stt-strip").is_visible()
        for slider in reversed(sliders(player)):  # prompts know no temperature
            first = player.evaluate(SEEN)
            drag(page, slider)
            assert player.evaluate(SEEN) != first, "dragging a slider changes nothing"

        play = player.get_by_role("button", name="Play", exact=True)
        if play.count():  # stills have none
            dragged = player.evaluate(SEEN)
            play.click()
            moved = until(page, lambda: player.evaluate(SEEN) != dragged)
            player.get_by_role("button", name="Pause", exact=True).click()
            assert moved, "play does not advance"


# The model in a page. It needs pages that are served: a browser lets none from disk
# load it.

PICTURES = """place => [...document.querySelectorAll(place + ' .stt-panels canvas')]
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


@pytest.fixture
def serve(browser, address):
    """Opens served pages: a page, what it asks for, and what it complains about."""
    contexts = []

    def open_one(name, **options):
        context = browser.new_context(**{"viewport": PHONE} | options)
        context.set_default_timeout(60_000)
        contexts.append(context)
        page = context.new_page()
        asked, errors = watch(page)
        page.goto(f"{address}/{name}")
        return page, asked, errors

    yield open_one
    for context in contexts:
        context.close()


def shown(page, place: str, size: int):
    """What each panel shows now, in bytes (panels h w)."""
    return torch.tensor(page.evaluate(PICTURES, place)).view(-1, size, size)


IDLE = """([place, was]) => {
    const done = document.querySelector(place).dataset.done;
    const idle = document.querySelector(place + ' .stt-go').textContent != 'Cancel';
    return idle && (done ?? '') != was;
}"""


def finished(page, place: str, before: str | None) -> None:
    page.wait_for_function(IDLE, arg=[place, before or ""])


def generate(page, clip=None, seed=None, **chosen):
    """Choose, press the button, wait for the end; each panel's last frame (h w)."""
    place = page.locator(".stt-generate")
    before = place.get_attribute("data-done")
    for label, value in chosen.items():
        select = place.get_by_label(label.replace("_", " "), exact=True)
        select.select_option(value)
    if seed is not None:
        place.get_by_label("seed", exact=True).fill(str(seed))
        place.get_by_label("seed", exact=True).blur()
    if clip is not None:
        place.get_by_label(f"clip {clip}").check(force=True)
    go = place.locator(".stt-go")  # a changed choice may have begun by itself
    if go.inner_text() == "Generate" and place.get_attribute("data-done") == before:
        go.click()
    finished(page, ".stt-generate", before)
    last = place.get_by_label("frame", exact=True)
    last.fill(last.get_attribute("max"))
    return shown(page, ".stt-generate .stt-viewer", 32)


def test_a_page_generates_what_the_package_does(serve):
    page, asked, errors = serve(GENERATOR)
    page.wait_for_selector(".stt-clips canvas")
    assert not any(re.search("onnx|wasm", url) for url in asked)  # before it is wanted
    model = stt.load_pretrained("moving-mnist-tiny")
    clips = stt.held_out_clips(model, 8, 45, seed=1)
    known = {"futures": "2", "temperature": "0"}
    # Thirty new frames are more than the cache holds; five given are a short prompt.
    for clip, prompt, frames in ((3, 15, 5), (5, 15, 30), (5, 5, 5)):
        chosen = known | {"prompt": str(prompt), "new_frames": str(frames)}
        truth, *futures = generate(page, clip=clip, **chosen)
        assert (truth - 255 * clips[clip - 1, 14 + frames, 0]).abs().max() < 1
        given = clips[clip - 1, 15 - prompt : 15]
        wanted = 255 * model.generate(given, frames, temperature=0.0, seed=0)
        far = [(f - wanted[0, 0, -1, 0]).abs().max() for f in futures]
        assert len(far) == 2 and max(far) <= 1
        count = f"frame {prompt + frames} of {prompt + frames}"
        assert page.locator(".stt-generate .stt-count").inner_text() == count
    assert not errors
    hosts = {urlparse(url).hostname for url in asked if url.startswith("http")}
    assert hosts == {"127.0.0.1"}


def test_a_seed_gives_the_same_futures_and_a_link_brings_them_back(serve, address):
    page, *_ = serve(GENERATOR)
    page.wait_for_selector(".stt-clips canvas")
    chosen = {"futures": "2", "temperature": "1.5", "new_frames": "5"}
    first = generate(page, clip=6, seed=17, **chosen)
    assert (first[1] - first[2]).abs().max() > 5  # two futures
    other = generate(page, seed=18)
    assert (other[1] - first[1]).abs().max() > 5
    again = generate(page, seed=17)
    assert torch.equal(again, first)
    link = page.get_by_role("link", name="Link to this").get_attribute("href")
    fresh, *_ = serve(f"{GENERATOR}{link}")
    fresh.wait_for_selector(".stt-clips canvas")
    assert "link" in fresh.locator(".stt-generate .stt-status").inner_text()
    assert torch.equal(generate(fresh), first)


LOOKED = re.compile(
    r"row (\d+), column (\d+) looked most at (?:row (\d+), column (\d+)|itself) "
    r"\((\d+) %\) in space, and at (the start token|frame (\d+)) \((\d+) %\) in time"
)


def looked_at(model, latents, given: int, layer: int, head: int | None):
    """Where the newest frame's pixels looked: (h w h2 w2) and (h w frames before).

    Not with the cache, as the page does, but all frames at once.
    """
    net, heads = model.transformer, slice(None) if head is None else [head]
    inputs = []
    attentions = [net.layers[layer].spatial, net.layers[layer].temporal]
    hooks = [
        part.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
        for part in attentions
    ]
    net(latents, posterior=given, temperature=0.0)
    for hook in hooks:
        hook.remove()
    space, time = (part.weights(x)[0] for part, x in zip(attentions, inputs))
    return space[-1, heads].mean(0), time[:, :, heads, -1].mean(2)


@torch.no_grad()
def by_hand(model, latents, new: int, painted=None):
    """New frames (new h w) in bytes at temperature 0, and all latents.

    `painted`: at which new frame which pixel (row, column) is that of an empty frame.
    """
    net, tokenizer = model.transformer, model.tokenizer
    empty = model.tokens(torch.zeros(1, 1, *model.frame_shape))[0, 0]
    noise, frames = itertools.repeat(net.draw_noise(1, 1)[:, 0]), []
    cache = prefill(net, latents, model.trained_frames, noise, 0.0)
    for t in range(new):
        mean, cache = net.step(latents[:, -1], cache, next(noise), None, 0.0)
        latent = tokenizer.quantize(mean)[0]
        if painted and t == painted[0]:
            _, row, column = painted
            for part in (mean, latent):
                part[0, :, row, column] = empty[:, row, column]
        latents = torch.cat([latents, latent[:, None]], dim=1)
        frames.append(255 * tokenizer.decode(mean)[0, 0])
    return torch.stack(frames), latents


@pytest.fixture
def looking(serve):
    """The generator after five given and five new frames of one future, at frame 7.

    With the page, its errors, the model, and `made()`: the new frames (5 h w).
    """
    page, _, errors = serve(GENERATOR, viewport=LAPTOP)
    page.wait_for_selector(".stt-clips canvas")
    chosen = {"prompt": "5", "new_frames": "5", "futures": "1", "temperature": "0"}
    generate(page, clip=5, **chosen)
    slider = page.locator(".stt-generate").get_by_label("frame", exact=True)

    def made():
        pictures = []
        for t in range(5, 10):
            slider.fill(str(t))
            pictures.append(shown(page, ".stt-generate .stt-viewer", 32)[1])
        slider.fill("6")
        return torch.stack(pictures)

    model = stt.load_pretrained("moving-mnist-tiny")
    ships = browser_export.BUNDLES["moving-mnist-tiny"]
    latents = model.tokens(browser_export.held_out(model, ships)[0][4:5, 10:15])
    first = made()
    assert (first - by_hand(model, latents, 5)[0]).abs().max() <= 1
    return page, errors, model, latents, made


@torch.no_grad()
def test_a_click_shows_where_a_pixel_looked(looking):
    page, errors, model, latents, _ = looking
    _, known = by_hand(model, latents, 5)
    future = page.locator(".stt-generate .stt-viewer canvas").nth(1)
    box, inside = future.bounding_box(), page.locator(".stt-inside")
    at = {"x": 3 + (box["width"] - 6) * 5.5 / 8, "y": 3 + (box["height"] - 6) * 4.5 / 8}
    future.click(position=at)  # row 5, column 6
    for layer, head, key in (
        (3, "all", ""),
        (1, "2", "ArrowLeft"),
        (2, "8", "ArrowUp"),
    ):
        inside.get_by_label("layer", exact=True).select_option(label=str(layer))
        inside.get_by_label("head", exact=True).select_option(label=head)
        if key:
            inside.locator(".stt-made").press(key)
        said = LOOKED.search(inside.locator("p[aria-live]").inner_text()).groups()
        row, column = int(said[0]) - 1, int(said[1]) - 1
        one = None if head == "all" else int(head) - 1
        space, time = looked_at(model, known[:, :7], 5, layer - 1, one)
        space, time = space[row, column].flatten(), time[row, column]
        to = 8 * row + column  # itself
        if said[2]:
            to = 8 * (int(said[2]) - 1) + int(said[3]) - 1
        when = int(said[6] or 0)  # the start token comes before frame 1
        for share, most, percent in ((space, to, said[4]), (time, when, said[7])):
            assert share[most] > 0.98 * share.max()
            assert abs(100 * share[most] - int(percent)) < 1
    assert (row, column) == (3, 4)  # one to the left, one up
    assert inside.locator(".stt-past figure").count() == 7  # the start, six frames
    assert not errors


def test_paint_changes_what_follows_and_can_be_taken_back(looking):
    page, errors, model, latents, made = looking
    place, inside = page.locator(".stt-generate"), page.locator(".stt-inside")
    inside.locator("summary").click()
    first = made()

    def press(name):
        before = place.get_attribute("data-done")
        inside.get_by_role("button", name=name).click()
        finished(page, ".stt-generate", before)
        return made()

    inside.locator(".stt-made").press("ArrowUp")  # from the middle: row 4, column 5
    painted = press("Erase")
    assert (painted - by_hand(model, latents, 5, (1, 3, 4))[0]).abs().max() <= 1
    assert torch.equal(painted[0], first[0])
    assert all((a - b).abs().max() > 5 for a, b in zip(painted[1:], first[1:]))
    label = place.locator(".stt-viewer figcaption").nth(1)
    assert label.inner_text() == "future 1, repainted"
    assert torch.equal(press("Undo"), first) and label.inner_text() == "future 1"
    assert inside.get_by_role("button", name="Put down").is_disabled()
    inside.get_by_role("button", name="Pick up").click()
    inside.locator(".stt-made").press("ArrowDown")
    moved = press("Put down")
    assert torch.equal(moved[0], first[0])
    assert (moved[1] - first[1]).abs().max() > 5
    assert not errors


def test_a_worker_does_it_and_can_be_cancelled(serve):
    page, *_ = serve(GENERATOR)
    page.wait_for_selector(".stt-clips canvas")
    generate(page, new_frames="5", futures="1")
    assert len(page.workers) == 1
    place = page.locator(".stt-generate")
    place.get_by_label("new frames", exact=True).select_option(
        "100"
    )  # begins by itself
    page.wait_for_function(
        "/^[1-9]\\d* of 100/.test(document.querySelector('.stt-status').textContent)"
    )
    assert place.get_by_role("button", name="Pause").count() == 1  # plays meanwhile
    page.get_by_role("button", name="Cancel").click()
    assert place.get_by_role("status").inner_text() == "stopped"
    made = place.get_by_label("frame", exact=True).get_attribute("max")
    page.wait_for_timeout(500)
    assert place.get_by_label("frame", exact=True).get_attribute("max") == made
    assert int(made) < 114


def test_own_digit_is_continued(serve):
    page, *_ = serve(GENERATOR)
    page.get_by_label("your own digit").check(force=True)
    stage = page.locator(".stt-stage")
    stage.wait_for()
    page.get_by_label("first digit", exact=True).select_option("own")
    page.locator(".stt-pad").scroll_into_view_if_needed()
    box = page.locator(".stt-pad").bounding_box()
    page.mouse.move(box["x"] + 70, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 70, box["y"] + 120, steps=10)
    page.mouse.up()
    truth, future = generate(page, futures="1", new_frames="5")
    assert truth.max() > 150 and future.max() > 100


def test_a_model_that_is_missing_or_lost_is_explained(serve):
    for failure, words in (({"status": 404}, "make book"), (None, "connection")):
        page, *_ = serve(GENERATOR)
        page.wait_for_selector(".stt-clips canvas")

        def fail(route, _, failure=failure):
            route.fulfill(**failure) if failure else route.abort()

        page.context.route("**/step.onnx.gz", fail)
        page.get_by_role("button", name="Generate").click()
        page.wait_for_function(
            "w => document.querySelector('.stt-generate .stt-status')"
            ".textContent.includes(w)",
            arg=words,
        )
        page.context.unroute("**/step.onnx.gz")
        generate(page, futures="1", new_frames="5")  # the button works again


WITH_MODELS = [(GENERATOR, "Generate"), (FRONT, "Throw"), (PONG, "Play")]


@pytest.mark.parametrize("name, button", WITH_MODELS)
def test_a_page_from_disk_says_why_it_does_not_generate(open_page, name, button):
    page = open_page(name).page
    page.get_by_role("button", name=button, exact=True).first.click()
    page.wait_for_function(
        "[...document.querySelectorAll('.stt-status')]"
        ".some(e => e.textContent.includes('make serve'))"
    )


# The front page


def test_the_front_page_plays_from_disk_at_once(open_page):
    page = open_page(FRONT, viewport=LAPTOP).page
    page.wait_for_selector(".stt-front[data-ready]")
    box = page.locator(".stt-front").bounding_box()
    assert box["y"] + box["height"] <= LAPTOP["height"]  # on the first screen
    place = page.locator(".stt-front")
    place.get_by_role("button", name="Pause").click()
    slider = place.get_by_label("frame", exact=True)
    slider.fill("20")
    assert place.locator(".stt-count").inner_text() == "frame 21 of 25"
    assert place.locator("canvas.stt-generated").count() == 3
    slider.press("ArrowLeft")
    assert slider.input_value() == "19"
    place.locator(".stt-panels").press("End")
    assert slider.input_value() == "24"
    place.locator(".stt-panels").press(" ")
    assert place.get_by_role("button", name="Pause").count() == 1


def test_nothing_moves_for_those_who_asked_for_that(open_page):
    page = open_page(FRONT, reduced_motion="reduce").page
    page.wait_for_selector(".stt-front[data-ready]")
    slider = page.locator(".stt-front").get_by_label("frame", exact=True)
    page.wait_for_timeout(500)
    assert slider.input_value() == "0"
    moving = [name for name in NAMES if "stt-plays" in html(name)]
    assert moving
    for name in moving:
        page = open_page(name, reduced_motion="reduce").page
        sources = page.evaluate(
            "[...document.querySelectorAll('img')].map(i => i.currentSrc)"
        )
        assert not [source for source in sources if source.endswith(".gif")]
        assert page.get_by_role("link", name="Play this clip").first.is_visible()


@pytest.mark.parametrize("width", [360, 390, 768, 1280, 1920])
def test_pixels_are_enlarged_by_whole_numbers(open_page, width):
    page = open_page(FRONT, viewport={"width": width, "height": 844}).page
    page.wait_for_selector(".stt-front[data-ready]")
    page.wait_for_timeout(200)
    widths = page.evaluate(
        "[...document.querySelectorAll('.stt-panels canvas, .stt-court canvas, "
        ".stt-stage')]"
        ".map(c => [c.clientWidth / c.width, c.getBoundingClientRect().right])"
    )
    assert widths and all(times == int(times) >= 1 for times, _ in widths)
    assert all(right <= width for _, right in widths)


def test_thrown_digits_go_on_as_the_model_says(serve):
    page, _, errors = serve(FRONT)
    page.locator(".stt-stage").wait_for()
    place = page.locator(".stt-thrown")
    place.get_by_label("first digit", exact=True).select_option("7")
    place.get_by_role("button", name="Throw", exact=True).click()
    finished(page, ".stt-thrown", None)
    slider = place.get_by_label("frame", exact=True)
    slider.fill("14")
    prompt = shown(page, ".stt-thrown", 64)
    assert torch.equal(prompt[0], prompt[1])  # the model was given what happened
    slider.fill("15")
    words = place.locator(".stt-errors").inner_text()
    model, copy = (float(number) for number in re.findall(r"(\d+)(?:\s|$)", words))
    assert 0 < model < copy  # a frame on, the model beats a copy
    assert not errors


# What a page says about itself

HEADS = [
    r"<title>.+</title>",
    r'<meta name="description" content=".{40,}">',
    r'<meta property="og:image" content="https://[^"]+/_static/card.png">',
    r'<link rel="canonical" href="https://[^"]+" ?/?>',
    r'<link rel="icon" href="[^"]+favicon.svg"',
]


def test_every_page_introduces_itself(browser):
    missing = [(n, h) for n in NAMES for h in HEADS if not re.search(h, html(n))]
    assert not missing
    titles = [re.search(r"<title>(.*)", html(name))[1] for name in CHAPTERS]
    assert all(re.match(r"\d+\. ", title) for title in titles), titles
    listed = re.findall(
        r"<loc>https://[^/]+/(?:[^/]+/)?(.+?)</loc>", html("sitemap.xml")
    )
    assert set(NAMES) <= {re.sub(r"^.*?(book|notebooks)/", r"\1/", x) for x in listed}
    assert 'href="/' in html("404.html")


def test_every_box_of_the_model_and_every_chapter_is_a_link(open_page):
    page = open_page(FRONT).page
    links = page.evaluate(
        "[...document.querySelectorAll('.stt-figure a')].map(a => a.href.baseVal)"
    )
    assert len(links) == page.locator(".stt-figure .stt-box").count() + 1
    assert all((PAGES / "book" / link).is_file() for link in links)
    text = html(FRONT)
    assert all(f'href="../{name}"' in text for name in CHAPTERS)


def test_an_index_fits_a_phone(open_page):
    page = open_page("genindex.html", viewport=PHONE).page
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


# Pong: chapter 17's page, whose every frame the model makes

# A worker by itself: read clip `c`, with its keys, then one frame for each of `keys`.
WORKER = """async ({c, keys, temperature, seed}) => {
    const worker = new Worker("../_static/vendor/book/worker.js", {type: "module"});
    const ask = (call, ...given) => new Promise((done, failed) => {
        worker.onmessage = ({data: {id, value, error}}) =>
            id === undefined || (error ? failed(new Error(error)) : done(value));
        worker.postMessage({id: 0, call, arguments: given});
    });
    const files = new URL("../_static/generate/", document.baseURI).href;
    const loaded = await ask("load", files + "pong/model.json", files + "runtime.json");
    const {about: {clips, shape}, clips: pixels} = loaded;
    const area = shape.reduce((a, b) => a * b);
    await ask("begin", "game", seed);
    for (let t = 0, i = c * clips.frames * area; t < clips.frames; t++, i += area) {
        const action = clips.actions[c][t];
        await ask("read", "game", pixels.slice(i, i + area), {action}, temperature);
    }
    const made = [];
    for (const action of keys)
        made.push([...await ask("step", "game", {action}, temperature)]);
    worker.terminate();
    return made;
}"""


def uniform(seed: int):
    """What book/js/chance.js draws: `uniform(n)` gives the next n in [0, 1)."""
    state = seed

    def draw(n: int) -> torch.Tensor:
        nonlocal state
        t = [(state + (i + 1) * 0x6D2B79F5) % 2**32 for i in range(n)]
        state, t = t[-1], np.array(t, np.uint64)
        t = (t ^ t >> 15) * (1 | t) % 2**32
        t = t ^ (t + (t ^ t >> 7) * (61 | t)) % 2**32
        return torch.from_numpy((t ^ t >> 14).astype(np.float64)) / 2**32

    return draw


def played(model, clip, keys, temperature: float, seed: int) -> torch.Tensor:
    """What a page should show (new C H W) after 8 frames and their keys, then others.

    The package's parts, with the page's chance: `prefill`, then `step`.
    """
    net, tokenizer = model.transformer, model.tokenizer
    normals, scores = uniform(seed), uniform(~seed % 2**32)

    def noise() -> torch.Tensor:
        shape = net.draw_noise(1, 1)[:, 0].shape
        u, v = normals(2 * shape.numel()).view(-1, 2).unbind(1)
        return ((-2 * (1 - u).log()).sqrt() * (2 * math.pi * v).cos()).view(shape)

    known, frames = len(clip), []
    latents = model.tokens(clip[None])
    leads = net.actions(torch.as_tensor(keys))[None]  # (1 T E)
    reads = iter([noise().float() for _ in range(known)])
    slots, latent = model.trained_frames, latents[:, -1]
    start = leads[:, :known]
    cache = prefill(net, latents, slots, reads, min(temperature, 1.0), start)
    for t in range(known, len(keys)):
        cache = keep_start(cache) if t >= slots else cache
        draw = noise().float(), None, temperature, leads[:, t]
        logits, cache = net.step(latent, cache, *draw)
        if temperature:
            u = scores(logits.numel()).view(logits.shape)
            logits = logits + temperature * -(-(u + 2**-33).log()).log().float()
        latent = tokenizer.codes(logits.argmax(1))
        frames.append(tokenizer.decode(latent)[0])
    return torch.stack(frames)


@pytest.mark.parametrize("c, temperature, new", [(0, 0.0, 24), (3, 1.0, 12)])
@torch.no_grad()
def test_a_page_plays_what_the_package_does(serve, c, temperature, new):
    page, *_ = serve(PONG)
    model = stt.load_pretrained("pong")
    clips, actions = browser_export.held_out(model, browser_export.BUNDLES["pong"])
    keys = torch.randint(3, (new,), generator=torch.Generator().manual_seed(1)).tolist()
    asked = {"c": c, "keys": keys, "temperature": temperature, "seed": 5}
    got = torch.tensor(page.evaluate(WORKER, asked)).view(new, *model.frame_shape)
    keys = actions[c] + keys
    wanted = played(model, clips[c], keys, temperature, 5)
    # Within a thousandth, but that a page's frames are in bytes
    assert (got - 255 * wanted).abs().max() <= 0.5 + 0.255
    if not temperature:
        options = dict(actions=torch.tensor(keys), temperature=0.0, seed=0)
        again = model.generate(clips[c], new, **options)[0, 0, len(clips[c]) :]
        assert (again - wanted).abs().max() < 1e-3


COURT = """() => {
    const screen = document.querySelector('.stt-court canvas');
    return [...screen.getContext('2d').getImageData(0, 0, 80, 80).data];
}"""


def court(page) -> torch.Tensor:
    """The frame (3 80 80), in [0, 1], that the game shows."""
    pixels = torch.tensor(page.evaluate(COURT)).view(80, 80, 4)
    return pixels[..., :3].movedim(-1, 0) / 255


def start_playing(page, frames: int = 1):
    """Press Play, and wait for so many frames; the game's place in the page."""
    place = page.locator(".stt-pong")
    place.get_by_role("button", name="Play", exact=True).click()
    page.wait_for_function(
        "n => +document.querySelector('.stt-pong').dataset.made >= n", arg=frames
    )
    return place


def paused(page) -> int:
    """Press space, and wait for the last frame on its way; how many were made."""
    page.keyboard.press(" ")
    page.locator(".stt-pong").get_by_role("button", name="Play", exact=True).wait_for()
    before = ""
    while before != (now := page.locator(".stt-pong").get_attribute("data-made")):
        before = now
        page.wait_for_timeout(1000)
    return int(now)


@pytest.mark.parametrize("name", [PONG, FRONT])
def test_a_game_is_there_at_once_and_the_model_when_it_is_wanted(serve, name):
    page, asked, errors = serve(name, viewport=LAPTOP)
    page.wait_for_selector(".stt-pong[data-ready]")
    first = court(page)
    assert until(page, lambda: not torch.equal(court(page), first))  # it plays
    assert not any(re.search("onnx|wasm|clips", url) for url in asked)
    page.keyboard.press("ArrowDown")
    assert until(
        page, lambda: page.evaluate("scrollY")
    )  # the page's key, as long as nobody plays
    page.evaluate("scrollTo(0, 0)")
    page.locator(".stt-pong").get_by_role("button", name="Play", exact=True).click()
    bar = page.locator(".stt-pong progress")
    bar.wait_for()
    words = page.locator(".stt-pong .stt-status").first
    page.wait_for_function(
        "document.querySelector('.stt-pong .stt-status')"
        ".textContent.includes('Every frame is made')"
    )
    assert not bar.is_visible() and words.is_visible()
    assert bar.get_attribute("max") == str(
        sum(path.stat().st_size for path in downloaded())
    )
    assert len(page.workers) == 1 and not errors


def downloaded() -> list[Path]:
    """What a page loads to play."""
    folder = PAGES / "_static" / "generate"
    return [folder / "ort.wasm.gz", *folder.glob("pong/*.gz")]


def test_a_game_is_at_most_twelve_megabytes(browser):
    model = [path.stat().st_size for path in downloaded()[1:]]
    assert len(model) == 4 and sum(model) < 12e6


@pytest.mark.parametrize("key, towards", [("ArrowUp", -1), ("s", 1)])
def test_a_key_moves_the_paddle_within_a_frame(serve, key, towards):
    page, *_ = serve(PONG, viewport=LAPTOP)
    place = start_playing(page)
    page.get_by_role("button", name="situation 4").click()  # the paddle in the middle
    page.locator(".stt-starts [aria-pressed=true]:nth-child(4)").wait_for()
    page.locator(".stt-pong[data-made='0']").wait_for()
    page.wait_for_function("+document.querySelector('.stt-pong').dataset.made >= 1")
    made = paused(page)
    before = find_paddle(court(page))
    page.keyboard.down(key)
    place.get_by_role("button", name="One frame").click()
    page.wait_for_function(
        "n => document.querySelector('.stt-pong').dataset.made == n", arg=made + 1
    )
    assert towards * (find_paddle(court(page)) - before) > 0.5
    assert page.evaluate("scrollY") == 0


def test_keys_belong_to_the_game_only_while_it_has_the_focus(serve):
    page, *_ = serve(PONG, viewport=LAPTOP)
    start_playing(page)
    for _ in range(3):
        page.keyboard.press("ArrowDown")
    page.wait_for_timeout(300)
    assert page.evaluate("scrollY") == 0
    rate = page.get_by_label("frames a second")
    rate.focus()
    page.keyboard.press("ArrowDown")
    assert rate.input_value() == "30"  # a choice keeps its keys
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("ArrowDown")
    assert until(page, lambda: page.evaluate("scrollY"))


def test_fingers_play_as_keys_do(serve):
    page, *_ = serve(PONG, has_touch=True)
    place = start_playing(page)
    small = [
        part.inner_text() or part.get_attribute("aria-label")
        for part in place.locator("button, select").all()
        if min(part.bounding_box()[side] for side in ("width", "height")) < 44
    ]
    assert not small
    for label, towards in (("up", -1), ("down", 1)):
        pad = place.get_by_role("button", name=label, exact=True)
        pad.scroll_into_view_if_needed()
        pad.dispatch_event("pointerdown", {"pointerId": 1})  # and stays down

        def there() -> bool:
            row = find_paddle(court(page))  # at a border hardly any of it is left
            return row.isnan() or towards * (row - 40) > 25

        assert until(page, there)
        pad.dispatch_event("pointerup", {"pointerId": 1})


def test_a_clip_of_the_game_can_be_kept(serve):
    page, *_ = serve(PONG, viewport=LAPTOP)
    place = start_playing(page, 6)
    made = paused(page)
    with page.expect_download() as caught:
        place.get_by_role("button", name="Save as GIF").click()
    frames = iio.imread(caught.value.path(), mode="RGB")  # (T 240 240 3)
    assert len(frames) == 8 + made
    last = torch.from_numpy(frames[-1, ::3, ::3]).movedim(-1, 0) / 255
    assert (last - court(page)).abs().max() < 17 / 255  # in up to 256 colours


def test_a_lost_model_is_explained_and_play_tries_again(serve):
    page, *_ = serve(PONG, viewport=LAPTOP)
    page.context.route("**/pong/step.onnx.gz", lambda route, _: route.abort())
    page.locator(".stt-pong").get_by_role("button", name="Play", exact=True).click()
    said = "document.querySelector('.stt-pong .stt-status').textContent"
    page.wait_for_function(f"{said}.includes('connection')")
    page.context.unroute("**/pong/step.onnx.gz")
    start_playing(page)


@pytest.mark.parametrize(
    "old", ["WebAssembly.validate = () => false", "delete window.DecompressionStream"]
)
def test_an_old_browser_is_told_so(serve, old):
    page, asked, _ = serve("book/index.html")
    page.add_init_script(old)
    page.goto(page.url.replace(FRONT, PONG))
    asked.clear()
    page.locator(".stt-pong").get_by_role("button", name="Play", exact=True).click()
    page.wait_for_function(
        "document.querySelector('.stt-pong .stt-status')"
        ".textContent.includes('This browser cannot run the model')"
    )
    assert not any("onnx" in url for url in asked)
