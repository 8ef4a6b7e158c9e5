"""The runs that chapter 13 shows, each with its record in book/results.

    python book/experiments/photographs.py train --name vqgan --minutes 22

trains "vqvae" or "vqgan", which also write the bundled weights, or, with a harder pull,
"late" or "early" (the discriminator plays from step 0): the same tokenizer, photographs
and seed. Start them together for the same minutes, so that they share the machine
evenly; or give `--steps` that take the same seconds of a processor, which the records
hold. `bf16` trains for 5,000 steps in bfloat16, and fails at the first number that is
not finite. `resolution` measures seconds and memory from 64x64 to 512x512 pixels, each
in a process of its own, which is `one`.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

import torch

from stt_lite.contexts import TrainingConfig
from stt_lite.files import (
    read_record,
    results_folder,
    save_weights,
    weights_folder,
    write_file,
)
from stt_lite.machines import hardware
from stt_lite.metrics import psnr, ssim
from stt_lite.photographs import Photographs, high_frequency_power, power_spectrum
from stt_lite.pipeline import train_tokenizer
from stt_lite.quantizers import codebook_usage, perplexity
from stt_lite.tokenizer import Tokenizer, load_tokenizer
from stt_lite.vqgan import PatchDiscriminator, VQGANConfig

RUNS = {
    "vqvae": VQGANConfig(adversarial=0.0),
    "vqgan": VQGANConfig(),
    "late": VQGANConfig(adversarial=2.0),
    "early": VQGANConfig(adversarial=2.0, start=0.0, warmup=0.0),
}


def write_record(name: str, record: dict) -> None:
    write_file(
        results_folder() / f"{name}.json",
        (json.dumps(record, indent=2) + "\n").encode(),
    )


def tidy(numbers: torch.Tensor) -> list[float]:
    return [float(f"{x:.6g}") for x in numbers.tolist()]


@torch.no_grad()
def measure(tokenizer: Tokenizer) -> dict:
    """Held-out photographs in tiles of 128x128 and 256x256: means over the tiles."""
    found = {}
    for size in (128, 256):
        tiles = Photographs(size, "test").tiles()
        again = tokenizer.reconstruct(tiles)
        latents = (tokenizer.encode(tile[None]) for tile in tiles)
        indices = torch.cat([tokenizer.quantize(z)[1] for z in latents])
        K = tokenizer.quantizer.codebook_size
        both = {"input": tiles, "reconstruction": again}
        high = {name: high_frequency_power(x).mean().item() for name, x in both.items()}
        bands = {name: power_spectrum(x).mean(0) for name, x in both.items()}
        found[str(size)] = {
            "tiles": len(tiles),
            "psnr": psnr(again, tiles).mean().item(),
            "ssim": ssim(again, tiles).mean().item(),
            "high_frequency_power": high,
            "codebook_usage": codebook_usage(indices, K),
            "perplexity": perplexity(indices, K),
            "spectrum": {name: tidy(values) for name, values in bands.items()},
        }
    return found


def train_one(
    source: Photographs, settings: VQGANConfig, config: TrainingConfig
) -> tuple[Tokenizer, dict]:
    """A tokenizer of photographs, trained in a folder that goes, and its record."""
    clock = time.process_time()
    with tempfile.TemporaryDirectory() as out:
        tokenizer = train_tokenizer(replace(config, out=Path(out)), source, settings)
        record = read_record(Path(out) / "tokenizer.json")
    del record["training"]["out"]
    losses = {k: v for k, v in asdict(settings).items() if k != "shape"}
    return tokenizer, record | {
        "frames_seen": record["clips_seen"],
        "vqgan": losses,
        "cpu_seconds": round(time.process_time() - clock),
        "parameters": sum(p.numel() for p in tokenizer.parameters()),
    }


def train(
    name: Literal[tuple(RUNS)],  # type: ignore[valid-type]
    minutes: float = 22.0,
    steps: int | None = None,
) -> None:
    """Train one of the four, measure it, and write its record, and weights of two."""
    config = TrainingConfig(
        minutes=minutes, steps=steps, batch=2, checkpoint_seconds=600
    )
    tokenizer, record = train_one(Photographs(64), RUNS[name], config)
    record["data"]["names"] = Photographs.SPLITS
    record["metrics"] = measure(tokenizer)
    if name in ("early", "late"):
        write_record(f"vqgan-{name}", record)
    else:
        bundle = f"photographs-{name}-tokenizer"
        save_weights(tokenizer, weights_folder() / f"{bundle}.safetensors", record)
        write_record(bundle, read_record(weights_folder() / f"{bundle}.json"))
    at = record["metrics"]["128"]
    shown = {key: value for key, value in at.items() if key != "spectrum"}
    print(name, record["steps"], "steps", shown)


def bf16(steps: int = 5000) -> None:
    """`fit` stops at the first loss or gradient that is not finite."""
    shape = replace(VQGANConfig().shape, width=16, residual_blocks=1, codebook_size=256)
    settings = VQGANConfig(shape, start=0.1, width=8)
    config = TrainingConfig(
        steps=steps, batch=1, precision="bf16", checkpoint_seconds=600
    )
    tokenizer, record = train_one(Photographs(32), settings, config)
    numbers = tokenizer.state_dict().values()
    record["finite"] = all(value.isfinite().all().item() for value in numbers)
    write_record("vqgan-bf16", record)
    print(record["steps"], "steps, finite:", record["finite"], record["curve"][-1])


def resident() -> float:
    """Largest resident memory of this process so far, in MB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def one(size: int, what: Literal["reconstruct", "train"]) -> None:
    """Seconds for one frame, the least of eight, and the memory added, as JSON."""
    torch.set_num_threads(1)
    tokenizer = load_tokenizer("photographs-vqgan")
    frames, judge = torch.rand(1, 3, size, size), PatchDiscriminator()

    def training() -> None:
        again, _, commitment = tokenizer(frames)
        scores, _ = judge(torch.cat([frames, again]))
        ((again - frames).square().sum() + commitment + scores.mean()).backward()

    run = {"reconstruct": lambda: tokenizer.reconstruct(frames), "train": training}
    tokenizer.requires_grad_(what == "train")
    before, seconds = resident(), []
    for _ in range(8):
        clock = time.process_time()
        run[what]()
        seconds.append(time.process_time() - clock)
    print(json.dumps({"seconds": min(seconds), "megabytes": resident() - before}))


def resolution() -> None:
    """`one` for each size, in processes of their own."""
    found = {"reconstruct": {}, "train": {}}
    for what, sizes in found.items():
        for size in (64, 96, 128, 192, 256, 384, 512):
            command = [sys.executable, __file__, "one", "--size", str(size)]
            command += ["--what", what]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            sizes[str(size)] = json.loads(done.stdout)
            print(what, size, done.stdout.strip(), flush=True)
    torch.set_num_threads(1)
    note = "one frame, one thread; seconds of a processor, the least of eight; memory "
    record = {
        "hardware": hardware(torch.device("cpu")),
        "torch": torch.__version__,
        "tokenizer": "photographs-vqgan",
        "note": note + "that the eight added",
    }
    write_record("vqgan-resolution", record | found)


def main(arguments: list[str] | None = None) -> None:
    """The command; `arguments` None takes those of the shell."""
    import tyro

    commands = {"train": train, "bf16": bf16, "resolution": resolution, "one": one}
    tyro.extras.subcommand_cli_from_dict(commands, args=arguments)


if __name__ == "__main__":
    main()
