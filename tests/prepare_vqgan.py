"""The runs that chapter 11 shows, each with its record in book/results: `python tests/prepare_vqgan.py RUN [minutes | steps]`.

RUN is "vqvae" or "vqgan", which also write the bundled weights, or, with a harder pull, "late" or "early" (the discriminator
plays from step 0): the same tokenizer, photographs and seed. Start them together for the same minutes, such as 22, so that
they share the machine evenly; or give steps, such as "3870 steps", that take the same seconds of a processor, which the
records hold. "bf16" trains for
5,000 steps in bfloat16, and fails at the first number that is not finite. "resolution" measures seconds and memory from
64x64 to 512x512 pixels, each in a process of its own.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import stt_lite as stt
from stt_lite.training import hardware

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "book" / "results"
SHAPE = stt.TokenizerConfig(channels=3, downsample=4, width=32, residual_blocks=2, codebook_size=1024, group_norm=True)
RUNS = {
    "vqvae": stt.VQGANConfig(adversarial=0.0),
    "vqgan": stt.VQGANConfig(),
    "late": stt.VQGANConfig(adversarial=2.0),
    "early": stt.VQGANConfig(adversarial=2.0, start=0.0, warmup=0.0),
}


def tidy(numbers: torch.Tensor) -> list[float]:
    return [float(f"{x:.6g}") for x in numbers.tolist()]


def measure(tokenizer: stt.Tokenizer) -> dict:
    """Held-out photographs in tiles of 128x128 and of 256x256: the mean over tiles of each metric."""
    found = {}
    for size in (128, 256):
        tiles = stt.Photographs(size, "test").tiles()
        again = tokenizer.reconstruct(tiles)
        with torch.no_grad():
            indices = torch.cat([tokenizer.quantize(tokenizer.encode(tile[None]))[1] for tile in tiles])
        bands = {"input": stt.power_spectrum(tiles).mean(0), "reconstruction": stt.power_spectrum(again).mean(0)}
        high = {"input": stt.high_frequency_power(tiles).mean(), "reconstruction": stt.high_frequency_power(again).mean()}
        found[str(size)] = {
            "tiles": len(tiles), "psnr": stt.psnr(again, tiles).mean().item(), "ssim": stt.ssim(again, tiles).mean().item(),
            "high_frequency_power": {name: value.item() for name, value in high.items()},
            "codebook_usage": stt.codebook_usage(indices, SHAPE.codebook_size),
            "perplexity": stt.perplexity(indices, SHAPE.codebook_size),
            "spectrum": {name: tidy(values) for name, values in bands.items()},
        }  # fmt: skip
    return found


def photographs(name: str, **budget) -> None:
    clock = time.process_time()
    with tempfile.TemporaryDirectory() as out:
        tokenizer, record = stt.train_vqgan(stt.Photographs(64), out, SHAPE, RUNS[name], batch=2, **budget, checkpoint_seconds=600)
    del record["training"]["out"]
    record |= {"cpu_seconds": round(time.process_time() - clock)}
    record |= {"parameters": sum(p.numel() for p in tokenizer.parameters())}
    record |= {"data": record["data"] | {"names": stt.Photographs.SPLITS}, "metrics": measure(tokenizer)}
    if name in ("early", "late"):
        (RESULTS / f"vqgan-{name}.json").write_text(json.dumps({"config": vars(SHAPE)} | record, indent=2) + "\n")
    else:
        path = stt.save_tokenizer(tokenizer, stt.weights_folder() / f"photographs-{name}-tokenizer.safetensors", record)
        (RESULTS / path.with_suffix(".json").name).write_text(path.with_suffix(".json").read_text())
    at = record["metrics"]["128"]
    print(name, record["steps"], "steps", {key: value for key, value in at.items() if key != "spectrum"})


def bf16(steps: int = 5000) -> None:
    """`fit` stops at the first loss or gradient that is not finite."""
    shape = stt.TokenizerConfig(channels=3, downsample=4, width=16, residual_blocks=1, codebook_size=256, group_norm=True)
    settings = stt.VQGANConfig(start=0.1, width=8)
    with tempfile.TemporaryDirectory() as out:
        tokenizer, record = stt.train_vqgan(
            stt.Photographs(32), out, shape, settings, steps=steps, batch=1, precision="bf16", checkpoint_seconds=600
        )  # fmt: skip
    del record["training"]["out"]
    finite = all(value.isfinite().all().item() for value in tokenizer.state_dict().values())
    record |= {"config": vars(shape), "finite": finite}
    (RESULTS / "vqgan-bf16.json").write_text(json.dumps(record, indent=2) + "\n")
    print(record["steps"], "steps in", record["precision"], "finite:", record["finite"], "last loss:", record["curve"][-1])


def resident() -> float:
    """Largest resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def one_resolution(size: int, what: str) -> None:
    """Seconds of `what` for one frame, the least of several times, and the memory that it adds, as JSON."""
    torch.set_num_threads(1)
    tokenizer, frames = stt.load_tokenizer("photographs-vqgan"), torch.rand(1, 3, size, size)
    judge = stt.PatchDiscriminator()

    def training() -> None:
        again, _, commitment = tokenizer(frames)
        scores, _ = judge(torch.cat([frames, again]))
        ((again - frames).square().sum() + commitment + scores.mean()).backward()

    run = {"reconstruct": lambda: tokenizer.reconstruct(frames), "train": training}[what]
    if what == "train":
        tokenizer.requires_grad_(True)
    before = resident()
    seconds = []
    for _ in range(8):
        clock = time.process_time()
        run()
        seconds.append(time.process_time() - clock)
    print(json.dumps({"seconds": min(seconds), "megabytes": resident() - before}))


def resolution() -> None:
    found = {}
    for what in ("reconstruct", "train"):
        for size in (64, 96, 128, 192, 256, 384, 512):
            command = [sys.executable, __file__, "one", str(size), what]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found.setdefault(what, {})[str(size)] = json.loads(done.stdout)
            print(what, size, done.stdout.strip(), flush=True)
    torch.set_num_threads(1)
    record = {"hardware": hardware(torch.device("cpu")), "torch": torch.__version__, "tokenizer": "photographs-vqgan"}
    record |= {"note": "one frame, one thread; seconds of a processor, the least of eight; memory that the eight added"}
    (RESULTS / "vqgan-resolution.json").write_text(json.dumps(record | found, indent=2) + "\n")


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what in RUNS:
        photographs(what, **({"steps": int(rest[0])} if rest[1:] == ["steps"] else {"minutes": float(rest[0]) if rest else 22.0}))
    elif what == "one":
        one_resolution(int(rest[0]), rest[1])
    else:
        {"bf16": bf16, "resolution": resolution}[what]()
