# Made from notebooks/92_runs.ipynb by "make extract".
"""Machines: devices, processes, precision, random numbers. Built in appendix 92."""

import contextlib
import hashlib
import platform
import subprocess
from pathlib import Path

import torch

from stt_lite.files import weights_folder

__all__ = ["commit", "hardware", "new_accelerator", "seed_everything"]


def seed_everything(
    seed: int, step: int, device: torch.device | str
) -> tuple[torch.Generator, torch.Generator]:
    """Seed torch, and return a generator on the CPU and one on the device.

    Both are for one step alone: no state of a generator has to be saved, since seed
    and step bring it back, on however many processes.
    """
    text = f"{seed} {step}".encode()
    mixed = int.from_bytes(hashlib.sha256(text).digest()[:7], "little")
    torch.manual_seed(mixed)
    on_cpu = torch.Generator("cpu").manual_seed(mixed + 1)
    return on_cpu, torch.Generator(device).manual_seed(mixed + 2)


def random_state_kept() -> contextlib.AbstractContextManager:
    """Whatever is seeded and drawn inside: torch's own generators are as before."""
    return torch.random.fork_rng(devices=range(torch.cuda.device_count()))


def new_accelerator(precision: str = "auto", compiled: bool | None = None):
    """An `accelerate.Accelerator`: devices, processes, precision, compilation.

    Args:
        precision: "no" (float32), "bf16" or "fp16"; "auto" takes bf16, or fp16 on a
            GPU without it, or "no" on a CPU.
        compiled: use torch.compile; None: on a GPU only.

    Raises:
        ValueError: fp16 on a CPU.
    """
    from accelerate import Accelerator, PartialState  # takes seconds to import
    from accelerate.state import AcceleratorState
    from accelerate.utils import TorchDynamoPlugin, parse_flag_from_env

    cpu = parse_flag_from_env("ACCELERATE_USE_CPU", not torch.cuda.is_available())
    device = PartialState(cpu=cpu).device
    cuda = device.type == "cuda"
    compiled = cuda if compiled is None else compiled
    if precision == "auto":
        half = cuda and torch.cuda.get_device_capability(device) >= (8, 0)
        precision = "bf16" if half else "fp16" if cuda else "no"
    if precision == "fp16" and device.type == "cpu":
        raise ValueError('precision "fp16" needs a GPU: take "bf16" or "no" on a CPU')
    AcceleratorState._reset_state()  # an earlier run's precision and compiler
    return Accelerator(
        cpu=cpu,
        mixed_precision=precision,
        dynamo_plugin=TorchDynamoPlugin(
            "inductor" if compiled else "no", use_regional_compilation=compiled
        ),
    )


def hardware(device: torch.device) -> str:
    """The processor's name as its system tells it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    name = names[0] if names else platform.processor()
    return f"CPU, {torch.get_num_threads()} threads, {name}"


def commit() -> str | None:
    """The checkout's commit; None for an installed package, or where git is missing."""
    root = weights_folder().parents[1]
    if not (root / ".git").exists():  # installed, perhaps in another's checkout
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    with contextlib.suppress(OSError):
        done = subprocess.run(command, capture_output=True, text=True)
        return done.stdout.strip() or None
