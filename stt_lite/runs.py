"""Runs: budget, clock, seeds, checkpoints, processes. Built in appendix 92."""

import contextlib
import io
import math
import pickle
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from stt_lite.files import write_file
from stt_lite.machines import new_accelerator, seed_everything

__all__ = ["Progress", "Run", "RunConfig", "Step", "plain"]


@dataclass(frozen=True)
class RunConfig:
    """How long a run is, on what, and where it leaves what it makes.

    Args:
        out: folder for weights, records and checkpoints; a run that stopped goes on
            from what lies there.
        minutes: time budget, saving and showing not counted.
        steps: step budget; where given, `minutes` does not matter.
        batch: clips per step, over all processes together.
        schedule: of the learning rate, "wsd" (stable, then down) or "cosine".
        decay_share: share of the budget, at its end, in which "wsd" goes down; (0, 1).
        seed: everything random follows from it and the step.
        precision: "no" (float32), "bf16" or "fp16"; "auto" takes bf16, or fp16 on a
            GPU without it, or "no" on a CPU.
        compile: torch.compile; None: on a GPU only.
        checkpoint_seconds: time between two checkpoints; 0 writes one at every step.

    Raises:
        ValueError: neither minutes nor steps, or a number out of range.
    """

    out: Path = Path("runs/model")
    minutes: float | None = 10.0
    steps: int | None = None
    batch: int = 4
    schedule: Literal["wsd", "cosine"] = "wsd"
    decay_share: float = 0.2
    seed: int = 0
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    compile: bool | None = None
    checkpoint_seconds: float = 60.0

    def __post_init__(self):
        object.__setattr__(self, "out", Path(self.out))
        if self.steps is not None:
            object.__setattr__(self, "minutes", None)
        elif self.minutes is None:
            raise ValueError("give steps or minutes, got neither")
        for name in ("steps", "minutes", "batch"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be above 0, got {value!r}")
        if self.schedule not in ("wsd", "cosine"):
            raise ValueError(
                f'schedule must be "wsd" or "cosine", got {self.schedule!r}'
            )
        if not 0 < self.decay_share < 1:
            raise ValueError(f"decay_share must be in (0, 1), got {self.decay_share!r}")


# What may differ between two pieces of one run.
MAY_CHANGE = {"out", "minutes", "steps", "batch", "schedule", "decay_share"}
MAY_CHANGE |= {"precision", "compile", "checkpoint_seconds"}
# Fields of the first edition: what they had to be for a run to go on now.
GONE = {"clip": 1.0, "blur": 0.0, "hide": 0.0, "start": None}


def plain(config: Any) -> dict:
    """A dataclass as JSON can hold it."""
    fields = asdict(config).items()
    return {name: str(v) if isinstance(v, Path) else v for name, v in fields}


@dataclass
class Progress:
    """Where a run stands: what a checkpoint holds besides weights and optimizer."""

    step: int = 0
    clips: int = 0
    seconds: float = 0.0  # of training, without saving and showing
    decaying: bool = False  # the learning rate has begun its last fall
    history: list[list[float]] = field(default_factory=list)  # step, seconds, loss


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
        about: what else must stay as it is for the run to go on, as JSON can hold it.

    Raises:
        ValueError: a batch that the processes cannot share evenly.
    """

    def __init__(
        self,
        config: RunConfig,
        name: str,
        share: float = 1.0,
        about: dict | None = None,
    ):
        self.config, self.name, self.budget = config, name, share
        self.settings = plain(config) | (about or {})
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
        self.recent: list[float] = []
        self.clock = self.saved = time.perf_counter()

    @property
    def done(self) -> float:
        """How much of the budget is used up, from 0 to 1."""
        steps, minutes = self.config.steps, self.config.minutes
        if steps is not None:
            return self.progress.step / max(1, round(self.budget * steps))
        return self.progress.seconds / (60 * self.budget * minutes)

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

    def steps(self) -> Iterator[Step]:
        """Yields until the budget is used up; `report` has to be called in each step.

        Raises:
            OSError: a checkpoint that cannot be written; the last one is still there.
        """
        config, progress = self.config, self.progress
        total = config.steps or 60 * config.minutes
        bar = tqdm(
            desc=self.name,
            total=max(1, round(self.budget * total)),
            unit="step" if config.steps else "s",
            disable=not self.main,
        )
        while (done := self.done) < 1:
            falls = config.schedule == "wsd" and done >= 1 - config.decay_share
            if falls and not progress.decaying:
                if self.main:
                    self.save(self.stable)
                progress.decaying = True
            seeds = seed_everything(config.seed, progress.step, self.device)
            yield Step(done, *seeds, self.accelerator.process_index, self.processes)
            if self.main:
                self.log(bar)
        bar.close()
        self.accelerator.wait_for_everyone()
        self.accelerator.free_memory()

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
        self.logs = dict(zip(logs, values, strict=True))

    def log(self, bar) -> None:
        """Move the bar, keep the loss of every fifth step, save where it is time."""
        progress, ended = self.progress, self.done >= 1
        reached = progress.step if self.config.steps else progress.seconds
        bar.update(min(bar.total, int(reached)) - bar.n)
        if progress.step % 5 == 0 or ended:
            mean = sum(self.recent) / len(self.recent)
            progress.history.append([progress.step, progress.seconds, mean])
            shown = {"loss": mean} | self.logs
            shown["clips/s"] = progress.clips / max(progress.seconds, 1e-9)
            bar.set_postfix({k: f"{v:.4g}" for k, v in shown.items()}, refresh=False)
            self.recent.clear()
        if ended or time.perf_counter() - self.saved >= self.config.checkpoint_seconds:
            with self.pause():
                self.save(self.path)
            self.saved = time.perf_counter()

    @contextlib.contextmanager
    def pause(self):
        """What happens inside does not count as time of training."""
        start = time.perf_counter()
        yield
        self.clock += time.perf_counter() - start

    def save(self, path: Path) -> None:
        """Write a checkpoint in one step: a killed run leaves the old file whole."""
        parts = {n: p.state_dict() for n, p in self.parts.items() if p is not None}
        state = {"config": self.settings, "progress": asdict(self.progress)}
        buffer = io.BytesIO()
        torch.save(state | parts, buffer)
        try:
            write_file(path, buffer.getvalue())
        except OSError as error:
            kept = "the one before it is still there"
            raise OSError(
                error.errno,
                f"could not write the checkpoint of step {self.progress.step} "
                f"({error.strerror}); "
                f"{kept if path.exists() else 'there is none before it'}",
                str(path),
            ) from error

    def load(self, path: Path) -> None:
        """Bring progress and parts back to where `save` found them."""
        broken = (RuntimeError, KeyError, TypeError, EOFError, pickle.UnpicklingError)
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            progress = Progress(**state["progress"])
            self.compare(state["config"], path)
        except broken as error:
            reason = type(error).__name__
            raise ValueError(f"{path} is not a whole checkpoint: {reason}") from error
        older = progress.step * state["config"].get("batch", 0)  # those don't tell
        progress.clips = progress.clips or older
        for name, part in self.parts.items():
            if part is None or (name == "scaler" and name not in state):
                continue  # a run that was not in float16 so far finds its scale anew
            try:
                part.load_state_dict(state[name])
            except (RuntimeError, ValueError) as error:  # weights of another shape
                reason = str(error).splitlines()[0]
                message = f"{path} does not fit: {reason}; choose another `out`"
                raise ValueError(message) from error
        self.progress = progress

    def compare(self, then: dict, path: Path) -> None:
        """ValueError where a checkpoint was written under other settings.

        What was written before a setting was there counts as written with its default.
        """
        defaults = plain(type(self.config)())
        changed = []
        for name, now in (GONE | self.settings).items():
            before = then.get(name, defaults.get(name, now))
            unknown = name == "tokenizer" and not isinstance(before, type(now))
            if name not in MAY_CHANGE and before != now and not unknown:
                changed.append(f"{name} = {before!r}, now {now!r}")
        if changed:
            what = ", ".join(changed)
            message = f"{path} is of another config: {what}; choose another `out`"
            raise ValueError(message)
