"""Train a bundled tokenizer: `python book/train_tokenizer.py moving-mnist --minutes 75`.

Stops after a time budget, can be interrupted and continued (`--checkpoint`), and writes weights with their record.
"""

import json
import math
import os
import platform
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from tqdm import tqdm

import stt_lite as stt

ROOT = Path(__file__).resolve().parents[1]
BUNDLES = {  # size in pixels, digits, codebook size
    "moving-mnist-tiny": (32, 1, 256),
    "moving-mnist": (64, 2, 512),
}


@dataclass
class Args:
    bundle: tyro.conf.Positional[Literal["moving-mnist-tiny", "moving-mnist"]]
    minutes: float = 10.0  # training time, evaluation not counted
    batch: int = 16  # frames per step
    learning_rate: float = 2e-3  # peak; 100 steps of warm-up, then a cosine over the time budget
    seed: int = 0
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    out: Path = ROOT / "stt_lite" / "weights"
    checkpoint: Path | None = None  # written every minute, continued from when it exists


def hardware(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"CPU, {torch.get_num_threads()} threads, {models[0] if models else platform.processor()}"


def evaluate(tokenizer: stt.Tokenizer, size: int, digits: int, device: str) -> dict:
    """Held-out digits, 100 clips of 20 frames, seed 1."""
    clips = stt.moving_mnist(100, 20, size, digits, split="test", seed=1, device=device)
    tokenizer.eval()
    error = (tokenizer.reconstruct(clips) - clips).square().sum((2, 3, 4))
    with torch.no_grad():
        indices = torch.cat([tokenizer.quantize(tokenizer.encode(f))[1] for f in clips.flatten(0, 1).split(200)])
    tokenizer.train()
    size_k = tokenizer.quantizer.codebook_size
    return {
        "reconstruction_squared_error_per_frame": error.mean().item(),
        "codebook_usage": stt.codebook_usage(indices, size_k),
        "perplexity": stt.perplexity(indices, size_k),
    }


def main(args: Args) -> None:
    size, digits, codebook_size = BUNDLES[args.bundle]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    torch.manual_seed(args.seed)
    tokenizer = stt.Tokenizer(stt.TokenizerConfig(codebook_size=codebook_size)).to(args.device)
    tokenizer = tokenizer.to(memory_format=torch.channels_last)  # a fifth faster on a CPU
    optimizer = torch.optim.AdamW(tokenizer.parameters(), args.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    step, seconds, saved = 0, 0.0, 0.0
    if args.checkpoint and args.checkpoint.exists():
        state = torch.load(args.checkpoint, weights_only=True)
        tokenizer.load_state_dict(state["tokenizer"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        step, seconds = state["step"], state["seconds"]
    bar = tqdm(total=round(args.minutes * 60), initial=round(seconds), unit="s")
    while seconds < args.minutes * 60:
        start = time.perf_counter()
        progress = seconds / (args.minutes * 60)
        rate = args.learning_rate * min(1, (step + 1) / 100) * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = rate
        frames = stt.moving_mnist(args.batch, 1, size, digits, device=args.device)[:, 0].contiguous(memory_format=torch.channels_last)
        logged = stt.training_step(tokenizer, optimizer, frames)
        step += 1
        seconds += time.perf_counter() - start
        if step % 100 == 0:
            bar.n = round(seconds)
            bar.set_postfix(step=step, error=f"{logged['reconstruction']:.2f}", perplexity=f"{logged['perplexity']:.0f}")
        if args.checkpoint and seconds - saved > 60:
            saved, part = seconds, args.checkpoint.with_suffix(".part")
            state = {"tokenizer": tokenizer.state_dict(), "optimizer": optimizer.state_dict(),
                     "rng": torch.get_rng_state(), "step": step, "seconds": seconds}
            torch.save(state, part)
            os.replace(part, args.checkpoint)
    bar.close()
    record = {
        "bundle": args.bundle, "kind": "tokenizer", "commit": commit, "hardware": hardware(args.device),
        "torch": torch.__version__, "seed": args.seed, "seconds": round(seconds), "steps": step,
        "frames_seen": step * args.batch, "batch": args.batch, "learning_rate": args.learning_rate,
        "parameters": sum(p.numel() for p in tokenizer.parameters()),
        "frame": {"size": size, "digits": digits, "grid": size // tokenizer.config.downsample},
        "metrics": evaluate(tokenizer, size, digits, args.device),
        "test_clips": "100 clips of 20 frames, held-out digits, seed 1",
    }
    weights = stt.save_tokenizer(tokenizer.cpu(), args.out / f"{args.bundle}-tokenizer.safetensors", record)
    if args.out == Args.out:  # the bundled weights: the book cites their record
        shutil.copy(weights.with_suffix(".json"), ROOT / "book" / "results")
    print(json.dumps(record["metrics"], indent=2))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
