"""What keeps a ball alive: variants of chapter 17's world, and a record of each.

    python book/experiments/keep_ball.py --steps 60 --seeds 0 1

Each variant goes on from the bundled world, for as many steps and clips as all others,
with one thing changed. "bundle" is that world as it is, "again" goes on unchanged.
A run whose record is there is skipped, one that stopped goes on. Times are CPU seconds.
"""

import json
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean

import torch

from masked_tokens import Draw, MaskedTransformer, MaskObjective, in_passes, rolled
from stt_lite.bundles import held_out_clips, load_pretrained
from stt_lite.contexts import PRESETS, ContextObjective
from stt_lite.files import check_writable, write_file
from stt_lite.generation import VideoModel
from stt_lite.machines import seed_everything
from stt_lite.pipeline import run_record, shape_of
from stt_lite.runs import Run
from stt_lite.training import Objective, fit
from stt_lite.transformer import SpatialTemporalTransformer
from stt_lite.worlds import PongWorld, find_small_ball
from world_scores import (
    PROMPT,
    followed,
    judged_by_detectors,
    random_rollouts,
    second_ball,
)

SERVE = 24  # frames that a serve takes at most: the bundle's record
FRAMES = 8  # of a clip to train on


class GoingOn(ContextObjective):
    """The preset's objective, with AdamW alone: the matrices are trained already."""

    optimizer = Objective.optimizer
    steps = 0  # in this process

    def prepare(self, batch, step) -> dict:
        self.steps += 1
        return super().prepare(batch, step)


class GoingOnMasked(GoingOn, MaskObjective):
    """The same, with tokens that are hidden."""


@torch.no_grad()
def next_frame(model: VideoModel, how: Draw, n: int = 30) -> dict:
    """Frames 8 to 15 of true clips, each from true ones: is the ball in its place?"""
    clips, actions = held_out_clips(model, n, 2 * PROMPT, seed=5)
    net, g = model.transformer, torch.Generator().manual_seed(0)
    latents = model.tokens(clips)
    options = dict(noise=net.draw_noise(n, 2 * PROMPT, g), posterior=how.posterior)
    options |= dict(temperature=how.z, condition=net.actions(actions))
    predict = lambda: (net(latents, **options).prediction, None)  # noqa: E731
    codewords, _ = in_passes(model, predict, how, g)
    frames = model.tokenizer.decode(codewords[:, PROMPT:].flatten(0, 1))
    truth = find_small_ball(clips[:, PROMPT:]).flatten(0, 1)
    there = ~truth[:, 0].isnan()
    found, two = find_small_ball(frames)[there], second_ball(frames)[there]
    off = (found - truth[there]).abs().amax(-1)
    return {
        "balls": there.sum().item(),
        "within_3": ((off <= 3) & ~two).float().mean().item(),
        "gone": found[:, 0].isnan().float().mean().item(),
        "two": two.float().mean().item(),
    }


def own_frames(model: VideoModel, how: Draw, n: int, new: int = 200) -> dict:
    """A ball in rollouts under random keys: seen, twice, or rightly away."""
    begun = time.process_time()
    video = random_rollouts(model, n, new, partial(rolled, how=how))
    seconds = time.process_time() - begun
    first, right = zip(*judged_by_detectors(video, SERVE))
    two = torch.stack([*map(second_ball, video)])
    return {
        "rollouts": n,
        "frames": new,
        "seen": (~find_small_ball(video)[..., 0].isnan()).float().mean().item(),
        "two": two.float().mean().item(),
        "right": fmean(right),
        "first_impossible": sorted(first),
        "cpu_seconds_per_frame": seconds / (n * new),
    }


@dataclass(frozen=True)
class Variant:
    """What a variant changes of the preset, how it learns, and how it is drawn."""

    training: dict
    draws: tuple[Draw, ...] = (Draw(), Draw(1, 1))  # of rollouts
    once: tuple[Draw, ...] = ()  # of single frames, besides
    rollouts: int = 4
    net: type[SpatialTemporalTransformer] = SpatialTemporalTransformer
    objective: type[ContextObjective] = GoingOn


OFF, CLEAN = {"gaussian": "off"}, {"corruption": 0.0, "rollout_share": 0.0}
SHARED = (Draw(), Draw(1, 1), Draw(1, 0), Draw(0, 1), Draw(0.5, 0.5))
PASSES = (Draw(passes=3), Draw(0, 1, 3))
SEEN = (Draw(1, 0, 1, True), Draw(1, 1, 1, True))
VARIANTS = {
    "bundle": Variant({}, SHARED, SEEN, 12),
    "again": Variant({}, once=SEEN),
    "gaussian-off": Variant(OFF),
    "masks": Variant(
        OFF,
        PASSES,
        once=(Draw(), Draw(0, 1)),
        net=MaskedTransformer,
        objective=GoingOnMasked,
    ),
    "moving-0": Variant({"moving": 0.0}),
    "clean": Variant(CLEAN),
}


def train_variant(name: str, config) -> tuple[VideoModel, dict]:
    """The bundled world, a variant's steps on, and the record of its run."""
    variant, start = VARIANTS[name], load_pretrained("pong")
    if name == "bundle":
        return start, {}
    source = replace(PongWorld(), frames=FRAMES)
    config = replace(config, **variant.training)
    seed_everything(config.seed, -2, "cpu")
    net = variant.net(shape_of(config, source, start.tokenizer.config))
    net.load_state_dict(start.transformer.state_dict(), strict=False)
    run = Run(config, "transformer", settings=source.data | {"variant": name})
    begun = time.process_time()
    objective = variant.objective(net, start.tokenizer, config, source)
    net = fit(objective, run)
    seconds = time.process_time() - begun
    record = run_record(run, source.data)
    record["cpu_seconds_per_step"] = seconds / max(1, objective.steps)
    del record["training"]["out"]
    return VideoModel(start.tokenizer, net, start.record).eval(), record


def judged(name: str, model: VideoModel) -> dict:
    """All scores of a variant."""
    variant = VARIANTS[name]
    once, n = variant.once + variant.draws, variant.rollouts
    return {
        "next_frame": {str(how): next_frame(model, how) for how in once},
        "followed": followed(model, 30, 20, partial(rolled, how=variant.draws[0])),
        "own_frames": {str(how): own_frames(model, how, n) for how in variant.draws},
    }


def keep_ball(
    variants: tuple[str, ...] = tuple(VARIANTS),
    steps: int = 60,
    seeds: tuple[int, ...] = (0, 1),
    out: Path = Path("book/results"),
    runs: Path = Path("runs"),
) -> None:
    """Train variants for equal steps, score them alike, write a record of each.

    Args:
        variants: which; by default all.
        steps: of four clips, each.
        seeds: one run each; the bundle has one.
        out: folder for the records.
        runs: folder for checkpoints.
    """
    short = dict(minutes=None, steps=steps, adamw_rate=3e-4, decay_share=0.5, average=0)
    short |= dict(precision="no", compile=False)
    for seed in seeds:
        for name in variants:
            path = out / f"world-{name}-seed{seed}.json"
            if path.exists() or (name == "bundle" and seed):
                continue
            check_writable(path)
            changes = short | dict(out=runs / path.stem, seed=seed)
            config = replace(PRESETS["pong"].config, **changes)
            model, record = train_variant(name, config)
            record = {"study": "world", "variant": name} | record | judged(name, model)
            write_file(path, (json.dumps(record, indent=1) + "\n").encode())
            print(path, flush=True)


if __name__ == "__main__":
    import tyro

    tyro.cli(keep_ball)
