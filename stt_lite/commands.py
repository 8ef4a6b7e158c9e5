# Made from notebooks/94_command_line.ipynb by "make extract".
"""What `stt-lite` does: generate, train, evaluate, compare. Built in appendix 94."""

import importlib
import json
import sys
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import tyro
from jaxtyping import Float
from torch import Tensor

from stt_lite.bundles import held_out_clips, load_pretrained, pretrained
from stt_lite.clips import ClipFolder, prepare_clips
from stt_lite.contexts import TrainingConfig
from stt_lite.evaluation import evaluate_model, evaluation_table, on_canonical
from stt_lite.files import check_writable, weights_folder, write_file
from stt_lite.generation import VideoModel
from stt_lite.machines import new_accelerator
from stt_lite.media import WRITERS
from stt_lite.moving_mnist import Batch
from stt_lite.pipeline import train
from stt_lite.sampling import Sampling
from stt_lite.tokenizer import TokenizerConfig
from stt_lite.video import check_whole, load_video, save_video
from stt_lite.widgets import side_by_side

__all__ = ["Compare", "Evaluate", "Generate", "Pretrained", "Train", "TrainFolder"]


def pick_device(name: str | None) -> str:
    """The device of that name; None: cuda where there is one.

    ValueError: there is no such device.
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=name).item()
    except (AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} can't be used: {reason}") from error
    return name


def read_prompt(model: VideoModel, path: Path, frames: int) -> Float[Tensor, "T C H W"]:
    """The last frames of a video as the model wants them; prints what was changed."""
    C, H, W = model.frame_shape
    fps = model.record.get("data", {}).get("fps")  # of the clips it was trained on
    first, notes = load_video(path, frames=1)[0], []
    clip = load_video(path, size=H, gray=C == 1, fps=fps)
    if first.shape[1:] != (H, W):
        h, w = first.shape[1:]
        notes.append(f"centre square of {w}x{h} pixels resized to {W}x{H}")
    if C == 1 and (first - first.mean(0)).abs().max() > 0.05:
        notes.append("colour turned to grey")
    if fps and path.is_file():
        notes.append(f"{fps:g} frames taken per second")
    if len(clip) > frames:
        notes.append(f"the last {frames} of {len(clip)} frames taken")
    if len(clip) < frames:
        notes.append(f"{len(clip)} frames, not {frames}")
    if notes:
        print(f"{path}: {', '.join(notes)}")
    return clip[-frames:]


@dataclass
class Generate:
    """Continue a video; write prompt and futures side by side.

    Args:
        bundle: bundled model by name, or a folder that training wrote.
        prompt: video file or folder of images to continue; without one, a clip that is
            held out, whose real future then stands on the left.
        clip: which held-out clip, where there is no prompt.
        prompt_frames: frames to continue: the last so many of the prompt.
        new_frames: frames to generate.
        samples: number of futures.
        sampling: how new frames are drawn.
        out: file to write, such as future.gif or future.mp4.
        fps: speed of that video in frames per second.
        device: "cpu", "cuda", ...; by default cuda where there is one.
    """

    bundle: str = "moving-mnist-tiny"
    prompt: Path | None = None
    clip: int = 0
    prompt_frames: int = 15
    new_frames: int = 5
    samples: int = 1
    sampling: Sampling = Sampling(seed=0)
    out: Path = Path("future.gif")
    fps: float = 5.0
    device: str | None = None

    def run(self) -> None:
        if self.out.suffix.lower() not in WRITERS:
            wanted = " or ".join(WRITERS)
            raise ValueError(f"out must end in {wanted}, got {self.out}")
        check_writable(self.out)
        given = check_whole(self.prompt_frames, "prompt_frames")
        new = check_whole(self.new_frames, "new_frames")
        check_whole(self.clip, "clip", 0, 2**63 - 1)
        with tempfile.TemporaryDirectory() as folder:  # what it refuses, it refuses now
            save_video(Path(folder) / self.out.name, torch.zeros(1, 1, 8, 8), self.fps)
        device = pick_device(self.device)
        model, truth, note = load_pretrained(self.bundle, device), None, ""
        actions = None
        if self.prompt is None:
            drawn = held_out_clips(model, 1, given + new, seed=self.clip)
            clips, actions = drawn if isinstance(drawn, Batch) else Batch(drawn)
            truth = clips[0].cpu()
            prompt, note = truth[:given], "; on the left what really happened"
        else:
            prompt = read_prompt(model, self.prompt.expanduser(), given)
        start, bar = time.perf_counter(), sys.stderr.isatty()
        how = dict(progress=bar, actions=actions, **asdict(self.sampling))
        video = model.generate(prompt, new, self.samples, **how)[0]
        seconds = time.perf_counter() - start
        row = side_by_side(video, len(prompt), truth)
        save_video(self.out, row, fps=self.fps, scale=max(1, 128 // video.shape[-1]))
        told = f"prompt of {len(prompt)} frames, futures: {self.samples}"
        print(f"{self.out}\n{told}, new frames: {new}{note}")
        print(f"generated in {seconds:.1f} s on {device}")


@dataclass
class Train:
    """Train a transformer on digits, with a bundled tokenizer or one of its own.

    Args:
        source: the preset's own kind of clips.
        tokenizer: a bundled one by name, or one by path; None trains one first.
    """

    config: TrainingConfig
    source: Any
    tokenizer: str | None

    def run(self) -> None:
        print(f"trained: {train(self.config, self.source, self.tokenizer)}")


@dataclass
class TrainFolder:
    """Train a tokenizer and a transformer on your own videos.

    Args:
        videos: a video file, or a folder that is searched for videos.
        size: the centre square of each frame becomes size x size pixels.
        frames: frames that training sees at once.
        fps: frames per second that are taken.
        gray: one channel instead of RGB.
        codebook_size: codewords of the tokenizer.
    """

    videos: tyro.conf.Positional[Path]
    config: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(out=Path("runs/own"), minutes=30.0)
    )
    size: int = 64
    frames: int = 20
    fps: float = 10.0
    gray: bool = False
    codebook_size: int = 512

    def run(self) -> None:
        channels, out = 1 if self.gray else 3, self.config.out
        shape = TokenizerConfig(channels=channels, codebook_size=self.codebook_size)
        options = self.size, self.fps, self.frames, self.gray
        warnings.filterwarnings("ignore", "skipped: ")  # the summary tells of them
        with new_accelerator("no", False).main_process_first():
            print(prepare_clips(self.videos, out / "clips", *options))
        print(f"trained: {train(self.config, ClipFolder(out / 'clips'), shape)}")
        print(f"try it: stt-lite generate --bundle {out} --prompt VIDEO")


@dataclass
class Evaluate:
    """Evaluate a model on held-out clips, beside what costs nothing.

    Args:
        bundle: bundled model by name, or a folder that training wrote.
        clips: number of clips of each seed.
        seeds: one set of clips each; figures are their mean and standard deviation.
        canonical: evaluate a 64x64 model on so many clips of the canonical test set,
            too, where it can be downloaded.
        out: JSON file to write.
        device: "cpu", "cuda", ...; by default cuda where there is one.
    """

    bundle: str = "moving-mnist-tiny"
    clips: int = 500
    seeds: tuple[int, ...] = (1, 2, 3)
    canonical: int = 0
    out: Path | None = None
    device: str | None = None

    def run(self) -> None:
        if self.out is not None:
            check_writable(self.out)
        model = load_pretrained(self.bundle, pick_device(self.device))
        found = {"bundle": self.bundle}
        if self.canonical:
            found["canonical"] = on_canonical(model, self.canonical)
        found |= evaluate_model(model, self.clips, self.seeds)
        try:
            if self.out is not None:  # a closed pipe loses nothing
                write_file(self.out, (json.dumps(found, indent=2) + "\n").encode())
        finally:  # and neither does a full disk
            print(evaluation_table(found, self.bundle))
        if self.out is not None:
            print(self.out)


@dataclass
class Pretrained:
    """List the bundled models: frames, parameters, size, errors, licence."""

    def run(self) -> None:
        print(pretrained())


@dataclass
class Compare:
    """Train rivals and ablations for equal times: book/experiments/compare.py.

    Args:
        arguments: of that script; --help lists them.
    """

    arguments: tyro.conf.Positional[tuple[str, ...]] = ()

    def run(self) -> None:
        script = weights_folder().parents[1] / "book" / "experiments" / "compare.py"
        if not script.is_file():
            raise ValueError("compare needs a checkout of the book: book/experiments")
        sys.path.insert(0, str(script.parent))
        sys.argv = ["stt-lite compare"]  # its name, where it helps
        importlib.import_module("compare").main(list(self.arguments))
