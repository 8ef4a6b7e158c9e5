"""From clips to a model: a tokenizer first, then a transformer. Built in chapter 09."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch

from stt_lite.files import read_record, save_weights, write_file
from stt_lite.layer import TransformerConfig
from stt_lite.machines import commit, hardware, is_main_process, seed_everything
from stt_lite.moving_mnist import MovingDigits, Source
from stt_lite.runs import Run, plain
from stt_lite.tokenizer import Tokenizer, TokenizerConfig, load_tokenizer
from stt_lite.training import TeacherForcing, TokenizerObjective, fit
from stt_lite.transformer import SpatialTemporalTransformer
from stt_lite.video import check_whole

__all__ = ["run_record", "shape_of", "train", "train_tokenizer", "train_transformer"]


def check_fit(shape: TokenizerConfig, source: Source) -> None:
    """ValueError unless a tokenizer of this shape takes the source's frames."""
    if source.size % shape.downsample:
        raise ValueError(
            f"size must be a multiple of the tokenizer's {shape.downsample} pixels, "
            f"got {source.size}"
        )
    if shape.channels != source.channels:
        raise ValueError(
            f"tokenizer must have the source's {source.channels} channels, "
            f"got {shape.channels}"
        )


def shape_of(
    config: TeacherForcing, source: Source, tokenizer: Tokenizer
) -> TransformerConfig:
    """The transformer that a config asks for, on a tokenizer's latents of a source."""
    return TransformerConfig(
        latent_channels=tokenizer.config.latent_channels,
        grid=(source.size // tokenizer.config.downsample,) * 2,
        width=config.width,
        layers=config.layers,
        heads=config.heads,
        codebook_size=tokenizer.quantizer.codebook_size,
        patch=config.patch,
        gaussian=config.gaussian,
        head=config.head,
    )


def train_tokenizer(
    config: TeacherForcing,
    source: Source,
    tokenizer: Any = None,
    share: float = 1.0,
    watch: Callable | None = None,
) -> Tokenizer:
    """Train a tokenizer, or take one, and write it to `config.out`.

    Once a transformer has begun to learn its tokens it stays as it is: one that trained
    on would change what they mean.

    Args:
        tokenizer: a bundled one's name or a path: it is taken as it is. Or a
            `TokenizerConfig`: one is trained; None: with the source's channels. Or any
            settings with a `shape`, and an `objective(config, source)`.
        share: of the config's budget, in (0, 1].
        watch: as in `fit`.

    Returns:
        The tokenizer, in eval mode.

    Raises:
        ValueError: a tokenizer that does not fit the source, or is not the run's own.
        FloatingPointError, OSError: as `fit`.
    """
    kept = config.out / "tokenizer.safetensors"
    begun = kept.exists() and (config.out / "transformer.checkpoint").exists()
    if isinstance(tokenizer, str | os.PathLike):
        chosen = load_tokenizer(kept if begun else tokenizer)
        check_fit(chosen.config, source)
        if not begun and is_main_process():
            save_weights(chosen, kept, {"copied_from": str(tokenizer)})
        return chosen
    if tokenizer is None:
        tokenizer = TokenizerConfig(channels=source.channels)
    shape = getattr(tokenizer, "shape", tokenizer)
    check_fit(shape, source)
    if begun:
        chosen = load_tokenizer(kept)
        if chosen.config != shape:
            raise ValueError(
                f"{config.out} holds a run with the tokenizer {chosen.config}, "
                f"got {shape}; choose another `out`"
            )
        return chosen
    run = Run(config, "tokenizer", share, about(source, tokenizer))
    seed_everything(config.seed, -1, run.device)
    if hasattr(tokenizer, "objective"):
        objective = tokenizer.objective(config, source)
    else:
        model = Tokenizer(shape).to(memory_format=torch.channels_last)  # faster
        objective = TokenizerObjective(model, config, source)
    fit(objective, run, watch)
    if run.main:
        save_weights(objective.tokenizer, kept, run_record(run, source.data))
    return objective.tokenizer.eval()


def about(source: Source, tokenizer: Any) -> dict:
    """What a run's checkpoint says of its clips and its tokenizer."""
    if is_dataclass(tokenizer):
        tokenizer = asdict(tokenizer)
    settings = source.data | {"tokenizer": tokenizer}
    return json.loads(json.dumps(settings, default=str))  # as it is read back


def run_record(run: Run, data: dict) -> dict:
    """What to note of a run beside its weights; `data` tells of its clips."""
    progress = run.progress
    points = progress.history[:: max(1, len(progress.history) // 100)]
    return {
        "training": plain(run.config),
        "commit": commit(),
        "hardware": hardware(run.device),
        "processes": run.processes,
        "precision": run.accelerator.mixed_precision,
        "torch": torch.__version__,
        "seed": run.config.seed,
        "steps": progress.step,
        "seconds": round(progress.seconds),
        "clips_seen": progress.clips,
        "data": data,
        "licence": "Apache-2.0",
        "curve": [[round(t, 1), round(loss, 4)] for _, t, loss in points],
    }


def train_transformer(
    config: TeacherForcing,
    source: Source,
    tokenizer: Tokenizer,
    share: float = 1.0,
    watch: Callable | None = None,
    settings: Any = None,
) -> SpatialTemporalTransformer:
    """Train a transformer on a tokenizer's latents, and write it to `config.out`.

    Args:
        tokenizer: the one that lies in `config.out`.
        share, watch: as in `train_tokenizer`.
        settings: how the tokenizer was named or trained, for the checkpoint.

    Raises:
        ValueError, FloatingPointError, OSError: as `fit`.
    """
    check_fit(tokenizer.config, source)
    run = Run(config, "transformer", share, about(source, settings))
    seed_everything(config.seed, -2, run.device)
    net = SpatialTemporalTransformer(shape_of(config, source, tokenizer))
    net = fit(config.objective(net, tokenizer, source), run, watch)
    if run.main:
        kept = read_record(config.out / "tokenizer.safetensors")
        notes = {"tokenizer_sha256": kept["sha256"]}
        record = run_record(run, source.data) | notes
        save_weights(net, config.out / "transformer.safetensors", record)
    return net


def train(
    config: TeacherForcing,
    source: Source | None = None,
    tokenizer: Any = None,
    watch: Callable | None = None,
) -> Path:
    """Train a tokenizer, unless one is named, then a transformer on its latents.

    Called again with the same arguments it goes on where the last checkpoint in
    `config.out` stands; with a larger budget, too. The same call serves one process and
    several (`accelerate launch`, `accelerate.notebook_launcher`).

    Args:
        config: the run, such as a `TrainingConfig`.
        source: of the clips; None: Moving MNIST, `MovingDigits()`.
        tokenizer: a bundled one's name or a path, or how to train one, see
            `train_tokenizer`.
        watch: see `live_view`.

    Returns:
        The folder: tokenizer.safetensors, transformer.safetensors, a record of each,
        and the checkpoints. `load_pretrained` takes it.

    Raises:
        ValueError: a batch that the processes cannot share evenly, clips of one frame,
            a checkpoint of other settings, a tokenizer that does not fit.
        FloatingPointError: the loss is not finite.
        OSError: a folder that cannot be written, a full disk.
    """
    source = MovingDigits() if source is None else source
    check_whole(source.frames, "source.frames", least=2)
    named = isinstance(tokenizer, str | os.PathLike)
    share = 0.0 if named else config.tokenizer_share
    if is_main_process():  # a folder that can't be written stops it here
        text = json.dumps(plain(config) | about(source, tokenizer), indent=2)
        write_file(config.out / "config.json", text.encode())
    cuda = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=cuda):  # the caller's generators stay
        chosen = train_tokenizer(config, source, tokenizer, share, watch)
        train_transformer(config, source, chosen, 1 - share, watch, tokenizer)
    return config.out
