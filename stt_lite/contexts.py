# Made from notebooks/10_long_rollouts.ipynb by "make extract".
"""Contexts: training on what a rollout will meet. Built in chapter 10."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stt_lite.moving_mnist import Batch, MovingDigits, Source
from stt_lite.runs import Share, Step
from stt_lite.sampling import continued
from stt_lite.tokenizer import Tokenizer
from stt_lite.training import TeacherForcing, TransformerObjective

__all__ = [
    "PRESETS",
    "ContextObjective",
    "Preset",
    "TrainingConfig",
    "corrupt",
    "dim",
]


def corrupt(
    latents: Float[Tensor, "B T D h w"],
    tokenizer: Tokenizer,
    rate: Float[Tensor, "B"],
    chance: Float[Tensor, "B T h w"],
    random: Int[Tensor, "B T h w"],
) -> Float[Tensor, "B T D h w"]:
    """Replace tokens by the codewords `random` where `chance` is below the clip's rate.

    Args:
        chance: drawn evenly from [0, 1).
    """
    codes = tokenizer.codes(random.flatten(0, 1)).view_as(latents)
    replaced = chance < rate[:, None, None, None]  # (B T h w)
    return torch.where(replaced[:, :, None], codes, latents)


def dim(
    clips: Float[Tensor, "B T C H W"],
    most: Float[Tensor, "B"],
    share: Float[Tensor, "B T"],
) -> Float[Tensor, "B T C H W"]:
    """Each frame darker by a share of the most that its clip loses; all in [0, 1]."""
    return (1 - (most[:, None] * share)[:, :, None, None, None]) * clips


@dataclass(frozen=True)
class TrainingConfig(TeacherForcing):
    """One training run, on contexts like those that a rollout meets.

    Args:
        forecast_share: share of the steps, in [0, 1), in which only a prompt's frames
            take z from the posterior, and all later ones the prior's mean, as at
            temperature 0. The prompt is a quarter to a half of the clip; with own
            rollouts, theirs.
        corruption: each clip draws a rate from 0 to this, and has that share of its
            context replaced by random tokens.
        fade: each clip draws a rate up to this, mostly near 0, and has each frame of
            its context dimmed by 0 up to that share.
        rollout_share: share of the budget, at its end, in which the context holds the
            model's own rollouts.
        rollout_length: share of a clip's frames that such a rollout replaces at most.

    Raises:
        TypeError, ValueError: what is no path, a number out of range.
    """

    forecast_share: Share = 0.9
    corruption: Share = 0.03
    fade: Share = 0.15
    rollout_share: Share = 0.25
    rollout_length: Share = 0.5

    def objective(self, net, tokenizer, source) -> "ContextObjective":
        """What such a run minimizes."""
        return ContextObjective(net, tokenizer, self, source)


class ContextObjective(TransformerObjective):
    """The same loss, but what the model sees is a spoiled context, or its own.

    What it should say, and what the posterior sees, stay the true frames.
    """

    @torch.no_grad()
    def prepare(self, batch: Batch, step: Step) -> dict:
        """Arguments of `forward`, for this process's share of the clips."""
        prepared = super().prepare(batch, step)
        c, generator = self.config, step.on_device
        (B, T), (h, w) = batch.clips.shape[:2], self.model.config.grid

        def uniform(*shape: int) -> Tensor:  # in [0, 1); alike in all processes
            return torch.rand(shape, generator=generator, device=generator.device)

        def each(*shape: int) -> Tensor:  # this process's share of one draw a clip
            return step.share(uniform(B, *shape))

        def whole(low: int, high: int) -> int:  # from low to high
            return low + int(uniform() * (high + 1 - low))

        context, noise = prepared["target"], prepared["noise"]
        if c.fade:
            most, share = c.fade * each() ** 3, each(T)
            context = self.tokens(dim(prepared["clips"], most, share))[0]
        K = self.tokenizer.quantizer.codebook_size
        random = (K * each(T, h, w)).long()
        rate, chance = c.corruption * each(), each(T, h, w)
        context = corrupt(context, self.tokenizer, rate, chance, random)
        forecast = float(uniform()) < c.forecast_share
        known = whole(max(1, T // 4), T // 2) if forecast else True
        if step.done > 1 - c.rollout_share:
            condition = self.condition(prepared["actions"])
            prompt = whole(max(1, int(T * (1 - c.rollout_length))), T - 1)
            known = prompt if forecast else True
            context[:, :-1] = continued(  # no prediction sees the last place
                self.model,
                self.tokenizer,
                context[:, :-1],
                prompt,
                noise[:, :-1],
                0.0 if forecast else 1.0,
                None if condition is None else condition[:, :-1],
            )
        return prepared | {"context": context, "known": known}


class Preset(NamedTuple):
    """What `train` takes: `train(*PRESETS["moving-mnist-tiny"])`."""

    config: TrainingConfig
    source: Source
    tokenizer: str


PRESETS = {
    "moving-mnist-tiny": Preset(
        TrainingConfig(out=Path("runs/moving-mnist-tiny"), minutes=60.0),
        MovingDigits(size=32, digits=1),
        "moving-mnist-tiny",
    ),
    "moving-mnist": Preset(
        TrainingConfig(
            out=Path("runs/moving-mnist"),
            minutes=180.0,
            width=192,
            layers=6,
            heads=6,
            patch=2,
            beta=160.0,
        ),
        MovingDigits(size=64, digits=2),
        "moving-mnist",
    ),
}
