"""Run notebooks in place, store their outputs: `python book/execute.py [notebook ...]`.

A notebook runs in its own folder, and imports the package of the checkout it lies in.
"""

import os
import sys
import time
from pathlib import Path

import nbformat
from nbconvert.preprocessors import CoalesceStreamsPreprocessor, ExecutePreprocessor

ROOT = Path(__file__).resolve().parent.parent
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def steady(notebook):
    """The same notebook, with what changes on every run evened out for git's diffs."""
    notebook, _ = CoalesceStreamsPreprocessor().preprocess(notebook, {})
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if WIDGET_VIEW in output.get("data", {}):
                output.data[WIDGET_VIEW]["model_id"] = f"{0:032x}"
    notebook.metadata.pop("widgets", None)  # their state: they need a kernel anyway
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def execute(path: Path) -> None:
    start = time.monotonic()
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    quiet = ["--log-level=ERROR"]  # no word that sockets of this machine are not secret
    runner = ExecutePreprocessor(
        timeout=None,
        kernel_name="python3",
        record_timing=False,
        extra_arguments=quiet,
    )
    runner.preprocess(notebook, {"metadata": {"path": str(path.resolve().parent)}})
    nbformat.write(steady(notebook), path)
    size = path.stat().st_size / 1e6
    print(f"{path.name}: {time.monotonic() - start:.0f} s, {size:.2f} MB", flush=True)


def import_from(checkout: Path) -> None:
    """Kernels and commands started from here import this checkout's package."""
    paths = [str(checkout), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)


def main() -> None:
    named = [Path(name) for name in sys.argv[1:]]
    for path in named or sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        import_from(path.resolve().parent.parent)
        execute(path)


if __name__ == "__main__":
    main()
