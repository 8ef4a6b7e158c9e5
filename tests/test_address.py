"""Where the book is published, and what its pages say about themselves."""

import subprocess

import pytest
from docutils import nodes
from docutils.utils import new_document

import address
import manners
from conftest import ROOT

HERE = "https://github.com/me/my.book"


@pytest.mark.parametrize(
    "remote, expected",
    [
        ("https://github.com/me/my.book", HERE),
        ("https://github.com/me/my.book.git", HERE),
        ("https://github.com/me/my.book/", HERE),
        ("git@github.com:me/my.book.git", HERE),
        ("ssh://git@github.com/me/my.book.git", HERE),
        ("ssh://git@github.com:22/me/my.book", HERE),
        ("https://me:secret@github.com/me/my.book.git", HERE),
        ("https://x-access-token:secret@github.com/me/my.book", HERE),
        ("https://example.org/me/my.book", None),
        ("https://github.com.example.org/me/my.book", None),
        ("https://example.org/github.com/me/my.book", None),
        ("/srv/git/my.book.git", None),
        ("../github.com/me/my.book", None),
        ("https://github.com/me", None),
        ("", None),
    ],
)
def test_a_remote_leads_to_a_public_address(remote, expected):
    assert address.normal(remote) == expected


@pytest.fixture
def clone(tmp_path):
    (tmp_path / "_config.yml").write_text("repository:\n  url: https://github.com/a/b")
    return tmp_path


def git(folder, *arguments):
    subprocess.run(["git", "-C", str(folder), *arguments], check=True)


def test_actions_then_origin_then_config(clone):
    assert address.repository(clone, {}) == "https://github.com/a/b"  # no clone
    git(clone, "init", "-q")
    assert address.repository(clone, {}) == "https://github.com/a/b"  # no origin
    git(clone, "remote", "add", "origin", "/srv/private.git")
    assert address.repository(clone, {}) == "https://github.com/a/b"
    git(clone, "remote", "set-url", "origin", "git@github.com:c/d.git")
    assert address.repository(clone, {}) == "https://github.com/c/d"
    (clone / "copy").mkdir()
    (clone / "copy" / "_config.yml").write_bytes((clone / "_config.yml").read_bytes())
    assert address.repository(clone / "copy", {}) == "https://github.com/a/b"
    actions = {"GITHUB_REPOSITORY": "e/f"}
    assert address.repository(clone, actions) == "https://github.com/e/f"


@pytest.mark.parametrize(
    "name, expected",
    [
        ("Me/book", "https://me.github.io/book/"),
        ("me/me.github.io", "https://me.github.io/"),
    ],
)
def test_pages_of_a_repository(name, expected):
    assert address.pages(f"https://github.com/{name}") == expected


def test_a_description_is_a_page_s_first_sentence_cut_between_words():
    document = new_document("page")
    assert manners.description(None) == manners.DESCRIPTION
    document += nodes.paragraph(text="Open in Colab")  # too short to say anything
    assert manners.description(document) == manners.DESCRIPTION
    document += nodes.paragraph(text="word " * 60)
    text = manners.description(document)
    assert text.startswith("word word") and text.endswith("word …")
    assert len(text) <= manners.LONGEST + 2


def test_pages_name_the_repository_they_were_built_from(tmp_path):
    class App:
        outdir, stt_repository = tmp_path, "https://github.com/me/book"

    known = address.configured(ROOT)
    name = known.removeprefix(address.HOST)
    colab = f"https://colab.research.google.com/github/{name}/blob/main/x.ipynb"
    other = f"https://github.com/{name}-2"
    (tmp_path / "a.html").write_text(f"{known} {colab} git+{known} {other}")
    manners.write_addresses(App, None)
    text = (tmp_path / "a.html").read_text()
    assert name not in text.replace(other, "")
    assert text.count("me/book") == 3 and other in text


def test_citation_names_version_and_repository():
    text = (ROOT / "CITATION.cff").read_text()
    assert f'repository-code: "{address.configured(ROOT)}"' in text
    version = (ROOT / "pyproject.toml").read_text().split('\nversion = "')[1]
    assert f"\nversion: {version.split(chr(34))[0]}\n" in text
