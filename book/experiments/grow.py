"""Go on training a bundled transformer with more channels (Net2Net).

    python book/experiments/grow.py --start moving-mnist-tiny --width 128 --minutes 20

The wider one computes what the narrower one computes from the first step on, and has
room to learn more (Chen et al., 2016).
"""

import math
from dataclasses import replace
from pathlib import Path

import torch

import stt_lite as stt
from stt_lite.bundles import moving_digits
from stt_lite.contexts import TrainingConfig
from stt_lite.files import save_weights
from stt_lite.layer import TransformerConfig
from stt_lite.pipeline import run_record
from stt_lite.runs import Run, as_json
from stt_lite.training import fit
from stt_lite.transformer import SpatialTemporalTransformer

# Parameters that write into the stream, or into what is new: 0 in the new channels.
WRITERS = (
    "embed.weight",
    "embed.bias",
    "start",
    "out.weight",
    "out.bias",
    "feed_forward.3.weight",
    "feed_forward.3.bias",
    "inject.weight",
    "inject.bias",
    "prior.convolution.weight",
    "posterior.convolution.weight",
)
NORMS = ("norm.weight", "feed_forward.0.weight")


@torch.no_grad()
def grow(
    net: SpatialTemporalTransformer, config: TransformerConfig
) -> SpatialTemporalTransformer:
    """A wider transformer that computes what `net` computes.

    Args:
        net: the narrower one; it is returned as it is where `config` is its own.
        config: as `net.config`, with more channels E and, in proportion, more heads N.

    Raises:
        ValueError: a config that differs in something else, a narrower one, or the
            Gaussian layer's mode "bottleneck", which replaces the stream.
    """
    old = net.config
    if config == old:
        return net
    head = old.width // old.heads
    wanted = replace(old, width=config.width, heads=config.width // head)
    if old.gaussian == "bottleneck" or config.width < old.width or wanted != config:
        allowed = f"that of net but for more width, in heads of {head} channels"
        raise ValueError(f"config must be {allowed}: {old}, got {config}")
    wide, weights = SpatialTemporalTransformer(config), net.state_dict()
    for name, new in wide.state_dict().items():
        fill(name, new, weights[name], old.width, config.width)
    return wide.train(net.training)


def fill(name: str, new: torch.Tensor, value: torch.Tensor, E: int, wide: int) -> None:
    """Put the narrower one's `value` into the wider one's `new`, in place."""
    grown = new.shape != value.shape
    if name.endswith(WRITERS) and grown:
        new.zero_()
    if name.endswith(NORMS) and grown:  # the mean is over more channels now
        new.fill_(1.0)
        value = value * math.sqrt(E / wide)
    if name.endswith(("qkv.weight", "qkv.bias")):
        new, value = (x.unflatten(0, (3, -1)) for x in (new, value))
    if name.endswith("qkv.weight"):  # old heads do not read new channels
        new[:, :E, E:] = 0
    if name.endswith("posterior.convolution.weight"):  # stream and frame to come
        new, value = (x.unflatten(1, (2, -1)) for x in (new, value))
    new[tuple(slice(n) for n in value.shape)] = value


def train_grown(config: TrainingConfig, start: str) -> Path:
    """Train a bundled model's transformer, or that of a folder, on at `config.width`.

    Its tokenizer stays. Heads follow from the width.
    """
    model = stt.load_pretrained(start)
    source, shape = moving_digits(model.record["data"]), model.transformer.config
    heads = config.width * shape.heads // shape.width
    wide = grow(model.transformer, replace(shape, width=config.width, heads=heads))
    settings = source.data | {"start": start}
    run = Run(config, "transformer", settings=settings)
    net = fit(config.objective(wide.train(), model.tokenizer, source), run)
    notes = {k: v for k, v in model.record.items() if k not in ("config", "data")}
    record = run_record(run, source.data) | {"started_from": as_json(notes)}
    save_weights(model.tokenizer, config.out / "tokenizer.safetensors", {})
    save_weights(net, config.out / "transformer.safetensors", record)
    return config.out


def main(
    start: str = "moving-mnist-tiny",
    width: int = 128,
    minutes: float = 20.0,
    out: Path = Path("runs/grown"),
) -> None:
    """Train a bundled transformer on with more channels; `load_pretrained(out)`.

    Args:
        start: a bundle, or a folder that training wrote.
        width: more channels than it has, a multiple of its heads'.
        minutes: of training.
        out: folder for weights, records and checkpoint.
    """
    print(train_grown(TrainingConfig(out=out, width=width, minutes=minutes), start))


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
