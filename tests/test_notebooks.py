"""What every chapter must hold besides what nbval checks, and the house's measures."""

import ast
import re

import nbformat
import pytest
import yaml

from cells import Notebook
from conftest import ROOT

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
MACHINE_PATH = re.compile(
    r"(?<![\w.:/])/(?:home|root|Users|work|tmp|opt|mnt|kaggle|content)/[\w.-]+"
)


NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
FOLDED = {"hide-input", "hide-cell", "remove-input", "remove-cell"}


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(str(path), as_version=4)


def code_cells(notebook):
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [cell for cell in cells if cell.source.strip()]


def tags(cell):
    return set(cell.metadata.get("tags", []))


def prose(notebook):
    return "\n\n".join(
        cell.source for cell in notebook.cells if cell.cell_type == "markdown"
    )


def outputs(notebook):
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def test_executed_in_order_without_errors(notebook):
    assert [cell.execution_count for cell in code_cells(notebook)] == list(
        range(1, len(code_cells(notebook)) + 1)
    )
    assert not [
        output.ename for output in outputs(notebook) if output.output_type == "error"
    ]


def test_valid_and_small(path, notebook):
    nbformat.validate(notebook)
    assert path.stat().st_size < 2_000_000


def test_what_needs_a_kernel_is_left_out_of_the_page(notebook):
    for cell in code_cells(notebook):
        if any(WIDGET_VIEW in output.get("data", {}) for output in cell.outputs):
            assert "remove-output" in tags(cell), cell.source


def test_outputs_name_no_path_of_a_machine(notebook):
    for cell in code_cells(notebook):
        for output in cell.outputs:
            data = output.get("data", {})
            text = "\n".join(
                [
                    output.get("text", ""),
                    data.get("text/plain", ""),
                    data.get("text/html", ""),
                ]
            )
            assert not MACHINE_PATH.search(text), (
                f"{MACHINE_PATH.search(text)[0]} in the output of: {cell.source[:80]}"
            )


def test_pictures_have_alt_text(notebook):
    text = prose(notebook)
    assert not re.findall(r"!\[\s*\]\(", text)
    for block in re.findall(r"```\{(?:image|figure)\}.*?```", text, flags=re.DOTALL):
        assert re.search(r"^:alt: \S", block, flags=re.MULTILINE), block
    for cell in code_cells(notebook):
        if any(
            "image/" in str(list(output.get("data", {}))) for output in cell.outputs
        ):
            assert cell.metadata.get("mystnb", {}).get("image", {}).get("alt"), cell.id


def test_every_exercise_has_a_folded_solution(path, notebook):
    text = prose(notebook)
    exercises = re.findall(r"\{exercise(?:-start)?\}[^\n]*\n:label: *(\S+)", text)
    folded = r"\{solution(?:-start)?\} *(\S+)\n(?::label:[^\n]*\n)?:class: *dropdown"
    assert sorted(exercises) == sorted(re.findall(folded, text))
    assert len(exercises) >= 2 or path.name >= "9"  # the appendix may have none


def test_title_first(notebook):
    assert notebook.cells[0].source.startswith("# ")
    assert (
        len(
            re.findall(
                r"^# ",
                re.sub(r"```.*?```", "", prose(notebook), flags=re.DOTALL),
                flags=re.MULTILINE,
            )
        )
        == 1
    )


def test_table_of_contents_lists_every_chapter_in_order(root):
    toc = yaml.safe_load((root / "_toc.yml").read_text())
    listed = [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    assert [f for f in listed if f.startswith("notebooks/")] == [
        f"notebooks/{path.stem}" for path in NOTEBOOKS
    ]
    assert NOTEBOOKS


def test_readme_commands_are_make_targets(root):
    readme, makefile = (root / "README.md").read_text(), (root / "Makefile").read_text()
    named = set(re.findall(r"\bmake ([a-z]+)", readme))
    targets = set(re.findall(r"^([a-z]+):", makefile, flags=re.MULTILINE))
    assert {"book", "test"} <= named <= targets
    assert {"lab", "notebooks", "extract", "serve", "help"} <= targets


# Measures of the house


def problems_with_length(cell, number):
    lines = cell.source.split("\n")
    shown = not FOLDED & tags(cell)
    exported = any(re.match(r"(export|script)(:|$)", tag) for tag in tags(cell))
    if len(lines) > 60 and (shown or exported):
        yield f"cell {number} has {len(lines)} lines, more than 60"
    for place, line in enumerate(lines, 1):
        if len(line) > 88:
            yield f"cell {number}, line {place} has {len(line)} columns, more than 88"


def test_cells_are_short_and_narrow(notebook):
    problems = []
    for number, cell in enumerate(notebook.cells, 1):
        if cell.cell_type == "code":
            problems += problems_with_length(cell, number)
    assert not problems, "\n".join(problems)


def test_a_folded_cell_is_announced(notebook):
    """By the prose before it, or by a comment or docstring in its first line."""
    problems = []
    before = "markdown"  # what kind the last cell is that is not folded
    for number, cell in enumerate(notebook.cells, 1):
        if not FOLDED & tags(cell):
            before = cell.cell_type
        elif "setup" not in tags(cell) and before != "markdown":
            if not cell.source.startswith(("#", '"""')):
                problems.append(f"cell {number}: nothing says what it holds")
    assert not problems, "\n".join(problems)


def lines_of(path):
    return len(path.read_text(encoding="utf-8").splitlines())


# Where the house stands; what it aims at is 4,000 lines, and 1,300 for the model. These
# numbers only ever fall, except where a feature is new: actions took 105 lines, a world
# with keys and the playing of it 480, runs that hold their folder 80, players that need
# no widget 20, and refusing what is misused, in any precision, 260.
PACKAGE, MODEL = 7_587, 2_149


def test_the_package_is_small(root):
    lengths = {p.name: lines_of(p) for p in (root / "stt_lite").glob("*.py")}
    assert not {name: n for name, n in lengths.items() if n > 300}
    assert sum(lengths.values()) <= PACKAGE, lengths


def test_the_model_is_read_in_one_sitting(root):
    notebooks = [Notebook(path) for path in NOTEBOOKS if "03" <= path.name < "09"]
    names = [name for notebook in notebooks for name in notebook.modules]
    lengths = {name: lines_of(root / "stt_lite" / f"{name}.py") for name in names}
    assert sum(lengths.values()) <= MODEL, lengths


def python_files(root):
    folders = ("stt_lite", "book", "book/experiments", "tests")
    return [path for folder in folders for path in (root / folder).glob("*.py")]


def test_functions_are_short_and_lines_narrow(root):
    problems = []
    for path in python_files(root):
        text = path.read_text(encoding="utf-8")
        for number, line in enumerate(text.splitlines(), 1):
            if len(line) > 88:
                problems.append(f"{path.name}:{number} has {len(line)} columns")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                length = node.end_lineno - node.lineno + 1
                if length > 60:
                    problems.append(f"{path.name}: {node.name} has {length} lines")
    assert not problems, "\n".join(problems)


def test_no_style_is_switched_off(root):
    """Style holds everywhere: no `fmt: skip`."""
    off = re.compile(r"#\s*fmt:\s*(?:off|skip)")
    paths = [*python_files(root), *NOTEBOOKS]
    assert not [p.name for p in paths if off.search(p.read_text(encoding="utf-8"))]
