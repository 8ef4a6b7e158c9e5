# Made from notebooks/92_runs.ipynb by "make extract".
"""Runs: a config that is checked, budget, clock, log. Built in appendix 92."""

import contextlib
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Annotated, Literal, NamedTuple

import torch
from filelock import FileLock, Timeout
from torch import Tensor
from tqdm import tqdm

from stt_lite import checkpoints
from stt_lite.checkpoints import Progress, as_json, check_fields
from stt_lite.files import check_writable
from stt_lite.machines import new_accelerator, random_state_kept, seed_everything

__all__ = ["AtLeastZero", "Positive", "Run", "RunConfig", "Share", "Step"]


Positive = Annotated[float, "above 0"]
AtLeastZero = Annotated[float, "at least 0"]
Share = Annotated[float, "in [0, 1)"]


@dataclass(frozen=True)
class RunConfig:
    """How long a run is, on what, and where it leaves what it makes.

    Args:
        out: folder for weights, records and checkpoints; a run that stopped goes on
            from what lies there.
        minutes: time budget, saving and showing not counted.
        steps: step budget; where given, `minutes` does not matter.
        batch: clips per step, over all processes together.
        adamw_rate: peak learning rate of AdamW; it may change when a run goes on.
        schedule: of the learning rate, "wsd" (stable, then down) or "cosine".
        decay_share: share of the budget, at its end, in which "wsd" goes down.
        seed: everything random follows from it and the step.
        precision: "no" (float32), "bf16", "fp16"; "auto": half on a GPU, "no" on a CPU.
        compile: torch.compile; None: on a GPU only.
        checkpoint_seconds: time between two, less at first; 0 writes one at every step.

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

    def __init__(self, config: RunConfig, name: str, share=1.0, settings=None):
        self.config, self.name = config, name
        self.budget = 60 * share * (config.minutes or 0.0)  # in seconds, or in steps
        if config.steps:
            self.budget = max(1, round(share * config.steps))
        self.settings = as_json(asdict(config) | (settings or {}))
        self.path = config.out / f"{name}.checkpoint"
        self.next = config.out / f"{name}-next.checkpoint"  # until a loss is good
        self.stable = config.out / f"{name}-stable.checkpoint"
        self.accelerator = new_accelerator(config.precision, config.compile)
        self.device = self.accelerator.device
        self.main = self.accelerator.is_main_process
        self.processes = self.accelerator.num_processes
        if config.batch % self.processes:
            wanted = f"a multiple of the {self.processes} processes"
            raise ValueError(f"batch must be {wanted}, got {config.batch}")
        self.progress, self.parts = Progress(), {}
        self.recent, self.logs = [], {}  # losses of the latest steps, logs of the last
        self.signals, self.stopping = [], False  # this process's, and all processes'
        self.shown, self.clock, self.saved = 0.0, time.perf_counter(), 0.0

    @property
    def done(self) -> float:
        """How much of the budget is used up, from 0 to 1."""
        used = self.progress.step if self.config.steps else self.progress.seconds
        return used / self.budget

    def steps(self) -> Iterator[Step]:
        """Yields until the budget is used up; `report` has to be called in each step.

        Raises:
            OSError: a checkpoint that cannot be written; the last one is still there.
        """
        config, progress = self.config, self.progress
        begun = f", on from step {progress.step}" if progress.step else ""
        bar = tqdm(desc=f"{self.name}{begun}", disable=not self.main)
        bar.total, bar.unit = math.ceil(self.budget), "step" if config.steps else "s"
        bar.initial = bar.n = round(min(1.0, self.done) * bar.total)
        while (done := self.done) < 1:
            falls = config.schedule == "wsd" and done >= 1 - config.decay_share
            if falls and not progress.decaying:
                if self.main:  # that of a smaller budget must not outlive this one
                    self.stable.unlink(missing_ok=True)
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
            ValueError: a checkpoint of another config, or a file that is none.
        """
        self.parts = parts | {"scaler": self.accelerator.scaler}
        if self.main:
            self.next.unlink(missing_ok=True)  # of a run that was killed
        if self.path.exists():
            self.load(self.path)
        if self.progress.decaying and self.stable.exists():
            self.load(self.stable)
            if self.done >= 1 - self.config.decay_share:  # the budget is what it was
                self.load(self.path)
        self.clock = self.saved = time.perf_counter()

    def load(self, path: Path) -> None:
        """Bring progress and parts back to where a checkpoint has them."""
        given = self.settings, self.parts, as_json(type(self.config)())
        self.progress = checkpoints.load_checkpoint(path, *given)

    def report(self, loss: Tensor, norm: Tensor, clips: int, logs: dict) -> None:
        """What a step came to: its loss, the gradient's norm, and what else to show.

        Raises:
            FloatingPointError: loss or norm is not finite; the last checkpoint stays.
            KeyboardInterrupt, SystemExit: inside `held`, after Ctrl-C or SIGTERM.
        """
        progress, now = self.progress, time.perf_counter()
        seconds, self.clock = now - self.clock, now
        # Only the main process gives its clock, so the mean of all is that clock.
        given = [self.processes * seconds if self.main else 0.0, len(self.signals)]
        values = [*torch.tensor(given), loss.detach().float(), *logs.values()]
        values = torch.stack([value.to(self.device) for value in values])
        seconds, stop, mean, *values = self.accelerator.reduce(values, "mean").tolist()
        skipped = self.accelerator.scaler is not None  # it leaves such steps out
        if not math.isfinite(mean) or not (math.isfinite(norm) or skipped):
            what = f"the loss is {mean} and its gradient's norm {float(norm)}"
            raise FloatingPointError(
                f"{what} at step {progress.step} of the {self.name}; "
                f"with lower learning rates the same run {self.outlook}"
            )
        if self.main and self.next.exists() and self.in_range(mean):
            self.next.replace(self.path)
        if self.stopping:
            self.stop()
        self.stopping = stop > 0  # of any process, and for all in the same step
        progress.seconds = seconds = progress.seconds + seconds
        progress.step += 1
        progress.clips += clips
        self.recent.append(mean)
        self.logs = {"loss": mean, **dict(zip(logs, values, strict=True))}
        if progress.step % 5 == 0 or self.done >= 1:
            progress.history.append([progress.step, seconds, fmean(self.recent)])
            self.recent.clear()

    def in_range(self, loss: float) -> bool:
        """Whether weights of this loss are worth keeping."""
        usual = median(self.progress.kept or [0.0])
        return not abs(loss) > 10 * usual > 0

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """The folder is this run's alone; Ctrl-C and SIGTERM wait for a checkpoint.

        Raises:
            OSError: another process trains there, or the folder can't be written.
            KeyboardInterrupt, SystemExit: as asked for, with a line on how to go on.
        """
        folder = self.config.out
        with contextlib.ExitStack() as stack:
            stack.enter_context(random_state_kept())
            if self.main:
                check_writable(folder / ".lock")
                try:
                    stack.enter_context(FileLock(folder / ".lock", timeout=0))
                except Timeout as error:
                    raise OSError(f"another training is at work in {folder}") from error
            if threading.current_thread() is threading.main_thread():  # others get none
                for kind in (signal.SIGINT, signal.SIGTERM):
                    stack.callback(signal.signal, kind, signal.signal(kind, self.note))
            yield
        if self.signals:
            self.stop()

    def note(self, kind: int, frame) -> None:
        """Take a signal as a wish; KeyboardInterrupt at the second one."""
        self.signals.append(kind)
        if len(self.signals) > 1:
            raise KeyboardInterrupt

    def stop(self) -> None:
        """KeyboardInterrupt, or SystemExit after SIGTERM, and how to go on."""
        step = f"step {self.progress.step} of the {self.name}"
        told = f"stopped at {step}; called again, it {self.outlook}"
        if signal.SIGINT in self.signals:
            raise KeyboardInterrupt(told)
        print(f"\n{told}", file=sys.stderr)
        sys.exit(128 + signal.SIGTERM)

    @property
    def outlook(self) -> str:
        """What the same run does when it is called again."""
        return f"goes on from {self.path}" if self.path.exists() else "begins anew"

    @contextlib.contextmanager
    def pause(self):
        """What happens inside does not count as time of training."""
        start = time.perf_counter()
        yield
        self.clock += time.perf_counter() - start

    def save(self, path: Path) -> None:
        """Write a checkpoint, unless the loss left its range; then the old stays."""
        loss = self.logs.get("loss", (self.progress.kept or [0.0])[-1])
        if self.main and self.in_range(loss):
            self.progress.kept.append(abs(loss))
            state = self.progress, self.settings, self.parts
            with self.pause():
                checkpoints.save_checkpoint(path, *state)

    def log(self, bar) -> None:
        """Move the bar, and save where it is time."""
        bar.update(round(min(1.0, self.done) * bar.total) - bar.n)
        speed = self.progress.clips / max(self.progress.seconds, 1e-9)
        bar.set_postfix(self.logs | {"clips/s": speed}, refresh=False)
        often = min(self.config.checkpoint_seconds, self.progress.seconds / 2)
        if self.done >= 1:
            self.save(self.path)
        elif self.stopping or time.perf_counter() - self.saved >= often:
            self.save(self.next)
            self.saved = time.perf_counter()

    def due(self, interval: float = 5.0) -> bool:
        """Whether the main process should show something: now and then, and at last."""
        now = time.perf_counter()
        due = self.done >= 1 or now - self.shown >= interval
        due = due and self.main and len(self.progress.history) > 0
        self.shown = now if due else self.shown
        return due
