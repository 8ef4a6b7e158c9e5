"""What follows from the modules: `__init__.py`, `__main__.py`, the API's pages.

Used by extract.py.
"""

import re
from pathlib import Path

from rules import COLUMNS, ExtractionError

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

INIT_HEADER = """\
# Made by "make extract" from the public names that pyproject.toml lists.
\"\"\"stt_lite: generate video with a small spatial-temporal transformer.\"\"\"

"""
API_PAGE = """\
% Made by "make extract".

# stt_lite.{module}

The module that {{doc}}`../../notebooks/{notebook}` builds.

```{{eval-rst}}
.. automodule:: stt_lite.{module}
   :members:
```
"""
API_INDEX = """\
% Made by "make extract" from the notebooks' metadata; the text is book/derived.py's.

# The package

`pip install` gives you `import stt_lite as stt`. The names that the book uses most are
in that one namespace: `stt.load_video` is `stt_lite.video.load_video`. Everything else
is imported from its module: `from stt_lite.files import write_file`. Each page below
lists one module; each entry links to the section of the chapter that builds it.

| Module | Built in |
|---|---|
"""
API_ROW = "| {{doc}}`stt_lite.{0} <{0}>` | {{doc}}`../../notebooks/{1}` |\n"
API_CONTENTS = re.compile(r"((?: *- file: book/api/(?!index)\w+\n)+)")
MAIN = '''\
# Made by "make extract".
"""`python -m stt_lite`: the same commands as `stt-lite`."""

from stt_lite.cli import main

main()
'''


def api_page(module: str, notebook: str) -> str:
    return API_PAGE.format(module=module, notebook=notebook)


def api_index(built: dict[str, str]) -> str:
    """The table of all modules; `built`: module -> the name of its notebook."""
    return API_INDEX + "".join(API_ROW.format(*pair) for pair in built.items())


def contents(root: Path, built: dict[str, str]) -> dict[Path, str]:
    """`_toc.yml` with the API's pages in order, where there is one."""
    path = root / "_toc.yml"
    if not path.is_file():
        return {}
    head, pages, rest = API_CONTENTS.split(path.read_text(encoding="utf-8"), maxsplit=1)
    indent = re.match(" *", pages)[0]
    lines = [f"{indent}- file: book/api/{module}\n" for module in built]
    return {path: head + "".join(lines) + rest}


def init_text(root: Path, exports: dict[str, list[str]], strict: bool = True) -> str:
    """`stt_lite/__init__.py`; if strict, refuses a public name without a module."""
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)
    public = project.get("tool", {}).get("stt_lite", {}).get("public", [])
    owner = {name: module for module, names in exports.items() for name in names}
    unknown = ", ".join(name for name in public if name not in owner)
    complete = not unknown
    if strict and unknown:
        raise ExtractionError(f"pyproject.toml: no module exports {unknown}.")
    public = sorted(
        (name for name in public if name in owner),
        key=lambda name: (not name.isupper(), not name[0].isupper(), name),
    )
    lines = []
    for module in sorted({owner[name] for name in public}):
        names = [name for name in public if owner[name] == module]
        line = f"from stt_lite.{module} import {', '.join(names)}"
        if len(line) > COLUMNS - 4 * (not complete):
            line = "\n    ".join([f"from stt_lite.{module} import (", *names])
            line = line.replace("\n", ",\n").replace("(,", "(") + ",\n)"
        if not complete:  # a module that is broken must not stop the others
            line = "with suppress(Exception):\n    " + line.replace("\n", "\n    ")
        lines.append(line)
    if not complete:
        lines.insert(0, "from contextlib import suppress\n")
    lines += ["", f'__version__ = "{project["project"]["version"]}"', ""]
    lines += ["__all__ = [", *(f'    "{name}",' for name in public), "]"]
    return INIT_HEADER + "\n".join(lines) + "\n"
