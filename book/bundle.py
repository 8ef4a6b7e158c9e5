"""Bundle a trained folder under a name: `python book/bundle.py runs/moving-mnist-tiny moving-mnist-tiny`.

With `--mix OTHER --share 0.7`, the transformer's weights are 0.7 of this run's and 0.3 of another one's, which started from
the same weights or is where this run started, and the record tells of both.
Evaluates it on held-out clips, adds the figures to its record, and puts weights and record where the package and the
book look for them. The tokenizer goes with it unless the run started from the bundled one of that name.
"""

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

import stt_lite as stt

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Args:
    folder: tyro.conf.Positional[Path]  # what `stt-lite train` wrote
    name: tyro.conf.Positional[str]
    clips: int = 500  # held-out clips of each seed to evaluate on
    mix: Path | None = None  # another run from the same start, or the start itself: its weights are mixed in
    share: float = 0.5  # of the first run in that mixture
    half: bool = False  # store the transformer's weights in half precision: half the bytes; they load as float32
    note: str = ""  # what else the record should say
    device: str = "cuda" if torch.cuda.is_available() else "cpu"


def public(record: dict) -> dict:
    """The record without folders of this machine, also in what it says of earlier runs."""
    training = {key: value for key, value in record.get("training", {}).items() if key not in ("out", "start")}
    if str(training.get("tokenizer", "")).endswith(".safetensors"):
        del training["tokenizer"]  # a file of this machine; the record has its hash
    record = record | {"training": training}
    return record | {key: public(record[key]) for key in ("started_from", "mixed_with") if key in record}


def mixture(folder: Path, other: Path, share: float, out: Path) -> Path:
    """Write `share` of one run's weights plus the rest of another's to the folder `out`, with a record of both."""
    first, second = (stt.load_transformer(run / "transformer.safetensors") for run in (folder, other))
    weights = second.state_dict()
    first.load_state_dict({name: weights[name].lerp(value, share) for name, value in first.state_dict().items()})
    record, added = (json.loads((run / "transformer.json").read_text()) for run in (folder, other))
    starts = [run.get("started_from", {}).get("sha256") for run in (record, added)]
    if starts[0] != starts[1] and added["sha256"] != starts[0]:
        raise ValueError(f"mix must have started from the same weights as {folder}, or be its start, got {other}")
    known = ("config", "started_from", "data", "sha256")
    record |= {"share": share, "mixed_with": {key: value for key, value in added.items() if key not in known}}
    stt.save_transformer(first, out / "transformer.safetensors", record)
    for name in ("tokenizer.safetensors", "tokenizer.json"):
        shutil.copy(folder / name, out / name)
    return out


def halved(folder: Path, out: Path) -> Path:
    """The same run in the folder `out`, its transformer's weights in half precision."""
    record = json.loads((folder / "transformer.json").read_text())
    known = {key: value for key, value in record.items() if key not in ("config", "sha256")}
    net = stt.load_transformer(folder / "transformer.safetensors").half()
    stt.save_transformer(net, out / "transformer.safetensors", known | {"stored_as": "float16"})
    for name in ("tokenizer.safetensors", "tokenizer.json"):
        if not (out / name).exists():
            shutil.copy(folder / name, out / name)
    return out


def tokenizer_metrics(model: stt.VideoModel) -> dict:
    """Reconstruction and use of the codebook on 100 clips of 20 frames, held-out digits, seed 1."""
    tokenizer, data = model.tokenizer, model.record["data"]
    device = model.transformer.start.device
    clips = stt.moving_mnist(100, 20, data["size"], data["digits"], split="test", seed=1, device=device)
    with torch.no_grad():
        indices = torch.cat([tokenizer.quantize(tokenizer.encode(part))[1] for part in clips.flatten(0, 1).split(200)])
    error, size = (tokenizer.reconstruct(clips) - clips).square().sum((2, 3, 4)), tokenizer.quantizer.codebook_size
    return {
        "reconstruction_squared_error_per_frame": error.mean().item(),
        "codebook_usage": stt.codebook_usage(indices, size),
        "perplexity": stt.perplexity(indices, size),
    }


def horizon(errors: list[float]) -> dict:
    """The errors of one protocol as `stt_lite.pretrained` and README show them."""
    return {"first": errors[0], "mean": sum(errors) / len(errors), "per_frame": errors}


def transformer_metrics(model: stt.VideoModel, clips: int) -> dict:
    """Chapter 10's protocol, three sets of clips, and a check on 100 clips that is quick to repeat: the tests do."""
    evaluation = stt.evaluate_model(model, clips)
    few = stt.held_out_clips(model, 100, 20, seed=1)
    short = {f"{prompt}->{20 - prompt}": prompt for prompt in (15, 10)}
    errors = {who: {key: horizon(evaluation[who][key]["squared_error"]) for key in short} for who in ("model", "copy")}
    check = {key: stt.rollout_error(model, few, prompt).mean().item() for key, prompt in short.items()}
    seeds = ", ".join(map(str, evaluation["seeds"]))
    return {
        "metrics": errors["model"],
        "copy_last_frame": errors["copy"],
        "check": {"clips": 100} | check,
        "test_clips": f"{clips} clips, MNIST's test digits, of each of the seeds {seeds}",
        "evaluation": evaluation,
        "long_rollouts": long_rollouts(model),
    }


def long_rollouts(model: stt.VideoModel) -> dict:
    """What 100 frames leave of the digits: ink of each clip's last 20 frames relative to its prompt's, and how bright ink is.

    Brightness is the mean of the pixels' values weighted by these values: that of real frames comes first, then one for each
    generated frame. Grey lowers it.
    """
    few = stt.held_out_clips(model, 16, 15, seed=1)
    video = model.generate(few, 100, temperature=0.0)[:, 0]
    ink = stt.ink(video)  # (16 115)
    bright = (stt.ink(video.square()) / ink.clamp(min=1)).mean(0)
    left = ink[:, -20:].mean(1) / ink[:, :15].mean(1)
    return {
        "clips": "16, MNIST's test digits, seed 1", "frames": 100, "ink_left": left.tolist(),
        "brightness": [bright[:15].mean().item(), *bright[15:].tolist()],
    }  # fmt: skip


def game_measures(model: stt.VideoModel) -> dict:
    """What the records of chapter 12's games say of both parts, measured on the same held-out episodes, played again."""
    played, short = model.record["data"]["played"], ("15->5", "10->10")
    with tempfile.TemporaryDirectory() as folder:
        clips = stt.GameClips(stt.play_games(folder, **played | {"train": 1, "games": tuple(played["games"])}))
        every = played["test"] * played["frames"] // 20  # clips that show each held-out frame once
        n, device = min(60, every), model.transformer.start.device  # spread evenly over them
        scores = stt.forecast_scores(model, clips, n)
        few = torch.cat([clips.held_out(10, 20, device, game)[0] for game in played["games"]])
        some = {game: clips.held_out(min(10, every), 20, device, game)[0] for game in played["games"]}
        errors = {who: {key: horizon(scores["all"][who][key]["squared_error"]) for key in short} for who in ("model", "copy")}
        said = "{0} clips of each game, from {test} held-out episodes of {frames} frames".format
        transformer = {
            "metrics": errors["model"],
            "copy_last_frame": errors["copy"],
            "check": {"clips": len(few)} | {key: stt.rollout_error(model, few, int(key[:2])).mean().item() for key in short},
            "test_clips": said(n, **played),
            "games": scores,
            "ball_over_time": stt.ball_over_time(model, clips, min(20, every)),
            "futures": {game: stt.many_futures(model, some[game], 15, samples=20) for game in some},
        }
        return {
            "transformer": transformer,
            "tokenizer": {"metrics": stt.reconstruction_scores(model.tokenizer, clips, every), "test_clips": said(every, **played)},
        }


def main(args: Args) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder if args.mix is None else mixture(args.folder, args.mix, args.share, Path(temporary))
        bundle(halved(folder, Path(temporary)) if args.half else folder, args)


def bundle(source: Path, args: Args) -> None:
    model = stt.load_pretrained(source, args.device)
    if "played" in model.record["data"]:
        measured = game_measures(model)
    else:
        measured = {"transformer": transformer_metrics(model, args.clips)}
    if "tokenizer" not in measured and json.loads((source / "tokenizer.json").read_text()).get("copied_from") != args.name:
        test_clips = "100 clips of 20 frames, MNIST's test digits, seed 1"
        measured["tokenizer"] = {"metrics": tokenizer_metrics(model), "test_clips": test_clips}
    for part, notes in measured.items():
        record = json.loads((source / f"{part}.json").read_text()) | notes
        record = public(record) | {"bundle": args.name, "kind": part} | ({"note": args.note} if args.note else {})
        target = stt.weights_folder() / f"{args.name}-{part}.safetensors"
        stt.write_file(target, (source / f"{part}.safetensors").read_bytes())
        for folder in (target.parent, ROOT / "book" / "results"):
            stt.write_file(folder / f"{target.stem}.json", (json.dumps(record, indent=2) + "\n").encode())
    for protocol, errors in measured["transformer"]["metrics"].items():
        copied = measured["transformer"]["copy_last_frame"][protocol]
        parts = [f"{key} {errors[key]:.2f} (copy {copied[key]:.2f})" for key in ("first", "mean")]
        print(f"{protocol}: {', '.join(parts)}")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
