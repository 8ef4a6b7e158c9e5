"""What keeps a ball alive: variants of chapter 17's world, and a record of each.

    python book/experiments/keep_ball.py --steps 60 --seeds 0 1

Each variant goes on from the bundled world, for as many steps and clips as all others,
with one thing changed. "bundle" is that world as it is, "again" goes on unchanged.
A run whose record is there is skipped, one that stopped goes on. Times are CPU seconds.
"""

import json
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stt_lite.bundles import held_out_clips, load_pretrained
from stt_lite.contexts import PRESETS, ContextObjective
from stt_lite.files import check_writable, write_file
from stt_lite.generation import VideoModel
from stt_lite.machines import seed_everything
from stt_lite.optim import MuonAdamW
from stt_lite.pipeline import run_record, shape_of
from stt_lite.runs import Run
from stt_lite.sampling import keep_start, prefill
from stt_lite.training import fit
from stt_lite.transformer import SpatialTemporalTransformer, prediction_error
from stt_lite.worlds import PongWorld, find_paddle, find_small_ball
from world_scores import PROMPT, holds, meets, random_keys, second_ball

SERVE = 24  # frames that a serve takes at most: the bundle's record
FRAMES = 8  # of a clip to train on


class MaskedTransformer(SpatialTemporalTransformer):
    """Also sees those tokens of the frame it predicts that are drawn already."""

    revealed: Float[Tensor, "B T D1 h w"] | None = None  # codewords, and where they are

    def __init__(self, config):
        super().__init__(config)
        channels = (config.latent_channels + 1) * config.patch**2
        self.now = nn.Linear(channels, config.width, bias=False)

    def run_layers(self, x, *rest, **options):
        if self.revealed is not None:
            P = self.config.patch
            parts = "B T D (h p) (w q) -> B T h w (D p q)"
            x = x + self.now(rearrange(self.revealed, parts, p=P, q=P))
        return super().run_layers(x, *rest, **options)


def reveal(
    latents: Float[Tensor, "B T D h w"], known: Bool[Tensor, "B T h w"]
) -> Float[Tensor, "B T D1 h w"]:
    """Codewords where they are known, 0 elsewhere, and a channel that says where."""
    known = known[:, :, None]
    return torch.cat([torch.where(known, latents, 0), known.to(latents)], dim=2)


class GoingOn(ContextObjective):
    """The preset's objective, with AdamW alone: the matrices are trained already."""

    steps = 0  # in this process

    def prepare(self, batch, step) -> dict:
        self.steps += 1
        return super().prepare(batch, step)

    def optimizer(self) -> torch.optim.Optimizer:
        rate = self.config.adamw_rate
        return MuonAdamW([], self.model.parameters(), adamw_rate=rate)


class MaskObjective(GoingOn):
    """Tokens of a frame from some of the others (Chang et al., 2022, Section 3.1)."""

    def prepare(self, batch, step) -> dict:
        prepared = super().prepare(batch, step)
        indices, g = prepared["indices"], step.on_device
        u = torch.rand(indices.shape[:2], generator=g)
        chance = torch.rand(indices.shape, generator=g)
        share = torch.cos(math.pi / 2 * u)  # most frames are mostly hidden
        return prepared | {"hidden": chance < share[:, :, None, None]}

    def forward(
        self, clips, context, target, indices, noise, known, actions, hidden
    ) -> tuple[Tensor, dict]:
        self.model.revealed = reveal(target, ~hidden)
        out = self.model(context, noise=noise, condition=self.condition(actions))
        self.model.revealed = None
        weight = torch.ones_like(indices, dtype=torch.float32)
        weight[:, 1:] += self.config.moving * (indices[:, 1:] != indices[:, :-1])
        error = prediction_error(out.prediction, indices, weight=weight * hidden)
        share = hidden.float().mean()  # a hidden token counts as much as elsewhere
        loss = error.mean() / (share * target[0, 0, 0].numel())
        return loss, {"latents": error.mean().detach()}


@dataclass(frozen=True)
class Draw:
    """How tokens are drawn: temperatures of z and of the tokens, and passes."""

    z: float = 0.0
    tokens: float = 0.0
    passes: int = 1
    posterior: bool = False  # z has seen the frame to predict; for one step only

    def __str__(self) -> str:
        z = "posterior" if self.posterior else f"{self.z:g}"
        return f"z {z}, tokens {self.tokens:g}, passes {self.passes}"


def in_passes(model: VideoModel, predict, how: Draw, g) -> tuple[Tensor, object]:
    """Codewords (B T D h w) of what `predict` gives logits (B T K h w) and more for.

    Each pass draws all tokens that are not known yet and keeps the surest; how many it
    leaves hidden falls as a cosine.
    """
    net, tokens, known = model.transformer, None, None
    for i in range(1, how.passes + 1):
        logits, rest = predict()
        scores = logits
        if how.tokens:
            gumbel = -torch.empty_like(logits).exponential_(generator=g).log()
            scores = logits / how.tokens + gumbel
        drawn = scores.argmax(2)  # (B T h w)
        sure = logits.log_softmax(2).gather(2, drawn[:, :, None])[:, :, 0]
        if known is not None:
            drawn = torch.where(known, tokens, drawn)
            sure = torch.where(known, math.inf, sure)
        tokens, sure = drawn, sure.flatten(2)
        hidden = math.cos(math.pi / 2 * i / how.passes)
        count = max(1, round((1 - hidden) * sure.shape[2]))
        best = sure.topk(count, dim=2).indices
        known = torch.zeros_like(sure, dtype=torch.bool).scatter(2, best, True)
        known = known.view_as(tokens)
        codewords = model.tokenizer.codes(tokens.flatten(0, 1))
        codewords = codewords.unflatten(0, tokens.shape[:2])
        if i < how.passes:
            net.revealed = reveal(codewords, known)
    net.revealed = None
    return codewords, rest


@torch.no_grad()
def rolled(model: VideoModel, clips, actions, how: Draw, seed: int = 0) -> Tensor:
    """The frames (B new C H W) that follow clips (B T C H W), keys (B T + new)."""
    net, g = model.transformer, torch.Generator().manual_seed(seed)
    (B, T), slots = clips.shape[:2], model.trained_frames
    latents, leads = model.tokens(clips), net.actions(actions)
    noise = iter(lambda: net.draw_noise(B, 1, g)[:, 0], None)
    cache = prefill(net, latents, slots, noise, how.z, leads[:, :T])
    latent, frames = latents[:, -1], []
    for t in range(T, actions.shape[1]):
        before = keep_start(cache) if t >= slots else cache
        rest = (next(noise), None, how.z, leads[:, t])

        def predict():
            logits, after = net.step(latent, before, *rest)
            return logits[:, None], after

        codewords, cache = in_passes(model, predict, how, g)
        latent = codewords[:, 0]
        frames.append(model.tokenizer.decode(latent))
    return torch.stack(frames, dim=1)


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
    clips, actions = held_out_clips(model, n, PROMPT, seed=3)
    keys = torch.cat([actions, random_keys(n, new, seed=0)], dim=1)
    begun = time.process_time()
    video = rolled(model, clips, keys, how)
    seconds = time.process_time() - begun
    ball, two = find_small_ball(video), torch.stack([*map(second_ball, video)])
    held = [holds(*clip, SERVE) for clip in zip(ball, two)]
    return {
        "rollouts": n,
        "frames": new,
        "seen": (~ball[..., 0].isnan()).float().mean().item(),
        "two": two.float().mean().item(),
        "right": sum(right for _, right in held) / n,
        "first_impossible": sorted(first for first, _ in held),
        "cpu_seconds_per_frame": seconds / (n * new),
    }


def followed(model: VideoModel, how: Draw, n: int = 30, new: int = 20) -> dict:
    """Paddle, and ball up to its next meeting, under the recorded keys."""
    clips, actions = held_out_clips(model, n, PROMPT + new, seed=1)
    video = rolled(model, clips[:, :PROMPT], actions, how)
    away = (find_paddle(video) - find_paddle(clips[:, PROMPT:])).abs()
    near = []
    for ball, found in zip(find_small_ball(clips), find_small_ball(video)):
        if ball[PROMPT - 2 : PROMPT].isnan().any():
            continue  # it is out of play
        end = max(0, meets(ball[PROMPT - 2 :]) - 2)
        off = (found[:end] - ball[PROMPT : PROMPT + end]).abs().amax(-1)
        near += (off <= 3).tolist()
    return {
        "clips": n,
        "new_frames": new,
        "paddle_within_2": (away <= 2).float().mean().item(),
        "ball_frames": len(near),
        "ball_within_3": sum(near) / len(near),
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
        OFF, PASSES, (Draw(), Draw(0, 1)), MaskedTransformer, MaskObjective
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
        "followed": followed(model, variant.draws[0]),
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
