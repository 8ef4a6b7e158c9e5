"""One PDF of the whole book: what is printed of each page, and what comes out."""

import io
import shutil

import pytest
from bs4 import BeautifulSoup
from pypdf import PdfReader, PdfWriter

from printed import OUT, PAGES, article, contents, main

NAMES = ["book/index.html", "notebooks/01_a.html"]
PAGE = """<article class="bd-article"><h1 id="a">A<a class="headerlink"
href="#a">#</a></h1>
<details><summary>Show code</summary><pre>x = 1</pre></details>
<a href="../book/index.html#b">b</a> <a href="#a">a</a> <a href="https://x.org">x</a>
<a href="02_b.html">c</a>
<img src="../_images/a.png" data-paper="light"><img src="../_images/a.dark.png"
data-paper="dark"><div class="stt-pong">press</div><script>1</script></article>"""


def test_links_lead_into_the_book_and_folds_are_open():
    found = article(BeautifulSoup(PAGE, "html.parser"), NAMES[1], NAMES)
    assert [link["href"] for link in found.select("a")] == [
        "#book-index--b",
        "#notebooks-01_a--a",
        "https://x.org",
        "notebooks/02_b.html",
    ]
    assert found.h1["id"] == "notebooks-01_a--a" and found["id"] == "notebooks-01_a"
    assert found.details.has_attr("open") and "x = 1" in found.text
    assert [image["src"] for image in found.select("img")] == ["_images/a.png"]
    assert not found.select("script, .stt-pong")


def titles_of(outline) -> list[str]:
    """The entries of a PDF's outline, at any depth, as `plain` writes them."""
    nested = (titles_of(it) if isinstance(it, list) else [it.title] for it in outline)
    return [plain(title) for titles in nested for title in titles]


def plain(title: str) -> str:
    """Without spaces: Chromium loses one where a title goes on in the next line."""
    return "".join(title.split())


def weight(page) -> int:
    """Bytes of one page alone with its fonts and pictures; an empty one has some 600.

    Its text doesn't tell: now and then Chromium draws words through a soft mask, where
    no reader of PDFs looks for them.
    """
    alone, content = PdfWriter(), io.BytesIO()
    alone.add_page(page)
    alone.write(content)
    return content.tell()


def check(path, names) -> None:
    """Every page of the book is in it, by its title; no page of it is empty."""
    pdf = PdfReader(path)
    titles = titles_of(pdf.outline)
    for name in names:
        page = BeautifulSoup((PAGES / name).read_bytes(), "html.parser")
        heading = page.select_one("article h1")
        heading.select_one(".headerlink").decompose()
        assert plain(heading.get_text()) in titles
    assert len(pdf.pages) > 2 * len(names)
    words = [len(page.extract_text().split()) for page in pdf.pages]
    empty = [n for n, page in enumerate(pdf.pages, 1) if weight(page) < 3000]
    assert not empty
    sparse = sum(count < 8 for count in words)
    assert sparse <= len(names) + 0.05 * len(words)  # where a chapter ends


@pytest.fixture
def built():
    if not (PAGES / "book" / "index.html").is_file():
        pytest.skip('no pages: run "make book"')
    return contents()


def test_an_empty_page_is_told_by_its_weight():
    blank = PdfWriter()
    blank.add_blank_page(612, 792)
    assert weight(blank.pages[0]) < 3000


def test_two_chapters_become_a_pdf(built, tmp_path):
    if not shutil.which("chromium"):
        pytest.skip("no Chromium on this machine")
    names = ["notebooks/04_spatial_attention.html", "book/what_did_not_work.html"]
    main(PAGES, tmp_path / "two.pdf", names)
    check(tmp_path / "two.pdf", names)
    assert not (PAGES / "printed.html").exists()


def test_the_whole_book_is_in_its_pdf(built):
    if not OUT.is_file():
        pytest.skip('no PDF: run "make print"')
    check(OUT, built)
