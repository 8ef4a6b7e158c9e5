"""Bundle a trained folder: `python book/bundle.py runs/moving-mnist-tiny NAME`.

Evaluates it on held-out clips, adds the figures to its record, and puts weights and
record where the package and the book look for them. The tokenizer goes with it unless
the run took the bundled one of that name.
"""

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

import stt_lite as stt
from stt_lite.evaluation import many_futures, rollout_error
from stt_lite.files import read_record, save_weights, weights_folder, write_file
from stt_lite.metrics import ink
from stt_lite.quantizers import codebook_usage, perplexity

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "book" / "experiments"))


@dataclass
class Args:
    """Which folder becomes which bundle.

    Args:
        folder: what `stt-lite train` wrote.
        name: of the bundle.
        clips: held-out clips of each seed to evaluate on.
        half: store the transformer's weights in half precision: half the bytes; they
            load as float32.
        note: what else the record should say.
    """

    folder: tyro.conf.Positional[Path]
    name: tyro.conf.Positional[str]
    clips: int = 500
    half: bool = False
    note: str = ""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"


def tokenizer_metrics(model: stt.VideoModel) -> dict:
    """Reconstruction and use of the codebook on 100 held-out clips of 20 frames."""
    tokenizer = model.tokenizer
    clips, K = stt.held_out_clips(model, 100, 20, 1), tokenizer.quantizer.codebook_size
    with torch.no_grad():
        parts = clips.flatten(0, 1).split(200)
        tokens = [tokenizer.quantize(tokenizer.encode(part))[1] for part in parts]
    error = (tokenizer.reconstruct(clips) - clips).square().sum((2, 3, 4))
    return {
        "reconstruction_squared_error_per_frame": error.mean().item(),
        "codebook_usage": codebook_usage(torch.cat(tokens), K),
        "perplexity": perplexity(torch.cat(tokens), K),
    }


def horizon(errors: list[float]) -> dict:
    """The errors of one protocol as `stt.pretrained` and the README show them."""
    mean = sum(errors) / len(errors)
    return {"first": errors[0], "mean": mean, "per_frame": errors}


def both(found: dict) -> dict[str, dict]:
    """The short protocols' errors of the model and of copying."""
    return {
        who: {
            key: horizon(found[who][key]["squared_error"])
            for key in ("15->5", "10->10")
        }
        for who in ("model", "copy")
    }


def transformer_metrics(model: stt.VideoModel, clips: int) -> dict:
    """Chapter 11's protocol, and a check on 20 clips that is quick to repeat."""
    evaluation = stt.evaluate_model(model, clips)
    few, errors = stt.held_out_clips(model, 20, 20, seed=1), both(evaluation)
    check = {f"{p}->{20 - p}": rollout_error(model, few, p) for p in (15, 10)}
    seeds = ", ".join(map(str, evaluation["seeds"]))
    return {
        "metrics": errors["model"],
        "copy_last_frame": errors["copy"],
        "check": {"clips": 20} | {key: e.mean().item() for key, e in check.items()},
        "test_clips": f"{clips} held-out clips of each of the seeds {seeds}",
        "evaluation": evaluation,
        "long_rollouts": long_rollouts(model),
    }


def long_rollouts(model: stt.VideoModel) -> dict:
    """What 100 frames leave of the digits, and how bright their ink is.

    Ink is that of each clip's last 20 frames relative to its prompt's. Brightness is
    the mean of the pixels' values weighted by these values: that of real frames comes
    first, then one for each generated frame. Grey lowers it.
    """
    few = stt.held_out_clips(model, 16, 15, seed=1)
    video = model.generate(few, 100, temperature=0.0)[:, 0]
    amount = ink(video)  # (16 115)
    bright = (ink(video.square()) / amount.clamp(min=1)).mean(0)
    left = amount[:, -20:].mean(1) / amount[:, :15].mean(1)
    return {
        "clips": "16 held-out clips, seed 1",
        "frames": 100,
        "ink_left": left.tolist(),
        "brightness": [bright[:15].mean().item(), *bright[15:].tolist()],
    }


def game_metrics(model: stt.VideoModel) -> tuple[dict, dict]:
    """What the records of chapter 14's games say of transformer and tokenizer.

    Measured on the same held-out episodes, played again.
    """
    import game_scores as scores

    played, device = model.record["data"]["played"], model.transformer.start.device
    with tempfile.TemporaryDirectory() as folder:
        options = played | {"train": 1, "games": tuple(played["games"])}
        clips = stt.GameClips(stt.play_games(folder, **options))
        every = played["test"] * played["frames"] // 20  # each held-out frame once
        n = min(60, every)
        found = scores.forecast_scores(model, clips, n)
        errors = both(found["all"])
        some = {
            game: clips.with_ball(min(10, every), 20, device, game)[0]
            for game in played["games"]
        }
        few = torch.cat(list(some.values()))
        check = {f"{p}->{20 - p}": rollout_error(model, few, p) for p in (15, 10)}
        said = (
            "{0} clips of each game, from {test} held-out episodes of {frames} frames"
        )
        transformer = {
            "metrics": errors["model"],
            "copy_last_frame": errors["copy"],
            "check": {"clips": len(few)}
            | {k: e.mean().item() for k, e in check.items()},
            "test_clips": said.format(n, **played),
            "games": found,
            "ball_over_time": scores.ball_over_time(model, clips, min(20, every)),
            "futures": {
                game: many_futures(model, clip, 15, samples=20)
                for game, clip in some.items()
            },
        }
        metrics = scores.reconstruction_scores(model.tokenizer, clips, every)
        return transformer, {
            "metrics": metrics,
            "test_clips": said.format(every, **played),
        }


def world_metrics(model: stt.VideoModel) -> tuple[dict, dict]:
    """What the records of chapter 17's world say of transformer and tokenizer."""
    import world_scores as scores

    evaluation = stt.evaluate_model(model, 60)
    errors = both(evaluation)
    transformer = {
        "metrics": errors["model"],
        "copy_last_frame": errors["copy"],
        "test_clips": "60 held-out clips of each of the seeds 1, 2, 3",
        "followed": scores.followed(model),
        "drift_clock": scores.drift_clock(model),
    }
    return transformer, {"metrics": scores.kept(model)}


def main(args: Args) -> None:
    model = stt.load_pretrained(args.folder, args.device)
    kinds = {"played": game_metrics, "pong": world_metrics}
    special = [of for key, of in kinds.items() if key in model.record["data"]]
    if special:
        transformer, tokenizer = special[0](model)
        measured = {"transformer": transformer, "tokenizer": tokenizer}
    else:
        measured = {"transformer": transformer_metrics(model, args.clips)}
        copied = read_record(args.folder / "tokenizer.json").get("copied_from")
        if copied != args.name:
            measured["tokenizer"] = {
                "metrics": tokenizer_metrics(model),
                "test_clips": "100 held-out clips of 20 frames, seed 1",
            }
    for part, notes in measured.items():
        record = read_record(args.folder / f"{part}.json") | notes
        record.get("training", {}).pop("out", None)  # a folder of this machine
        record |= {"bundle": args.name, "kind": part, "licence": "Apache-2.0"}
        if args.note:
            record["note"] = args.note
        target = weights_folder() / f"{args.name}-{part}.safetensors"
        if args.half and part == "transformer":
            del record["config"], record["sha256"]  # `save_weights` adds its own
            record["stored_as"] = "float16"
            save_weights(model.transformer.half(), target, record)
        else:
            write_file(target, (args.folder / f"{part}.safetensors").read_bytes())
            text = json.dumps(record, indent=2) + "\n"
            write_file(target.with_suffix(".json"), text.encode())
        name = f"{target.stem}.json"
        content = target.with_suffix(".json").read_bytes()
        write_file(ROOT / "book" / "results" / name, content)
    for protocol, errors in measured["transformer"]["metrics"].items():
        copied = measured["transformer"]["copy_last_frame"][protocol]
        parts = [
            f"{k} {errors[k]:.2f} (copy {copied[k]:.2f})" for k in ("first", "mean")
        ]
        print(f"{protocol}: {', '.join(parts)}")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
