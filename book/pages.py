"""Sphinx extension of the book: local JavaScript, small icon fonts, and API entries that link to their section."""

import ast
import json
import re
import sys
from pathlib import Path

import vendor
from docutils.nodes import make_id
from sphinx.ext.mathjax import MATHJAX_URL
from sphinx.util import logging

ROOT = Path(__file__).resolve().parent.parent
CDN_WIDGETS = {
    "https://cdn.jsdelivr.net/npm/requirejs@2.3.8/require.min.js": {},
    "https://cdn.jsdelivr.net/npm/@jupyter-widgets/html-manager@1.0.15/dist/embed-amd.js": {},
}
# One icon of Font Awesome's script: name:[width,height,[aliases],"unicode","path" or ["path","path"]]
ICON = re.compile(r'("[\w-]+"|[\w$]+):\[\d+,\d+,\[([^\]]*)\],"[0-9a-f]+",(?:"[^"]*"|\[[^\]]*\])\],?')

sys.path.insert(0, str(ROOT))  # autodoc imports stt_lite from here
logger = logging.getLogger(__name__)


def choose_scripts(app, config):
    """Local copies; where book/vendor.py could not fetch them, a CDN's, and say so."""
    if (vendor.VENDOR / "digest.txt").is_file():
        config.mathjax_path = "typeset-at-build-time/mathjax.js"  # never loaded
        config.nb_ipywidgets_js = {"vendor/widgets/widgets.js": {}}
        return
    logger.info("No JavaScript in %s: the pages load it from a CDN.", vendor.VENDOR.relative_to(ROOT))
    config.nb_ipywidgets_js = CDN_WIDGETS


def drop_scripts(app, pagename, templatename, context, doctree):
    """Leave out thebe, which needs another host, MathJax where formulas are typeset at build time, and what a page does not use."""
    unwanted = r"thebe" if app.config.mathjax_path == MATHJAX_URL else r"thebe|mathjax"
    unwanted += "" if 'class="stt-generate"' in context.get("body", "") else r"|generate\.js"
    scripts = context.get("script_files", [])
    named = [(script, f"{script.filename} {script.attributes.get('body', '')}") for script in scripts]
    context["script_files"] = [script for script, text in named if not re.search(unwanted, text, re.IGNORECASE)]


def typeset_formulas(app, exception):
    if not exception and app.config.mathjax_path != MATHJAX_URL:
        vendor.typeset(Path(app.outdir))


def sections_of_exports() -> dict[str, tuple[str, str]]:
    """Public name -> (notebook, heading of the section that builds it)."""
    found = {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        module = notebook["metadata"].get("stt_lite", {}).get("module")
        heading = path.stem
        for cell in notebook["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] == "markdown":
                prose = re.sub(r"```.*?```", "", source, flags=re.DOTALL)
                heading = ([heading] + re.findall(r"^#+ +(.+?)\s*$", prose, flags=re.MULTILINE))[-1]
            elif "export" in cell["metadata"].get("tags", []):
                for node in ast.parse(source).body:
                    if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                        found[f"stt_lite.{module}.{node.name}"] = (path.stem, heading)
    return found


def plain_text_to_rst(app, what, name, obj, options, lines):
    """The docstrings are plain text with `code`: keep ReST from reading more into them (runs before napoleon)."""
    for number, line in enumerate(lines):
        parts = re.split(r"(``.*?``|`[^`]+`)", line)
        parts[::2] = [re.sub(r"([|*])", r"\\\1", part) for part in parts[::2]]
        parts[1::2] = [f"``{part.strip('`')}``" for part in parts[1::2]]
        lines[number] = "".join(parts)


def link_to_section(app, what, name, obj, options, lines):
    if name in app.stt_sections:
        notebook, heading = app.stt_sections[name]
        text = re.sub(r"[`*$\\<>]", "", heading)
        lines += ["", f"Built in `{notebook}, {text} <../../notebooks/{notebook}.html#{make_id(heading)}>`__."]


def leave_search_to_its_page(app, exception):
    """The theme makes every page load the whole search index; only search.html looks into it."""
    scripts = re.compile(r'<script src="[^"]*(?:searchtools|language_data|searchindex)\.js[^"]*"></script>\s*')
    for path in [] if exception else Path(app.outdir).rglob("*.html"):
        if path.name != "search.html":
            text = path.read_text(encoding="utf-8")
            path.write_text(scripts.sub("", text), encoding="utf-8")


def keep_used_icons(app, exception):
    """Cut the theme's 1.5 MB Font Awesome script down to the icons that the book's files name."""
    script = Path(app.outdir) / "_static" / "scripts" / "fontawesome.js"
    if exception or not script.is_file():
        return
    used = set()
    for path in Path(app.outdir).rglob("*"):
        if path.suffix in {".html", ".js"} and path != script:
            used.update(re.findall(r"fa-([a-z0-9-]+)", path.read_text(encoding="utf-8", errors="ignore")))

    def keep(match):
        names = {match[1].strip('"'), *re.findall(r'"([^"]+)"', match[2])}
        return match[0] if names & used else ""

    script.write_text(ICON.sub(keep, script.read_text(encoding="utf-8")), encoding="utf-8")


def setup(app):
    app.stt_sections = sections_of_exports()
    app.connect("config-inited", choose_scripts)
    app.connect("autodoc-process-docstring", plain_text_to_rst, priority=400)
    app.connect("autodoc-process-docstring", link_to_section, priority=600)
    app.connect("html-page-context", drop_scripts, priority=900)
    app.connect("build-finished", typeset_formulas)
    app.connect("build-finished", leave_search_to_its_page)
    app.connect("build-finished", keep_used_icons)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
