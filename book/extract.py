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
import difflib
import sys
from pathlib import Path

import rules
from cells import HEADER, Notebook, Source, read_notebooks, read_sources
from derived import MAIN, api_index, api_page, contents, init_text
from rules import ExtractionError

ROOT = Path(__file__).resolve().parent.parent


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
