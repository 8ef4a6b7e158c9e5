"""Train a preset on one GPU by the clock, from a bare checkout: no network, nothing installed but torch and its usual company.

    python book/gpu_run.py moving-mnist --seconds 600 --out results --batch 64

It takes `--seconds` in all. First a minute of checks, in which both ways to run a step, compiled and not, are timed and the
faster one is taken: the loss falls, nothing is NaN, clips per second, share of the card's peak, memory. Then it trains, goes on
from `--start` where given, evaluates on held-out clips, and prints a table. What has to come back lies in `--out`, in pieces of at most
15 MiB: `cat run.tar.* | tar x` brings back the weights, their records, and the checkpoint from before the learning rate fell.
"""

import argparse
import io
import json
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import fmean

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402

import stt_lite as stt  # noqa: E402
from stt_lite.evaluation import without_chance  # noqa: E402
from stt_lite.training import (  # noqa: E402
    TokenizerObjective, TransformerObjective, fit, hardware, new_accelerator, new_tokenizer, transformer_config,
)  # fmt: skip

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12, "T4": 65e12}  # dense half-precision FLOP/s, data sheets
PIECE = 14 * 2**20
RESERVE = 60  # seconds for evaluation and packing


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("preset", choices=sorted(stt.PRESETS))
    parser.add_argument("--seconds", type=float, default=600.0, help="for everything")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--start", help="transformer weights to go on from")
    parser.add_argument("--tokenizer", help="tokenizer weights; by default the preset's")
    parser.add_argument("--tokenizer-seconds", type=float, default=0.0, help="train a tokenizer first, for so long")
    parser.add_argument("--width", type=int)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--heads", type=int)
    parser.add_argument("--clips", type=int, default=500, help="to evaluate on")
    return parser.parse_args()


def configure(args: argparse.Namespace) -> stt.TrainingConfig:
    """The preset with what the command line changes, in a folder of its own."""
    named = ("tokenizer", "width", "layers", "heads")
    changes = {name: getattr(args, name) for name in named if getattr(args, name) is not None}
    config = replace(stt.PRESETS[args.preset], out=args.out / "run", batch=args.batch, start=args.start, **changes)
    return replace(config, checkpoint_seconds=120.0)


def own_tokenizer(config: stt.TrainingConfig, seconds: float) -> Path:
    """Train a tokenizer on the preset's clips, not compiled; where its weights are."""
    config = replace(config, out=config.out.parent / "tokenizer", minutes=seconds / 60)
    accelerator = new_accelerator(replace(config, compile=False))
    torch.manual_seed(config.seed)
    tokenizer, progress = fit(TokenizerObjective(new_tokenizer(config), config), "tokenizer", 1.0, config, accelerator)
    path = stt.save_tokenizer(tokenizer, config.out / "tokenizer.safetensors", {"steps": progress.step, "seconds": round(seconds)})
    clips = stt.moving_mnist(20, 20, config.size, config.digits, split="test", seed=1, device=accelerator.device)
    error = (tokenizer.reconstruct(clips) - clips).square().sum((2, 3, 4)).mean().item()
    print(f"tokenizer: {progress.step} steps, squared error {error:.2f} a frame on held-out clips", flush=True)
    return path


def training_flops(config: stt.TrainingConfig) -> float:
    """Floating-point operations of a training step per clip, tokenizer and Gaussian posterior not counted."""
    shape = transformer_config(config, stt.load_tokenizer(config.tokenizer))
    return 3.0 * config.frames * stt.count_flops(shape, config.frames)


def check(config: stt.TrainingConfig, compiled: bool, seconds: float) -> float:
    """Clips per second of a few training steps; raises where the loss is not finite or does not fall."""
    accelerator = new_accelerator(replace(config, compile=compiled))
    device, tokenizer = accelerator.device, stt.load_tokenizer(config.tokenizer)
    torch.manual_seed(0)
    net = stt.SpatialTemporalTransformer(transformer_config(config, tokenizer))
    objective = TransformerObjective(net, tokenizer, config).to(device).train()
    trained, stepper = accelerator.prepare(objective, objective.optimizer())
    losses, begin, since = [], time.perf_counter(), None
    generator = torch.Generator(device).manual_seed(0)
    while time.perf_counter() - begin < seconds or len(losses) < 12:
        with accelerator.autocast():
            batch = objective.prepare(objective.sample(torch.Generator().manual_seed(len(losses)), device), 0.5, generator, lambda x: x)
        loss, _ = trained(**batch)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(net.parameters(), config.clip)
        with accelerator.autocast():
            stepper.step()
        stepper.zero_grad()
        losses.append(loss.item())  # waits for the device
        if len(losses) == 6:  # compiled and warm
            since = time.perf_counter()
    speed = (len(losses) - 6) * config.batch / (time.perf_counter() - since)
    early, late = fmean(losses[:4]), fmean(losses[-4:])
    if not late < early:  # NaN fails, too
        raise RuntimeError(f"the loss does not fall: {early:.3f} at first, {late:.3f} after {len(losses)} steps")
    where = f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB at most" if device.type == "cuda" else ""
    share = ""
    for card, peak in PEAKS.items():
        if card in hardware(device):
            share = f", {speed * training_flops(config) / peak:.1%} of the peak"
    print(f"{'compiled' if compiled else 'plain':9} {len(losses):4} steps: loss {early:.2f} -> {late:.2f}, {speed:.1f} clips/s{share}{where}", flush=True)
    accelerator.free_memory()
    return speed


def faster_way(config: stt.TrainingConfig) -> bool:
    """Whether a compiled step is the faster one; a compiler that fails here is no reason to stop."""
    plain = check(config, compiled=False, seconds=8.0)
    if not torch.cuda.is_available():
        return False
    try:
        return check(config, compiled=True, seconds=20.0) > plain
    except Exception as error:  # whatever the compiler raises
        print(f"not compiled: {type(error).__name__}: {str(error).splitlines()[0][:200]}", flush=True)
        return False


def evaluate(model: stt.VideoModel, clips: int) -> dict:
    """Errors on held-out clips, and what generation costs; as a table, too."""
    held_out = stt.held_out_clips(model, clips, 20, seed=1)
    found = stt.evaluate(without_chance(model), held_out, ("15->5", "10->10"))
    for protocol, measures in found.items():
        error = measures["squared_error"]
        print(f"{protocol:7} first {error[0]:6.2f}  mean {fmean(error):6.2f}  SSIM {fmean(measures['ssim']):.3f}")
    for n in (1, 64) if torch.cuda.is_available() else (1,):
        prompt = held_out[:1, :15].expand(n, -1, -1, -1, -1)
        for _ in range(2):
            begin = time.perf_counter()
            model.generate(prompt, 20, seed=0).sum().item()
            took = time.perf_counter() - begin
        print(f"{n:3} clips, 20 new frames each: {1e3 * took / 20:.1f} ms per frame")
    return found


def half(state):
    """Weights and momentum in half the bytes; what is small and needs its range stays as it is."""
    if isinstance(state, dict):
        return {key: value if key in ("square", "step") else half(value) for key, value in state.items()}
    if isinstance(state, list):
        return [half(value) for value in state]
    return state.half() if isinstance(state, torch.Tensor) and state.dtype == torch.float32 else state


def pack(run: Path, out: Path) -> None:
    """The run's weights, records and stable checkpoint as run.tar.00, run.tar.01, ... of at most PIECE bytes."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for path in sorted(run.glob("*.safetensors")) + sorted(run.glob("*.json")):
            tar.add(path, path.name)
        stable = run / "transformer-stable.checkpoint"
        if stable.exists():
            small = io.BytesIO()
            torch.save(half(torch.load(stable, map_location="cpu", weights_only=True)), small)
            entry = tarfile.TarInfo(stable.name)
            entry.size = small.tell()
            small.seek(0)
            tar.addfile(entry, small)
    data = content.getvalue()
    for i in range(0, len(data), PIECE):
        (out / f"run.tar.{i // PIECE:02}").write_bytes(data[i : i + PIECE])
    print(f"packed: {len(data) / 2**20:.1f} MiB in {-(-len(data) // PIECE)} pieces")


def main() -> None:
    begin, args = time.perf_counter(), arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    config = configure(args)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    print(f"{hardware(device)}, torch {torch.__version__}, {training_flops(config) / 1e9:.1f} GFLOP per clip and training step", flush=True)
    if args.tokenizer_seconds:
        config = replace(config, tokenizer=str(own_tokenizer(config, args.tokenizer_seconds)))
    compiled = faster_way(config)
    left = args.seconds - RESERVE - (time.perf_counter() - begin)
    if left < 10:
        raise SystemExit(f"--seconds must leave time to train after the checks, got {args.seconds:.0f}")
    run = stt.train(replace(config, compile=compiled, minutes=left / 60))
    record = json.loads((run / "transformer.json").read_text())
    print(f"trained {record['seconds']} s, {record['steps']} steps, {record['clips_seen']} clips, {record['clips_seen'] / record['seconds']:.1f} clips/s", flush=True)
    found = evaluate(stt.load_pretrained(run, device), args.clips)
    (args.out / "evaluation.json").write_text(json.dumps(found, indent=1))
    pack(run, args.out)
    print(f"{time.perf_counter() - begin:.0f} s in all")


if __name__ == "__main__":
    main()
