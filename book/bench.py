"""Time what chapter 16 shows: `make bench`, or `python book/bench.py [part ...]`.

Writes book/results/bench-<device>.json. Each figure is the median of several runs with
their least and largest, in seconds of the processor and of the clock; the record says
on what machine, with how many threads, and how busy that was before. No test asserts a
time. bench-cpu-first-edition.json was made in the same way by the first edition's code.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

import stt_lite as stt
from stt_lite.machines import hardware, seed_everything
from stt_lite.runs import Step
from stt_lite.spatial_attention import attention, attention_weights

RESULTS = Path(__file__).resolve().parent / "results"
FIRST = {"width": 128, "layers": 3, "heads": 8}  # the first edition's 64x64 model
NOW = {"width": 192, "layers": 6, "heads": 6, "patch": 2}
# The original's, which has no patches.
REFERENCE = {"width": 128, "layers": 4, "heads": 4, "gaussian": "bottleneck"}
ATTENTIONS = [(256, 6, 20, 32, True), (80, 6, 64, 32, False)]  # n N L d, causal


def timed(run: Callable, repeats: int = 5) -> dict:
    """Median, least and largest seconds, of the processor and of the clock.

    One call to warm up comes before.
    """
    run()
    cpu, wall = [], []
    for _ in range(repeats):
        start = time.process_time(), time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        cpu.append(time.process_time() - start[0])
        wall.append(time.perf_counter() - start[1])
    return {
        name: {"median": median(t), "least": min(t), "largest": max(t)}
        for name, t in (("cpu", cpu), ("wall", wall))
    }


def shaped(shape: dict, device) -> stt.SpatialTemporalTransformer:
    """A transformer of a shape, on the bundled 64x64 tokenizer's latents."""
    config = stt.TransformerConfig(
        latent_channels=8, grid=(16, 16), codebook_size=512, **shape
    )
    return stt.SpatialTemporalTransformer(config).to(device)


def step_of(shape: dict, device, batch: int = 4) -> tuple[Callable, torch.nn.Module]:
    """A training step of the 64x64 preset's recipe (contexts not spoiled)."""
    config, source, _ = stt.PRESETS["moving-mnist"]
    config = replace(config, batch=batch, fade=0.0, rollout_share=0.0)
    tokenizer = stt.load_tokenizer("moving-mnist", device)
    objective = config.objective(shaped(shape, device), tokenizer, source)
    objective = objective.to(device).train()
    optimizer, count = objective.optimizer(), iter(range(10**6))

    def step():
        now = Step(0.5, *seed_everything(0, next(count), device), 0, 1)
        prepared = objective.prepare(objective.sample(now, device), now)
        loss, _ = objective(**prepared)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(objective.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step, objective


def bench_training(device, repeats: int) -> dict:
    """Seconds of a step on four clips, for the shapes that chapter 16 compares."""
    shapes = {"first edition": FIRST, "reference": REFERENCE}
    for mode in ("off", "latent", "bottleneck"):
        shapes[f"now, {mode}"] = NOW | {"gaussian": mode}
    found = {}
    for name, shape in shapes.items():
        step, objective = step_of(shape, device)
        found[name] = {
            "shape": shape,
            "batch": 4,
            "parameters": sum(p.numel() for p in objective.model.parameters()),
            "seconds": timed(step, repeats),
        }
        seconds = found[name]["seconds"]["cpu"]["median"]
        print(f"training, {name}: {seconds:.2f} CPU seconds", flush=True)
    return found


def bench_profile(device, repeats: int) -> dict:
    """Self CPU seconds of each operation in one training step, largest first."""
    found = {}
    for name, shape in {"first edition": FIRST, "now": NOW}.items():
        step, _ = step_of(shape, device)
        step()
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            for _ in range(repeats):
                step()
        times = {
            event.key: event.self_cpu_time_total / repeats / 1e6
            for event in seen.key_averages()
        }
        found[name] = dict(sorted(times.items(), key=lambda item: -item[1])[:25])
        found[name]["all"] = sum(times.values())
        print(f"profile, {name}: {found[name]['all']:.2f} CPU seconds", flush=True)
    return found


def bench_generation(device, repeats: int) -> dict:
    """Seconds of 15 -> 20 with encoding and decoding, 16 futures, a late frame."""
    found, tokenizer = {}, stt.load_tokenizer("moving-mnist", device)
    prompt = stt.moving_mnist(1, 15, 64, 2, split="test", seed=0, device=device)
    shapes = {"first edition": FIRST, "reference": REFERENCE, "now": NOW}
    for name, shape in shapes.items():
        record = {"data": {"size": 64, "frames": 20}}
        model = stt.VideoModel(tokenizer, shaped(shape, device), record).eval()
        seconds = {}
        for n in (1, 16):
            run = lambda n=n: model.generate(prompt, 5, samples=n, seed=0)  # noqa: B023
            seconds[f"{n} futures"] = timed(run, repeats)
        clock = []
        for _ in model.stream(prompt, 200, seed=0):
            clock.append(time.process_time())
        each = torch.tensor(clock).diff()
        seconds["frame 40"] = each[15:35].median().item()
        seconds["frame 200"] = each[-20:].median().item()
        found[name] = {"shape": shape, "seconds": seconds}
        once = seconds["1 futures"]["cpu"]["median"]
        print(f"generation, {name}: 15 -> 20 {once:.3f} CPU seconds", flush=True)
    return found


def bench_pong(device, repeats: int) -> dict:
    """Seconds of a frame of chapter 17's world, decoded: as it is, and compiled."""
    model, found = stt.load_pretrained("pong", device), {}
    clips, actions = stt.held_out_clips(model, 1, 108, seed=3)
    for name in ("as it is", "compiled"):
        if name == "compiled":
            for part, method in (
                (model.transformer, "step"),
                (model.tokenizer, "decode"),
            ):
                faster = torch.compile(
                    getattr(part, method), options={"freezing": True}
                )
                setattr(part, method, faster)
        medians = []
        for _ in range(1 + repeats):  # the first one compiles
            keys = {"actions": actions, "temperature": 0.0, "seed": 0}
            stream = model.stream(clips[:, :8], 100, **keys)
            clock = torch.tensor(
                [time.process_time() for _ in stream], dtype=torch.float64
            )
            medians.append(clock.diff()[20:].median().item())
        cpu = sorted(medians[1:])
        found[name] = {"median": median(cpu), "least": cpu[0], "largest": cpu[-1]}
        print(f"pong, {name}: {1e3 * median(cpu):.1f} CPU ms a frame", flush=True)
    return found


def bench_parts(device, repeats: int) -> dict:
    """Seconds of what was sped up by itself, and of the plain form beside it."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(2048, 2048, device=device, dtype=dtype)
        seconds = timed(lambda a=a: a @ a, 2)["wall"]["median"]
        found[f"product, {dtype}"] = {"GFLOP/s": 2 * 2048**3 / seconds / 1e9}
        for n, N, L, d, causal in ATTENTIONS:
            shape = (3, n, N, L, d)
            qkv = torch.randn(shape, device=device, dtype=dtype, requires_grad=True)
            what = f"{n} sequences of {L}, {N} heads of {d}"
            key = f"attention of {what}, forward and backward, {dtype}"
            found[key] = attention_ways(*qkv.unbind(0), causal, repeats)
    quantizer = stt.load_tokenizer("moving-mnist", device).quantizer
    z, book = torch.randn(20_480, 8, device=device), quantizer.codebook

    def whole():
        return (book.square().sum(1) - 2 * z @ book.T).argmin(1)

    found["nearest of 512 codewords, 20,480 latents"] = {
        "whole": timed(whole, repeats),
        "ours": timed(lambda: quantizer.nearest(z), repeats),
    }
    return found


def attention_ways(q, k, v, causal: bool, repeats: int) -> dict:
    """Seconds of three ways to attend, with their gradients."""
    ways = {
        "fused": lambda: F.scaled_dot_product_attention(q, k, v, is_causal=causal),
        "written out": lambda: attention_weights(q, k, causal=causal) @ v,
        "ours": lambda: attention(q, k, v, causal=causal),
    }

    def there_and_back(way):
        ways[way]().sum().backward(retain_graph=True)

    return {way: timed(lambda way=way: there_and_back(way), repeats) for way in ways}


PARTS = {
    "parts": bench_parts,
    "training": bench_training,
    "profile": bench_profile,
    "generation": bench_generation,
    "pong": bench_pong,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    choices = ", ".join(PARTS)
    parser.add_argument("part", nargs="*", help=f"which of {choices}; by default all")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    if unknown := [part for part in args.part if part not in PARTS]:
        parser.error(f"part must be among {choices}, got {', '.join(unknown)}")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    path = RESULTS / f"bench-{device.type}.json"
    record = json.loads(path.read_text()) if path.exists() else {}
    busy = os.getloadavg()[0]
    for part in args.part or PARTS:
        torch.manual_seed(0)
        record[part] = PARTS[part](device, args.repeats)
        record[f"{part}_conditions"] = {
            "hardware": hardware(device),
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
            "load_before": round(busy, 2),
            "torch": torch.__version__,
            "repeats": args.repeats,
        }
        path.write_text(json.dumps(record, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
