"""Chapter 17's tokenizer with and without group normalization, a record of each.

    python book/experiments/pong_tokenizers.py --steps 600 --seeds 0 1

All else is equal: steps, frames, seed. A record that is there stays.
"""

import json
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro

from stt_lite.contexts import PRESETS
from stt_lite.files import check_writable, write_file
from stt_lite.pipeline import train_tokenizer
from stt_lite.tokenizer import Tokenizer
from stt_lite.worlds import PONG_TOKENIZER, PongWorld
from world_scores import balls_kept


@torch.no_grad()
def scores(tokenizer: Tokenizer, n: int = 30, frames: int = 20) -> dict:
    """Balls that reconstruction keeps, and tokens that change where nothing moves."""
    source = PongWorld()
    clips = source.held_out(n, frames, seed=4).clips
    again = tokenizer.reconstruct(clips)
    indices = tokenizer.quantize(tokenizer.encode(clips.flatten(0, 1)))[1]
    indices = indices.unflatten(0, clips.shape[:2])
    changed = indices[:, 1:] != indices[:, :-1]
    moved = (clips[:, 1:] - clips[:, :-1]).abs().amax(2).flatten(0, 1)[:, None]
    edge = tokenizer.config.downsample
    around = F.max_pool2d(moved, 5 * edge, edge, 2 * edge)[:, 0]  # within two tokens
    still = around.view_as(changed) < 1e-6
    return {
        **balls_kept(clips, again),
        "squared_error": (again - clips).square().sum((2, 3, 4)).mean().item(),
        "tokens_that_change": changed.float().mean().item(),
        "of_these_where_nothing_moves": (changed & still).sum().item()
        / max(1, changed.sum().item()),
    }


def compare_tokenizers(
    steps: int = 600,
    seeds: tuple[int, ...] = (0, 1),
    out: Path = Path("book/results"),
    runs: Path = Path("runs"),
) -> None:
    """Train, score and write.

    Args:
        steps: of sixteen frames, each.
        seeds: one pair each.
        out: folder for the records.
        runs: folder for checkpoints.
    """
    for seed in seeds:
        for name, norm in (("without", False), ("with", True)):
            path = out / f"group-norm-{name}-seed{seed}.json"
            if path.exists():
                continue
            check_writable(path)
            changes = dict(minutes=None, steps=steps, precision="no", compile=False)
            folder = runs / path.stem
            config = replace(PRESETS["pong"].config, out=folder, seed=seed, **changes)
            shape = replace(PONG_TOKENIZER.shape, group_norm=norm)
            begun = time.process_time()
            recipe = replace(PONG_TOKENIZER, shape=shape)
            tokenizer = train_tokenizer(config, PongWorld(), recipe)
            seconds = time.process_time() - begun
            record = json.loads((folder / "tokenizer.json").read_text())
            kept = ("config", "steps", "clips_seen", "hardware", "torch", "seed")
            record = {key: record[key] for key in kept}
            record["cpu_seconds_per_step"] = seconds / steps
            record |= scores(tokenizer)
            write_file(path, (json.dumps(record, indent=1) + "\n").encode())
            print(path, flush=True)


if __name__ == "__main__":
    tyro.cli(compare_tokenizers)
