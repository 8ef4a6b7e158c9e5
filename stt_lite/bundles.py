"""Bundled models: how to load one, and what to try it on. Built in chapter 08."""

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
from stt_lite.moving_mnist import MovingDigits, Source
from stt_lite.tokenizer import Tokenizer, load_tokenizer, tokenizer_config
from stt_lite.transformer import count_parameters, load_transformer

__all__ = [
    "HELD_OUT",
    "Bundle",
    "bundles",
    "held_out_clips",
    "load_pretrained",
    "pretrained",
]


def bundles() -> dict[str, tuple[Path, Path]]:
    """Tokenizer and transformer of each bundle."""
    ending, pairs = "-transformer.safetensors", {}
    for path in sorted(weights_folder().glob(f"*{ending}")):
        name = path.name.removesuffix(ending)
        pairs[name] = path.with_name(f"{name}-tokenizer.safetensors"), path
    return pairs


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
    """
    bundled = bundles()
    if str(name) in bundled:
        paths = bundled[str(name)]
    elif Path(name).is_dir():
        parts = ("tokenizer.safetensors", "transformer.safetensors")
        paths = tuple(Path(name) / part for part in parts)
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            what = " and ".join(missing)
            raise FileNotFoundError(f"{name} must hold {what}, which training writes")
    else:
        close = difflib.get_close_matches(str(name), bundled, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        known = ", ".join(bundled) or "none"
        raise ValueError(
            f"no bundled model or folder {str(name)!r}{hint} Bundled: {known}"
        )
    tokenizer = load_tokenizer(paths[0], device)
    transformer = load_transformer(paths[1], device)
    record = read_record(paths[1])
    expected = record.get("tokenizer_sha256")
    got = hashlib.sha256(paths[0].read_bytes()).hexdigest()
    if expected not in (None, got):
        raise ValueError(
            f"{paths[1].name} was trained with a tokenizer of sha256 {expected}, "
            f"got {got}"
        )
    return VideoModel(tokenizer, transformer, record).eval()


@dataclass(frozen=True)
class Bundle:
    """A bundled model: edge of a frame in pixels, what its clips show, parameters and
    megabytes of both parts, errors."""

    name: str
    size: int
    content: str
    parameters: int
    megabytes: float
    licence: str
    metrics: dict


class Bundles(list):
    """Bundles that show as a table."""

    HEAD = ("name", "frames", "content", "parameters", "MB", "15->5 first")
    HEAD += ("15->5 mean", "10->10 mean", "licence")

    def __repr__(self):
        rows = [self.HEAD]
        for b in self:
            near, far = b.metrics.get("15->5", {}), b.metrics.get("10->10", {})
            errors = [near.get("first"), near.get("mean"), far.get("mean")]
            errors = ["-" if error is None else f"{error:.2f}" for error in errors]
            size = f"{b.size}x{b.size}", b.content, f"{b.parameters:,}"
            rows.append((b.name, *size, f"{b.megabytes:.1f}", *errors, b.licence))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = (
            "  ".join(t.ljust(w) for t, w in zip(row, widths, strict=True))
            for row in rows
        )
        return "\n".join(line.rstrip() for line in lines)


def pretrained() -> list[Bundle]:
    """What is bundled, from the records beside the weights; shows as a table.

    Errors are squared, summed over a frame, on held-out clips: those of the first
    generated frame, and the mean.
    """
    table = Bundles()
    for name, paths in bundles().items():
        first, second = (read_record(path) for path in paths)
        with torch.device("meta"):  # builds without allocating or drawing
            tokenizer = Tokenizer(tokenizer_config(first["config"]))
        parameters = sum(p.numel() for p in tokenizer.parameters())
        parameters += count_parameters(transformer_config(second["config"]))
        data = second["data"]
        content = data.get("content")
        if content is None:
            content = f"{data['digits']} digit{'s' * (data['digits'] > 1)}"
        table.append(
            Bundle(
                name,
                data["size"],
                content,
                parameters,
                sum(path.stat().st_size for path in paths) / 1e6,
                second.get("licence", "-"),
                second.get("metrics", {}),
            )
        )
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
) -> Float[Tensor, "n T C H W"]:
    """Held-out clips of the kind that the model was trained on, on its device.

    Raises:
        ValueError: a record that does not say what kind that is, or a number out of
            range.
    """
    data = model.record.get("data", {})
    for key, source in HELD_OUT.items():
        if key in data:
            device = model.transformer.start.device
            return source(data).held_out(n, frames, seed, device)
    raise ValueError(
        f"the model's record must tell of its clips under 'data' by one of "
        f"{', '.join(HELD_OUT)}, got {data}; continue a prompt of your own"
    )
