# Made from notebooks/92_runs.ipynb by "make extract".
"""Runs: a config that is checked, budget, clock, log. Built in appendix 92."""

import contextlib
import math
import numbers
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    get_args,
    get_origin,
    get_type_hints,
)

import torch
from torch import Tensor
from tqdm import tqdm

from stt_lite.checkpoints import (
    Progress,
    as_json,
    load_checkpoint,
    save_checkpoint,
)
from stt_lite.machines import new_accelerator, seed_everything

__all__ = [
    "AtLeastZero",
    "Positive",
    "Run",
    "RunConfig",
    "Share",
    "Step",
    "check_fields",
]


RANGES = {
    "above 0": lambda x: 0 < x < math.inf,
    "at least 0": lambda x: 0 <= x < math.inf,
    "in [0, 1)": lambda x: 0 <= x < 1,
    "in (0, 1)": lambda x: 0 < x < 1,
}
Positive = Annotated[float, "above 0"]
AtLeastZero = Annotated[float, "at least 0"]
Share = Annotated[float, "in [0, 1)"]


def check_fields(config: Any) -> None:
    """Make the fields of a frozen dataclass what their annotations say.

    Numbers, numpy's too, become Python's own, which JSON can hold.

    Raises:
        ValueError: a value of another kind, or out of its range.
    """
    for name, hint in get_type_hints(type(config), include_extras=True).items():
        value, kinds = getattr(config, name), get_args(hint)
        if type(None) in kinds:  # X | None
            if value is None:
                continue
            hint, kinds = kinds[0], get_args(kinds[0])
        if get_origin(hint) is Literal:
            good, wanted = value in kinds, " or ".join(f'"{kind}"' for kind in kinds)
        elif get_origin(hint) is Annotated:
            number, wanted = kinds
            whole = number is int
            kind = numbers.Integral if whole else numbers.Real
            good = isinstance(value, kind) and not isinstance(value, bool)
            good = good and RANGES[wanted](value)  # NaN is in none
            wanted = f"a whole number {wanted}" if whole else wanted
            value = number(value) if good else value
        else:
            good, wanted = isinstance(value, hint), f"of type {hint.__name__}"
        if not good:
            raise ValueError(f"{name} must be {wanted}, got {value!r}")
        object.__setattr__(config, name, value)


@dataclass(frozen=True)
class RunConfig:
    """How long a run is, on what, and where it leaves what it makes.

    Args:
        out: folder for weights, records and checkpoints; a run that stopped goes on
            from what lies there.
        minutes: time budget, saving and showing not counted.
        steps: step budget; where given, `minutes` does not matter.
        batch: clips per step, over all processes together.
        adamw_rate: peak learning rate of AdamW.
        schedule: of the learning rate, "wsd" (stable, then down) or "cosine".
        decay_share: share of the budget, at its end, in which "wsd" goes down.
        seed: everything random follows from it and the step.
        precision: "no" (float32), "bf16" or "fp16"; "auto" takes bf16, or fp16 on a
            GPU without it, or "no" on a CPU.
        compile: torch.compile; None: on a GPU only.
        checkpoint_seconds: time between two checkpoints; 0 writes one at every step.

    Raises:
        ValueError: neither minutes nor steps, or a field that `check_fields` refuses.
    """

    out: Path = Path("runs/model")
    minutes: Positive | None = 10.0
    steps: Annotated[int, "above 0"] | None = None
    batch: Annotated[int, "above 0"] = 4
    adamw_rate: Positive = 2e-3
    schedule: Literal["wsd", "cosine"] = "wsd"
    decay_share: Annotated[float, "in (0, 1)"] = 0.2
    seed: Annotated[int, "at least 0"] = 0
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    compile: bool | None = None
    checkpoint_seconds: AtLeastZero = 60.0

    def __post_init__(self):
        object.__setattr__(self, "out", Path(self.out).expanduser())
        if self.steps is not None:
            object.__setattr__(self, "minutes", None)
        elif self.minutes is None:
            raise ValueError("give steps or minutes, got neither")
        check_fields(self)


class Step(NamedTuple):
    """One step of a run: how much of the budget is used up, and random numbers."""

    done: float  # from 0 to 1
    on_cpu: torch.Generator  # alike in all processes
    on_device: torch.Generator
    process: int
    processes: int

    def share(self, x: Tensor) -> Tensor:
        """This process's part of what all processes drew alike."""
        return x[self.process :: self.processes]


class Run:
    """One training run in its folder, in one process or several.

    Args:
        config: budget, folder and so on.
        name: of the checkpoint, `out`/`name`.checkpoint.
        share: of the config's budget, in (0, 1].
        settings: what else must stay as it is for the run to go on.

    Raises:
        ValueError: a batch that the processes cannot share evenly, fp16 on a CPU.
    """

    def __init__(
        self,
        config: RunConfig,
        name: str,
        share: float = 1.0,
        settings: dict | None = None,
    ):
        self.config, self.name, self.share = config, name, share
        self.settings = as_json(asdict(config) | (settings or {}))
        self.path = config.out / f"{name}.checkpoint"
        self.stable = config.out / f"{name}-stable.checkpoint"
        self.accelerator = new_accelerator(config.precision, config.compile)
        self.device = self.accelerator.device
        self.main = self.accelerator.is_main_process
        self.processes = self.accelerator.num_processes
        if config.batch % self.processes:
            raise ValueError(
                f"batch must be a multiple of the {self.processes} processes, "
                f"got {config.batch}"
            )
        self.progress, self.parts = Progress(), {}
        self.recent, self.logs = [], {}  # of the latest steps, of the last one
        self.shown = 0.0
        self.clock = self.saved = time.perf_counter()

    @property
    def done(self) -> float:
        """How much of the budget is used up, from 0 to 1."""
        if self.config.steps is not None:
            return self.progress.step / max(1, round(self.share * self.config.steps))
        return self.progress.seconds / (60 * self.share * self.config.minutes)

    def steps(self) -> Iterator[Step]:
        """Yields until the budget is used up; `report` has to be called in each step.

        Raises:
            OSError: a checkpoint that cannot be written; the last one is still there.
        """
        config, progress = self.config, self.progress
        total = config.steps or 60 * config.minutes
        bar = tqdm(
            desc=self.name,
            total=max(1, round(self.share * total)),
            unit="step" if config.steps else "s",
            disable=not self.main,
        )
        while (done := self.done) < 1:
            falls = config.schedule == "wsd" and done >= 1 - config.decay_share
            if falls and not progress.decaying:
                self.save(self.stable)
                progress.decaying = True
            seeds = seed_everything(config.seed, progress.step, self.device)
            yield Step(done, *seeds, self.accelerator.process_index, self.processes)
            if self.main:
                self.log(bar)
        bar.close()
        self.accelerator.wait_for_everyone()
        self.accelerator.free_memory()

    def resume(self, **parts) -> None:
        """Bring `parts` back to where the last checkpoint has them, if there is one.

        Where the budget grew after the learning rate had begun to fall, the run goes on
        from the checkpoint before that fall.

        Raises:
            ValueError: a checkpoint of another config, or none at all.
        """
        self.parts = parts | {"scaler": self.accelerator.scaler}
        if self.path.exists():
            self.load(self.path)
        falls = self.done >= 1 - self.config.decay_share
        if self.progress.decaying and not falls and self.stable.exists():
            self.load(self.stable)
        self.clock = self.saved = time.perf_counter()

    def report(self, loss: Tensor, norm: Tensor, clips: int, logs: dict) -> None:
        """What a step came to: its loss, the gradient's norm, and what else to show.

        Raises:
            FloatingPointError: loss or norm is not finite; the last checkpoint stays.
        """
        progress, now = self.progress, time.perf_counter()
        seconds, self.clock = progress.seconds + now - self.clock, now
        # Only the main process gives its clock, so the mean of all is that clock.
        given = self.processes * seconds if self.main else 0.0
        given = torch.tensor(given, device=self.device)
        values = torch.stack([given, loss.detach().float(), *logs.values()])
        seconds, mean, *values = self.accelerator.reduce(values, "mean").tolist()
        skipped = self.accelerator.scaler is not None  # it leaves such steps out
        if not math.isfinite(mean) or not (math.isfinite(norm) or skipped):
            kept = f"{self.path} is the last good one"
            raise FloatingPointError(
                f"the loss is {mean} and its gradient's norm {float(norm)} at step "
                f"{progress.step} of the {self.name}; checkpoint: "
                f"{kept if self.path.exists() else 'there is none yet'}"
            )
        progress.seconds = seconds
        progress.step += 1
        progress.clips += clips
        self.recent.append(mean)
        self.logs = {"loss": mean, **dict(zip(logs, values, strict=True))}
        if progress.step % 5 == 0 or self.done >= 1:
            mean = sum(self.recent) / len(self.recent)
            progress.history.append([progress.step, seconds, mean])
            self.recent.clear()

    @contextlib.contextmanager
    def pause(self):
        """What happens inside does not count as time of training."""
        start = time.perf_counter()
        yield
        self.clock += time.perf_counter() - start

    def save(self, path: Path) -> None:
        """Write a checkpoint: a killed run leaves the old file whole."""
        if self.main:
            with self.pause():
                save_checkpoint(path, self.progress, self.settings, self.parts)

    def load(self, path: Path) -> None:
        """Bring progress and parts back to where `save` found them."""
        defaults = as_json(type(self.config)())
        self.progress = load_checkpoint(path, self.settings, self.parts, defaults)

    def log(self, bar) -> None:
        """Move the bar, and save where it is time."""
        steps, seconds = self.progress.step, self.progress.seconds
        reached = steps if self.config.steps else seconds
        bar.update(min(bar.total, int(reached)) - bar.n)
        speed = self.progress.clips / max(seconds, 1e-9)
        bar.set_postfix(self.logs | {"clips/s": speed}, refresh=False)
        waited = time.perf_counter() - self.saved
        if self.done >= 1 or waited >= self.config.checkpoint_seconds:
            self.save(self.path)
            self.saved = time.perf_counter()

    def due(self, interval: float = 5.0) -> bool:
        """Whether the main process should show something: now and then, and at last."""
        now = time.perf_counter()
        due = self.done >= 1 or now - self.shown >= interval
        due = due and self.main and len(self.progress.history) > 0
        self.shown = now if due else self.shown
        return due
