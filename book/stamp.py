"""Stamp links and first cell into notebooks: `python book/stamp.py [notebook ...]`.

Both follow from the repository's address in `_config.yml`: a cell tagged `badges` after
the title (open in Colab, open in Kaggle), and the first code cell, tagged `setup`: the
text of book/setup_cell.py. `--check` compares only.
"""

import argparse
import sys
from pathlib import Path

import nbformat
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell

ROOT = Path(__file__).resolve().parent.parent
SETUP_TAGS = ["setup", "hide-cell", "nbval-ignore-output"]


def repository(root: Path) -> dict:
    return yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))[
        "repository"
    ]


def badges_text(name: str, repo: dict) -> str:
    owner_and_name = repo["url"].removeprefix("https://github.com/").rstrip("/")
    path = "/".join(
        part for part in (repo.get("path_to_book"), "notebooks", name) if part
    )
    blob = f"{owner_and_name}/blob/{repo['branch']}/{path}"
    colab = f"https://colab.research.google.com/github/{blob}"
    kaggle = f"https://kaggle.com/kernels/welcome?src=https://github.com/{blob}"
    return f"[Open in Colab]({colab}) · [Open in Kaggle]({kaggle})"


def setup_text(repo: dict, root: Path) -> str:
    template = (root / "book" / "setup_cell.py").read_text(encoding="utf-8")
    return template.replace("{url}", repo["url"]).rstrip("\n")


def tagged(notebook, tag: str):
    cells = (cell for cell in notebook.cells if tag in cell.metadata.get("tags", []))
    return next(cells, None)


def stamp(notebook, name: str, root: Path = ROOT) -> None:
    """Bring the two cells of a notebook, in memory, up to date; insert missing ones."""
    repo = repository(root)
    badges = tagged(notebook, "badges")
    if badges is None:
        badges = new_markdown_cell(id="badges", metadata={"tags": ["badges"]})
        notebook.cells.insert(1, badges)
    badges.source = badges_text(name, repo)

    setup = tagged(notebook, "setup")
    if setup is None:
        code = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
        setup = new_code_cell(id="setup")
        notebook.cells.insert(min(code, default=len(notebook.cells)), setup)
    setup.metadata["tags"] = list(SETUP_TAGS)
    setup.source = setup_text(repo, root)


def stamp_all(root: Path = ROOT, write: bool = True, paths=()) -> list[str]:
    """Stamp notebooks, by default all under `root`; the names of those out of date."""
    stale = []
    for path in paths or sorted((root / "notebooks").glob("[0-9]*.ipynb")):
        before = path.read_text(encoding="utf-8")
        notebook = nbformat.reads(before, as_version=4)
        stamp(notebook, path.name, root)
        if notebook != nbformat.reads(before, as_version=4):
            stale.append(path.name)
            if write:
                nbformat.write(notebook, path)
    return stale


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Stamp links and the first code cell into notebooks."
    )
    parser.add_argument(
        "notebook", nargs="*", type=Path, help="by default, all of them"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; exit 1 and name stale notebooks",
    )
    arguments = parser.parse_args()
    stale = stamp_all(write=not arguments.check, paths=arguments.notebook)
    if arguments.check and stale:
        sys.exit(f'Not stamped: {", ".join(stale)}. Run "make stamp".')


if __name__ == "__main__":
    main()
