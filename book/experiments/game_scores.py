"""What chapter 14's records say of the games, and the comparison of its pitfall.

    python book/experiments/game_scores.py --out book/results --steps 2000

The command trains one tokenizer with and one without the weight of moving pixels, all
else equal, and writes a record of each. The other scores go into the records of a
bundle: book/bundle.py.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path

import torch

from stt_lite.contexts import TrainingConfig
from stt_lite.evaluation import copy_last_frame, evaluate, mean_of, without_chance
from stt_lite.files import read_record, write_file
from stt_lite.game_clips import (
    GAME_TOKENIZER,
    GAME_TRAINING,
    GameClips,
    ball_kept,
    find_ball,
)
from stt_lite.games import play_games
from stt_lite.generation import VideoModel
from stt_lite.metrics import psnr, squared_error
from stt_lite.pipeline import train_tokenizer
from stt_lite.quantizers import codebook_usage
from stt_lite.tokenizer import Tokenizer
from stt_lite.vqgan import VQGANConfig


@torch.no_grad()
def reconstruction_scores(
    tokenizer: Tokenizer, clips: GameClips, n: int = 40
) -> dict[str, dict[str, float]]:
    """What a tokenizer keeps of each game, on `n` held-out clips.

    Returns:
        For each game "psnr" and "squared_error", means over frames; "ball_shown", the
        share of frames in which `find_ball` finds the real ball; "ball_kept", the share
        of those in which it finds it after reconstruction; "ball_invented", the share
        of frames without a ball in which it then finds one; and "codebook_usage".
    """
    device, found = next(tokenizer.parameters()).device, {}
    for game in clips.options["games"]:
        real, ball = clips.with_ball(n, device=device, game=game)
        frames, truth = real.flatten(0, 1), ball.flatten(0, 1)
        again = tokenizer.reconstruct(frames)
        shown, kept = ball_kept(frames, again, truth, game)
        without = again[truth[:, 0].isnan()]
        invented = sees_ball(without, game).float().mean().item() if len(without) else 0
        parts = (tokenizer.encode(part) for part in frames.split(200))
        indices = torch.cat([tokenizer.quantize(latents)[1] for latents in parts])
        found[game] = {
            "frames": len(frames),
            "psnr": psnr(again, frames).mean().item(),
            "squared_error": squared_error(again, frames).mean().item(),
            "ball_shown": shown.float().mean().item(),
            "ball_kept": (kept.sum() / shown.sum()).item(),
            "ball_invented": float(invented),
            "codebook_usage": codebook_usage(
                indices, tokenizer.quantizer.codebook_size
            ),
        }
    return found


def sees_ball(frames: torch.Tensor, game: str) -> torch.Tensor:
    """In which frames `find_ball` finds a ball."""
    return ~find_ball(frames, game)[..., 0].isnan()


def forecast_scores(model: VideoModel, clips: GameClips, n: int = 40) -> dict:
    """How well a model continues each game on `n` held-out clips, beside copying.

    Returns:
        For each game and for "all", "model" (without chance) and "copy", as `evaluate`
        returns them for 15->5 and 10->10.
    """
    device, names, found = model.transformer.start.device, ("15->5", "10->10"), {}
    contenders = {"model": without_chance(model), "copy": copy_last_frame}
    for game in clips.options["games"]:
        real, _ = clips.with_ball(n, 20, device, game)
        found[game] = {
            who: evaluate(forecast, real, names) for who, forecast in contenders.items()
        }
    every = list(found.values())
    found["all"] = {who: mean_of([s[who] for s in every])[0] for who in contenders}
    return found


@torch.no_grad()
def ball_over_time(
    model: VideoModel, clips: GameClips, n: int = 16, new_frames: int = 60
) -> dict[str, dict[str, list[float]]]:
    """How often a long rollout shows a ball: for each new frame, the share of clips.

    Each of `n` held-out clips of a game goes on from its first 15 frames, once.

    Returns:
        For each game "generated", and "real" for what happened; 0 to 1.
    """
    device, found = model.transformer.start.device, {}
    for game in clips.options["games"]:
        real, _ = clips.with_ball(n, 15 + new_frames, device, game)
        videos = [
            model.generate(part[:, :15], new_frames, seed=i)[:, 0]
            for i, part in enumerate(real.split(8))
        ]
        shown = {"generated": torch.cat(videos), "real": real}
        found[game] = {
            who: sees_ball(video[:, 15:], game).float().mean(0).tolist()
            for who, video in shown.items()
        }
    return found


def compare_moving(
    clips: GameClips,
    out: Path,
    weights: tuple[float, ...] = (0.0, 20.0),
    steps: int = 2000,
    n: int = 40,
    settings: VQGANConfig = replace(GAME_TOKENIZER, adversarial=0.0),
    config: TrainingConfig = GAME_TRAINING,
) -> list[Path]:
    """Train a tokenizer for each weight of moving pixels, all else equal.

    Args:
        clips: the games.
        out: folder for the records, `game-ablation-moving-WEIGHT.json`.
        weights: values of `VQGANConfig.moving`.
        steps: of each run.
        n: clips of each game to measure on, see `reconstruction_scores`.
        settings: the tokenizer and its other losses; without a discriminator by
            default, which is quicker.
        config: of the runs; checkpoints go to its folder.

    Returns:
        The records' paths.
    """
    paths = []
    for weight in weights:
        name = f"game-ablation-moving-{weight:g}"
        losses, folder = replace(settings, moving=weight), config.out / name
        tokenizer = train_tokenizer(
            replace(config, out=folder, steps=steps), clips, losses
        )
        record = read_record(folder / "tokenizer.json")
        record["training"].pop("out")
        record["vqgan"] = {k: v for k, v in asdict(losses).items() if k != "shape"}
        record["metrics"] = reconstruction_scores(tokenizer, clips, n)
        paths.append(Path(out) / f"{name}.json")
        write_file(paths[-1], (json.dumps(record, indent=1) + "\n").encode())
    return paths


def main(
    out: Path = Path("results"),
    runs: Path = Path("runs/game-scores"),
    steps: int = 2000,
) -> None:
    """Play the games, and compare tokenizers with and without moving pixels' weight.

    Args:
        out: folder for the records.
        runs: folder for the games' screens and for checkpoints.
        steps: of each training.
    """
    clips = GameClips(play_games(runs / "games"), frames=12)
    config = replace(GAME_TRAINING, out=runs)
    print(*compare_moving(clips, out, steps=steps, config=config), sep="\n")


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
