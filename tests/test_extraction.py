"""The package is what the notebooks say, byte for byte; what breaks it is refused."""

import ast
import re
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from extract import ExtractionError, check, extract_all, extract_only, main
from rules import package_imports

SQUARE = '"""Squares."""\n\n__all__ = ["square"]\n\n\ndef square(x):\n    return x * x'
CLASS = '__all__ = ["X"]\n\n\nclass X:\n    """A class."""\n\n    a = 1'
EXPORT = ["export"]


def write(root, name, cells, module=None, modules=(), public=()):
    """A small repository: a notebook whose cells are (tags, source)."""
    names = {"module": module, "modules": list(modules)}
    metadata = {"stt_lite": names} if module else {}
    code = [new_code_cell(text, metadata={"tags": tags}) for tags, text in cells]
    notebook = new_notebook(cells=[new_markdown_cell("# T"), *code], metadata=metadata)
    (root / "notebooks").mkdir(exist_ok=True)
    nbformat.write(notebook, root / "notebooks" / name)
    listed = ", ".join(f'"{name}"' for name in public)
    (root / "pyproject.toml").write_text(
        f'[project]\nversion = "1.2.3"\n[tool.stt_lite]\npublic = [{listed}]\n'
    )


def write_files(files):
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def refused(tmp_path, message):
    with pytest.raises(ExtractionError, match=message):
        extract_all(tmp_path)


# This repository


def test_package_is_what_the_notebooks_say(root):
    files = extract_all(root)
    for path, text in files.items():
        same = path.read_bytes() == text.encode()
        assert same, f'{path.name} differs: run "make extract"'
    modules = {path for path in files if path.parent == root / "stt_lite"}
    assert set((root / "stt_lite").glob("*.py")) == modules, "no notebook builds it"


def package(root):
    paths = sorted((root / "stt_lite").glob("*.py"))
    trees = {path.stem: ast.parse(path.read_text()) for path in paths}
    return {name: tree for name, tree in trees.items() if not name.startswith("__")}


def private(name):
    return name.startswith("_") and not name.startswith("__")


def defined_names(tree):
    """Names of functions, methods, classes and attributes that a module makes."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.Name, ast.Attribute)):
            if isinstance(node.ctx, ast.Store):
                yield getattr(node, "id", None) or node.attr


def test_no_private_name_is_used_across_modules(root):
    trees = package(root)
    for place in ("book", "book/experiments"):
        for path in (root / place).glob("*.py"):
            trees[path.stem] = ast.parse(path.read_text())
    names = {module: set(defined_names(tree)) for module, tree in trees.items()}
    found = []
    for module, tree in trees.items():
        others = set().union(*(names[other] for other in names if other != module))
        for dotted, _, name in package_imports(tree):
            if private(name):
                found.append(f"{module} imports {dotted}")
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and private(node.attr):
                if node.attr in others - names[module]:
                    found.append(f"{module}, line {node.lineno}: {ast.unparse(node)}")
    assert not found, "\n".join(found)


def test_no_way_through_the_package_returns(root):
    trees = package(root)
    graph = {
        name: {module for _, module, _ in package_imports(tree) if module in trees}
        for name, tree in trees.items()
    }
    left = dict(graph)
    while left:
        free = [name for name, targets in left.items() if not targets & set(left)]
        assert free, f"these import each other in a circle: {sorted(left)}"
        for name in free:
            del left[name]
    assert "cli" not in set().union(*graph.values())


def test_public_names_are_few_and_there(root):
    import stt_lite as stt

    assert 40 <= len(stt.__all__) <= 60
    assert all(getattr(stt, name) is not None for name in stt.__all__)
    assert callable(stt.moving_mnist)  # a module has this name, too


# What extraction writes


def test_text_is_unchanged_and_in_order(tmp_path):
    twice = "def _twice(x):  # {{ ü }}\n    return 2 * x  \n"
    cells = [(EXPORT, SQUARE), ([], "left_out = 1"), (["export", "x"], twice)]
    write(tmp_path, "01_square.ipynb", cells, "square", public=["square"])
    files = extract_all(tmp_path)
    header = '# Made from notebooks/01_square.ipynb by "make extract".\n'
    text = f"{header}{SQUARE}\n\n\n{twice}\n"
    assert files[tmp_path / "stt_lite" / "square.py"] == text
    init = files[tmp_path / "stt_lite" / "__init__.py"]
    assert "from stt_lite.square import square\n" in init
    assert '__version__ = "1.2.3"' in init and '__all__ = [\n    "square",\n]' in init


def test_several_modules_and_scripts_of_one_notebook(tmp_path):
    cells = [
        (EXPORT, SQUARE),
        (["export:cube"], SQUARE.replace("square", "cube")),
        (["script:show"], '"""Show."""\n\nfrom stt_lite.cube import cube'),
        (EXPORT, "EDGE = 3"),
        (["script:show"], "print(cube(3))"),
    ]
    write(tmp_path, "01_square.ipynb", cells, "square", ["cube"])
    write(tmp_path, "02_more.ipynb", [(["script:show"], "print(2)")])
    files = extract_all(tmp_path)
    names = [path.relative_to(tmp_path).as_posix() for path in files]
    assert names[:3] == [
        "stt_lite/square.py",
        "stt_lite/cube.py",
        "book/experiments/show.py",
    ]
    texts = list(files.values())
    assert texts[0].endswith("return x * x\n\n\nEDGE = 3\n")
    assert texts[1].count("\n") == SQUARE.count("\n") + 2 and "def cube" in texts[1]
    assert texts[2] == (
        '# Made from notebooks/01_square.ipynb by "make extract".\n'
        '# Made from notebooks/02_more.ipynb by "make extract".\n'
        '"""Show."""\n\nfrom stt_lite.cube import cube\n\n\nprint(cube(3))\n'
        "\n\nprint(2)\n"
    )


def test_a_class_in_pieces_stands_in_one(tmp_path):
    pieces = [
        "class X(X):  # continued\n    def one(self):\n        return self.a",
        "class X(X):\n    @property\n    def two(self):\n        return 2\n\n\nB = 2",
    ]
    cells = [(EXPORT, CLASS), ([], "X.a"), (EXPORT, pieces[0]), (EXPORT, pieces[1])]
    write(tmp_path, "01_x.ipynb", cells, "x")
    text = extract_all(tmp_path)[tmp_path / "stt_lite" / "x.py"]
    assert text.partition("\n")[2] == (
        f"{CLASS}\n\n    def one(self):\n        return self.a\n\n"
        "    @property\n    def two(self):\n        return 2\n\n\nB = 2\n"
    )
    in_notebook, in_module = {}, {}
    for _, source in cells:
        exec(source, in_notebook)
    exec(text, in_module)
    for names in (in_notebook, in_module):
        x = names["X"]()
        assert (x.one(), x.two) == (1, 2)
    assert in_module["X"].__doc__ == "A class."


def test_every_module_gets_its_api_page(tmp_path):
    cells = [(["export:cube"], SQUARE.replace("square", "cube")), (EXPORT, SQUARE)]
    write(tmp_path, "01_square.ipynb", cells, "square", ["cube"])
    toc = "a:\n  - file: book/api/index\n    sections:\n      - file: book/api/{}\nb:\n"
    (tmp_path / "_toc.yml").write_text(toc.format("gone"))
    files = extract_all(tmp_path)
    modules = "cube\n      - file: book/api/square"
    assert files[tmp_path / "_toc.yml"] == toc.format(modules)
    api = tmp_path / "book" / "api"
    assert "automodule:: stt_lite.cube\n" in files[api / "cube.md"]
    assert "{doc}`../../notebooks/01_square`" in files[api / "square.md"]
    rows = re.findall(
        r"^\| \{doc\}`stt_lite\.(\w+) <\1>`", files[api / "index.md"], re.M
    )
    assert rows == ["cube", "square"]


def test_the_command_line_is_run_as_the_package(tmp_path):
    cells = [(EXPORT, '__all__ = ["main"]\n\n\ndef main():\n    print("ran")')]
    write(tmp_path, "94_cli.ipynb", cells, "cli")
    main_text = extract_all(tmp_path)[tmp_path / "stt_lite" / "__main__.py"]
    assert "from stt_lite.cli import main" in main_text


def test_shape_strings_are_not_names(tmp_path):
    source = (
        '__all__ = ["f"]\nfrom jaxtyping import Float\nfrom torch import Tensor\n\n'
        'def f(x: Float[Tensor, "B"], y: Float[Tensor, "*B T 3 h"]): pass'
    )
    write(tmp_path, "01_f.ipynb", [(EXPORT, source)], "f")
    extract_all(tmp_path)


def test_magics_outside_export_cells_are_fine(tmp_path):
    cells = [([], "%matplotlib inline\n!ls"), (EXPORT, SQUARE)]
    write(tmp_path, "01_square.ipynb", cells, "square")
    extract_all(tmp_path)


# What it refuses, and where

REFUSED = {
    "line magic": ([(EXPORT, SQUARE + "\n%matplotlib inline")], "cell 2.*magic"),
    "shell": ([(EXPORT, SQUARE), (EXPORT, "!ls")], "cell 3.*magic"),
    "get_ipython": (
        [(EXPORT, SQUARE), (EXPORT, "get_ipython().run_line_magic('ls', '')")],
        "cell 3.*magic",
    ),
    "magic in a script": ([(EXPORT, SQUARE), (["script:s"], "!ls")], "cell 3.*magic"),
    "syntax": ([(EXPORT, SQUARE), (EXPORT, "def f(:")], "cell 3.*not valid Python"),
    "too many lines": (
        [(EXPORT, SQUARE), (EXPORT, "x = 1\n" * 60 + "x = 1")],
        "cell 3: an export cell of 61 lines, more than 60",
    ),
    "too many columns": (
        [(EXPORT, SQUARE), (EXPORT, f"x = 1\ny = '{'y' * 83}'")],
        "cell 3: line 2 has 89 columns, more than 88",
    ),
    "undefined name": (
        [(EXPORT, SQUARE), (EXPORT, "def _f():\n    return missing")],
        "cell 3.*undefined name 'missing'",
    ),
    "undefined name in a script": (
        [(EXPORT, SQUARE), (["script:s"], "print(square)")],
        "cell 3.*undefined name 'square'",
    ),
    "name of an untagged cell": (
        [([], "helper = 1"), (EXPORT, SQUARE), (EXPORT, "_x = helper")],
        "cell 4.*'helper'",
    ),
    "defined twice": (
        [(EXPORT, SQUARE), (EXPORT, "def square(x):\n    return 1")],
        "cell 3: defines square a second time",
    ),
    "no __all__": ([(EXPORT, "def square(x):\n    return x * x")], "no __all__"),
    "__all__ of nothing": ([(EXPORT, '__all__ = ["cube"]')], "cell 2.*cube"),
    "computed __all__": (
        [(EXPORT, "__all__ = [n for n in dir()]")],
        "cell 2.*plain list",
    ),
    "__all__ twice": (
        [(EXPORT, SQUARE.replace('["square"]', '["square", "square"]'))],
        "cell 2.*twice",
    ),
    "unknown module": (
        [(EXPORT, SQUARE), (["export:cube"], "x = 1")],
        r"cell 3: tag 'export:cube' names an unknown module \(declared: square\)",
    ),
    "no script's name": (
        [(EXPORT, SQUARE), (["script:"], "x = 1")],
        "cell 3.*no script",
    ),
    "two files": (
        [(EXPORT, SQUARE), (["export", "script:s"], "x = 1")],
        "cell 3: tagged for more than one file",
    ),
    "later chapter": (
        [(EXPORT, "from stt_lite.later import thing\n\n__all__ = ['thing']")],
        "cell 2: imports stt_lite.later, which a later chapter builds",
    ),
    "later, inside a function": (
        [(EXPORT, SQUARE), (EXPORT, "def f():\n    import stt_lite.later")],
        "cell 3.*later chapter",
    ),
    "later, untagged": (
        [(EXPORT, SQUARE), ([], "import stt_lite.later as later")],
        "cell 3.*later chapter",
    ),
    "later, relative": (
        [(EXPORT, SQUARE), (EXPORT, "from .later import thing as _t")],
        "cell 3.*later chapter",
    ),
    "private": (
        [(EXPORT, SQUARE), ([], "from stt_lite.first import _hidden")],
        "cell 3: imports stt_lite.first._hidden, a private name",
    ),
    "commands": (
        [(EXPORT, SQUARE), ([], "from stt_lite.cli import main")],
        "cell 3: imports stt_lite.cli, which nothing may import",
    ),
    "whole package": (
        [(EXPORT, SQUARE), (EXPORT, "from stt_lite import thing")],
        "cell 3.*import from another module",
    ),
    "package itself": (
        [(EXPORT, SQUARE), (EXPORT, "import stt_lite as stt")],
        "cell 3.*import from another module",
    ),
    "own module": (
        [(EXPORT, SQUARE), (EXPORT, "from stt_lite.square import square as _s")],
        "cell 3.*import from another module",
    ),
    "a class that is not continued": (
        [(EXPORT, SQUARE), (EXPORT, "class X(X):\n    def f(self): pass")],
        "cell 3: continues class X, which does not end the export cell before",
    ),
    "a class that ends too early": (
        [
            (EXPORT, CLASS + "\n\n\ny = 1"),
            (EXPORT, "class X(X):\n    def f(self): pass"),
        ],
        "cell 3: continues class X, which does not end",
    ),
    "a class continued too late": (
        [(EXPORT, CLASS), (EXPORT, "# more\nclass X(X):\n    def f(self): pass")],
        "cell 3.*must be the first line",
    ),
    "a second docstring": (
        [
            (EXPORT, CLASS),
            (EXPORT, 'class X(X):\n    """More."""\n\n    def f(self): pass'),
        ],
        "cell 3: continues class X with something that is no method",
    ),
    "a field in a second piece": (
        [(EXPORT, CLASS), (EXPORT, "class X(X):\n    b: int = 1")],
        "cell 3: continues class X with something that is no method",
    ),
    "a method twice": (
        [
            (EXPORT, CLASS),
            (EXPORT, "class X(X):\n    def f(self): pass"),
            (EXPORT, "class X(X):\n    def f(self): pass"),
        ],
        "cell 4: defines f a second time",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path, name):
    cells, message = REFUSED[name]
    thing = '__all__ = ["thing"]\nthing = 1'
    write(tmp_path, "01_first.ipynb", [(EXPORT, thing.replace("thing", "t"))], "first")
    write(tmp_path, "02_square.ipynb", cells, "square")
    write(tmp_path, "03_later.ipynb", [(EXPORT, thing)], "later")
    write(tmp_path, "94_cli.ipynb", [(EXPORT, thing.replace("thing", "main"))], "cli")
    refused(tmp_path, rf"02_square\.ipynb.*{message}")


def test_two_notebooks_for_one_module_are_refused(tmp_path):
    write(tmp_path, "01_square.ipynb", [(EXPORT, SQUARE)], "square")
    cells = [(EXPORT, SQUARE), (["export:square"], SQUARE)]
    write(tmp_path, "02_cube.ipynb", cells, "cube", ["square"])
    refused(tmp_path, r"02_cube\.ipynb: module square has another notebook already")


def test_a_declared_module_without_cells_is_refused(tmp_path):
    write(tmp_path, "01_square.ipynb", [(EXPORT, SQUARE)], "square", ["cube"])
    refused(tmp_path, r"01_square\.ipynb: no cell is tagged for module cube")


def test_an_import_cycle_is_refused(tmp_path):
    back = "__all__ = []\n\n\ndef f():\n    from stt_lite.square import square"
    uses = "from stt_lite.files import f\n\n" + SQUARE
    write(tmp_path, "01_square.ipynb", [(EXPORT, uses)], "square")
    write(tmp_path, "91_files.ipynb", [(EXPORT, back)], "files")
    cycle = "square -> files -> square"
    refused(tmp_path, rf"91_files\.ipynb, cell 2: import cycle: {cycle}")


def test_the_appendix_serves_all_chapters(tmp_path):
    uses = "from stt_lite.files import f\n\n" + SQUARE
    own = '__all__ = ["f"]\n\nfrom stt_lite.video import v as f'
    write(tmp_path, "01_video.ipynb", [(EXPORT, '__all__ = ["v"]\nv = 1')], "video")
    write(tmp_path, "02_square.ipynb", [(EXPORT, uses)], "square")
    write(tmp_path, "91_files.ipynb", [(EXPORT, own)], "files")
    extract_all(tmp_path)


@pytest.mark.parametrize("tags", [[], EXPORT, ["script:s"]])
@pytest.mark.parametrize(
    "again", ["def square(x):\n    return x", "class square:\n    pass"]
)
@pytest.mark.parametrize("builder", ["01_square.ipynb", "91_square.ipynb"])
def test_redefining_what_another_module_exports_is_refused(
    tmp_path, tags, again, builder
):
    write(tmp_path, builder, [(EXPORT, SQUARE)], "square")
    cells = [(EXPORT, "__all__ = []"), (tags, again)]
    write(tmp_path, "02_cube.ipynb", cells, "cube")
    refused(tmp_path, r"02_cube\.ipynb, cell 3: defines square again")


def test_exporting_a_name_twice_is_refused(tmp_path):
    write(tmp_path, "01_square.ipynb", [(EXPORT, SQUARE)], "square")
    write(
        tmp_path,
        "02_cube.ipynb",
        [(EXPORT, '__all__ = ["square"]\nsquare = 1')],
        "cube",
    )
    refused(tmp_path, "holds square, which stt_lite.square exports")


def test_export_without_a_module_is_refused(tmp_path):
    write(tmp_path, "01_square.ipynb", [(EXPORT, SQUARE)])
    refused(tmp_path, "cell 2: an export cell, but")


def test_an_unknown_public_name_is_refused(tmp_path):
    public = ["square", "cube"]
    write(tmp_path, "01_square.ipynb", [(EXPORT, SQUARE)], "square", public=public)
    refused(tmp_path, r"pyproject\.toml: no module exports cube")


# A part of the notebooks; comparing


def test_one_notebook_is_extracted_while_another_is_broken(tmp_path):
    cube = SQUARE.replace("square", "cube")
    public = ["square", "cube", "sphere"]
    write(tmp_path, "01_square.ipynb", [(EXPORT, SQUARE)], "square", public=public)
    write(tmp_path, "02_cube.ipynb", [(EXPORT, cube + "\n!ls")], "cube", public=public)
    (tmp_path / "stt_lite").mkdir()
    (tmp_path / "stt_lite" / "cube.py").write_text(cube)
    refused(tmp_path, "02_cube")
    files = extract_only([1], tmp_path)
    assert [path.name for path in files] == ["square.py", "square.md", "__init__.py"]
    init = files[tmp_path / "stt_lite" / "__init__.py"]
    assert "import square" in init and "import cube" in init and "sphere" not in init
    with pytest.raises(ExtractionError, match="02_cube"):
        extract_only([2], tmp_path)
    with pytest.raises(ExtractionError, match=r"no notebook with number \[3\]"):
        extract_only([3], tmp_path)


def test_check_shows_a_diff_and_names_stale_modules(tmp_path):
    cells = [(EXPORT, SQUARE), (["script:show"], "print(1)")]
    write(tmp_path, "01_square.ipynb", cells, "square")
    write_files(extract_all(tmp_path))
    by_hand = tmp_path / "book" / "experiments" / "by_hand.py"
    by_hand.write_text("print(2)\n")
    assert check(tmp_path) == ""
    header = '# Made from notebooks/01_square.ipynb by "make extract".\n'
    by_hand.with_name("stale.py").write_text(f"{header}y = 1\n")
    (tmp_path / "stt_lite" / "square.py").write_text("hand = 'edited'\n")
    (tmp_path / "stt_lite" / "stale.py").write_text("x = 1\n")
    diff = check(tmp_path)
    for line in ("hand = 'edited'", "x = 1", "y = 1"):
        assert re.search(rf"^-{line}$", diff, re.MULTILINE)
    assert "print(2)" not in diff


def test_command_line_check_passes(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["extract.py", "--check"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0, end.value.code
