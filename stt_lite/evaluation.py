# Made from notebooks/11_evaluation.ipynb by "make extract".
"""The protocol, baselines, and what many futures are worth. Built in chapter 11."""

import math
from statistics import fmean
from typing import Protocol, runtime_checkable

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor

from stt_lite.bundles import held_out_clips
from stt_lite.generation import VideoModel
from stt_lite.metrics import METRICS, centroid, squared_error
from stt_lite.moving_mnist import Batch, canonical_test_set
from stt_lite.video import check_frames, check_whole

__all__ = [
    "PROTOCOLS",
    "Forecast",
    "copy_last_frame",
    "empty_frame",
    "evaluate",
    "evaluate_model",
    "evaluation_table",
    "expected_best",
    "many_futures",
    "mean_of",
    "on_canonical",
    "rollout_error",
    "without_chance",
]

Clips = Float[Tensor, "B T C H W"]
NewFrames = Float[Tensor, "B new C H W"]


@runtime_checkable
class Forecast(Protocol):
    """Continues a prompt, with `actions` (B T+new) if a world has them: new frames."""

    def __call__(self, prompt: Clips, new_frames: int) -> NewFrames: ...


def copy_last_frame(prompt: Clips, new_frames: int, actions=None) -> NewFrames:
    """The baseline that costs nothing: the prompt's last frame, again and again."""
    return repeat(prompt[:, -1], "B C H W -> B new C H W", new=new_frames)


def empty_frame(prompt: Clips, new_frames: int, actions=None) -> NewFrames:
    """The baseline that says nothing: black frames."""
    return torch.zeros_like(copy_last_frame(prompt, new_frames))


PROTOCOLS = {"15->5": (15, 5), "10->10": (10, 10), "15->30": (15, 30)}


@torch.no_grad()
def evaluate(
    forecast: Forecast,
    clips: Clips | Batch,
    protocols: tuple[str, ...] = tuple(PROTOCOLS),
) -> dict[str, dict[str, list[float]]]:
    """Each metric of a forecast in each protocol, per new frame, mean over clips.

    TypeError, ValueError: bad clips, too few frames, an unknown protocol.
    """
    clips, actions = clips if isinstance(clips, Batch) else Batch(clips)
    check_frames(clips, "clips", "B T C H W")
    if unknown := set(protocols) - set(PROTOCOLS):
        raise ValueError(f"protocols must be of {list(PROTOCOLS)}, got {unknown}")
    results = {}
    for name in protocols:
        prompt, new = PROTOCOLS[name]
        if (T := clips.shape[1]) < (end := prompt + new):
            raise ValueError(f"clips must have {end} frames for {name}, got {T}")
        sums = dict.fromkeys(METRICS, 0.0)
        for i in range(0, len(clips), 20):  # more take much memory in large frames
            part = clips[i : i + 20]
            given = {} if actions is None else {"actions": actions[i : i + 20, :end]}
            video = forecast(part[:, :prompt], new, **given).float()
            for metric, of in METRICS.items():
                sums[metric] += of(video, part[:, prompt:end]).cpu().double().sum(0)
        results[name] = {m: (total / len(clips)).tolist() for m, total in sums.items()}
    return results


def without_chance(model: VideoModel) -> Forecast:
    """A model's forecast at temperature 0."""
    return lambda prompt, new, **actions: model.generate(
        prompt, new, 1, 0.0, seed=0, **actions
    )[:, 0, -new:]


def mean_of(results: list[dict]) -> tuple[dict, dict]:
    """Mean of results of `evaluate`, and the deviation of their means over frames."""
    mean, spread = {}, {}
    for protocol, metrics in results[0].items():
        mean[protocol], spread[protocol] = {}, {}
        for m in metrics:
            values = torch.tensor([r[protocol][m] for r in results]).double()
            mean[protocol][m] = values.mean(0).tolist()
            spread[protocol][m] = values.mean(1).std().item() if results[1:] else None
    return mean, spread


def evaluate_model(model: VideoModel, n: int = 500, seeds: tuple = (1, 2, 3)) -> dict:
    """The book's protocol: "model", "copy", "empty" on `n` held-out clips of each seed.

    Means over the seeds, and under "model_spread" and so on their deviations.
    TypeError, ValueError: what is no model, nothing to draw, a seed that is none.
    """
    check_whole(n, "n")
    check_whole(len(seeds), "number of seeds")
    frames = max(sum(protocol) for protocol in PROTOCOLS.values())
    cheap = {"copy": copy_last_frame, "empty": empty_frame}
    table = {"clips": n, "seeds": list(seeds)}
    for name, forecast in ({"model": without_chance(model)} | cheap).items():
        drawn = (held_out_clips(model, n, frames, seed) for seed in seeds)
        found = mean_of([evaluate(forecast, clips) for clips in drawn])
        table[name], table[f"{name}_spread"] = found
    return table


def on_canonical(model: VideoModel, n: int) -> dict:
    """`evaluate` on `n` canonical test clips, (1 64 64); {} and a line if offline."""
    if model.frame_shape != (1, 64, 64):
        raise ValueError(f"canonical needs frames (1, 64, 64), got {model.frame_shape}")
    try:
        clips, _ = canonical_test_set(n, fallback=False)
    except ConnectionError as error:
        print(f"canonical test set left out: {error}")
        return {}
    clips = clips.to(next(model.parameters()).device)
    return evaluate(without_chance(model), clips, ("15->5", "10->10"))


def table_line(who: str, protocol: str, m: dict, spread: float | None = None) -> str:
    """A line of `evaluation_table`, for one protocol's measures `m`."""
    error = m["squared_error"]
    mean = f"{fmean(error):.2f}" + ("" if spread is None else f" ± {spread:.2f}")
    likeness = f"{fmean(m['psnr']):8.2f}{fmean(m['ssim']):8.3f}"
    return f"{who:24}{protocol:>8}{error[0]:13.2f}{mean:>16}{likeness}"


def evaluation_table(found: dict, name: str) -> str:
    """What `evaluate_model` found, and `on_canonical` under "canonical", as text."""
    lines = [f"{'':24}{'frames':>8}{'first':>13}{'mean':>16}{'PSNR':>8}{'SSIM':>8}"]
    for key in ("model", "copy", "empty", "canonical"):
        spreads, who = found.get(f"{key}_spread", {}), name if key == "model" else key
        for protocol, m in found.get(key, {}).items():
            spread = spreads.get(protocol, {}).get("squared_error")
            lines += [table_line(who, protocol, m, spread)]
    return "\n".join(lines)


def rollout_error(
    model: VideoModel | None, clips: Clips, prompt: int, temperature: float = 0.0
) -> Float[Tensor, "new"]:
    """Squared error per new frame, mean over clips; without a model, of copying."""
    new = clips.shape[1] - check_whole(prompt, "prompt", most=clips.shape[1] - 1)
    if model is None:
        video = copy_last_frame(clips[:, :prompt], new)
    else:
        video = model.generate(clips[:, :prompt], new, 1, temperature, seed=0)[:, 0]
    return squared_error(video[:, -new:], clips[:, prompt:]).mean(0)


def expected_best(scores: Float[Tensor, "*n S"]) -> Float[Tensor, "*n S"]:
    """Expected best of k of S scores, for k = 1 to S, over all draws of k.

    The i-th smallest of S is the best in C(i - 1, k - 1) of C(S, k) draws.
    """
    S = scores.shape[-1]
    ways = [[math.comb(i, k) / math.comb(S, k + 1) for i in range(S)] for k in range(S)]
    weights = torch.tensor(ways, dtype=torch.float64)  # (k i)
    return (scores.sort(-1).values.cpu().double() @ weights.T).to(scores)


@torch.no_grad()
def many_futures(
    model: VideoModel, clips: Clips, prompt: int, samples: int = 100, temperature=1.0
) -> dict:
    """What a model's futures are like, and what the best of them are worth.

    Returns:
        "psnr", "ssim": the best of k = 1 to S futures by its mean over frames, mean
        over clips. Of centroids, per new frame: "spread", their deviation among
        futures in pixels; "inside", how often the truth lies in the futures' range;
        "inside_expected", that of a truth that is one more future. "rank": how many
        futures lie below the truth, in ten classes from none to all (Hamill, 2001).
    """
    new = clips.shape[1] - check_whole(prompt, "prompt", most=clips.shape[1] - 1)
    scores = {"psnr": [], "ssim": []}
    spread, inside, ranks = [], [], []
    for i, clip in enumerate(clips):
        video = model.generate(clip[:prompt], new, samples, temperature, seed=i)
        video = video[0, :, prompt:].cpu()  # (S new C H W)
        truth = clip[prompt:].cpu()
        for m in scores:
            scores[m].append(METRICS[m](video, truth.expand_as(video)).mean(1))
        places, real = centroid(video), centroid(truth)  # (S new 2), (new 2)
        spread.append(places.std(0, correction=min(1, samples - 1)).norm(dim=-1))
        within = (places.amin(0) <= real) & (real <= places.amax(0))
        inside.append(within.float().mean(-1))
        ranks.append((places < real).sum(0).flatten())
    counts = torch.cat(ranks).bincount(minlength=samples + 1)  # of 0, …, S below
    classes = counts.repeat_interleave(10).view(10, samples + 1).sum(1)
    best = {m: expected_best(torch.stack(of)).mean(0) for m, of in scores.items()}
    return {
        **{metric: curve.tolist() for metric, curve in best.items()},
        "spread": torch.stack(spread).mean(0).tolist(),
        "inside": torch.stack(inside).mean(0).tolist(),
        "inside_expected": (samples - 1) / (samples + 1),
        "rank": (classes / classes.sum()).tolist(),
    }
