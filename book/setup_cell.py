# Finds stt_lite (a checkout around this notebook, or installed) or else installs it;
# leaves an installed torch alone.
import importlib
import os
import subprocess
import sys
import tempfile
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path

folders = (Path.cwd(), *Path.cwd().parents)
checkouts = [p for p in folders if (p / "stt_lite" / "__init__.py").is_file()]
if checkouts:
    sys.path.insert(0, str(checkouts[0]))
elif getattr(find_spec("stt_lite"), "origin", None) is None:
    repository = "git+{url}"
    source = os.environ.get("STT_LITE_SOURCE", repository)
    names = ("torch", "torchvision", "torchaudio")
    kept = [d for d in distributions() if d.name in names]
    pins = Path(tempfile.mkdtemp()) / "keep.txt"
    pins.write_text("".join(f"{d.name}=={d.version}\n" for d in kept))
    pip = [sys.executable, "-m", "pip", "install", "-q", source, "-c", str(pins)]
    subprocess.run(pip, check=True)
    importlib.invalidate_caches()

import torch

import stt_lite as stt

torch.manual_seed(0)  # a fresh kernel's own seed is random
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
preset = os.environ.get("STT_PRESET", "full" if device.type == "cuda" else "tiny")
if preset not in ("tiny", "full"):
    raise ValueError(f"STT_PRESET must be 'tiny' or 'full', got {preset!r}.")
print(f"stt_lite {stt.__version__}, device {device.type}, preset {preset}")
