"""Run notebooks in place and store their outputs and widgets: `python book/execute.py [notebook ...]`."""

import sys
import time
from pathlib import Path

import nbformat
from nbconvert.preprocessors import CoalesceStreamsPreprocessor, ExecutePreprocessor

ROOT = Path(__file__).resolve().parent.parent
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"


def steady(notebook):
    """The same notebook with what changes on every run evened out, so that git's diffs show real changes."""
    state = notebook.metadata.get("widgets", {}).get(WIDGET_STATE, {}).get("state", {})
    text = nbformat.writes(notebook)
    for number, identifier in enumerate(state):
        text = text.replace(identifier, f"{number:032x}")
    notebook, _ = CoalesceStreamsPreprocessor().preprocess(nbformat.reads(text, as_version=4), {})
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def execute(path: Path) -> None:
    start = time.monotonic()
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    notebook.metadata.pop("widgets", None)
    runner = ExecutePreprocessor(timeout=None, kernel_name="python3", record_timing=False, store_widget_state=True)
    runner.preprocess(notebook, {"metadata": {"path": str(path.parent)}})
    nbformat.write(steady(notebook), path)
    size = path.stat().st_size / 1e6
    print(f"{path.name}: {time.monotonic() - start:.0f} s, {size:.2f} MB", flush=True)


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]) if sys.argv[1:] else sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        execute(path)
