"""Write the package from the notebooks: `python book/extract.py`, or `--check` to compare only.

A notebook's metadata names its module (`"stt_lite": {"module": "video"}`); its code cells tagged `export`, in
order and unchanged, are that module. `stt_lite/__init__.py` is made from the modules' `__all__`.
"""

import argparse
import ast
import difflib
import re
import sys
from pathlib import Path

import nbformat
from nbconvert.exporters import TemplateExporter
from nbconvert.preprocessors import Preprocessor
from rules import check_imports, check_names, check_redefinitions

ROOT = Path(__file__).resolve().parent.parent
HEADER = '# Extracted from notebooks/{name} by "make extract": edit the notebook, not this file.\n'
TEMPLATE = """{{ resources.header }}{% for cell in nb.cells %}{% if not loop.first %}


{% endif %}{{ cell.source }}{% endfor %}

"""  # Jinja drops the last line break
MAGIC = re.compile(r"^\s*[%!]|get_ipython", re.MULTILINE)


class ExtractionError(Exception):
    """A notebook breaks a rule; the message names the notebook and the cell."""


class ExportCells(Preprocessor):
    """Keep the code cells tagged `export`."""

    def preprocess(self, nb, resources):
        nb.cells = [c for c in nb.cells if c.cell_type == "code" and "export" in c.metadata.get("tags", [])]
        return nb, resources


class Chapter:
    """One notebook: its export cells as a module's text, and where each line of that text comes from."""

    def __init__(self, path: Path):
        self.path = path
        self.notebook = nbformat.read(path, as_version=4)
        self.module = self.notebook.metadata.get("stt_lite", {}).get("module")
        self.code = [(i, c) for i, c in enumerate(self.notebook.cells) if c.cell_type == "code"]
        self.exported = [(i, c) for i, c in self.code if "export" in c.metadata.get("tags", [])]
        for index, cell in self.exported:
            if magic := MAGIC.search(cell.source):
                self.refuse(index, f"an export cell holds IPython magic ({magic[0].strip()!r})")
        exporter = TemplateExporter(raw_template=TEMPLATE, preprocessors=[ExportCells])
        header = HEADER.format(name=path.name)
        self.text, _ = exporter.from_notebook_node(self.notebook, {"header": header})
        self.lines = [None] * 2  # self.lines[n]: the cell that line n of the text comes from; line 1 is the header
        for index, cell in self.exported:
            self.lines += [index] * (cell.source.count("\n") + 1) + [None, None]
        self.tree = self.parse(self.text, lambda line: self.lines[line])

    def refuse(self, index: int | None, reason: str):
        place = f", cell {index + 1}" if index is not None else ""
        raise ExtractionError(f"notebooks/{self.path.name}{place}: {reason}.")

    def parse(self, source: str, cell_of_line) -> ast.Module:
        try:
            return ast.parse(source)
        except SyntaxError as error:
            return self.refuse(cell_of_line(error.lineno), f"not valid Python ({error.msg})")

    def code_trees(self):
        """(cell index, syntax tree) of every code cell, with IPython's own lines left out."""
        for index, cell in self.code:
            plain = "\n".join("" if re.match(r"\s*[%!]", line) else line for line in cell.source.split("\n"))
            yield index, self.parse(plain, lambda line, index=index: index)

    def exports(self) -> list[str]:
        """The module's `__all__`."""
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == ["__all__"]:
                try:
                    names = ast.literal_eval(node.value)
                except ValueError:
                    names = None
                if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
                    self.refuse(self.lines[node.lineno], "__all__ must be a plain list of strings")
                if len(set(names)) < len(names):
                    self.refuse(self.lines[node.lineno], "__all__ names something twice")
                return list(names)
        return self.refuse(None, "the export cells define no __all__")


def init_text(exports: dict[str, list[str]], version: str) -> str:
    lines = [
        '# Made by "make extract" from the modules\' __all__: edit the notebooks, not this file.',
        '"""stt_lite: generate video with a small spatial-temporal transformer; each module is built in a notebook."""',
        "",
        "import warnings",
        "",
        '# "python -m stt_lite.training" imports the package first, and runpy would wonder that the module is known already',
        r"""warnings.filterwarnings("ignore", message=r"'stt_lite\.\w+' found in sys\.modules", category=RuntimeWarning)""",
        "del warnings",
        "",
    ]
    for module, names in exports.items():
        lines += [f"from stt_lite.{module} import (", *(f"    {name}," for name in names), ")"]
    names = [name for group in exports.values() for name in group]
    lines += ["", f'__version__ = "{version}"', "", "__all__ = [", *(f'    "{name}",' for name in names), "]"]
    return "\n".join(lines) + "\n"


def extract_all(root: Path = ROOT) -> dict[Path, str]:
    """Path -> text of every file that the notebooks under `root` make; raises ExtractionError."""
    chapters = [Chapter(path) for path in sorted((root / "notebooks").glob("[0-9]*.ipynb"))]
    if not chapters:
        raise ExtractionError("notebooks/: no notebook there.")
    modules = [chapter for chapter in chapters if chapter.module]
    order = [chapter.module for chapter in modules]
    exports, earlier, files = {}, {}, {}
    for chapter in chapters:
        if chapter.exported and not chapter.module:
            chapter.refuse(chapter.exported[0][0], "an export cell, but the notebook's metadata names no module")
        if chapter.module in exports:
            chapter.refuse(None, f"module {chapter.module} has another notebook already")
        check_imports(chapter, order)
        check_redefinitions(chapter, earlier)
        if chapter.module:
            check_names(chapter)
            exports[chapter.module] = chapter.exports()
            for name in exports[chapter.module]:
                if name in earlier:
                    chapter.refuse(None, f"__all__ holds {name}, which stt_lite.{earlier[name]} exports")
                earlier[name] = chapter.module
            files[root / "stt_lite" / f"{chapter.module}.py"] = chapter.text
    version = re.search(r'^version = "(.+)"$', (root / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)[1]
    files[root / "stt_lite" / "__init__.py"] = init_text(exports, version)
    return files


def check(root: Path = ROOT) -> str:
    """A unified diff from the package on disk to what the notebooks say; empty where they agree."""
    diff = []
    files = extract_all(root)
    for path in sorted({*files, *(root / "stt_lite").glob("*.py")}):
        name = path.relative_to(root).as_posix()
        old = path.read_text(encoding="utf-8") if path.is_file() else ""
        new = files.get(path, "")
        diff += difflib.unified_diff(old.splitlines(True), new.splitlines(True), name, f"{name} (from notebooks)")
    return "".join(diff)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write stt_lite/ from the notebooks' export cells.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 and show where they differ")
    arguments = parser.parse_args()
    try:
        if arguments.check:
            diff = check()
            sys.exit(f'{diff}\nThe package differs from the notebooks: run "make extract".' if diff else 0)
        for path, text in extract_all().items():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(text.encode("utf-8"))
    except ExtractionError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
