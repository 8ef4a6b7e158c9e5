"""What each process of a test runs; a spawned one imports this module by name."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from stt_lite.moving_mnist import Batch, MovingDigits
from stt_lite.pipeline import train
from stt_lite.quantizers import VectorQuantizer
from stt_lite.runs import Run, RunConfig
from stt_lite.tokenizer import TokenizerConfig
from stt_lite.training import TeacherForcing

TINY = dict(width=8, layers=1, heads=2, batch=2, steps=5, tokenizer_share=0.4)
TOKENS = dict(width=16, latent_channels=4, codebook_size=16, residual_blocks=0)

RUNS = {
    "follows": dict(kmeans_iterations=0, dead_below=0.0),
    "restarts": dict(kmeans_iterations=10, dead_below=0.5),
}


def train_quantizer(
    options: dict, batches: torch.Tensor, seed: int
) -> dict[str, torch.Tensor]:
    """Buffers of a quantizer after training on `batches` (steps B D h w).

    `seed` is of the draws in training alone.
    """
    torch.manual_seed(0)
    quantizer = VectorQuantizer(24, 4, decay=0.8, **options)
    torch.manual_seed(seed)
    for batch in batches:
        quantizer(batch)
    return dict(quantizer.named_buffers())


def train_quantizers(rank: int, folder: str, batches: torch.Tensor) -> None:
    """Both runs in one of two processes, on half of each batch, written to `folder`."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    mine = batches.chunk(2, dim=1)[rank]
    results = {
        name: train_quantizer(options, mine, seed=1 + rank)
        for name, options in RUNS.items()
    }
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def meet(rank: int, folder: str) -> None:
    """Join the other of two processes, on the CPU, as a launcher would let it."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"LOCAL_WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0"}  # only asked for
    address = f"file://{folder}/meet"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)


def report_clocks(rank: int, folder: str) -> None:
    """Three steps of a run that learns nothing, the second process much slower."""
    meet(rank, folder)
    config = RunConfig(out=Path(folder, "out"), steps=3)
    run = Run(config, "thing")
    for _ in run.steps():
        time.sleep(0.1)
        if rank == 1:  # the first one waits for it where they report
            time.sleep(0.3)
        run.report(torch.tensor(float(rank)), torch.tensor(1.0), 2, {})
    means = [loss for _, _, loss in run.progress.history] or [0.5]
    refused = ""
    try:
        Run(replace(config, batch=3), "other")
    except ValueError as error:
        refused = str(error)
    told = {"seconds": run.progress.seconds, "step": run.progress.step}
    told |= {"mean": means[-1], "refused": refused}
    torch.save(told, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


class FakeClips:
    """A source of squares that move one pixel a frame, with some actions or none."""

    size = 16

    def __init__(self, data, channels=1, frames=4, actions=0):
        self.data, self.channels, self.frames = data, channels, frames
        self.actions = actions

    def draw(self, n, frames, generator=None, device="cpu"):
        start = torch.randint(8, (n,), generator=generator)
        clips = torch.zeros(n, frames, self.channels, self.size, self.size)
        for i in range(n):
            for t in range(frames):
                x = (int(start[i]) + t) % 12
                clips[i, t, :, 4:9, x : x + 4] = 1.0
        actions = torch.ones(n, frames, dtype=torch.long) if self.actions else None
        return Batch(clips.to(device), actions)

    def held_out(self, n, frames, seed=0, device="cpu"):
        generator = torch.Generator().manual_seed(seed)
        return self.draw(n, frames, generator, device).clips


def train_digits(folder: str, tokenizer: str | None = None, **changes) -> None:
    """A transformer on digits, in forty steps or as told; a tokenizer, too."""
    changes = {"steps": 40, "checkpoint_seconds": 0.0} | changes
    config = TeacherForcing(out=Path(folder), **TINY | changes)
    tokenizer = tokenizer or TokenizerConfig(**TOKENS)
    train(config, MovingDigits(size=16, frames=4), tokenizer)


def halt(folder: str) -> None:
    """`train_digits`, which stands still (SIGSTOP) where its first checkpoint is."""
    save = Run.save

    def save_and_halt(self, path):
        save(self, path)
        Run.save = save
        os.kill(os.getpid(), signal.SIGSTOP)

    Run.save = save_and_halt
    train_digits(folder)


def train_in_two(rank: int, folder: str, tokenizer: str, config: dict) -> None:
    """Runs that two processes share: new, continued, in two folders, by the clock."""
    meet(rank, folder)
    for name in ("two", "mixed"):
        train_digits(f"{folder}/{name}", tokenizer, **config)
    train_digits(f"{folder}/rank{rank}", **config | {"steps": 15})
    if rank == 1:  # a clock of its own, which must not matter
        perf_counter = time.perf_counter
        time.perf_counter = lambda: 3 * perf_counter()
    train_digits(f"{folder}/timed", **config | dict(steps=None, minutes=0.05))
    dist.destroy_process_group()
