"""Train variants of the tiny model for equal times and write a record of each.

    python book/experiments/compare.py --variants base convlstm --minutes 5 --seeds 0 1

Chapter 12 shows the recorded runs. Their base was the first edition's default, `FIRST`.
Three of its fields are gone: the weight of the KL rose from 0 over the first 30% of the
time (`beta_warmup`), the learning rate fell as half a cosine (`schedule="cosine"` does
it again), and the gradient's norm was cut to 1, as it is now without a field.
"""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean

import torch
from jaxtyping import Float
from torch import Tensor, nn

from layers import Joint, NoResidual, SpatialOnly, TemporalOnly
from rivals import ConvLSTM, ConvLSTMObjective
from stt_lite.contexts import TrainingConfig
from stt_lite.evaluation import Forecast, evaluate, many_futures, without_chance
from stt_lite.files import (
    check_writable,
    read_record,
    save_weights,
    weights_folder,
    write_file,
)
from stt_lite.generation import VideoModel
from stt_lite.layer import TransformerLayer
from stt_lite.machines import seed_everything
from stt_lite.moving_mnist import MovingDigits
from stt_lite.pipeline import run_record, shape_of, train_tokenizer
from stt_lite.runs import Run
from stt_lite.tokenizer import TokenizerConfig, load_tokenizer
from stt_lite.training import fit
from stt_lite.transformer import SpatialTemporalTransformer, load_transformer

TOKENIZER = "moving-mnist-tiny"  # the bundled one, which all others share


@dataclass(frozen=True)
class Variant:
    """One model of the comparison: what it changes of `TrainingConfig`.

    Args:
        title: as tables show it.
        training: changes of `TrainingConfig`.
        layer: the transformer's layer; None: a ConvLSTM instead of a transformer.
        tokenizer: one of its own, trained first; None: the bundled one.
        frames: length of the clips.
    """

    title: str
    training: dict = field(default_factory=dict)
    layer: type[nn.Module] | None = TransformerLayer
    tokenizer: TokenizerConfig | None = None
    frames: int = 20


FIRST = {
    "average": 0.995,
    "pixel_weight": 1.0,
    "beta": 8.0,
    "forecast_share": 0.0,
    "corruption": 0.05,
    "fade": 0.2,
    "rollout_share": 0.15,
}
ROLLOUTS = {"rollout_share": 0.7, "rollout_length": 0.75, "fade": 0.1}
OFF = {"gaussian": "off"}
TUNED = OFF | {"rollout_share": 0.4, "rollout_length": 0.6, "fade": 0.0, "batch": 2}
PATCHES = {"patch": 2, "width": 128, "layers": 4, "heads": 8, "batch": 4}
VQ_8 = TokenizerConfig(codebook_size=256)
VQ_16 = replace(VQ_8, downsample=2)
FSQ_8 = replace(VQ_8, quantizer="fsq", levels=(8, 8, 4), latent_channels=3)
VARIANTS = {
    "base": Variant("base", FIRST),
    "convlstm": Variant("ConvLSTM", FIRST, layer=None),
    "joint": Variant("joint space-time attention", FIRST, Joint),
    "spatial-only": Variant("spatial attention only", FIRST, SpatialOnly),
    "temporal-only": Variant("temporal attention only", FIRST, TemporalOnly),
    "no-residual": Variant("no residual stream", FIRST, NoResidual),
    "gaussian-off": Variant("Gaussian off", FIRST | OFF),
    # sixteen times as many random channels, so a sixteenth of a nat's price and less
    "bottleneck": Variant(
        "Gaussian bottleneck", FIRST | {"gaussian": "bottleneck", "beta": 0.01}
    ),
    "forecast": Variant("forecasts in 9 steps of 10", FIRST | {"forecast_share": 0.9}),
    "token-head": Variant("token head", FIRST | {"head": "token"}),
    "no-corruption": Variant("no context corruption", FIRST | {"corruption": 0.0}),
    "vq-8": Variant("VQ, grid 8x8", FIRST, tokenizer=VQ_8),
    "vq-16": Variant("VQ, grid 16x16", FIRST, tokenizer=VQ_16),
    "fsq-8": Variant("FSQ, grid 8x8", FIRST, tokenizer=FSQ_8),
    "recipe": Variant("the presets' recipe"),
    "rollouts": Variant("the recipe, long rollouts", ROLLOUTS),
    "rollouts-off": Variant("long rollouts, Gaussian off", ROLLOUTS | OFF),
    "convlstm-40": Variant(
        "ConvLSTM, clips of 40 frames", FIRST | {"batch": 2}, layer=None, frames=40
    ),
    "tuned": Variant("tuned for squared error, Gaussian off", TUNED, frames=40),
    "patches": Variant("tuned, larger, patches of 2x2", TUNED | PATCHES, frames=40),
}


def take_over(net: nn.Module, trained: nn.Module) -> int:
    """Copy the weights that both have, but for Gaussian layers; how many they are."""
    own = net.state_dict()
    shared = {
        name: value
        for name, value in trained.state_dict().items()
        if ".gaussian." not in name and name in own and own[name].shape == value.shape
    }
    net.load_state_dict(shared, strict=False)
    return sum(value.numel() for value in shared.values())


def settings(name: str, config: TrainingConfig, source: MovingDigits) -> tuple:
    """Config and source of a variant.

    Raises:
        ValueError: an unknown name.
    """
    if name not in VARIANTS:
        raise ValueError(f"name must be one of {', '.join(VARIANTS)}, got {name!r}")
    variant = VARIANTS[name]
    config = replace(config, compile=bool(config.compile), **variant.training)
    if source.stochastic:  # a rollout that bounced another way has no true frame
        config = replace(config, rollout_share=0.0)
    return config, replace(source, frames=variant.frames)


def train_variant(
    name: str,
    config: TrainingConfig,
    source: MovingDigits = MovingDigits(),
    start: str | None = None,
    tokenizer_minutes: float = 4.0,
    **changes,
) -> tuple[Forecast, nn.Module, dict]:
    """Train one variant of the comparison.

    Args:
        name: a key of `VARIANTS`.
        config: budget, folder, seed; a run that stopped there goes on.
        source: of the clips; a variant may want longer ones.
        start: a bundled transformer's name or a path: a variant takes over its width,
            layers and heads, and the weights that both have in common, but for the
            Gaussian layers. None: random weights.
        tokenizer_minutes: for a tokenizer of the variant's own, where it has one.
        changes: further fields of the config, above the variant's.

    Returns:
        Its forecast, the model, and the record of its run.
    """
    config, source = settings(name, config, source)
    variant, trained = VARIANTS[name], None
    if start and variant.layer:
        trained = load_transformer(start)
        sizes = ("width", "layers", "heads")
        changes |= {size: getattr(trained.config, size) for size in sizes}
    config = replace(config, **changes)
    cuda = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=cuda):  # the caller's generators stay
        seed_everything(config.seed, -1, "cpu")
        if variant.layer is None:
            net, notes = ConvLSTM(source.channels), {}
            objective = ConvLSTMObjective(net, config, source)
        else:
            objective, notes = new_transformer(
                variant, config, source, trained, tokenizer_minutes
            )
        run = Run(config, name, settings=source.data)
        net = fit(objective, run)
    if trained is not None:
        notes["started_from"] = past_of(start)
    notes |= {"variant": name, "parameters": sum(p.numel() for p in net.parameters())}
    record = run_record(run, source.data) | notes
    if variant.layer is None:
        return net.forecast, net, record
    model = VideoModel(objective.tokenizer, net, {"data": source.data}).eval()
    return without_chance(model), model, record


def new_transformer(
    variant: Variant,
    config: TrainingConfig,
    source: MovingDigits,
    trained: SpatialTemporalTransformer | None,
    minutes: float,
) -> tuple[nn.Module, dict]:
    """A variant's transformer in its objective, and what the record should say."""
    notes = {}
    if variant.tokenizer is None:
        tokenizer = load_tokenizer(TOKENIZER)
    else:
        timed = replace(config, minutes=minutes, steps=None, out=config.out / "tokens")
        tokenizer = train_tokenizer(timed, source, variant.tokenizer)
        seconds = read_record(timed.out / "tokenizer.json")["seconds"]
        notes["tokenizer"] = {"config": asdict(variant.tokenizer), "seconds": seconds}
    shape = shape_of(config, source, tokenizer.config)
    seed_everything(config.seed, -2, "cpu")
    net = SpatialTemporalTransformer(shape)
    net.layers = nn.ModuleList(variant.layer(shape) for _ in range(shape.layers))
    if trained is not None:
        take_over(net, trained)
    return config.objective(net, tokenizer, source), notes


def past_of(start: str) -> dict:
    """What a run that starts from a bundled transformer, or a path, says of it."""
    bundled = read_record(weights_folder() / f"{start}-transformer.json")
    record = bundled or read_record(start)
    return {k: v for k, v in record.items() if k not in ("config", "data")}


def future_study(model: VideoModel, clips: Float[Tensor, "B T C H W"]) -> dict:
    """`many_futures` after 10 frames: 100 at temperature 1, and 20 at others."""
    found = {"prompt": 10, "clips": len(clips), "1": many_futures(model, clips, 10)}
    for a in (0.25, 0.5, 0.75, 1.5, 2.0):
        found[f"{a:g}"] = many_futures(model, clips, 10, samples=20, temperature=a)
    return found


def compare(
    variants: tuple[str, ...] = tuple(VARIANTS),
    minutes: float = 5.0,
    tokenizer_minutes: float = 4.0,
    seeds: tuple[int, ...] = (0,),
    stochastic: bool = False,
    beta: float | None = None,
    start: str | None = None,
    futures: int = 100,
    clips: int = 500,
    out: Path = Path("results"),
    runs: Path = Path("runs"),
) -> None:
    """Train variants for equal times, evaluate them alike, write a record of each.

    A run whose record is there is skipped, one that stopped goes on.

    Args:
        variants: which; by default all.
        minutes: of training, each.
        tokenizer_minutes: for the variants that have a tokenizer of their own.
        seeds: one run each.
        stochastic: clips that bounce in random directions; also draw futures.
        beta: weight of the KL; None: the variant's.
        start: a bundled transformer to take weights from; None: random ones.
        futures: clips whose futures are drawn, where stochastic.
        clips: held-out clips to evaluate on.
        out: folder for the records.
        runs: folder for checkpoints and weights.
    """
    study = "futures" if stochastic else "compare"
    source = MovingDigits(stochastic=stochastic)
    changes = {} if beta is None else {"beta": beta}
    for seed in seeds:
        for name in variants:
            path = out / f"{study}-{name}-seed{seed}.json"
            if path.exists():
                print(f"{path}: there already")
                continue
            check_writable(path)
            config = TrainingConfig(out=runs / path.stem, minutes=minutes, seed=seed)
            forecast, model, record = train_variant(
                name, config, source, start, tokenizer_minutes, **changes
            )
            held_out = source.held_out(clips, 45, seed=1)
            about = f"{clips} clips, MNIST's test digits, seed 1"
            record |= {"study": study, "test_clips": about}
            record["metrics"] = evaluate(forecast, held_out)
            if stochastic and isinstance(model, VideoModel):
                record["futures"] = future_study(model, held_out[:futures, :20])
                kept = config.out / "transformer.safetensors"
                save_weights(model.transformer, kept, record)
            write_record(path, record)


def write_record(path: Path, record: dict) -> None:
    """Write a record without the folder of its run, and print its errors."""
    training = {k: v for k, v in record["training"].items() if k != "out"}
    content = json.dumps(record | {"training": training}, indent=1) + "\n"
    write_file(path, content.encode())
    error = record["metrics"]["15->5"]["squared_error"]
    print(f"{path}: 15->5 first {error[0]:.2f}, mean {fmean(error):.2f}")


def main(arguments: list[str] | None = None) -> None:
    """The command; `arguments` None takes those of the shell."""
    import tyro

    tyro.cli(compare, args=arguments)


if __name__ == "__main__":
    main()
