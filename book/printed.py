"""One PDF of the whole book: `python book/printed.py`, after `make book`.

The built pages are put one after the other into one page, which Chromium prints from
disk without scripts: players are film strips then, and folded cells are open.
"""

import html
import posixpath
import re
import shutil
import sys
from pathlib import Path

from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "_build" / "html"
OUT = ROOT / "_build" / "stt_lite.pdf"
FLAGS = ["--no-sandbox", "--disable-gpu"]
# Of a page only its article is printed, and of that nothing that needs a press.
DROPPED = (
    "script, nav, .prev-next-footer, a.headerlink, .stt-generate, .stt-pong, "
    ".stt-thrown, .stt-start, [data-paper=dark], div.tag_setup, noscript"
)
LINKS = {"href": ("a",), "src": ("img",), "srcset": ("source",)}
STYLE = """
@page { size: A4; margin: 16mm 14mm; }
body { display: block; }
article.bd-article { break-before: page; padding: 0; }
article.bd-article:first-of-type { break-before: auto; }
"""


def chapters(pages: Path = PAGES) -> list[str]:
    """The pages' names in the order of the contents: first page, chapters, look up."""
    front = BeautifulSoup((pages / "book" / "index.html").read_bytes(), "html.parser")
    found = ["book/index.html"]
    for link in front.select(".bd-links__inner a[href], .bd-links a[href]"):
        name = posixpath.normpath(posixpath.join("book", link["href"].split("#")[0]))
        if name not in found and (pages / name).is_file():
            found.append(name)
    return [name for name in found if "/api/" not in name]


def anchor(name: str, fragment: str = "") -> str:
    """The place of a page, or of something on it, in the one page: unlike any other."""
    return re.sub(r"\W", "-", name.removesuffix(".html")) + ("--" + fragment) * bool(
        fragment
    )


def article(name: str, names: list[str], pages: Path = PAGES):
    """What is printed of a page: its links lead to the same book, or to the web."""
    page = BeautifulSoup((pages / name).read_bytes(), "html.parser")
    found = page.select_one("article.bd-article")
    for part in found.select(DROPPED):
        part.decompose()
    for part in found.select("[id]"):
        part["id"] = anchor(name, part["id"])
    found["id"] = anchor(name)
    for fold in found.select("details"):
        fold["open"] = ""
    for key, tags in LINKS.items():
        for part in found.select(", ".join(f"{tag}[{key}]" for tag in tags)):
            if re.match(r"[a-z]+:", part[key]):
                continue
            target, _, fragment = part[key].partition("#")
            there = posixpath.join(posixpath.dirname(name), target) if target else name
            there = posixpath.normpath(there)
            inside = f"#{anchor(there, fragment)}"
            part[key] = inside if there in names else there
    return page, found


def one_page(pages: Path = PAGES) -> str:
    """The whole book as one page of HTML, for the folder of the built pages."""
    names = chapters(pages)
    styles, articles, formulas = [], [], []
    for name in names:
        page, found = article(name, names, pages)
        for link in page.select('link[rel="stylesheet"][href]'):
            href = posixpath.normpath(
                posixpath.join(posixpath.dirname(name), link["href"].split("?")[0])
            )
            if not re.match(r"https?:", link["href"]) and href not in styles:
                styles.append(href)
        formulas += [str(style) for style in page.select("head style")]
        articles.append(str(found))
    links = "\n".join(
        f'<link rel="stylesheet" href="{html.escape(s)}">' for s in styles
    )
    head = f"{links}\n{''.join(dict.fromkeys(formulas))}\n<style>{STYLE}</style>"
    return (
        '<!DOCTYPE html>\n<html lang="en" data-theme="light" data-mode="light"><head>'
        f'<meta charset="utf-8"><title>stt_lite</title>\n{head}</head>\n'
        f'<body><main class="bd-main"><div class="bd-content"><div class="bd-article-container">{"".join(articles)}</div></div></main></body></html>\n'
    )


def main(pages: Path = PAGES, out: Path = OUT) -> None:
    programs = ("chromium", "chromium-browser", "google-chrome")
    chromium = next(filter(None, map(shutil.which, programs)), None)
    if chromium is None:
        sys.exit("There is no Chromium on this machine.")
    from playwright.sync_api import sync_playwright

    whole = pages / "whole_book.html"
    whole.write_text(one_page(pages), encoding="utf-8")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_context(java_script_enabled=False, offline=True).new_page()
        page.goto(whole.as_uri())
        page.pdf(
            path=out,
            prefer_css_page_size=True,
            print_background=True,
            outline=True,
            tagged=True,
        )
        browser.close()
    print(f"{out.relative_to(ROOT)}: {out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
