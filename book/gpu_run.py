"""Train a preset on one GPU by the clock, from a bare checkout, without a network.

    python book/gpu_run.py moving-mnist --seconds 600 --out results --batch 64

It takes `--seconds` in all. First a minute of checks, in which a step is timed compiled
and not, and the faster way is taken: the loss falls, nothing is NaN, clips per second,
share of the card's peak, memory. Then it trains (`--resume` goes on from a checkpoint,
`--start` from weights alone), evaluates on held-out clips, and prints a table. What has
to come back lies in `--out`, in pieces of at most 14 MiB (`cat run.tar.* | tar x`): the
weights, their records, and the checkpoint from before the learning rate fell.
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

BOOK = Path(__file__).resolve().parent
sys.path[:0] = [str(BOOK.parent), str(BOOK / "experiments")]

import torch  # noqa: E402

import stt_lite as stt  # noqa: E402
from grow import train_grown  # noqa: E402
from stt_lite.contexts import Preset  # noqa: E402
from stt_lite.evaluation import without_chance  # noqa: E402
from stt_lite.machines import hardware, new_accelerator, seed_everything  # noqa: E402
from stt_lite.pipeline import shape_of  # noqa: E402
from stt_lite.runs import Step  # noqa: E402
from stt_lite.transformer import count_flops  # noqa: E402

# Dense half-precision FLOP/s, from the data sheets.
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12, "T4": 65e12}
PIECE = 14 * 2**20
RESERVE = 60  # seconds for evaluation and packing


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("preset", choices=sorted(stt.PRESETS))
    parser.add_argument("--seconds", type=float, default=600.0, help="for everything")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--resume", type=Path, help="a stable checkpoint to go on from")
    parser.add_argument(
        "--start", help="a bundle or folder whose weights it begins with"
    )
    parser.add_argument("--tokenizer", help="its weights; by default the preset's")
    parser.add_argument(
        "--tokenizer-seconds", type=float, default=0.0, help="train one first, so long"
    )
    for name in ("width", "layers", "heads"):
        parser.add_argument(f"--{name}", type=int)
    ways = {"choices": ("yes", "no", "try"), "default": "try"}
    parser.add_argument("--compile", **ways, help="try: the faster way of the two")
    parser.add_argument("--clips", type=int, default=500, help="to evaluate on")
    args = parser.parse_args()
    others = ("resume", "tokenizer", "tokenizer_seconds", "layers", "heads")
    given = [f"--{name.replace('_', '-')}" for name in others if getattr(args, name)]
    if args.start and given:
        parser.error(f"--start brings its own shape and tokenizer: no {given[0]}")
    return args


def configure(args: argparse.Namespace) -> Preset:
    """The preset with what the command line changes, in a folder of its own."""
    config, source, tokenizer = stt.PRESETS[args.preset]
    given = {name: getattr(args, name) for name in ("width", "layers", "heads")}
    changes = {name: value for name, value in given.items() if value is not None}
    changes |= {"out": args.out / "run", "batch": args.batch}
    config = replace(config, checkpoint_seconds=120.0, **changes)
    return Preset(config, source, args.tokenizer or tokenizer)


def own_tokenizer(preset: Preset, seconds: float) -> Path:
    """Train a tokenizer on the preset's clips; where its weights are.

    It is small: not compiled, and in float32.
    """
    config, source, named = preset
    shape = replace(stt.load_tokenizer(named).config, group_norm=False)
    out = config.out.parent / "tokenizer"
    plain = dict(minutes=seconds / 60, compile=False, precision="no")
    config = replace(config, out=out, **plain)
    tokenizer = stt.train_tokenizer(config, source, shape)
    clips = source.held_out(20, 20, 1, next(tokenizer.parameters()).device)
    again = tokenizer.reconstruct(clips)
    error = (again - clips).square().sum((2, 3, 4)).mean().item()
    print(f"tokenizer: squared error {error:.2f} a frame, held-out clips", flush=True)
    return out / "tokenizer.safetensors"


def training_flops(preset: Preset) -> float:
    """Floating-point operations of a training step per clip.

    Those of the tokenizer are not counted.
    """
    config, source, named = preset
    shape = shape_of(config, source, stt.load_tokenizer(named).config)
    return 3.0 * source.frames * count_flops(shape, source.frames, posterior=True)


def check(preset: Preset, compiled: bool, seconds: float) -> float:
    """Clips per second of a few steps; raises where the loss does not fall."""
    config, source, named = preset
    accelerator = new_accelerator(config.precision, compiled)
    device, tokenizer = accelerator.device, stt.load_tokenizer(named)
    torch.manual_seed(0)
    net = stt.SpatialTemporalTransformer(shape_of(config, source, tokenizer.config))
    objective = config.objective(net, tokenizer, source).to(device).train()
    trained, stepper = accelerator.prepare(objective, objective.optimizer())
    losses, begin, since = [], time.perf_counter(), None
    while time.perf_counter() - begin < seconds or len(losses) < 12:
        step = Step(0.5, *seed_everything(0, len(losses), device), 0, 1)
        with accelerator.autocast():
            prepared = objective.prepare(objective.sample(step, device), step)
        loss, _ = trained(**prepared)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(net.parameters(), 1.0)
        with accelerator.autocast():
            stepper.step()
        stepper.zero_grad()
        losses.append(loss.item())  # waits for the device
        if len(losses) == 6:  # compiled and warm
            since = time.perf_counter()
    speed = (len(losses) - 6) * config.batch / (time.perf_counter() - since)
    early, late = fmean(losses[:4]), fmean(losses[-4:])
    if not late < early:  # NaN fails, too
        steps = len(losses)
        raise RuntimeError(f"the loss goes {early:.3f} -> {late:.3f} in {steps} steps")
    told = f"loss {early:.2f} -> {late:.2f}, {speed:.1f} clips/s"
    way = f"{'compiled' if compiled else 'plain':9} {len(losses):4} steps"
    print(f"{way}: {told}{peak(device, preset, speed)}", flush=True)
    accelerator.free_memory()
    return speed


def peak(device: torch.device, preset: Preset, speed: float) -> str:
    """What share of the card's peak so many clips a second are, and the memory."""
    told = ""
    for card, most in PEAKS.items():
        if card in hardware(device):
            told = f", {speed * training_flops(preset) / most:.1%} of the peak"
    if device.type == "cuda":
        told += f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB at most"
    return told


def faster_way(preset: Preset, asked: str) -> bool:
    """Whether a compiled step is the faster one; a compiler may fail here."""
    if asked != "try":
        return asked == "yes"
    plain = check(preset, compiled=False, seconds=8.0)
    if not torch.cuda.is_available():
        return False
    try:
        return check(preset, compiled=True, seconds=20.0) > plain
    except Exception as error:  # whatever the compiler raises
        reason = str(error).splitlines()[0][:200]
        print(f"not compiled: {type(error).__name__}: {reason}", flush=True)
        return False


def evaluate(model: stt.VideoModel, clips: int) -> dict:
    """Errors on held-out clips, and what generation costs; as a table, too."""
    held_out = stt.held_out_clips(model, clips, 20, seed=1)
    found = stt.evaluate(without_chance(model), held_out, ("15->5", "10->10"))
    for protocol, measures in found.items():
        error, ssim = measures["squared_error"], fmean(measures["ssim"])
        mean = f"first {error[0]:6.2f}  mean {fmean(error):6.2f}"
        print(f"{protocol:7} {mean}  SSIM {ssim:.3f}")
    for n in (1, 64) if torch.cuda.is_available() else (1,):
        prompt = held_out[:1, :15].expand(n, -1, -1, -1, -1)
        for _ in range(2):
            begin = time.perf_counter()
            model.generate(prompt, 20, seed=0).sum().item()
            took = time.perf_counter() - begin
        print(f"{n:3} clips, 20 new frames each: {1e3 * took / 20:.1f} ms per frame")
    return found


def half(state):
    """Weights and momentum in half the bytes; what needs its range stays as it is."""
    if isinstance(state, dict):
        whole = ("square", "step")
        return {k: v if k in whole else half(v) for k, v in state.items()}
    if isinstance(state, list):
        return [half(value) for value in state]
    single = isinstance(state, torch.Tensor) and state.dtype == torch.float32
    return state.half() if single else state


def pack(run: Path, out: Path) -> None:
    """Weights, records and stable checkpoint as run.tar.00, run.tar.01, ..."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for path in sorted(run.glob("*.safetensors")) + sorted(run.glob("*.json")):
            tar.add(path, path.name)
        stable = run / "transformer-stable.checkpoint"
        if stable.exists():
            small = io.BytesIO()
            state = torch.load(stable, map_location="cpu", weights_only=True)
            torch.save(half(state), small)
            entry = tarfile.TarInfo(stable.name)
            entry.size = small.tell()
            small.seek(0)
            tar.addfile(entry, small)
    data = content.getvalue()
    for i in range(0, len(data), PIECE):
        (out / f"run.tar.{i // PIECE:02}").write_bytes(data[i : i + PIECE])
    print(f"packed: {len(data) / 2**20:.1f} MiB in {-(-len(data) // PIECE)} pieces")


def resumed(config: stt.TrainingConfig, args: argparse.Namespace, tokenizer: str):
    """The config of a run that goes on from a stable checkpoint of another machine.

    Its seconds count; the learning rate falls in the last fifth of what is added. The
    tokenizer may lie elsewhere now, but must be the same.
    """
    state = torch.load(args.resume, map_location="cpu", weights_only=True)
    state["config"]["tokenizer"] = tokenizer
    config.out.mkdir(parents=True, exist_ok=True)
    torch.save(state, config.out / "transformer.checkpoint")
    before, added = state["progress"]["seconds"], 60 * config.minutes
    share = config.decay_share * added / (before + added)
    return replace(config, minutes=(before + added) / 60, decay_share=share)


def main() -> None:
    begin, args = time.perf_counter(), arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    preset = configure(args)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    flops = f"{training_flops(preset) / 1e9:.1f} GFLOP per clip and training step"
    print(f"{hardware(device)}, torch {torch.__version__}, {flops}", flush=True)
    if args.tokenizer_seconds:
        named = str(own_tokenizer(preset, args.tokenizer_seconds))
        preset = preset._replace(tokenizer=named)
    compiled = faster_way(preset, args.compile)
    left = args.seconds - RESERVE - (time.perf_counter() - begin)
    if left < 10:
        raise SystemExit(f"--seconds must leave time to train, got {args.seconds:.0f}")
    config = replace(preset.config, compile=compiled, minutes=left / 60)
    if args.resume:
        config = resumed(config, args, preset.tokenizer)
    if args.start:
        run = train_grown(config, args.start)
    else:
        run = stt.train(config, preset.source, preset.tokenizer)
    record = json.loads((run / "transformer.json").read_text())
    speed = record["clips_seen"] / record["seconds"]
    print(
        f"trained {record['seconds']} s, {record['steps']} steps, "
        f"{record['clips_seen']} clips, {speed:.1f} clips/s",
        flush=True,
    )
    found = evaluate(stt.load_pretrained(run, device), args.clips)
    (args.out / "evaluation.json").write_text(json.dumps(found, indent=1))
    pack(run, args.out)
    print(f"{time.perf_counter() - begin:.0f} s in all")


if __name__ == "__main__":
    main()
