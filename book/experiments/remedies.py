"""What each remedy of chapter 10 is worth: `python book/experiments/remedies.py`.

One tiny model is trained on true contexts first, at a steady learning rate. From that
one checkpoint each variant goes on for the same seconds of a processor, with remedies
of its own, while its learning rate falls. Measured on held-out digits: squared errors,
and what rollouts of 100 frames leave of the ink. One record for each variant and seed.
"""

import copy
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro

import stt_lite as stt
from stt_lite import runs
from stt_lite.evaluation import without_chance
from stt_lite.files import read_record, write_file
from stt_lite.metrics import ink
from stt_lite.pipeline import run_record
from stt_lite.training import fit

NONE = {"forecast_share": 0.0, "corruption": 0.0, "fade": 0.0, "rollout_share": 0.0}
EACH = {
    "forecasts": {"forecast_share": 0.9},
    "corruption": {"corruption": 0.03},
    "dimming": {"fade": 0.15},
    "rollouts": {"rollout_share": 0.999},  # from the first step of a variant on
}
ALL = {name: value for remedy in EACH.values() for name, value in remedy.items()}
VARIANTS = {"none": NONE, "all": ALL}
VARIANTS |= {name: NONE | remedy for name, remedy in EACH.items()}
VARIANTS |= {
    f"all but {name}": ALL | dict.fromkeys(remedy, 0.0) for name, remedy in EACH.items()
}


@dataclass
class Remedies:
    """Train the base once, then the variants, and write a record of each.

    Args:
        variants: which; a record that is there already is skipped.
        base_minutes: of a processor, for the base.
        minutes: of a processor, for each variant.
        seeds: one run of each variant for each.
        out: folder for the records.
        runs: folder for checkpoints.
    """

    variants: tuple[str, ...] = tuple(VARIANTS)
    base_minutes: float = 40.0
    minutes: float = 3.0
    seeds: tuple[int, ...] = (0, 1)
    out: Path = Path("book/results")
    runs: Path = Path("runs/remedies")

    def run(self) -> None:
        torch.set_num_threads(1)
        runs.time.perf_counter = time.process_time  # others may use the machine, too
        base = self.base()
        for seed in self.seeds:
            for name in self.variants:
                path = self.out / f"remedies-{name.replace(' ', '-')}-seed{seed}.json"
                if not path.exists():
                    record = self.variant(name, seed, copy.deepcopy(base))
                    write_file(path, (json.dumps(record, indent=1) + "\n").encode())

    def base(self) -> stt.SpatialTemporalTransformer:
        """The tiny model after `base_minutes` on true contexts, not yet decayed."""
        folder = self.runs / "base"
        config, source, name = stt.PRESETS["moving-mnist-tiny"]
        steady = {"minutes": self.base_minutes, "decay_share": 1e-6}
        stt.train(replace(config, out=folder, **steady, **NONE), source, name)
        state = torch.load(folder / "transformer.checkpoint", weights_only=True)
        net = stt.load_transformer(folder / "transformer.safetensors")
        net.load_state_dict(state["model"])  # the last weights, not their average
        return net

    def variant(self, name: str, seed: int, net) -> dict:
        """Go on from the base with some remedies; the record of the run."""
        config, source, tokenizer = stt.PRESETS["moving-mnist-tiny"]
        config = replace(
            config,
            out=self.runs / f"{name.replace(' ', '-')}-{seed}",
            minutes=self.minutes,
            decay_share=0.9,
            seed=1 + seed,
            **VARIANTS[name],
        )
        tokenizer = stt.load_tokenizer(tokenizer)
        run = runs.Run(config, "transformer")
        net = fit(config.objective(net, tokenizer, source), run)
        model = stt.VideoModel(tokenizer, net, {"data": source.data}).eval()
        record = run_record(run, source.data)
        record["training"].pop("out")
        record |= {"variant": name, "base": self.told()}
        clips = source.held_out(200, 20, seed=1)
        protocols = ("15->5", "10->10")
        record["metrics"] = stt.evaluate(without_chance(model), clips, protocols)
        record["long"] = long_rollouts(model, source)
        error = record["metrics"]["15->5"]["squared_error"]
        left = record["long"]["ink_left"]
        print(
            f"{name}, seed {seed}: 15->5 {sum(error) / 5:.2f}, "
            f"ink left {sum(left) / len(left):.2f}, {run.progress.step} steps",
            flush=True,
        )
        return record

    def told(self) -> dict:
        """What is said of the base in each record."""
        record = read_record(self.runs / "base" / "transformer.json")
        names = ("training", "seconds", "steps", "clips_seen", "hardware", "commit")
        told = {name: record[name] for name in names}
        told["training"].pop("out")
        return told


def long_rollouts(model: stt.VideoModel, source: stt.MovingDigits) -> dict:
    """Ink of 32 rollouts of 100 frames, relative to their prompts'."""
    prompt = source.held_out(32, 15, seed=2)
    amount = ink(model.generate(prompt, 100, temperature=0.0)[:, 0])  # (32 115)
    before = amount[:, :15].mean(1)
    return {
        "clips": "32 held-out clips, seed 2",
        "ink": (amount / before[:, None]).mean(0).tolist(),
        "ink_left": (amount[:, -20:].mean(1) / before).tolist(),
    }


if __name__ == "__main__":
    tyro.cli(Remedies, description=__doc__).run()
