"""Run notebooks alone, whole, from a wheel: `python book/alone.py [notebook ...]`.

Each runs in an empty folder, as on Kaggle and Colab, but on a machine that has nothing
to spare: an environment of the wheel and this one's other packages, no checkout on the
path, no git, a home that can't be written. Prints a table; exit code 1 if one fails.
"""

import os
import shutil
import site
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def environment(folder: Path) -> Path:
    """Python of a new environment: the wheel, and this environment's other packages."""
    wheels, env = folder / "wheels", folder / "env"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    building = ["--no-deps", "--no-build-isolation", "-w", str(wheels)]
    source = folder / "source"  # a copy: building leaves files behind
    for name in ("stt_lite", "book/results"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run([*pip, "wheel", str(source), *building], check=True)
    shutil.rmtree(source)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", env], check=True)
    python = env / "bin" / "python"
    (wheel,) = wheels.glob("*.whl")
    size = wheel.stat().st_size / 1e6
    print(f"{wheel.name}: {size:.1f} MB", flush=True)
    into = ["--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([*pip, *into], check=True)
    # A .pth line adds a folder without reading the .pth files in it: an editable
    # install of this checkout stays out of sight.
    own = Path(sysconfig.get_path("purelib", vars={"base": str(env)}))
    parents = {*site.getsitepackages(), sysconfig.get_path("purelib")}
    (own / "parent.pth").write_text("".join(f"{path}\n" for path in sorted(parents)))
    return python


def bare(folder: Path, python: Path) -> dict[str, str]:
    """Variables of that machine: all programs but git, and no home."""
    programs = folder / "programs"
    programs.mkdir()
    for place in filter(os.path.isdir, os.environ["PATH"].split(os.pathsep)):
        for name in os.listdir(place):
            link = programs / name
            if not name.startswith(("git", "python", "stt-lite", "jupyter")):
                if not link.is_symlink():
                    link.symlink_to(Path(place) / name)
    kept = {
        k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "STT_PRESET")
    }
    kept = {k: v for k, v in kept.items() if not k.startswith(("XDG_", "STT_LITE_"))}
    mine = {"PATH": f"{python.parent}{os.pathsep}{programs}", "HOME": "/proc/none"}
    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):
        mine[name] = str(folder / name.lower())
    return kept | mine


def main() -> None:
    named = [Path(name) for name in sys.argv[1:]]
    folder = Path(tempfile.mkdtemp(prefix="alone-"))
    python = environment(folder)
    variables, failed = bare(folder, python), []
    where = [python, "-c", "import stt_lite as stt; print(stt.__file__)"]
    found = subprocess.check_output(where, cwd=folder, env=variables, text=True)
    if not Path(found).is_relative_to(folder):
        sys.exit(f"stt_lite must come from the wheel, got {found}")
    for path in named or sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        place = folder / path.stem / "empty"
        place.mkdir(parents=True)
        copy = shutil.copy(path, place)
        start = time.monotonic()
        run = [python, str(ROOT / "book" / "execute.py"), copy]
        done = subprocess.run(run, cwd=place, env=variables, capture_output=True)
        told = "ok"
        if done.returncode:
            failed.append(path.stem)
            told = f"failed\n{done.stderr.decode()[-3000:]}"
        seconds = time.monotonic() - start
        print(f"{path.stem:30} {seconds:5.0f} s  {told}", flush=True)
    print(f"{folder} holds what they wrote")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
