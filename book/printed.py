"""One PDF of the whole book: `python book/printed.py`, after `make book`.

The built pages are put one after the other into one page, which Chromium prints from
disk without scripts: players are film strips then, and folded cells are open.
"""

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
PAPER = {"format": "A4", "tagged": True}
PAPER["margin"] = dict(top="16mm", bottom="16mm", left="14mm", right="14mm")
FRONT = "book/index.html"
# What is left out: what needs a press, dark figures, and the cell that finds stt_lite.
DROPPED = (
    "script, noscript, nav, .prev-next-footer, a.headerlink, .stt-generate, .stt-pong, "
    ".stt-thrown, .stt-start, [data-paper=dark], div.tag_setup"
)
# Head and article; a page's lists of all pages are long, and not printed.
PRINTED = re.compile(r"<head>.*?</head>|<article\b.*?</article>", re.DOTALL)
PAGE = """\
<!DOCTYPE html>
<html lang="en" data-theme="light" data-mode="light">
<head>
<meta charset="utf-8">
<title>stt_lite: video generation from first principles</title>
{styles}
<style>
body, .bd-content {{ display: block; }}
article.bd-article {{ padding: 0; break-before: page; }}
article.bd-article section > h1 {{ display: block !important; }}
article.bd-article:first-of-type {{ break-before: auto; }}
</style>
</head>
<body><main class="bd-main"><div class="bd-content">
<div class="bd-article-container">
{articles}
</div>
</div></main></body>
</html>
"""


def contents(pages: Path = PAGES) -> list[str]:
    """The pages in the order of the contents, without those of the API."""
    front = BeautifulSoup((pages / FRONT).read_bytes(), "html.parser")
    links = (link["href"].split("#")[0] for link in front.select(".bd-links a[href]"))
    found = dict.fromkeys([FRONT, *(beside(FRONT, link) for link in links)])
    return [name for name in found if "/api/" not in name and (pages / name).is_file()]


def anchor(name: str, fragment: str = "") -> str:
    """The place of a page, or of something on it, in the one page."""
    parts = [name.removesuffix(".html"), fragment]
    return re.sub(r"\W", "-", "--".join(filter(None, parts)))


def beside(name: str, link: str) -> str:
    """The path, from the folder of all pages, of what page `name` links to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), link))


def article(page: BeautifulSoup, name: str, names: list[str]):
    """What is printed of a page; a link to a page of `names` leads to its place."""
    found = page.select_one("article.bd-article")
    for part in found.select(DROPPED):
        part.decompose()
    for part in found.select("[id]"):
        part["id"] = anchor(name, part["id"])
    found["id"] = anchor(name)
    for fold in found.select("details"):
        fold["open"] = ""
    for key in ("href", "src", "srcset"):
        for part in found.select(f"[{key}]"):
            if re.match(r"[a-z]+:", part[key]):
                continue
            target, _, fragment = part[key].partition("#")
            there = beside(name, target) if target else name
            part[key] = f"#{anchor(there, fragment)}" if there in names else there
    return found


def one_page(pages: Path, names: list[str]) -> str:
    """These pages as one, with links as from the folder of all pages."""
    styles, articles = [], []
    for name in names:
        text = (pages / name).read_text(encoding="utf-8")
        page = BeautifulSoup("".join(PRINTED.findall(text)), "html.parser")
        for link in page.select('head link[rel="stylesheet"]'):
            link["href"] = beside(name, link["href"].split("?")[0])
            styles.append(str(link))
        styles += map(str, page.select("head > style"))
        articles.append(str(article(page, name, names)))
    return PAGE.format(
        styles="\n".join(dict.fromkeys(styles)), articles="\n".join(articles)
    )


def main(pages: Path = PAGES, out: Path = OUT, names: list[str] | None = None) -> None:
    programs = ("chromium", "chromium-browser", "google-chrome")
    chromium = next(filter(None, map(shutil.which, programs)), None)
    if chromium is None:
        sys.exit("There is no Chromium on this machine.")
    if not (pages / FRONT).is_file():
        sys.exit("No pages yet: run make book first.")
    from playwright.sync_api import sync_playwright

    whole = pages / "printed.html"
    whole.write_text(one_page(pages, names or contents(pages)), encoding="utf-8")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        context = browser.new_context(java_script_enabled=False, offline=True)
        context.set_default_timeout(0)  # hundreds of pages take a while
        page = context.new_page()
        page.goto(whole.as_uri())
        page.pdf(path=out, scale=0.75, print_background=True, outline=True, **PAPER)
        browser.close()
    whole.unlink()
    print(f"{out.name}: {out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
