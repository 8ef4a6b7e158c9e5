# Made from notebooks/09_training.ipynb by "make extract".
"""From clips to a model: a tokenizer first, then a transformer. Built in chapter 09."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from stt_lite.checkpoints import as_json
from stt_lite.files import read_record, save_weights
from stt_lite.layer import TransformerConfig
from stt_lite.machines import commit, hardware, seed_everything
from stt_lite.moving_mnist import MovingDigits, Source
from stt_lite.runs import Run, RunConfig
from stt_lite.tokenizer import Tokenizer, TokenizerConfig, load_tokenizer
from stt_lite.training import TeacherForcing, TokenizerObjective, fit
from stt_lite.transformer import SpatialTemporalTransformer
from stt_lite.video import check_type, check_whole

__all__ = ["run_record", "shape_of", "train", "train_tokenizer"]


def shape_of(
    config: TeacherForcing, source: Source, tokenizer: TokenizerConfig
) -> TransformerConfig:
    """The transformer that a config asks for, on a tokenizer's latents of a source.

    Raises:
        ValueError: a tokenizer or a patch that does not fit the frames.
    """
    check_fit(tokenizer, source)
    names = ("width", "layers", "heads", "patch", "gaussian", "head")
    return TransformerConfig(
        latent_channels=tokenizer.latent_channels,
        grid=(source.size // tokenizer.downsample,) * 2,
        codebook_size=tokenizer.codebook_size,
        **{name: getattr(config, name) for name in names},
        actions=getattr(source, "actions", 0),
    )


def check_fit(tokenizer: TokenizerConfig, source: Source) -> None:
    """ValueError unless a tokenizer of this config takes the source's frames."""
    if source.size % tokenizer.downsample:
        wanted = f"a multiple of the tokenizer's {tokenizer.downsample} pixels"
        raise ValueError(f"size must be {wanted}, got {source.size}")
    if tokenizer.channels != source.channels:
        wanted = f"the source's {source.channels} channels"
        raise ValueError(f"tokenizer must have {wanted}, got {tokenizer.channels}")


def run_record(run: Run, data: dict) -> dict:
    """What to note of a run beside its weights; `data` tells of its clips."""
    progress = run.progress
    points = progress.history[:: max(1, len(progress.history) // 100)]
    record = {
        "training": run.config,
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
        "curve": [[round(t, 1), round(loss, 4)] for _, t, loss in points],
    }
    return as_json(record)


def is_named(tokenizer: Any) -> bool:
    """Whether a tokenizer is taken as it lies there, by name or path."""
    return isinstance(tokenizer, str | os.PathLike)


def begun(out: Path) -> bool:
    """Whether a transformer has begun to learn the tokens of the tokenizer in `out`."""
    files = ("tokenizer.safetensors", "transformer.checkpoint")
    return all((out / name).exists() for name in files)


def choose(out: Path, tokenizer: Any) -> tuple[TokenizerConfig, Tokenizer | None]:
    """The config of a run's tokenizer, and where none is to be trained, the tokenizer.

    Once a transformer has begun to learn its tokens it stays as it is: one that trained
    on would change what they mean.
    """
    shape, chosen = getattr(tokenizer, "shape", tokenizer), None
    if begun(out):
        chosen = load_tokenizer(out / "tokenizer.safetensors")
        if not is_named(tokenizer) and chosen.config != shape:
            raise ValueError(
                f"{out} holds a run with the tokenizer {chosen.config}, got {shape}; "
                "choose another `out`"
            )
    elif is_named(tokenizer):
        chosen = load_tokenizer(tokenizer)
    else:
        check_type(shape, TokenizerConfig, "tokenizer")
    return (shape if chosen is None else chosen.config), chosen


def train_tokenizer(
    config: RunConfig,
    source: Source,
    tokenizer: Any,
    watch: Callable | None = None,
    share: float = 1.0,
) -> Tokenizer:
    """Train a tokenizer, or take one, and write it to `config.out`.

    Args:
        tokenizer: a `TokenizerConfig`, or any settings with such a `shape` and an
            `objective(config, source)`: one is trained. Or a bundled one's name or a
            path: it is taken as it is.
        watch: as in `fit`.
        share: of the config's budget, in (0, 1]; one that is named takes none.

    Returns:
        The tokenizer, in eval mode.

    Raises:
        TypeError, ValueError: arguments of another type, a tokenizer that does not fit
            the source, or is not the run's own.
        FloatingPointError, OSError, KeyboardInterrupt: as `train`.
    """
    check_type(config, RunConfig, "config")
    check_type(source, Source, "source")
    shape, chosen = choose(config.out, tokenizer)
    check_fit(shape, source)
    run = Run(config, "tokenizer", share, source.data | {"tokenizer": tokenizer})
    if begun(config.out):
        return chosen
    with run.held():
        if chosen is not None:
            record = {"copied_from": str(tokenizer)}
        else:
            seed_everything(config.seed, -1, run.device)
            if hasattr(tokenizer, "objective"):
                objective = tokenizer.objective(config, source)
            else:
                model = Tokenizer(shape).to(memory_format=torch.channels_last)  # faster
                objective = TokenizerObjective(model, config, source)
            fit(objective, run, watch)
            chosen, record = objective.tokenizer.eval(), run_record(run, source.data)
        if run.main:
            save_weights(chosen, config.out / "tokenizer.safetensors", record)
    return chosen


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
            `train_tokenizer`; None trains a `TokenizerConfig` for the source.
        watch: see `live_view`.

    Returns:
        The folder: tokenizer.safetensors, transformer.safetensors, a record of each,
        and the checkpoints. `load_pretrained` takes it.

    Raises:
        TypeError: a config, source or tokenizer that is none.
        ValueError: a batch that the processes cannot share evenly, clips of one frame,
            a checkpoint of other settings, a tokenizer that does not fit.
        FloatingPointError: the loss is not finite; lower rates may go on.
        OSError: a folder that cannot be written or where another training is at work,
            a full disk.
        KeyboardInterrupt, SystemExit: at Ctrl-C and SIGTERM, after a checkpoint.
    """
    check_type(config, TeacherForcing, "config")
    source = MovingDigits() if source is None else source
    check_type(source, Source, "source")
    check_whole(source.frames, "source.frames", least=2)
    if tokenizer is None:
        tokenizer = TokenizerConfig(channels=source.channels)
    shape = shape_of(config, source, choose(config.out, tokenizer)[0])
    with torch.device("meta"):  # does it all fit? Asked before anything is written
        SpatialTemporalTransformer(shape)
    share = 0.0 if is_named(tokenizer) else config.tokenizer_share
    chosen = train_tokenizer(config, source, tokenizer, watch, share)
    settings = source.data | {"tokenizer": tokenizer}
    run = Run(config, "transformer", 1 - share, settings)
    with run.held():
        seed_everything(config.seed, -2, run.device)
        net = SpatialTemporalTransformer(shape)
        net = fit(config.objective(net, chosen, source), run, watch)
        if run.main:
            used = read_record(config.out / "tokenizer.json")["sha256"]
            record = run_record(run, source.data) | {"tokenizer_sha256": used}
            save_weights(net, config.out / "transformer.safetensors", record)
    return config.out
