"""The package is what the notebooks say, byte for byte, and extraction refuses what would break it."""

import re
import sys

import nbformat
import pytest
from extract import ExtractionError, check, extract_all, main
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

SQUARE = '"""Squares."""\n\n__all__ = ["square"]\n\n\ndef square(x):\n    return x * x'


def write(root, name, cells, module=None):
    """A small repository: a notebook whose cells are (tags, source)."""
    metadata = {"stt_lite": {"module": module}} if module else {}
    code = [new_code_cell(source, metadata={"tags": tags}) for tags, source in cells]
    (root / "notebooks").mkdir(exist_ok=True)
    (root / "pyproject.toml").write_text('[project]\nversion = "1.2.3"\n')
    nbformat.write(
        new_notebook(cells=[new_markdown_cell("# Title"), *code], metadata=metadata), root / "notebooks" / name
    )


def test_package_is_what_the_notebooks_say(root):
    files = extract_all(root)
    for path, text in files.items():
        assert path.read_bytes() == text.encode(), f'{path.name} differs: run "make extract"'
    assert set((root / "stt_lite").glob("*.py")) == set(files), "a module that no notebook builds"


def test_text_is_unchanged_and_in_order(tmp_path):
    write(
        tmp_path,
        "01_square.ipynb",
        [
            (["export"], SQUARE),
            ([], "left_out = 1"),
            (["export", "x"], "def _twice(x):  # {{ ü }}\n    return 2 * x  \n"),
        ],
        "square",
    )
    files = extract_all(tmp_path)
    assert files[tmp_path / "stt_lite" / "square.py"] == (
        '# Extracted from notebooks/01_square.ipynb by "make extract": edit the notebook, not this file.\n'
        + SQUARE
        + "\n\n\ndef _twice(x):  # {{ ü }}\n    return 2 * x  \n\n"
    )
    init = files[tmp_path / "stt_lite" / "__init__.py"]
    assert "from stt_lite.square import (\n    square,\n)" in init
    assert '__version__ = "1.2.3"' in init and '__all__ = [\n    "square",\n]' in init


def test_shape_strings_are_not_names(tmp_path):
    source = '__all__ = ["f"]\nfrom jaxtyping import Float\nfrom torch import Tensor\n\ndef f(x: Float[Tensor, "B"], y: Float[Tensor, "*B T 3 h"]): pass'
    write(tmp_path, "01_f.ipynb", [(["export"], source)], "f")
    extract_all(tmp_path)


REFUSED = {
    "line magic": ([(["export"], SQUARE + "\n%matplotlib inline")], "cell 2.*magic"),
    "shell": ([(["export"], SQUARE), (["export"], "!ls")], "cell 3.*magic"),
    "get_ipython": ([(["export"], SQUARE), (["export"], "get_ipython().run_line_magic('ls', '')")], "cell 3.*magic"),
    "syntax": ([(["export"], SQUARE), (["export"], "def f(:")], "cell 3.*not valid Python"),
    "undefined name": (
        [(["export"], SQUARE), (["export"], "def _f():\n    return missing")],
        "cell 3.*undefined name 'missing'",
    ),
    "name of an untagged cell": (
        [([], "helper = 1"), (["export"], SQUARE), (["export"], "_x = helper")],
        "cell 4.*'helper'",
    ),
    "no __all__": ([(["export"], "def square(x):\n    return x * x")], "no __all__"),
    "__all__ of nothing": ([(["export"], '__all__ = ["cube"]')], "cell 2.*cube"),
    "computed __all__": ([(["export"], "__all__ = [n for n in dir()]")], "cell 2.*plain list"),
    "__all__ twice": ([(["export"], SQUARE.replace('["square"]', '["square", "square"]'))], "cell 2.*twice"),
    "later chapter": (
        [(["export"], "from stt_lite.later import thing\n\n__all__ = ['thing']")],
        "cell 2.*later chapter",
    ),
    "later, untagged": ([(["export"], SQUARE), ([], "import stt_lite.later as later")], "cell 3.*later chapter"),
    "later, relative": (
        [(["export"], SQUARE), (["export"], "from .later import thing as _t")],
        "cell 3.*later chapter",
    ),
    "whole package": (
        [(["export"], SQUARE), (["export"], "from stt_lite import thing")],
        "cell 3.*earlier chapter's module",
    ),
    "package itself": (
        [(["export"], SQUARE), (["export"], "import stt_lite as stt")],
        "cell 3.*earlier chapter's module",
    ),
    "own module": (
        [(["export"], SQUARE), (["export"], "from stt_lite.square import square as _s")],
        "cell 3.*earlier chapter's",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path, name):
    cells, message = REFUSED[name]
    write(tmp_path, "02_square.ipynb", cells, "square")
    write(tmp_path, "03_later.ipynb", [(["export"], '__all__ = ["thing"]\nthing = 1')], "later")
    with pytest.raises(ExtractionError, match=rf"02_square\.ipynb.*{message}"):
        extract_all(tmp_path)


def test_two_notebooks_for_one_module_are_refused(tmp_path):
    write(tmp_path, "01_square.ipynb", [(["export"], SQUARE)], "square")
    write(tmp_path, "02_square.ipynb", [(["export"], SQUARE.replace("square", "cube"))], "square")
    with pytest.raises(ExtractionError, match=r"02_square\.ipynb: module square has another notebook"):
        extract_all(tmp_path)


@pytest.mark.parametrize("tags", [[], ["export"]])
@pytest.mark.parametrize("again", ["def square(x):\n    return x", "class square:\n    pass"])
def test_redefining_an_earlier_export_is_refused(tmp_path, tags, again):
    write(tmp_path, "01_square.ipynb", [(["export"], SQUARE)], "square")
    cells = [(["export"], "__all__ = []"), (tags, again)]
    write(tmp_path, "02_cube.ipynb", cells, "cube")
    with pytest.raises(ExtractionError, match=r"02_cube\.ipynb, cell 3: defines square again"):
        extract_all(tmp_path)


def test_exporting_a_name_twice_is_refused(tmp_path):
    write(tmp_path, "01_square.ipynb", [(["export"], SQUARE)], "square")
    write(tmp_path, "02_cube.ipynb", [(["export"], '__all__ = ["square"]\nsquare = 1')], "cube")
    with pytest.raises(ExtractionError, match="holds square, which stt_lite.square exports"):
        extract_all(tmp_path)


def test_export_without_a_module_is_refused(tmp_path):
    write(tmp_path, "01_square.ipynb", [(["export"], SQUARE)])
    with pytest.raises(ExtractionError, match="cell 2: an export cell, but"):
        extract_all(tmp_path)


def test_magics_outside_export_cells_are_fine(tmp_path):
    write(tmp_path, "01_square.ipynb", [([], "%matplotlib inline\n!ls"), (["export"], SQUARE)], "square")
    extract_all(tmp_path)


def test_check_shows_a_diff_and_names_stale_modules(tmp_path):
    write(tmp_path, "01_square.ipynb", [(["export"], SQUARE)], "square")
    (tmp_path / "stt_lite").mkdir()
    for path, text in extract_all(tmp_path).items():
        path.write_text(text)
    assert check(tmp_path) == ""
    (tmp_path / "stt_lite" / "square.py").write_text("hand = 'edited'\n")
    (tmp_path / "stt_lite" / "stale.py").write_text("x = 1\n")
    diff = check(tmp_path)
    assert re.search(r"^-hand = 'edited'$", diff, re.MULTILINE) and re.search(r"^-x = 1$", diff, re.MULTILINE)


def test_command_line_check_passes(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["extract.py", "--check"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0, end.value.code
