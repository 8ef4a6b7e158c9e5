"""Notebooks as cells, and the files that their tagged cells make: see extract.py."""

import ast
import re
from pathlib import Path

import nbformat

import rules
from rules import ExtractionError

HEADER = '# Made from notebooks/{name} by "make extract".'


class Notebook:
    """A notebook's code cells, and the file that each tagged one belongs to."""

    def __init__(self, path: Path):
        self.path = path
        self.number = int(re.match(r"\d+", path.name)[0])
        notebook = nbformat.read(path, as_version=4)
        metadata = notebook.metadata.get("stt_lite", {})
        self.module = metadata.get("module")
        declared = [self.module, *metadata.get("modules", [])]
        self.modules = [name for name in declared if name]
        self.cells = list(enumerate(notebook.cells))
        self.code = [(i, cell) for i, cell in self.cells if cell.cell_type == "code"]

    def refuse(self, index: int | None, reason: str):
        place = f", cell {index + 1}" if index is not None else ""
        raise ExtractionError(f"notebooks/{self.path.name}{place}: {reason}.")

    def file_of(self, index: int, cell) -> str | None:
        """Which file, relative to the root, a cell belongs to; None if untagged."""
        tags = cell.metadata.get("tags", [])
        tags = [tag for tag in tags if re.match(r"(export|script)(:|$)", tag)]
        if not tags:
            return None
        if len(tags) > 1:
            self.refuse(index, f"tagged for more than one file ({', '.join(tags)})")
        kind, _, name = tags[0].partition(":")
        if kind == "script":
            if not name.isidentifier():
                self.refuse(index, f"tag {tags[0]!r} names no script")
            return f"book/experiments/{name}.py"
        name = name or self.module
        if name is None:
            self.refuse(
                index, "an export cell, but the notebook's metadata names no module"
            )
        if name not in self.modules:
            known = ", ".join(self.modules) or "none"
            self.refuse(
                index, f"tag {tags[0]!r} names an unknown module (declared: {known})"
            )
        return f"stt_lite/{name}.py"

    def files(self) -> dict[str, list[tuple[int, str]]]:
        """File -> (cell index, source) of its cells, files in order of appearance."""
        found = {}
        for index, cell in self.code:
            if file := self.file_of(index, cell):
                found.setdefault(file, []).append((index, cell.source))
        return found

    def in_order(self) -> list[str]:
        """The modules, in the order in which their first cells stand."""
        files = [Path(file) for file in self.files()]
        return [file.stem for file in files if file.parent.name == "stt_lite"]

    def parse(self, index: int, source: str) -> ast.Module:
        try:
            return ast.parse(source)
        except SyntaxError as error:
            return self.refuse(index, f"not valid Python ({error.msg})")

    def code_trees(self):
        """(cell index, syntax tree) of every code cell, without IPython's own lines."""
        for index, cell in self.code:
            lines = cell.source.split("\n")
            plain = ("" if re.match(r"\s*[%!]", line) else line for line in lines)
            yield index, self.parse(index, "\n".join(plain))


class Source:
    """The text of one file made from cells, and where each of its lines comes from."""

    def __init__(self, file: str):
        self.file = file
        self.name = Path(file).stem
        self.is_module = file.startswith("stt_lite/")
        self.notebooks = []
        self.body = []
        self.origin = []  # origin[n]: notebook and cell of line n of the body
        self.last = None  # syntax tree of the cell before

    def add(self, notebook: Notebook, cells: list[tuple[int, str]]) -> None:
        self.notebooks += [notebook] if cells else []
        for index, source in cells:
            rules.check_cell(notebook, index, source)
            tree = notebook.parse(index, source)
            lines = source.split("\n")
            gap = 2
            if rules.continues(notebook, index, source, tree, self.last):
                gap = 1
                lines = lines[1:]
                while not lines[0]:
                    lines = lines[1:]
            lines = [""] * (gap if self.body else 0) + lines
            self.body += lines
            self.origin += [(notebook, index)] * len(lines)
            self.last = tree

    @property
    def text(self) -> str:
        header = [HEADER.format(name=book.path.name) for book in self.notebooks]
        return "\n".join(header + self.body) + "\n"

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    def refuse(self, line: int, reason: str):
        """Refuse with the cell that a line of the text comes from."""
        notebook, index = self.origin[line - 1 - len(self.notebooks)]
        notebook.refuse(index, reason)

    def exports(self) -> list[str]:
        """The module's `__all__`."""
        for node in self.tree.body:
            if not rules.is_all(node):
                continue
            names = rules.all_names(node)
            if names is None:
                self.refuse(node.lineno, "__all__ must be a plain list of strings")
            if len(set(names)) < len(names):
                self.refuse(node.lineno, "__all__ names something twice")
            return names
        reason = f"the export cells of module {self.name} define no __all__"
        return self.notebooks[0].refuse(None, reason)


def read_notebooks(root: Path) -> list[Notebook]:
    paths = sorted((root / "notebooks").glob("[0-9]*.ipynb"))
    if not paths:
        raise ExtractionError("notebooks/: no notebook there.")
    return [Notebook(path) for path in paths]


def read_sources(notebooks: list[Notebook]) -> list[Source]:
    """The files that the notebooks' tagged cells make, each checked on its own."""
    sources = {}
    for notebook in notebooks:
        files = notebook.files()
        for name in notebook.modules:
            if f"stt_lite/{name}.py" not in files:
                notebook.refuse(None, f"no cell is tagged for module {name}")
        for file, cells in files.items():
            source = sources.setdefault(file, Source(file))
            if source.is_module and source.notebooks:
                other = source.notebooks[0].path.name
                reason = f"module {source.name} has another notebook already ({other})"
                notebook.refuse(None, reason)
            source.add(notebook, cells)
    for source in sources.values():
        rules.check_names(source)
        rules.check_twice(source)
    return list(sources.values())
