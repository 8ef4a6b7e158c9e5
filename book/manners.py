"""What a published page owes its readers: how it is named, found, cited and shown.

Part of the Sphinx extension in book/pages.py.
"""

import html
import re
import subprocess
from datetime import date
from pathlib import Path
from urllib.parse import urlsplit

from docutils import nodes
from PIL import Image

import address

ROOT = Path(__file__).resolve().parent.parent
DESCRIPTION = "Build video generation with a small spatial-temporal transformer."
CARD = "_static/card.png"
LONGEST = 200  # characters of a description
NOT_FOUND = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Page not found: stt_lite</title>
<meta name="robots" content="noindex">
<link rel="icon" href="{base}_static/favicon.svg">
<style>
:root {{ color-scheme: light dark; }}
body {{ max-width: 36rem; margin: 15vh auto; padding: 0 1rem;
  font: 1.1rem/1.5 sans-serif; }}
</style>
</head>
<body>
<h1>There is no such page</h1>
<p>It may have moved. The <a href="{base}book/index.html">first page</a> lists all
chapters, and you can <a href="{base}search.html">search</a> the book.</p>
</body>
</html>
"""


def changed_on(root: Path = ROOT) -> str:
    """The date of the newest commit, or, without a history, today: 2026-11-27."""
    command = ["git", "-C", str(root), "log", "-1", "--format=%cs"]
    try:
        found = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        found = ""
    return found or date.today().isoformat()


def choose_addresses(app, config):
    """Where the pages will be; jupyter-book's `html.baseurl` in _config.yml wins."""
    app.stt_repository = address.repository(ROOT)
    config.html_baseurl = config.html_baseurl or address.pages(app.stt_repository)


def fill_in(app, docname, source):
    """What a page says about itself, and what only the build knows."""
    if docname == "book/index":
        version = re.search(
            r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE
        )[1]
        year = changed_on()[:4]
        known = {"VERSION": version, "REPOSITORY": app.stt_repository, "YEAR": year}
        for name, value in known.items():
            source[0] = source[0].replace(f"{{{name}}}", f"{{{value}}}")


def description(doctree) -> str:
    """The first words of a page, at most `LONGEST` characters, cut between words."""
    found = doctree.findall(nodes.paragraph) if doctree is not None else []
    texts = (" ".join(paragraph.astext().split()) for paragraph in found)
    text = next((text for text in texts if len(text) > 60), DESCRIPTION)
    if len(text) <= LONGEST:
        return text
    return text[:LONGEST].rsplit(" ", 1)[0] + " …"


def introduce(app, pagename, templatename, context, doctree):
    """What search engines, and other sites beside a link, show of a page."""
    text, title = description(doctree), re.sub(r"<.*?>", "", context.get("title", ""))
    about = {
        "og:type": "article",
        "og:site_name": "stt_lite",
        "og:title": html.unescape(title),
        "og:description": text,
        "og:url": f"{app.config.html_baseurl}{pagename}.html",
        "og:image": f"{app.config.html_baseurl}{CARD}",
        "og:image:alt": "A clip of moving digits beside three generated futures",
    }
    tags = [f'<meta name="description" content="{html.escape(text)}">']
    tags += [
        f'<meta property="{name}" content="{html.escape(value)}">'
        for name, value in about.items()
    ]
    tags.append('<meta name="twitter:card" content="summary_large_image">')
    context["metatags"] = "\n".join([context.get("metatags", ""), *tags])


def write_addresses(app, exception):
    """The real repository instead of the one that notebooks are stamped with."""
    known = address.configured(ROOT).removeprefix(address.HOST)
    real = app.stt_repository.removeprefix(address.HOST)
    if exception or known == real:
        return
    whole = re.compile(rf"(?<![\w-]){re.escape(known)}(?![\w-])")
    for path in Path(app.outdir).rglob("*"):
        if path.suffix in {".html", ".ipynb", ".md"}:
            text = path.read_text(encoding="utf-8")
            if known in text:
                path.write_text(whole.sub(real, text), encoding="utf-8")


def list_pages(app, exception):
    """sitemap.xml, and the page for addresses that lead nowhere."""
    if exception or app.builder.format != "html":
        return
    base, out = app.config.html_baseurl, Path(app.outdir)
    urls = "\n".join(
        f"<url><loc>{html.escape(base + name)}.html</loc></url>"
        for name in sorted(app.env.found_docs)
    )
    out.joinpath("sitemap.xml").write_text(
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n'
        f"{urls}\n</urlset>\n"
    )
    out.joinpath("404.html").write_text(NOT_FOUND.format(base=urlsplit(base).path))


GIF = re.compile(r'<img\b[^>]*?\bsrc="([^"]+\.gif)"[^>]*>')


def hold_gifs(app, exception):
    """Readers who asked for less motion see a gif's first frame, and a link to it."""
    for path in [] if exception else Path(app.outdir).rglob("*.html"):
        text = path.read_text(encoding="utf-8")

        def held(match):
            source = match[1]
            still = (path.parent / source).with_suffix(".still.png")
            with Image.open(path.parent / source) as gif:
                gif.convert("RGB").save(still, optimize=True)
            return (
                '<picture><source media="(prefers-reduced-motion: reduce)" '
                f'srcset="{source.removesuffix(".gif")}.still.png">{match[0]}</picture>'
                f'<a class="stt-plays" href="{source}">Play this clip</a>'
            )

        after = GIF.sub(held, text)
        if after != text:
            path.write_text(after, encoding="utf-8")


# What the theme's markup keeps from those who hear a page: its place, and what instead.
UNHEARD = {
    '<summary aria-label="Toggle hidden content">': "<summary>",  # it hid the text
    '<summary><span class="toctree-toggle"': (
        '<summary aria-label="Pages below this one"><span class="toctree-toggle"'
    ),
}


def name_controls(app, exception):
    """Give a name to what folds."""
    for path in [] if exception else Path(app.outdir).rglob("*.html"):
        before = after = path.read_text(encoding="utf-8")
        for markup, instead in UNHEARD.items():
            after = after.replace(markup, instead)
        if after != before:
            path.write_text(after, encoding="utf-8")


def connect(app):
    app.connect("config-inited", choose_addresses)
    app.connect("source-read", fill_in)
    app.connect("html-page-context", introduce)
    app.connect("build-finished", write_addresses)
    app.connect("build-finished", list_pages)
    app.connect("build-finished", hold_gifs)
    app.connect("build-finished", name_controls)
