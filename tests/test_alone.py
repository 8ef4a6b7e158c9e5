"""A notebook alone, as Kaggle and Colab open it: in an empty folder, with torch."""

import ast
import json
import os
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

import nbformat
import pytest

from conftest import ROOT

CHAPTERS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
REPORT = """
import json as _json, torch as _torch
_folder = Path(stt.__file__).parent
print("REPORT " + _json.dumps({
    "stt_lite": stt.__file__,
    "weights": sorted(p.name for p in (_folder / "weights").glob("*")),
    "results": sorted(p.name for p in (_folder / "results").glob("*.json")),
    "torch": [_torch.__version__, _torch.__file__],
    "device": str(device),
    "preset": preset,
}))
"""
EACH = """
import os, sys  # imported once; a fork for each notebook then starts from here
import accelerate, ale_py, imageio.v3, ipywidgets, jaxtyping, matplotlib.pyplot
import skimage.metrics, torch, tyro
for folder in sys.argv[1:]:
    if os.fork() == 0:
        os.chdir(folder)
        output = os.open("output.txt", os.O_CREAT | os.O_WRONLY)
        os.dup2(output, 1), os.dup2(output, 2)
        exec(open("script.py").read(), {"__name__": "__main__"})
        sys.exit()
    os.wait()
"""


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """A copy of what git would clone, for pip to install from."""
    copy = tmp_path_factory.mktemp("source") / "stt_lite_repo"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(
        ROOT / "stt_lite",
        copy / "stt_lite",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    shutil.copytree(ROOT / "book" / "results", copy / "book" / "results")
    return copy


@pytest.fixture(scope="session")
def python(tmp_path_factory):
    """Python of a new environment that sees this one's packages, all but stt_lite."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True
    )
    own = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    parents = {
        sysconfig.get_path("purelib"),
        sysconfig.get_path("platlib"),
        *site.getsitepackages(),
    }
    # A .pth line adds a folder without reading the .pth files in it, so that the
    # editable install stays out of sight.
    (own / "parent.pth").write_text("".join(f"{path}\n" for path in sorted(parents)))
    python = folder / "bin" / "python"
    found = "from importlib.util import find_spec as f\n"
    found += "print(f('stt_lite'), f('torch') is not None)"
    done = subprocess.run(
        [python, "-I", "-c", found],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["None", "True"]
    return python


@pytest.fixture(scope="session")
def outputs(source, python, tmp_path_factory):
    """What each chapter's first cell and imports print, each in an empty folder."""
    folders = [tmp_path_factory.mktemp(path.stem) for path in CHAPTERS]
    for path, folder in zip(CHAPTERS, folders):
        shutil.copy(path, folder)
        notebook = nbformat.read(str(path), as_version=4)
        setup, *rest = [
            cell.source for cell in notebook.cells if cell.cell_type == "code"
        ]
        nodes = [node for text in rest for node in ast.parse(text).body]
        lines = [
            ast.unparse(node)
            for node in nodes
            if isinstance(node, (ast.Import, ast.ImportFrom))
        ]
        (folder / "script.py").write_text(
            "\n\n".join([setup, *lines, REPORT]), encoding="utf-8"
        )
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "STT_PRESET")
    }
    # pip installs from the copy alone: no index, setuptools from outside.
    environment |= {
        "STT_LITE_SOURCE": str(source),
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "MPLBACKEND": "agg",
    }
    subprocess.run(
        [str(python), "-c", EACH, *map(str, folders)],
        env=environment,
        cwd=folders[0],
        check=True,
    )
    return {
        path: (folder / "output.txt").read_text()
        for path, folder in zip(CHAPTERS, folders)
    }


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_notebook_alone(path, outputs, python):
    assert "REPORT " in outputs[path], outputs[path][-3000:]
    report = json.loads(outputs[path].split("REPORT ")[1])

    import torch

    site_packages = Path(
        sysconfig.get_path("purelib", vars={"base": str(python.parent.parent)})
    )
    assert Path(report["stt_lite"]).is_relative_to(site_packages)
    bundled = sorted(
        p.name
        for p in (ROOT / "stt_lite" / "weights").glob("*")
        if p.suffix in (".safetensors", ".json")
    )
    assert report["weights"] == bundled
    assert report["results"] == sorted(
        p.name for p in (ROOT / "book" / "results").glob("*.json")
    )
    assert report["torch"] == [torch.__version__, torch.__file__], (
        "the installed torch was touched"
    )
    assert not list(site_packages.glob("torch*"))
    assert (report["device"], report["preset"]) == ("cpu", "tiny")
    assert "device cpu, preset tiny" in outputs[path]
