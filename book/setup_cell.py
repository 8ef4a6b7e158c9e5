# Finds stt_lite (installed, or a checkout around this notebook) or else installs it; leaves an installed torch alone.
import importlib, os, subprocess, sys, tempfile
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path

checkouts = [folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "stt_lite" / "__init__.py").is_file()]
if find_spec("stt_lite") is None and checkouts:
    sys.path.insert(0, str(checkouts[0]))
elif find_spec("stt_lite") is None:
    source = os.environ.get("STT_LITE_SOURCE", "git+{url}")
    kept = ("torch", "torchvision", "torchaudio")
    pins = Path(tempfile.mkdtemp()) / "keep.txt"
    pins.write_text("".join(f"{d.name}=={d.version}\n" for d in distributions() if d.name in kept))
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", source, "-c", str(pins)], check=True)
    importlib.invalidate_caches()

import torch
import stt_lite as stt
torch.manual_seed(0)  # a fresh kernel's own seed is random
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
preset = os.environ.get("STT_PRESET", "full" if device.type == "cuda" else "tiny")
if preset not in ("tiny", "full"):
    raise ValueError(f"STT_PRESET must be 'tiny' or 'full', got {preset!r}.")
print(f"stt_lite {stt.__version__}, device {device.type}, preset {preset}")
