"""Links and first cell of every notebook come from the one address in _config.yml."""

import ast
import subprocess
import sys

import nbformat
import pytest
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from stamp import SETUP_TAGS, repository, setup_text, stamp, stamp_all, tagged


def test_notebooks_are_stamped(root, notebooks):
    assert notebooks and stamp_all(root, write=False) == []


def test_missing_cells_are_inserted_and_stay(root):
    notebook = new_notebook(
        cells=[
            new_markdown_cell("# Title"),
            new_markdown_cell("Text"),
            new_code_cell("x = 1"),
        ]
    )
    stamp(notebook, "01_x.ipynb", root)
    assert [cell.cell_type for cell in notebook.cells] == [
        "markdown",
        "markdown",
        "markdown",
        "code",
        "code",
    ]
    assert (
        notebook.cells[3].metadata.tags == SETUP_TAGS
        and notebook.cells[4].source == "x = 1"
    )
    nbformat.validate(notebook)
    once = nbformat.writes(notebook)
    stamp(notebook, "01_x.ipynb", root)
    assert nbformat.writes(notebook) == once


def test_links_follow_the_configured_address(tmp_path, root):
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "setup_cell.py").write_text(
        (root / "book" / "setup_cell.py").read_text()
    )
    (tmp_path / "_config.yml").write_text(
        "repository: {url: https://github.com/someone/fork, branch: dev, "
        "path_to_book: docs}"
    )
    notebook = new_notebook(cells=[new_markdown_cell("# Title")])
    stamp(notebook, "01_x.ipynb", tmp_path)
    path = "someone/fork/blob/dev/docs/notebooks/01_x.ipynb"
    links = tagged(notebook, "badges").source
    assert f"(https://colab.research.google.com/github/{path})" in links
    assert (
        f"(https://kaggle.com/kernels/welcome?src=https://github.com/{path})" in links
    )
    assert '"git+https://github.com/someone/fork"' in tagged(notebook, "setup").source


def test_stale_cells_are_reported_and_rewritten(tmp_path, root):
    for folder in ("book", "notebooks"):
        (tmp_path / folder).mkdir()
    for name in ("_config.yml", "book/setup_cell.py"):
        (tmp_path / name).write_text((root / name).read_text())
    path = tmp_path / "notebooks" / "01_x.ipynb"
    nbformat.write(
        new_notebook(
            cells=[
                new_markdown_cell("# Title"),
                new_code_cell("old", metadata={"tags": ["setup"]}),
            ]
        ),
        path,
    )
    before = path.read_bytes()
    assert (
        stamp_all(tmp_path, write=False) == ["01_x.ipynb"]
        and path.read_bytes() == before
    )
    other = path.with_name("02_y.ipynb")
    other.write_bytes(before)
    assert stamp_all(tmp_path, paths=[path]) == ["01_x.ipynb"]
    assert other.read_bytes() == before
    assert stamp_all(tmp_path) == ["02_y.ipynb"] and stamp_all(tmp_path) == []


def test_first_code_cell_is_the_setup_cell_and_is_short(root, notebooks):
    text = setup_text(repository(root), root)
    ast.parse(text)
    assert len(text.splitlines()) <= 40
    for path in notebooks:
        first = next(
            cell
            for cell in nbformat.read(str(path), 4).cells
            if cell.cell_type == "code"
        )
        assert first.source == text, path.name


def test_setup_cell_finds_the_checkout_from_the_notebooks_folder(root):
    # -S: no site-packages, so an installed stt_lite is out of sight; torch isn't needed
    finding = setup_text(repository(root), root).split("import torch\n")[0]
    code = f"{finding}\nprint(find_spec('stt_lite').origin)"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code],
        cwd=root / "notebooks",
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == str(root / "stt_lite" / "__init__.py"), done.stderr


def test_setup_cell_takes_the_preset_from_the_environment(root, monkeypatch, capsys):
    code = setup_text(
        repository(root), root
    )  # stt_lite and torch are imported already: nothing is installed
    for preset in ("tiny", "full"):
        monkeypatch.setenv("STT_PRESET", preset)
        exec(code, {})
        assert f"preset {preset}\n" in capsys.readouterr().out
    monkeypatch.setenv("STT_PRESET", "huge")
    with pytest.raises(
        ValueError, match="STT_PRESET must be 'tiny' or 'full', got 'huge'"
    ):
        exec(code, {})


def test_setup_cell_seeds_the_notebook(root, monkeypatch):
    monkeypatch.setenv("STT_PRESET", "tiny")
    draws = []
    for _ in range(2):
        exec(setup_text(repository(root), root), {})
        draws.append(torch.rand(3))
    assert torch.equal(*draws)
