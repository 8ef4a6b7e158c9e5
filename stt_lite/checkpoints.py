# Made from notebooks/92_runs.ipynb by "make extract".
"""Checkpoints: written whole, refused where they do not fit. Built in appendix 92."""

import io
import json
import math
import numbers
import pickle
import textwrap
import typing
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from stt_lite.files import write_file

__all__ = [
    "Progress",
    "as_json",
    "check_fields",
    "check_same",
    "load_checkpoint",
    "save_checkpoint",
]


@dataclass
class Progress:
    """Where a run stands: what a checkpoint holds besides weights and optimizer."""

    step: int = 0
    clips: int = 0
    seconds: float = 0.0  # of training, without saving and showing
    decaying: bool = False  # the learning rate has begun its last fall
    history: list[list[float]] = field(default_factory=list)  # step, seconds, loss
    kept: list[float] = field(default_factory=list)  # |loss| at each checkpoint


def save_checkpoint(path: Path, progress: Progress, settings: dict, parts: dict):
    """Write progress, settings, and the state of each part, in one step.

    Args:
        parts: by name what has a `state_dict`, such as a model; None is left out.

    Raises:
        OSError: a folder that cannot be written, a full disk; the old file stays whole.
    """
    state = {name: p.state_dict() for name, p in parts.items() if p is not None}
    buffer = io.BytesIO()
    torch.save({"config": settings, "progress": asdict(progress)} | state, buffer)
    try:
        write_file(path, buffer.getvalue())
    except OSError as error:
        reason = f"could not write the checkpoint of step {progress.step}"
        raise OSError(error.errno, f"{reason}: {error.strerror}", str(path)) from error


def load_checkpoint(
    path: Path, settings: dict, parts: dict, defaults: dict | None = None
) -> Progress:
    """Bring the parts back to where `save_checkpoint` found them.

    Args:
        settings: what they must be for the run to go on, see `check_same`.
        defaults: of settings that an older checkpoint does not hold.

    Raises:
        ValueError: other settings, weights of another shape, a file that is cut.
    """
    broken = RuntimeError, LookupError, TypeError, ValueError, AttributeError, EOFError
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        then = (defaults or {}) | state["config"]
        progress = Progress(**state["progress"])
    except (*broken, pickle.UnpicklingError) as error:
        reason = type(error).__name__
        raise ValueError(f"{path} is not a whole checkpoint: {reason}") from error
    check_same(then, settings, path)
    # Older ones do not say how many clips there were.
    progress.clips = progress.clips or progress.step * then.get("batch", 0)
    for name, part in parts.items():
        if part is None or (name == "scaler" and name not in state):
            continue  # a run that was not in float16 so far finds its scale anew
        peaks = [group.get("peak") for group in getattr(part, "param_groups", [])]
        try:
            part.load_state_dict(state[name])
        except broken as error:  # weights of another shape, or none
            reason = textwrap.shorten(str(error), 200)
            message = f"{path} does not fit: {reason}; choose another `out`"
            raise ValueError(message) from error
        for peak, group in zip(peaks, getattr(part, "param_groups", [])):
            group["peak"] = peak
    return progress


def as_json(value: Any) -> Any:
    """What JSON gives back of a dataclass or a dict: no paths, no tuples."""

    def default(x):
        return asdict(x) if is_dataclass(x) else str(x)

    return json.loads(json.dumps(value, default=default))


# What may differ between two pieces of one run.
MAY_CHANGE = {"out", "minutes", "steps", "batch", "schedule", "decay_share"}
MAY_CHANGE |= {"adamw_rate", "muon_rate", "precision", "compile", "checkpoint_seconds"}
# Fields of the first edition, and what all runs have in their place now.
GONE = {"clip": 1.0, "beta_warmup": 0.0, "blur": 0.0, "hide": 0.0, "start": None}


def check_same(then: dict, now: dict, path: Path) -> None:
    """ValueError where settings differ that must not change within a run.

    The first edition did not write how a tokenizer of the run's own was trained.
    """
    changed = []
    for name, value in (GONE | now).items():
        before = then.get(name, value)
        unknown = name == "tokenizer" and before is None and isinstance(value, dict)
        if name not in MAY_CHANGE and before != value and not unknown:
            changed.append(f"{name} = {before!r}, now {value!r}")
    if changed:
        what = ", ".join(changed)
        raise ValueError(f"{path} is of another config: {what}; choose another `out`")


RANGES = {
    "above 0": lambda x: 0 < x < math.inf,
    "at least 0": lambda x: 0 <= x < math.inf,
    "in [0, 1)": lambda x: 0 <= x < 1,
    "in (0, 1)": lambda x: 0 < x < 1,
}


def check_fields(config: Any) -> None:
    """Make the fields of a frozen dataclass what their annotations say.

    Numbers, numpy's too, become Python's own, which JSON can hold.

    Raises:
        ValueError: a value of another kind, or out of its range.
    """
    hints = typing.get_type_hints(type(config), include_extras=True)
    for name, hint in hints.items():
        value, kinds = getattr(config, name), typing.get_args(hint)
        if type(None) in kinds:  # X | None
            if value is None:
                continue
            hint, kinds = kinds[0], typing.get_args(kinds[0])
        if typing.get_origin(hint) is Literal:
            good, wanted = value in kinds, " or ".join(f'"{kind}"' for kind in kinds)
        elif typing.get_origin(hint) is Annotated:
            number, wanted = kinds
            whole = number is int
            kind = numbers.Integral if whole else numbers.Real
            good = isinstance(value, kind) and not isinstance(value, bool)
            good = good and value <= 2**64 and RANGES[wanted](value)  # NaN is in none
            wanted = f"a whole number {wanted}" if whole else wanted
            value = number(value) if good else value
        else:
            good, wanted = isinstance(value, hint), f"of type {hint.__name__}"
        if not good:
            raise ValueError(f"{name} must be {wanted}, got {value!r}")
        object.__setattr__(config, name, value)
