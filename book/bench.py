"""Time what chapter 14 shows, and write it to book/results/bench-<device>.json: `make bench`, or `python book/bench.py [part ...]`.

Each figure is the median of several runs with their least and largest, in seconds of the processor and of the clock. The record says on
what machine, with how many threads, and how busy that was before. `--source FOLDER` times another checkout's package, such as the first
edition's, under `--label`. No test asserts a time.
"""

import argparse
import importlib
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "book" / "results"
FIRST = {"width": 128, "layers": 3, "heads": 8}  # the first edition's 64x64 model
REFERENCE = {"width": 128, "layers": 4, "heads": 4, "gaussian": "bottleneck"}  # the original's, which has no patches
NOW = {"width": 192, "layers": 6, "heads": 6, "patch": 2}


def timed(run, repeats: int = 5) -> dict:
    """Median, least and largest seconds of `run` after one call to warm up: of the processor ("cpu") and of the clock ("wall")."""
    run()
    cpu, wall = [], []
    for _ in range(repeats):
        start = time.process_time(), time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        cpu.append(time.process_time() - start[0])
        wall.append(time.perf_counter() - start[1])
    return {name: {"median": median(t), "least": min(t), "largest": max(t)} for name, t in (("cpu", cpu), ("wall", wall))}


def shaped(shape: dict, device):
    """A transformer of a shape, on the bundled 64x64 tokenizer's latents."""
    config = stt.TransformerConfig(latent_channels=8, grid=(16, 16), codebook_size=512, **shape)
    return stt.SpatialTemporalTransformer(config).to(device)


def step_of(shape: dict, device, batch: int = 4, precision: str = "no"):
    """A function that trains one step of the 64x64 preset's recipe (contexts not spoiled) on `batch` clips, and the objective."""
    config = replace(stt.PRESETS["moving-mnist"], batch=batch, fade=0.0, blur=0.0, hide=0.0, rollout_share=0.0)
    tokenizer = stt.load_tokenizer("moving-mnist", device)
    objective = training.TransformerObjective(shaped(shape, device), tokenizer, config).to(device).train()
    optimizer, count = objective.optimizer(), iter(range(10**6))
    half = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")

    def step():
        on_cpu, on_device = training.seed_everything(0, next(count), torch.device(device))
        with half:
            given = objective.prepare(objective.sample(on_cpu, device), 0.5, on_device, lambda x: x)
            loss, _ = objective(**given)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(objective.model.parameters(), 1.0)
        with half:
            optimizer.step()
        optimizer.zero_grad()

    return step, objective


def bench_training(device, repeats: int) -> dict:
    """Seconds of a step on four clips, for the shapes and Gaussian modes that chapter 14 compares."""
    shapes = {"first edition": FIRST, "reference": REFERENCE}
    if hasattr(stt.TransformerConfig, "patch"):
        shapes |= {f"now, {mode}": NOW | {"gaussian": mode} for mode in ("off", "latent", "bottleneck")}
    found = {}
    for name, shape in shapes.items():
        step, objective = step_of(shape, device)
        parameters = sum(p.numel() for p in objective.model.parameters())
        found[name] = {"shape": shape, "batch": 4, "parameters": parameters, "seconds": timed(step, repeats)}
        print(f"training, {name}: {found[name]['seconds']['cpu']['median']:.2f} CPU seconds", flush=True)
    return found


def bench_profile(device, repeats: int) -> dict:
    """Self CPU seconds of each operation in one training step, largest first."""
    from torch.profiler import ProfilerActivity, profile

    found = {}
    shapes = {"first edition": FIRST} | ({"now": NOW} if hasattr(stt.TransformerConfig, "patch") else {})
    for name, shape in shapes.items():
        step, _ = step_of(shape, device)
        step()
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            for _ in range(repeats):
                step()
        times = {event.key: event.self_cpu_time_total / repeats / 1e6 for event in seen.key_averages()}
        found[name] = dict(sorted(times.items(), key=lambda item: -item[1])[:25])
        found[name]["all"] = sum(times.values())
        print(f"profile, {name}: {found[name]['all']:.2f} CPU seconds", flush=True)
    return found


def bench_generation(device, repeats: int) -> dict:
    """Seconds of 15 -> 20 with encoding and decoding, of 16 futures, and of a frame early and late in a long rollout."""
    found, tokenizer = {}, stt.load_tokenizer("moving-mnist", device)
    shapes = {"first edition": FIRST, "reference": REFERENCE}
    if hasattr(stt.TransformerConfig, "patch"):
        shapes["now"] = NOW
    prompt = stt.moving_mnist(1, 15, 64, 2, split="test", seed=0, device=device)
    for name, shape in shapes.items():
        model = stt.VideoModel(tokenizer, shaped(shape, device).eval(), {"data": {"size": 64, "frames": 20}}).eval()
        seconds = {f"{n} futures": timed(lambda n=n: model.generate(prompt, 5, samples=n, seed=0), repeats) for n in (1, 16)}
        frames = []
        for _ in model.stream(prompt, 200, seed=0):
            frames.append(time.process_time())
        each = torch.tensor(frames).diff()
        seconds["frame 40"], seconds["frame 200"] = each[15:35].median().item(), each[-20:].median().item()
        found[name] = {"shape": shape, "seconds": seconds}
        print(f"generation, {name}: 15 -> 20 {seconds['1 futures']['cpu']['median']:.3f} CPU seconds", flush=True)
    return found


def bench_parts(device, repeats: int) -> dict:
    """Seconds of what was sped up by itself, and of the plain form beside it, in float32 and in bfloat16."""
    from stt_lite.spatial_attention import attention, attention_weights

    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(2048, 2048, device=device, dtype=dtype)
        speed = 2 * 2048**3 / timed(lambda: a @ a, 2)["wall"]["median"] / 1e9
        found[f"product, {dtype}"] = {"GFLOP/s": speed}
        for n, N, L, d, causal in ((256, 6, 20, 32, True), (80, 6, 64, 32, False)):
            q, k, v = (torch.randn(n, N, L, d, device=device, dtype=dtype, requires_grad=True) for _ in range(3))
            ways = {
                "fused": lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal),
                "written out": lambda: attention_weights(q, k, causal=causal) @ v,
                "ours": lambda: attention(q, k, v, causal=causal),
            }
            times = {way: timed(lambda f=f: f().sum().backward(), repeats) for way, f in ways.items()}
            found[f"attention of {n} sequences of {L}, {N} heads of {d}, forward and backward, {dtype}"] = times
    quantizer, z = stt.load_tokenizer("moving-mnist", device).quantizer, torch.randn(20_480, 8, device=device)
    whole = timed(lambda: (quantizer.codebook.square().sum(1) - 2 * z @ quantizer.codebook.T).argmin(1), repeats)
    found["nearest of 512 codewords, 20,480 latents"] = {"whole": whole, "ours": timed(lambda: quantizer.nearest(z), repeats)}
    return found


PARTS = {"parts": bench_parts, "training": bench_training, "profile": bench_profile, "generation": bench_generation}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", nargs="*", help=f"which: {', '.join(PARTS)}; by default all")
    parser.add_argument("--source", type=Path, default=ROOT, help="the checkout whose package is timed")
    parser.add_argument("--label", default="", help="stands in the record's name")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    if unknown := [part for part in args.part if part not in PARTS]:
        parser.error(f"part must be among {', '.join(PARTS)}, got {', '.join(unknown)}")
    global torch, stt, training
    sys.path.insert(0, str(args.source.resolve()))
    torch, stt = importlib.import_module("torch"), importlib.import_module("stt_lite")
    training = importlib.import_module("stt_lite.training")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    path = RESULTS / f"bench-{device}{'-' + args.label if args.label else ''}.json"
    record = json.loads(path.read_text()) if path.exists() else {}
    busy = os.getloadavg()[0]
    for part in args.part or PARTS:
        torch.manual_seed(0)
        record[part] = PARTS[part](device, args.repeats)
        record[part + "_conditions"] = {
            "hardware": training.hardware(torch.device(device)), "threads": torch.get_num_threads(), "cores": os.cpu_count(),
            "load_before": round(busy, 2), "torch": torch.__version__, "repeats": args.repeats,
        }  # fmt: skip
        path.write_text(json.dumps(record, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
