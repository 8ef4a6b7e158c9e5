# Made from notebooks/91_files.ipynb by "make extract".
"""Files: weights and records are written whole or not at all. Built in appendix 91."""

import contextlib
import hashlib
import importlib.resources
import itertools
import json
import os
import secrets
import tempfile
import textwrap
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from stt_lite.video import check_type

__all__ = [
    "cache_folder",
    "check_writable",
    "load_weights",
    "read_record",
    "records",
    "results_folder",
    "save_weights",
    "weights_folder",
    "write_file",
]


def write_file(path: str | os.PathLike, content: bytes) -> None:
    """Write a file in one step: a reader finds the old file or the new, never a half.

    The folder is made if need be. At an OSError, such as a full disk, the old stays.
    """
    path = Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in path.parent.glob(f".part-{16 * '[0-9a-f]'}"):  # of killed writers
        with contextlib.suppress(OSError):
            if old.stat().st_mtime < time.time() - 3600:
                old.unlink()
    part = path.with_name(f".part-{secrets.token_hex(8)}")
    try:
        with open(part, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # on the disk, not only on its way there
        os.replace(part, path)
    finally:
        with contextlib.suppress(OSError):  # usually it has its new name
            part.unlink()


def check_writable(path: Path) -> None:
    """Make the folder of `path`; OSError where no file can be written into it."""
    path = path.expanduser()
    if path.exists() and not path.is_file():  # such as /dev/null
        raise OSError(f"out must name a file, {path} is none")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        reason = f"{error.strerror}: {path.parent}"
        raise OSError(f"out can't be written: {reason}") from error


def save_weights(
    module: nn.Module, path: str | os.PathLike, record: dict | None = None
) -> Path:
    """Write a module's weights and, beside them, a JSON record with their hash.

    Args:
        module: a module with a dataclass `config`, which travels with the weights.
        path: the file to write, ending in .safetensors.
        record: what to note of the training: hardware, seconds, clips seen, metrics.

    Raises:
        TypeError, ValueError: no module with a config, no path, or a path that does not
            end in .safetensors; a record that JSON cannot hold.
        OSError: as in `write_file`.
    """
    path = Path(path).expanduser()
    if path.suffix != ".safetensors":
        raise ValueError(f"path must end in .safetensors, got {path.name!r}")
    check_type(module, nn.Module, "module")
    config = asdict(getattr(module, "config", None))
    state = {name: t.contiguous().cpu() for name, t in module.state_dict().items()}
    weights = save(state, metadata={"config": json.dumps(config)})
    record = {"config": config, **({} if record is None else record)}
    record["sha256"] = hashlib.sha256(weights).hexdigest()
    text, beside = json.dumps(record, indent=2) + "\n", path.with_suffix(".json")
    write_file(path, weights)
    beside.unlink(missing_ok=True)  # it tells of other weights
    write_file(beside, text.encode())
    return path


def weights_folder() -> Path:
    """Where the package keeps its bundled weights."""
    return Path(str(importlib.resources.files("stt_lite"))) / "weights"


def cache_folder() -> Path:
    """Where downloads and recordings are kept: $STT_LITE_CACHE, or the user's cache."""
    import pooch

    folder = os.environ.get("STT_LITE_CACHE") or pooch.os_cache("stt_lite")
    return Path(folder).expanduser()


def find_weights(name: str | os.PathLike, kind: str) -> Path:
    """Where the weights of that name lie: `name` is a path, or names a bundle."""
    path, ending = Path(name).expanduser(), f"-{kind}.safetensors"
    if path.suffix == "" and path.parent == Path("."):  # a bundle's name
        path = weights_folder() / f"{name}{ending}"
        if not path.is_file():
            found = sorted(weights_folder().glob(f"*{ending}"))
            known = ", ".join(p.name.removesuffix(ending) for p in found) or "none"
            raise ValueError(f"no bundled {kind} {str(name)!r}; bundled: {known}")
    if path.suffix != ".safetensors":  # a pickle could run any code
        raise ValueError(f"weights load from .safetensors only, got {path.name!r}")
    if not path.is_file():  # a pipe would be read for ever
        raise FileNotFoundError(f"no file at {path}")
    return path


MOST_BYTES = 2**25  # of a record: reading them takes a third of a second


def read_record(path: str | os.PathLike) -> dict:
    """The record at `path`, or beside the weights there; empty where there is none.

    Raises ValueError where the file holds no JSON object, or "data" in it is none.
    """
    path = Path(path).expanduser().with_suffix(".json")
    if not path.exists():
        return {}
    try:
        if not path.is_file() or path.stat().st_size > MOST_BYTES:
            raise ValueError(f"expected a file of at most {MOST_BYTES:,} bytes")
        record = json.loads(path.read_bytes())
        data = record.get("data", {}) if isinstance(record, dict) else None
        if not isinstance(data, dict):
            raise ValueError("expected an object, and one under its data")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is not a record: {error}") from error
    return record


def check_tensors(
    build: Callable[[dict], nn.Module], config: dict, state: dict
) -> None:
    """Build a module without memory; ValueError or torch's error if `state` is not its.

    Weights may be floating-point numbers of another precision, and must be finite.
    """
    made = itertools.count(1)

    def count(*parameter):
        if next(made) > 2 * len(state) + 10:  # some parameters are made twice
            raise ValueError(f"its config asks for more than its {len(state)} tensors")

    hook = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"):
            module = build(config)
    finally:
        hook.remove()
    expected = {name: t.dtype for name, t in module.state_dict().items()}
    for name, tensor in state.items():
        wanted = expected.get(name, tensor.dtype)
        floats = tensor.is_floating_point() and wanted.is_floating_point
        if not floats and tensor.dtype != wanted:
            raise ValueError(f"{name} must be {wanted}, got {tensor.dtype}")
        if not tensor.to(wanted).isfinite().all():
            raise ValueError(f"{name} holds numbers that are not finite")
    module.load_state_dict(state, assign=True)


def load_weights(
    name: str | os.PathLike,
    kind: str,
    build: Callable[[dict], nn.Module],
    device: torch.device | str = "cpu",
) -> nn.Module:
    """Load what `save_weights` wrote, in eval mode.

    Args:
        name: a path, or a bundle's name for its `<name>-<kind>.safetensors`.
        kind: what the file holds, such as "tokenizer".
        build: makes the module from its config's fields, as JSON gives them back.
        device: where the weights go.

    Raises:
        ValueError: an unknown name, or a file that is cut, altered, or of another kind.
        FileNotFoundError: a path at which there is no file.
        TypeError, RuntimeError, AssertionError: what is no path, no device.
    """
    path = find_weights(name, kind)
    content = path.read_bytes()
    got = hashlib.sha256(content).hexdigest()
    if (record := read_record(path)) and record.get("sha256") != got:
        kept = str(record.get("sha256"))
        reason = f"expected sha256 {kept[:16]}..., got {got[:16]}..."
        raise ValueError(f"{path.name} is damaged: {reason} in {len(content)} bytes")
    try:
        state = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        config = json.loads(header["__metadata__"]["config"])
        check_tensors(build, config, state)
        with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay
            module = build(config)
        module.load_state_dict(state)
    except Exception as error:  # whatever it is, the file is to blame
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 200)
        raise ValueError(f"{path.name} is not a whole {kind} file: {reason}") from error
    return module.to(device).eval()


def results_folder() -> Path:
    """Where the records of the runs lie: a checkout's book/results, or their copy."""
    package = weights_folder().parent
    checkout = package.parent / "book" / "results"
    return checkout if checkout.is_dir() else package / "results"


def records(pattern: str) -> list[dict]:
    """The records whose file names match, for example "compare-*-seed*".

    FileNotFoundError where there is none: no figure without a record. TypeError: a
    pattern that is no text.
    """
    check_type(pattern, str, "pattern")
    found = results_folder().glob("*.json")
    paths = sorted(path for path in found if path.match(f"{pattern}.json"))
    if not paths:
        raise FileNotFoundError(f"no record {pattern!r} in {results_folder()}")
    return [read_record(path) for path in paths]
