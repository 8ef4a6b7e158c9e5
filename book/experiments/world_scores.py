"""What chapter 17 measures of a world with keys: `python world_scores.py pong`.

The ball and the paddle of held-out Pong that goes on with its own keys, and how long
the world holds when keys are pressed at random. `book/bundle.py` puts it into the
record.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import tyro
from jaxtyping import Float, Int
from torch import Tensor

import stt_lite as stt
from stt_lite.quantizers import codebook_usage
from stt_lite.worlds import find_paddle, find_small_ball, mixed_in

EDGE = 8  # columns from a border: a ball last seen there may have left the field
PROMPT = 8
BLINK = 2  # frames that a ball at a wall, or a flicker, may last


def meets(ball: Float[Tensor, "T 2"]) -> int:
    """The frame in which a ball first turns back or is gone: T where it never does."""
    column = ball[:, 1]
    step = column[1:] - column[:-1]
    for t in range(1, len(step)):
        if step[t].isnan() or step[t] * step[t - 1] < 0:
            return t
    return len(ball)


def straight(ball: Float[Tensor, "8 2"], new: int) -> Float[Tensor, "new 2"]:
    """On along the line through the last two places."""
    ahead = torch.arange(1, new + 1)[:, None]
    return ball[-1] + ahead * (ball[-1] - ball[-2])


def surest(model: stt.VideoModel, clips: Tensor, actions: Tensor) -> Tensor:
    """The frames (B new C H W) after clips (B T C H W), for keys (B T + new)."""
    T = clips.shape[1]
    options = dict(actions=actions, temperature=0.0, seed=0)
    return model.generate(clips, actions.shape[1] - T, **options)[:, 0, T:]


def followed(
    model: stt.VideoModel, n: int = 60, new: int = 60, roll: Callable = surest
) -> dict:
    """Paddle and ball in `new` frames under the recorded keys, against the truth."""
    clips, actions = stt.held_out_clips(model, n, PROMPT + new, seed=1)
    video = roll(model, clips[:, :PROMPT], actions)
    truth = find_small_ball(clips)
    away = (find_paddle(video) - find_paddle(clips[:, PROMPT:])).abs()
    ours, line, frames = 0, 0, 0
    for ball, found in zip(truth, find_small_ball(video)):
        if ball[PROMPT - 2 : PROMPT].isnan().any():
            continue  # it is out of play
        end = meets(ball[PROMPT - 2 :]) - 2  # of the new frames
        there = ball[PROMPT : PROMPT + max(0, end)]
        guesses = found[: len(there)], straight(ball[:PROMPT], len(there))
        near = [((guess - there).abs().amax(-1) <= 3).sum().item() for guess in guesses]
        ours, line, frames = ours + near[0], line + near[1], frames + len(there)
    return {
        "clips": n,
        "new_frames": new,
        "paddle_within_2": (away <= 2).float().mean().item(),
        "ball_frames": frames,
        "ball_within_3": ours / frames,
        "straight_line_within_3": line / frames,
    }


def second_ball(frames: Float[Tensor, "T 3 80 80"]) -> Tensor:
    """Whether each frame (T) shows two: as much white again, away from the first."""
    first = find_small_ball(frames)
    white = mixed_in(frames, 3)
    at = torch.arange(80.0)
    far = (at - first[:, :1]).abs() > 5, (at - first[:, 1:]).abs() > 5  # (T 80) each
    rest = white * (far[0][:, :, None] | far[1][:, None])
    window = torch.ones(1, 1, 5, 3)
    return F.conv2d(rest[:, None], window).flatten(1).amax(1) >= 0.8


def longest_serve(model: stt.VideoModel) -> int:
    """The most frames in a row without a ball in what is held out."""
    longest = run = 0
    for ball in find_small_ball(stt.held_out_clips(model, 40, 200, seed=2).clips):
        for gone in ball[:, 0].isnan().tolist():
            run = run + 1 if gone else 0
            longest = max(longest, run)
        run = 0
    return longest


def holds(ball: Float[Tensor, "T 2"], double: Tensor, serve: int) -> tuple[int, float]:
    """When something impossible first happens, and the share of frames that are right.

    Impossible: a ball gone in mid-air or for longer than a serve takes, or a second
    one. Right: a ball is to be seen, or it left at an edge and a serve is due.
    """
    last, gone, twice, first, right = None, 0, 0, len(ball), 0
    for t, (place, two) in enumerate(zip(ball.tolist(), double.tolist())):
        seen = place[0] == place[0]  # not NaN
        gone = 0 if seen else gone + 1
        twice = twice + 1 if two else 0
        last = place if seen else last
        left = last is None or not EDGE <= last[1] <= 79 - EDGE
        due = left and gone <= serve
        right += seen or due
        if twice > BLINK or (gone > BLINK and not due):
            first = min(first, t)
    return first, right / len(ball)


def random_keys(n: int, frames: int, seed: int) -> Int[Tensor, "n T"]:
    """Keys that are held for six frames each."""
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randint(3, (n, frames // 6 + 1), generator=generator)
    return keys.repeat_interleave(6, dim=1)[:, :frames]


def random_rollouts(
    model: stt.VideoModel, n: int, new: int, roll: Callable = surest
) -> Float[Tensor, "n new 3 80 80"]:
    """Frames that follow held-out prompts under random keys."""
    clips, actions = stt.held_out_clips(model, n, PROMPT, seed=3)
    keys = torch.cat([actions, random_keys(n, new, seed=0)], dim=1)
    return roll(model, clips, keys)


def judged_by_detectors(video: Tensor, serve: int) -> list[tuple[int, float]]:
    """What `holds` says of each rollout."""
    return [holds(find_small_ball(clip), second_ball(clip), serve) for clip in video]


def drift_clock(model: stt.VideoModel, n: int = 20, new: int = 600) -> dict:
    """How long rollouts under random keys stay possible."""
    video = random_rollouts(model, n, new)
    serve = round(1.5 * longest_serve(model))
    first, right = zip(*judged_by_detectors(video, serve))
    return {
        "rollouts": n,
        "frames": new,
        "serve_frames_at_most": serve,
        "right": sum(right) / n,
        "first_impossible": sorted(first),
        "first_impossible_median": sorted(first)[n // 2],
    }


def balls_kept(clips: Tensor, again: Tensor) -> dict:
    """How many balls clips show, and the share that a reconstruction keeps."""
    truth, found = find_small_ball(clips), find_small_ball(again)
    there = ~truth[..., 0].isnan()
    near = ((found - truth).abs().amax(-1) <= 1)[there]
    return {"balls": there.sum().item(), "ball_kept": near.float().mean().item()}


def kept(model: stt.VideoModel) -> dict:
    """How often reconstruction keeps a ball, and its squared error."""
    clips = stt.held_out_clips(model, 60, 40, seed=4).clips
    again = model.tokenizer.reconstruct(clips)
    error = (again - clips).square().sum((2, 3, 4)).mean()
    parts = (model.tokenizer.encode(part) for part in clips.flatten(0, 1).split(200))
    with torch.no_grad():
        tokens = torch.cat([model.tokenizer.quantize(part)[1] for part in parts])
    size = model.tokenizer.quantizer.codebook_size
    return {
        **balls_kept(clips, again),
        "reconstruction_squared_error_per_frame": error.item(),
        "codebook_usage": codebook_usage(tokens, size),
    }


@dataclass
class Args:
    """Which bundle, or folder that training wrote."""

    bundle: tyro.conf.Positional[str] = "pong"


def main(args: Args) -> None:
    model = stt.load_pretrained(args.bundle)
    found = {of.__name__: of(model) for of in (kept, followed, drift_clock)}
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
