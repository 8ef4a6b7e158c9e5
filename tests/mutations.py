"""Break the package, see if tests notice: `python tests/mutations.py [word ...]`.

Each row of mutations.toml changes one piece of text in one module, in a temporary copy
of the repository, and runs the named fast tests there. They must fail. Words on the
command line pick the rows that hold one of them. Rows whose text is gone, and modules
whose tests fail before anything is broken, are reported; the others are tried all the
same.
"""

import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
TABLE = Path(__file__).with_suffix(".toml")
PLACES = ("stt_lite", "book/experiments")
PYTEST = ["-x", "-q", "-p", "no:cacheprovider"]
# What takes long to import is imported once; a fork for each run starts from there.
SERVER = """
import json, os, sys
import accelerate, hypothesis, ipywidgets, jaxtyping, matplotlib.pyplot, nbval.plugin
import pytest, skimage.metrics, torch, tyro
for line in sys.stdin:
    folder, *arguments = json.loads(line)
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        sys.path.insert(0, folder)
        os.environ["PYTHONPATH"] = folder
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        output = os.open("output.txt", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(output, 1), os.dup2(output, 2)
        code = pytest.main(arguments)
        sys.stdout.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Mutation(NamedTuple):
    what: str
    module: str
    old: str
    new: str
    tests: str  # for pytest -k
    file: str  # of the tests


def read_mutations() -> list[Mutation]:
    table = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    return [
        Mutation(what, module, *row[:3], *(row[3:] or [f"test_{module}.py"]))
        for module, rows in table.items()
        for what, row in rows.items()
    ]


def mistake(row: Mutation, root: Path = ROOT) -> str:
    """Why a row can't be tried: its text isn't there once; empty if it can."""
    path = source_of(row.module, root)
    if path is None:
        return f"{row.what}: there is no module {row.module}"
    count = path.read_text(encoding="utf-8").count(row.old)
    if count != 1:
        return f"{row.what}: {row.module}.py holds its text {count} times: {row.old}"
    if not (root / "tests" / row.file).is_file():
        return f"{row.what}: there is no tests/{row.file}"
    return ""


def source_of(module: str, root: Path) -> Path | None:
    paths = [root / place / f"{module}.py" for place in PLACES]
    return next((path for path in paths if path.is_file()), None)


def copy_repository(folder: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", folder)
    ignored = shutil.ignore_patterns("__pycache__", "vendor", "node_modules")
    for name in ("stt_lite", "book", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)


@functools.cache
def server() -> subprocess.Popen:
    """A process that waits for `run`."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", SERVER], env=environment, **pipes)


def run(folder: Path, file: str, tests: str) -> tuple[bool, str]:
    """Whether the tests pass in `folder`, and the line that says which one failed.

    Raises `RuntimeError` where pytest finds no test of that name, or ends otherwise.
    """
    output = folder / "output.txt"
    arguments = [*PYTEST, f"tests/{file}", "-k", tests]
    print(json.dumps([str(folder), *arguments]), file=server().stdin, flush=True)
    code = int(server().stdout.readline())
    lines = output.read_text(errors="replace").strip().splitlines() or ["no output"]
    if code not in (0, 1):
        raise RuntimeError(f"pytest {file} -k {tests!r}: {lines[-1]}")
    failed = [line for line in lines if line.startswith("FAILED")]
    return code == 0, (failed or lines)[-1]


def attempt(row: Mutation, folder: Path) -> tuple[bool, str]:
    """Like `run`, with the row's text changed meanwhile."""
    path = source_of(row.module, folder)
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(row.old, row.new), encoding="utf-8")
    try:
        return run(folder, row.file, row.tests)
    finally:
        path.write_text(text, encoding="utf-8")


def try_all(rows: list[Mutation], folder: Path) -> tuple[list[str], list[str]]:
    """What survived, and what could not be tried."""
    survivors = []
    mistakes = [reason for row in rows if (reason := mistake(row, folder))]
    rows = [row for row in rows if not mistake(row, folder)]
    for file in dict.fromkeys(row.file for row in rows):
        tests = " or ".join(f"({row.tests})" for row in rows if row.file == file)
        try:
            passed, line = run(folder, file, tests)
        except RuntimeError as error:
            passed, line = False, str(error)
        if not passed:
            mistakes.append(f"{file} is red without any mutation: {line}")
            rows = [row for row in rows if row.file != file]
    print(f"{'mutation':42} {'module':18} {'':8} seconds  first failing test")
    for row in rows:
        start = time.monotonic()
        try:
            passed, line = attempt(row, folder)
        except RuntimeError as error:
            mistakes.append(f"{row.what}: {error}")
            continue
        failed = line.removeprefix("FAILED ").split(" - ")[0].split("::")[-1]
        verdict = "SURVIVED" if passed else "caught"
        took = f"{time.monotonic() - start:7.1f}"
        print(f"{row.what:42} {row.module:18} {verdict:8} {took}  {failed}", flush=True)
        if passed:
            survivors.append(row.what)
    return survivors, mistakes


def main() -> None:
    words = sys.argv[1:]
    rows = read_mutations()
    if words:
        rows = [row for row in rows if any(word in " ".join(row) for word in words)]
    with tempfile.TemporaryDirectory() as name:
        copy_repository(Path(name))
        survivors, mistakes = try_all(rows, Path(name))
    for reason in mistakes:
        print(f"not tried: {reason}")
    if survivors:
        print(f"{len(survivors)} of {len(rows)} survived: {', '.join(survivors)}")
    if survivors or mistakes:
        sys.exit(1)
    print(f"All {len(rows)} caught.")


if __name__ == "__main__":
    main()
