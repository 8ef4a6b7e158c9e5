"""Write the package and the experiments from the notebooks: `python book/extract.py`.

A code cell tagged `export` belongs to the notebook's own module, one tagged
`export:quantizers` to another module of the same notebook, one tagged `script:compare`
to book/experiments/compare.py. The notebook's metadata names its modules: `"stt_lite":
{"module": "tokenizer", "modules": ["quantizers"]}`. Cells stand in the file in order,
unchanged, two blank lines apart. A cell whose first line is `class X(X):` continues the
class that the cell before ends with: that line is left out.

`stt_lite/__init__.py` is made from the public names that pyproject.toml lists.
`--check` compares only; `--only 03 91` writes what these notebooks hold, while others
are broken.
"""

import argparse
import ast
import difflib
import re
import sys
from pathlib import Path

import nbformat

import rules
from derived import MAIN, api_index, api_page, contents, init_text
from rules import ExtractionError

ROOT = Path(__file__).resolve().parent.parent
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


def built_by(notebooks: list[Notebook]) -> dict[str, str]:
    """Module -> the name of its notebook."""
    return {name: book.path.stem for book in notebooks for name in book.in_order()}


def api_pages(root: Path, notebooks: list[Notebook]) -> dict[Path, str]:
    built = built_by(notebooks).items()
    return {root / "book" / "api" / f"{m}.md": api_page(m, book) for m, book in built}


def extract_all(root: Path = ROOT) -> dict[Path, str]:
    """Path -> text of every file that the notebooks under `root` make.

    Raises `ExtractionError`, which names notebook, cell and reason.
    """
    notebooks = read_notebooks(root)
    sources = read_sources(notebooks)
    modules = [source for source in sources if source.is_module]
    numbers = {module.name: module.notebooks[0].number for module in modules}
    exports = {module.name: module.exports() for module in modules}
    for notebook in notebooks:
        rules.check_imports(notebook, numbers)
    rules.check_exported_once(modules, exports)
    for notebook in notebooks:
        rules.check_redefinitions(notebook, numbers, exports)
    rules.check_cycles(modules)
    files = {root / source.file: source.text for source in sources}
    files |= api_pages(root, notebooks)
    files[root / "book" / "api" / "index.md"] = api_index(built_by(notebooks))
    files |= contents(root, built_by(notebooks))
    importable = {name: names for name, names in exports.items() if name != rules.CLI}
    files[root / "stt_lite" / "__init__.py"] = init_text(root, importable)
    if rules.CLI in exports:
        files[root / "stt_lite" / "__main__.py"] = MAIN
    return files


def extract_only(numbers: list[int], root: Path = ROOT) -> dict[Path, str]:
    """Like `extract_all` for the notebooks with these numbers alone.

    What needs the other notebooks is left unchecked. Of them `__init__.py` takes what
    lies on disk and can be imported at the moment.
    """
    notebooks = read_notebooks(root)
    chosen = [notebook for notebook in notebooks if notebook.number in numbers]
    if missing := set(numbers) - {notebook.number for notebook in chosen}:
        raise ExtractionError(f"notebooks/: no notebook with number {sorted(missing)}.")
    sources = read_sources(chosen)
    declared = {
        name: book.number for book in reversed(notebooks) for name in book.modules
    }
    on_disk = {path.stem: path for path in (root / "stt_lite").glob("*.py")}
    numbers_of = {name: 0 for name in on_disk if name not in declared} | declared
    for notebook in chosen:
        rules.check_imports(notebook, numbers_of)
    files = {root / source.file: source.text for source in sources}
    for source in sources:
        if not source.is_module:
            whole = Source(source.file)
            for book in notebooks:
                whole.add(book, book.files().get(source.file, []))
            files[root / source.file] = whole.text
    files |= api_pages(root, chosen)
    texts = {name: path.read_text(encoding="utf-8") for name, path in on_disk.items()}
    texts |= {source.name: source.text for source in sources if source.is_module}
    exports = rules.importable(texts)
    exports = {
        name: exports[name] for name in sorted(exports, key=lambda n: n in declared)
    }
    files[root / "stt_lite" / "__init__.py"] = init_text(root, exports, strict=False)
    if rules.CLI in texts:
        files[root / "stt_lite" / "__main__.py"] = MAIN
    return files


def check(root: Path = ROOT) -> str:
    """A unified diff from what lies on disk to what the notebooks say; "" if equal."""
    files = extract_all(root)
    stale = {*(root / "stt_lite").glob("*.py"), *(root / "book" / "api").glob("*.md")}
    for path in (root / "book" / "experiments").glob("*.py"):
        if path.read_text(encoding="utf-8").startswith(HEADER.split("{")[0]):
            stale.add(path)
    diff = []
    for path in sorted({*files, *stale}):
        name = path.relative_to(root).as_posix()
        old = path.read_text(encoding="utf-8") if path.is_file() else ""
        new = files.get(path, "")
        pair = (old.splitlines(True), new.splitlines(True))
        diff += difflib.unified_diff(*pair, name, f"{name} (from notebooks)")
    return "".join(diff)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write files from notebooks' cells.")
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; exit 1 and show where they differ",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        type=int,
        metavar="NN",
        help="write the files of the notebooks with these numbers alone",
    )
    arguments = parser.parse_args()
    try:
        if arguments.check:
            diff = check()
            hint = 'The package differs from the notebooks: run "make extract".'
            sys.exit(f"{diff}\n{hint}" if diff else 0)
        only = arguments.only
        files = extract_only(only) if only else extract_all()
    except ExtractionError as error:
        sys.exit(str(error))
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode("utf-8"))


if __name__ == "__main__":
    main()
