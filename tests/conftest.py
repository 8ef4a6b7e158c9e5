"""Shared by all tests: shape annotations are checked; scripts in book/ import."""

import os
import sys
from pathlib import Path

from jaxtyping import install_import_hook

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = [ROOT, ROOT / "book", ROOT / "book" / "experiments", ROOT / "tests"]
sys.path[:0] = [str(folder) for folder in FOLDERS]
# What tests start in processes of their own imports this checkout, too.
paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
os.environ["PYTHONPATH"] = os.pathsep.join(paths)

with install_import_hook("stt_lite", "typechecker.checked"):
    import stt_lite  # noqa: F401

import pytest  # noqa: E402
import torch  # noqa: E402


@pytest.fixture(autouse=True)
def seeded():
    """Every test draws the same numbers at every run: torch's first seed is random."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's folder."""
    return ROOT


@pytest.fixture(scope="session")
def notebooks(root) -> list[Path]:
    """Every chapter, in the book's order."""
    return sorted((root / "notebooks").glob("[0-9]*.ipynb"))


@pytest.fixture
def unchecked():
    """Switch the annotations' checks off, to see the messages that users see."""
    import jaxtyping

    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
