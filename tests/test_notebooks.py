"""What every chapter must hold, besides what nbval checks: outputs, widgets, alt texts, exercises, the table of contents."""

import re

import nbformat
import pytest
import yaml

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(?:home|root|Users|work|tmp|opt|mnt|kaggle|content)/[\w.-]+")


def chapters():
    from conftest import ROOT

    return sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))


@pytest.fixture(params=chapters(), ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(str(path), as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def prose(notebook):
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def outputs(notebook):
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def test_executed_in_order_without_errors(notebook):
    assert [cell.execution_count for cell in code_cells(notebook)] == list(range(1, len(code_cells(notebook)) + 1))
    assert not [output.ename for output in outputs(notebook) if output.output_type == "error"]


def test_valid_and_small(path, notebook):
    nbformat.validate(notebook)
    assert path.stat().st_size < 2_000_000


def test_widgets_are_stored(notebook):
    views = [o.data[WIDGET_VIEW]["model_id"] for o in outputs(notebook) if WIDGET_VIEW in o.get("data", {})]
    state = notebook.metadata.get("widgets", {}).get(WIDGET_STATE, {}).get("state", {})
    assert set(views) <= set(state), 'a widget without its state: run "make notebooks"'


def test_scrubbers_have_a_picture_where_widgets_cannot_show(notebook):
    for output in outputs(notebook):
        if WIDGET_VIEW in output.get("data", {}):
            assert "image/png" in output.data


def test_outputs_name_no_path_of_a_machine(notebook):
    for cell in code_cells(notebook):
        for output in cell.outputs:
            data = output.get("data", {})
            text = "\n".join([output.get("text", ""), data.get("text/plain", ""), data.get("text/html", "")])
            assert not MACHINE_PATH.search(text), f"{MACHINE_PATH.search(text)[0]} in the output of: {cell.source[:80]}"


def test_pictures_have_alt_text(notebook):
    text = prose(notebook)
    assert not re.findall(r"!\[\s*\]\(", text)
    for block in re.findall(r"```\{(?:image|figure)\}.*?```", text, flags=re.DOTALL):
        assert re.search(r"^:alt: \S", block, flags=re.MULTILINE), block


def test_every_exercise_has_a_folded_solution(notebook):
    text = prose(notebook)
    exercises = re.findall(r"\{exercise(?:-start)?\}[^\n]*\n:label: *(\S+)", text)
    solutions = re.findall(r"\{solution(?:-start)?\} *(\S+)\n(?::label:[^\n]*\n)?:class: *dropdown", text)
    assert len(exercises) >= 2 and sorted(exercises) == sorted(solutions)


def test_title_first(notebook):
    assert notebook.cells[0].source.startswith("# ")
    assert len(re.findall(r"^# ", re.sub(r"```.*?```", "", prose(notebook), flags=re.DOTALL), flags=re.MULTILINE)) == 1


def test_table_of_contents_lists_every_chapter_in_order(root):
    toc = yaml.safe_load((root / "_toc.yml").read_text())
    listed = [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    assert [f for f in listed if f.startswith("notebooks/")] == [f"notebooks/{path.stem}" for path in chapters()]
    assert chapters()


def test_module_carries_the_notebooks_name(path, notebook):
    module = notebook.metadata.get("stt_lite", {}).get("module")
    assert module in (path.stem.split("_", 1)[1], None)


def test_readme_commands_are_make_targets(root):
    readme, makefile = (root / "README.md").read_text(), (root / "Makefile").read_text()
    named = set(re.findall(r"\bmake ([a-z]+)", readme))
    targets = set(re.findall(r"^([a-z]+):", makefile, flags=re.MULTILINE))
    assert {"book", "test"} <= named <= targets
    assert {"lab", "notebooks", "extract", "serve", "help"} <= targets
