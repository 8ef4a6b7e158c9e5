"""Bundle a trained folder under a name: `python book/bundle.py runs/moving-mnist-tiny moving-mnist-tiny`.

Evaluates it on held-out clips, adds the figures to its record, and puts weights and record where the package and the
book look for them. The tokenizer goes with it unless the run started from the bundled one of that name.
"""

import json
import shutil
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
    clips: int = 500  # held-out clips to evaluate on
    device: str = "cuda" if torch.cuda.is_available() else "cpu"


def public(record: dict) -> dict:
    """The record without folders of this machine, also in what it says of earlier runs."""
    training = {key: value for key, value in record.get("training", {}).items() if key not in ("out", "start")}
    record = record | {"training": training}
    return record | {"started_from": public(record["started_from"])} if "started_from" in record else record


def main(args: Args) -> None:
    model = stt.load_pretrained(args.folder, args.device)
    parts = ["transformer"]
    if json.loads((args.folder / "tokenizer.json").read_text()).get("copied_from") != args.name:
        parts.append("tokenizer")
    metrics = stt.evaluate_rollouts(model, args.clips)
    for part in parts:
        record = json.loads((args.folder / f"{part}.json").read_text())
        if part == "transformer":
            record |= {"metrics": metrics["model"], "copy_last_frame": metrics["copy"]}
            few = stt.evaluate_rollouts(model, 100)["model"]  # quick to repeat: the tests do
            record["check"] = {"clips": 100} | {protocol: errors["mean"] for protocol, errors in few.items()}
            record["test_clips"] = f"{args.clips} clips of 20 frames, held-out digits, seed 1"
        record = public(record) | {"bundle": args.name, "kind": part}
        target = stt.weights_folder() / f"{args.name}-{part}.safetensors"
        shutil.copy(args.folder / f"{part}.safetensors", target)
        text = json.dumps(record, indent=2) + "\n"
        target.with_suffix(".json").write_text(text)
        (ROOT / "book" / "results" / target.with_suffix(".json").name).write_text(text)
    for protocol, errors in metrics["model"].items():
        copied = metrics["copy"][protocol]
        parts = [f"{key} {errors[key]:.2f} (copy {copied[key]:.2f})" for key in ("first", "mean")]
        print(f"{protocol}: {', '.join(parts)}")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
