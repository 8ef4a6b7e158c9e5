# Made from notebooks/12_what_each_idea_is_worth.ipynb by "make extract".
"""What a model does worst, and what coincides with it. Chapter 12."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from stt_lite.evaluation import without_chance
from stt_lite.generation import VideoModel
from stt_lite.metrics import centroid, ink, squared_error

Clip = Float[Tensor, "T C H W"]


def bounces(clip: Clip) -> list[tuple[int, str]]:
    """Frames in which a clip of one digit has turned round, and the border it met."""
    steps = centroid(clip).diff(dim=0).round()  # (T-1 2): rows and columns, in pixels
    found = []
    for axis, names in enumerate((("top", "bottom"), ("left", "right"))):
        moves = [(t, step) for t, step in enumerate(steps[:, axis].tolist()) if step]
        for (_, before), (t, after) in pairwise(moves):  # it may rest at the border
            if before * after < 0:
                found.append((t, names[before > 0]))
    return sorted(found)


def explain(clip: Clip, video: Clip, prompt: int, trouble: float) -> str:
    """One sentence on what coincides with a bad continuation of a clip of one digit.

    Args:
        clip, video: what happened, and the same prompt with generated frames.
        prompt: frames that were given.
        trouble: the tokenizer's error on this clip, in units of its median over clips.
    """
    away = (centroid(video[-1:]) - centroid(clip[-1:])).norm().item()
    left = (ink(video[-1:]) / ink(clip[-1:])).item()
    end = f"at the end the digit is {away:.1f} pixels off"
    if abs(left - 1) > 0.15:
        end += f" and has {left:.0%} of its ink"
    turns = [(t, border) for t, border in bounces(clip) if t >= prompt - 1]
    if turns:
        where = " and the ".join(f"{b} border in frame {t + 1}" for t, b in turns)
        return f"It bounces off the {where}; {end}."
    if trouble > 2:
        usual = f"{trouble:.1f} times the usual error"
        return f"A rare shape: even its reconstruction has {usual}; {end}."
    misjudged = "path" if away > 1 else "shape"
    return f"It just flies on, and the model misjudged its {misjudged}; {end}."


@dataclass(frozen=True)
class Failure:
    """A clip's number, its squared error per frame, both videos, and what coincides."""

    clip: int
    error: float
    truth: Clip
    video: Clip
    why: str


@torch.no_grad()
def worst(
    model: VideoModel, clips: Float[Tensor, "B T C H W"], prompt: int = 15, n: int = 10
) -> list[Failure]:
    """The `n` clips of one digit that a model continues worst at temperature 0."""
    forecast, videos, troubles = without_chance(model), [], []
    for part in clips.split(100):
        known = part[:, :prompt]
        new = forecast(known, part.shape[1] - prompt)
        videos.append(torch.cat([known, new], dim=1))
        again = model.tokenizer.reconstruct(part)
        troubles.append(squared_error(again, part).mean(1))
    videos, troubles = torch.cat(videos), torch.cat(troubles)
    troubles = troubles / troubles.median()
    errors = squared_error(videos, clips)[:, prompt:].mean(1)
    failures = []
    for i in errors.argsort(descending=True)[:n].tolist():
        why = explain(clips[i], videos[i], prompt, troubles[i].item())
        failures.append(Failure(i, errors[i].item(), clips[i], videos[i], why))
    return failures
