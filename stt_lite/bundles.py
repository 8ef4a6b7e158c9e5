# Made from notebooks/08_generation.ipynb by "make extract".
"""Bundled models: how to load one, and clips to try it on."""

import difflib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from stt_lite.files import read_record, weights_folder
from stt_lite.generation import VideoModel
from stt_lite.layer import transformer_config
from stt_lite.moving_mnist import Batch, MovingDigits, Source
from stt_lite.tokenizer import Tokenizer, load_tokenizer, tokenizer_config
from stt_lite.transformer import count_parameters, load_transformer
from stt_lite.video import check_type

__all__ = [
    "HELD_OUT",
    "Bundle",
    "bundles",
    "held_out_clips",
    "load_pretrained",
    "pretrained",
]


def bundles() -> dict[str, tuple[Path, Path]]:
    """Tokenizer and transformer of each bundle, by its name."""
    ending, pairs = "-transformer.safetensors", {}
    for path in sorted(weights_folder().glob(f"*{ending}")):
        name = path.name.removesuffix(ending)
        pairs[name] = path.with_name(f"{name}-tokenizer.safetensors"), path
    return pairs


def find_model(name: str | Path) -> tuple[Path, Path]:
    """Tokenizer and transformer of a bundle, or in a folder; else a ValueError."""
    known, folder = bundles(), Path(name).expanduser()
    if str(name) in known:
        return known[str(name)]
    if folder.is_dir():
        return folder / "tokenizer.safetensors", folder / "transformer.safetensors"
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    raise ValueError(
        f"no bundled model or folder {str(name)!r}{hint} Bundled: {', '.join(known)}"
    )


def load_pretrained(
    name: str | Path = "moving-mnist-tiny", device: torch.device | str = "cpu"
) -> VideoModel:
    """Load a bundled model by name, or the one that training wrote into a folder.

    Args:
        name: see `pretrained`; or a folder that holds tokenizer.safetensors and
            transformer.safetensors.
        device: where the weights go.

    Returns:
        The model in eval mode, with the transformer's record.

    Raises:
        ValueError: an unknown name (a close one is named), damaged files, or two parts
            that do not fit together.
        FileNotFoundError: a folder without the two files.
        TypeError, RuntimeError: what is no path, no device.
    """
    paths = find_model(name)
    tokenizer = load_tokenizer(paths[0], device)
    transformer = load_transformer(paths[1], device)
    record = read_record(paths[1])
    expected = record.get("tokenizer_sha256")
    got = hashlib.sha256(paths[0].read_bytes()).hexdigest()
    if expected not in (None, got):
        trained = f"{paths[1].name} was trained with a tokenizer of sha256 {expected}"
        raise ValueError(f"{trained}, got {got}")
    return VideoModel(tokenizer, transformer, record).eval()


@dataclass(frozen=True)
class Bundle:
    """A bundled model, in a row of a table.

    `size` is a frame's edge in pixels, `content` what its clips show; `parameters` and
    `megabytes` are of both parts; `metrics` has squared errors, summed over a frame,
    on held-out clips.
    """

    name: str
    size: int
    content: str
    parameters: int
    megabytes: float
    licence: str
    metrics: dict

    def __str__(self):
        near, far = (self.metrics.get(k, {}) for k in ("15->5", "10->10"))
        errors = (near.get("first"), near.get("mean"), far.get("mean"))
        errors = ("-" if error is None else f"{error:.2f}" for error in errors)
        numbers = f"{self.parameters:,}", f"{self.megabytes:.1f}"
        frames = f"{self.size}x{self.size}"
        return LINE.format(
            self.name, frames, self.content, *numbers, *errors, self.licence
        )


LINE = "{:17} {:7} {:17} {:>9} {:>3} {:>5} {:>6} {:>6} {}"
HEAD = ("name", "frames", "content", "weights", "MB", "first", "15->5", "10->10")
HEAD += ("licence",)


class Bundles(list):
    """Bundles that show as a table: errors of the first new frame, and the mean."""

    def __repr__(self):
        return "\n".join([LINE.format(*HEAD), *map(str, self)])


def pretrained() -> list[Bundle]:
    """What is bundled, from the records beside the weights; shows as a table."""
    table = Bundles()
    for name, paths in bundles().items():
        first, second = (read_record(path) for path in paths)
        with torch.device("meta"):  # builds without allocating or drawing
            tokenizer = Tokenizer(tokenizer_config(first["config"]))
        parameters = sum(p.numel() for p in tokenizer.parameters())
        parameters += count_parameters(transformer_config(second["config"]))
        data = second["data"]
        n = data.get("digits", 0)
        content = data.get("content", f"{n} digit{'s' * (n > 1)}")
        megabytes = sum(path.stat().st_size for path in paths) / 1e6
        notes = second.get("licence", "-"), second.get("metrics", {})
        table.append(Bundle(name, data["size"], content, parameters, megabytes, *notes))
    return table


def moving_digits(data: dict) -> MovingDigits:
    """The source that a record of Moving MNIST clips tells of."""
    names = ("size", "digits", "frames", "stochastic")
    return MovingDigits(**{name: data[name] for name in names if name in data})


# What a record's "data" holds, and how to build the source it tells of. Later chapters
# add their own kinds of clips.
HELD_OUT: dict[str, Callable[[dict], Source]] = {"digits": moving_digits}


def held_out_clips(
    model: VideoModel, n: int, frames: int, seed: int
) -> Float[Tensor, "n T C H W"] | Batch:
    """Held-out clips of the kind that the model was trained on, on its device.

    For a model with actions, a `Batch`: its clips and their actions (n T).

    Raises:
        ValueError: a record that does not say what kind that is, or a number out of
            range. TypeError: what is no model.
    """
    check_type(model, VideoModel, "model")
    data = model.record.get("data", {})
    for key, source in HELD_OUT.items():
        if key in data:
            device = model.transformer.start.device
            return source(data).held_out(n, frames, seed, device)
    kinds = ", ".join(HELD_OUT)
    raise ValueError(
        f"the model's record must tell of its clips under 'data' by one of {kinds}, "
        f"got {data}; continue a prompt of your own"
    )
