"""Sphinx extension of the book: what its pages load, link to, and redirect to."""

import ast
import base64
import io
import posixpath
import re
import sys
from pathlib import Path

from docutils.nodes import make_id
from PIL import Image
from sphinx.ext.mathjax import MATHJAX_URL
from sphinx.util import logging

import dark
import manners
import opening
import tried
import vendor
from cells import read_notebooks

ROOT = Path(__file__).resolve().parent.parent
# One icon of Font Awesome's script:
# name:[width,height,[aliases],"unicode","path" or ["path","path"]]
ICON = re.compile(
    r'("[\w-]+"|[\w$]+):\[\d+,\d+,\[([^\]]*)\],"[0-9a-f]+",(?:"[^"]*"|\[[^\]]*\])\],?'
)
# A picture of 15 kB or more that is written into a page.
PICTURE = re.compile(r"data:image/png;base64,([A-Za-z0-9+/=]{20000,})")
# The book's own scripts, and the class of the places that they fill.
PLACES = {"front.js": "stt-front", "generate.js": "stt-generate"}
PLACES["pong.js"] = "stt-pong"
# Pages of the first edition -> where their content is now.
REDIRECTS = {
    "notebooks/08_training": "notebooks/09_training",
    "notebooks/09_generation": "notebooks/08_generation",
    "notebooks/10_evaluation": "notebooks/11_evaluation",
    "notebooks/11_vqgan": "notebooks/13_vqgan",
    "notebooks/12_game_worlds": "notebooks/14_game_worlds",
    "notebooks/13_your_own_video": "notebooks/15_your_own_video",
    "notebooks/14_what_it_costs": "notebooks/16_what_it_costs",
    "book/api/vq_autoencoder": "book/api/tokenizer",
    "book/api/gaussian_parameterization": "book/api/gaussian",
    "book/api/game_worlds": "book/api/games",
    "book/api/your_own_video": "book/api/clips",
}
# With scripts the anchor goes along (an entry of the API by its module's new name).
REDIRECT = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>This page has moved</title>
<meta name="robots" content="noindex">
<link rel="canonical" href="{target}">
<script>
location.replace("{target}" + location.hash.replace("{old}", "{new}"));
</script>
<noscript><meta http-equiv="refresh" content="0; url={target}"></noscript>
</head>
<body><p>This page has moved: <a href="{target}">go to its new place</a>.</p></body>
</html>
"""

sys.path.insert(0, str(ROOT))  # autodoc imports stt_lite from here
logger = logging.getLogger(__name__)


def choose_scripts(app, config):
    """Local copies; where book/vendor.py could not fetch them, MathJax of a CDN."""
    config.nb_ipywidgets_js = {}  # players bring their own script
    if (vendor.VENDOR / "digest.txt").is_file():
        config.mathjax_path = "typeset-at-build-time/mathjax.js"  # never loaded
        config.html_js_files += [f"vendor/book/{name}" for name in PLACES]
        return
    logger.info(
        "No JavaScript in %s: formulas are typeset by a CDN's, and no page generates.",
        vendor.VENDOR.relative_to(ROOT),
    )


def drop_scripts(app, pagename, templatename, context, doctree):
    """Leave out thebe, which needs another host, and what a page does not use.

    MathJax is not used where formulas are typeset at build time.
    """
    unwanted = r"thebe" if app.config.mathjax_path == MATHJAX_URL else r"thebe|mathjax"
    for name, place in PLACES.items():
        if f'class="{place}"' not in context.get("body", ""):
            unwanted += rf"|vendor/book/{re.escape(name)}"
    scripts = context.get("script_files", [])
    named = [
        (script, f"{script.filename} {script.attributes.get('body', '')}")
        for script in scripts
    ]
    context["script_files"] = [
        script for script, text in named if not re.search(unwanted, text, re.IGNORECASE)
    ]


def typeset_formulas(app, exception):
    if not exception and app.config.mathjax_path != MATHJAX_URL:
        vendor.typeset(Path(app.outdir))


def sections_of_exports() -> dict[str, tuple[str, str]]:
    """Public name -> (notebook, heading of the section that builds it)."""
    found = {}
    for notebook in read_notebooks(ROOT):
        heading = notebook.path.stem
        for index, cell in notebook.cells:
            if cell.cell_type == "markdown":
                prose = re.sub(r"```.*?```", "", cell.source, flags=re.DOTALL)
                headings = re.findall(r"^#+ +(.+?)\s*$", prose, flags=re.MULTILINE)
                heading = [heading, *headings][-1]
                continue
            file = notebook.file_of(index, cell) if cell.cell_type == "code" else None
            for node in ast.parse(cell.source).body if file else []:
                if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                    name = f"stt_lite.{Path(file).stem}.{node.name}"
                    found.setdefault(name, (notebook.path.stem, heading))
    return found


def plain_text_to_rst(app, what, name, obj, options, lines):
    """Keep ReST from reading more into docstrings, which are plain text with `code`.

    Runs before napoleon.
    """
    for number, line in enumerate(lines):
        parts = re.split(r"(``.*?``|`[^`]+`)", line)
        parts[::2] = [re.sub(r"([|*])", r"\\\1", part) for part in parts[::2]]
        parts[1::2] = [f"``{part.strip('`')}``" for part in parts[1::2]]
        lines[number] = "".join(parts)


def link_to_section(app, what, name, obj, options, lines):
    if name in app.stt_sections:
        notebook, heading = app.stt_sections[name]
        text = re.sub(r"[`*$\\<>]", "", heading)
        address = f"../../notebooks/{notebook}.html#{make_id(heading)}"
        lines += ["", f"Built in `{notebook}, {text} <{address}>`__."]


def leave_search_to_its_page(app, exception):
    """Only search.html looks into the search index, which the theme makes all load."""
    scripts = re.compile(
        r'<script src="[^"]*(?:searchtools|language_data|searchindex)\.js[^"]*">'
        r"</script>\s*"
    )
    for path in [] if exception else Path(app.outdir).rglob("*.html"):
        if path.name != "search.html":
            text = path.read_text(encoding="utf-8")
            path.write_text(scripts.sub("", text), encoding="utf-8")


def keep_used_icons(app, exception):
    """Cut the theme's 1.5 MB Font Awesome script down to the icons that pages name."""
    script = Path(app.outdir) / "_static" / "scripts" / "fontawesome.js"
    if exception or not script.is_file():
        return
    used = set()
    for path in Path(app.outdir).rglob("*"):
        if path.suffix in {".html", ".js"} and path != script:
            used.update(
                re.findall(
                    r"fa-([a-z0-9-]+)",
                    path.read_text(encoding="utf-8", errors="ignore"),
                )
            )

    def keep(match):
        names = {match[1].strip('"'), *re.findall(r'"([^"]+)"', match[2])}
        return match[0] if names & used else ""

    script.write_text(
        ICON.sub(keep, script.read_text(encoding="utf-8")), encoding="utf-8"
    )


def shrink_players(app, exception):
    """Pictures inside of pages become WebP, still without loss, where that is less."""
    for path in [] if exception else Path(app.outdir).rglob("notebooks/*.html"):
        text = path.read_text(encoding="utf-8")
        path.write_text(PICTURE.sub(smaller, text), encoding="utf-8")


def smaller(match: re.Match) -> str:
    """The same picture's address, as WebP if that is shorter."""
    content = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(match[1]))) as picture:
        picture.save(content, "WEBP", lossless=True, method=4)
    coded = base64.b64encode(content.getvalue()).decode()
    return min(match[0], f"data:image/webp;base64,{coded}", key=len)


def redirect_page(old: str, new: str) -> str:
    """A page at the address `old` that leads to `new`, keeping the anchor."""
    target = posixpath.relpath(f"{new}.html", posixpath.dirname(old))
    modules = [f"stt_lite.{posixpath.basename(page)}" for page in (old, new)]
    return REDIRECT.format(target=target, old=modules[0], new=modules[1])


def lead_to_new_pages(app, exception):
    """Where the first edition had a page, write one that leads to its new place."""
    if exception or app.builder.format != "html":
        return
    for old, new in REDIRECTS.items():
        path = Path(app.outdir) / f"{old}.html"
        if old in app.env.found_docs:
            logger.warning("book/pages.py: %s is a page and a redirect", old)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(redirect_page(old, new), encoding="utf-8")


def setup(app):
    app.stt_sections = sections_of_exports()
    manners.connect(app)
    opening.connect(app)
    app.connect("source-read", tried.fill_in)
    app.connect("config-inited", choose_scripts)
    app.connect("autodoc-process-docstring", plain_text_to_rst, priority=400)
    app.connect("autodoc-process-docstring", link_to_section, priority=600)
    app.connect("html-page-context", drop_scripts, priority=900)
    app.connect("build-finished", typeset_formulas)
    app.connect("build-finished", dark.draw_for_dark)
    app.connect("build-finished", shrink_players)
    app.connect("build-finished", leave_search_to_its_page)
    app.connect("build-finished", keep_used_icons)
    app.connect("build-finished", lead_to_new_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
