# Extracted from notebooks/11_vqgan.ipynb by "make extract": edit the notebook, not this file.
"""VQGAN: a discriminator keeps fine detail in chapter 03's tokenizer, at any resolution. Built in chapter 11."""

import importlib.resources
import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from stt_lite.evaluation import fit_model
from stt_lite.training import MuonAdamW, TokenizerObjective, TrainingConfig, seed_everything
from stt_lite.video import check_frames, check_whole
from stt_lite.vq_autoencoder import Tokenizer, TokenizerConfig, write_file

__all__ = [
    "PatchDiscriminator", "Photographs", "VQGAN", "VQGANConfig", "VQGANObjective", "adaptive_weight",
    "feature_matching", "high_frequency_power", "hinge", "perceptual_network", "power_spectrum", "smooth_start",
    "train_vqgan",
]  # fmt: skip


class Photographs:
    """Random crops of photographs that scikit-image and this package bring along; whole photographs are held out.

    Args:
        size: height and width of a crop, at most 300 pixels, those of the smallest photograph of either split.
        split: "train" or "test".

    Attributes:
        names: of the photographs of this split.

    Raises:
        ValueError: an unknown split, or a size that a photograph does not hold.
    """

    SPLITS = {
        "train": ("coffee", "rocket", "stereo_motorcycle", "china.jpg", "flower.jpg"),
        "test": ("chelsea", "astronaut"),
    }

    def __init__(self, size: int = 128, split: Literal["train", "test"] = "train"):
        if split not in self.SPLITS:
            raise ValueError(f'split must be "train" or "test", got {split!r}')
        self.size, self.split, self.names = size, split, self.SPLITS[split]
        self.pictures = [picture for name in self.names for picture in self._read(name)]
        held_out = [] if split == "test" else [picture for name in self.SPLITS["test"] for picture in self._read(name)]
        smallest = min(min(picture.shape[1:]) for picture in self.pictures + held_out)  # `example` is held out
        if not 1 <= size <= smallest:
            raise ValueError(f"size must be between 1 and {smallest}, those of the smallest photograph, got {size}")

    @staticmethod
    def _read(name: str) -> list[Tensor]:
        """Bytes (3 H W): one photograph, or the two of a stereo pair."""
        import imageio.v3 as iio
        from skimage import data

        own = importlib.resources.files("stt_lite") / "data" / name
        found = iio.imread(own.read_bytes()) if name.endswith(".jpg") else getattr(data, name)()
        pair = found[:2] if isinstance(found, tuple) else [found]
        return [torch.tensor(pixels).movedim(-1, 0) for pixels in pair]

    def draw(
        self, n: int, frames: int = 1, generator: torch.Generator | None = None, device: torch.device | str = "cpu"
    ) -> Float[Tensor, "n T 3 H W"]:
        """Random crops that stand still, half of them mirrored; pictures (a stereo pair is two) and places in them are equally likely.

        Args:
            n: number of crops.
            frames: how often each is shown, T.
            generator: a CPU generator; None draws from torch's global one.
            device: where the crops go.

        Raises:
            ValueError: a number below 1.
        """
        n, frames = check_whole(n, "n"), check_whole(frames, "frames")
        chosen = torch.randint(len(self.pictures), (n,), generator=generator)
        places, crops = torch.rand(n, 3, generator=generator), []
        for i, (down, right, mirror) in zip(chosen.tolist(), places.tolist()):
            picture = self.pictures[i]
            top, left = int(down * (picture.shape[1] - self.size + 1)), int(right * (picture.shape[2] - self.size + 1))
            crop = picture[:, top : top + self.size, left : left + self.size]
            crops.append(crop.flip(-1) if mirror < 0.5 else crop)
        crops = torch.stack(crops).to(device).float() / 255
        return crops[:, None].expand(-1, frames, -1, -1, -1)

    def tiles(self, device: torch.device | str = "cpu") -> Float[Tensor, "T 3 H W"]:
        """Every photograph, cut from its centre into as many crops as fit without overlap."""
        found = []
        for picture in self.pictures:
            rows, columns = (edge // self.size for edge in picture.shape[1:])
            top, left = (picture.shape[1] - rows * self.size) // 2, (picture.shape[2] - columns * self.size) // 2
            for row in range(rows):
                for column in range(columns):
                    y, x = top + row * self.size, left + column * self.size
                    found.append(picture[:, y : y + self.size, x : x + self.size])
        return torch.stack(found).to(device).float() / 255

    def example(self, device: torch.device | str = "cpu") -> Float[Tensor, "T 3 H W"]:
        """The tiles of the held-out photographs, the same at every call."""
        return (self if self.split == "test" else Photographs(self.size, "test")).tiles(device)


def power_spectrum(frames: Float[Tensor, "*n C H W"], bins: int | None = None) -> Float[Tensor, "*n bins"]:
    """Power of a frame at each spatial frequency, mean over directions, of the mean over channels.

    The frame's mean is taken off, and a Hann window fades its borders, which would otherwise look like edges.

    Args:
        frames: values in [0, 1].
        bins: number of frequencies, evenly spaced from 0 to 1/2 cycle per pixel, at most half as many as the shorter side
            has pixels; None: a quarter.

    Returns:
        Squared amplitudes per pixel. Bin i holds frequencies from i / (2 bins) on; those beyond 1/2, along the
        diagonals, are left out.

    Raises:
        ValueError: more bins than that, or none.
    """
    H, W = frames.shape[-2:]
    bins = min(H, W) // 4 if bins is None else bins
    if not 1 <= bins <= min(H, W) // 2:
        raise ValueError(f"bins must be between 1 and {min(H, W) // 2}, half of the frames' shorter side, got {bins}")
    grey = frames.float().mean(-3)  # (*n H W)
    window = torch.outer(torch.hann_window(H), torch.hann_window(W)).to(frames.device)
    grey = (grey - grey.mean((-2, -1), keepdim=True)) * window
    power = torch.fft.fft2(grey).abs().square() / (H * W)
    frequency = torch.hypot(torch.fft.fftfreq(H)[:, None], torch.fft.fftfreq(W)).to(frames.device)  # cycles per pixel
    bin_of = (2 * bins * frequency).long().clamp(max=bins).flatten()  # the last one takes what is beyond
    total = torch.zeros(*power.shape[:-2], bins + 1, device=frames.device).index_add_(-1, bin_of, power.flatten(-2))
    return (total / bin_of.bincount(minlength=bins + 1))[..., :bins]


def high_frequency_power(frames: Float[Tensor, "*n C H W"]) -> Float[Tensor, "*n"]:
    """Mean power in the top third of the spectrum, from 1/3 to 1/2 cycle per pixel; frames of at least 6x6 pixels."""
    bins = 3 * max(1, min(frames.shape[-2:]) // 12)
    return power_spectrum(frames, bins)[..., 2 * bins // 3 :].mean(-1)


class PatchDiscriminator(nn.Module):
    """Says of every patch of a frame how real it looks (PatchGAN: Isola et al., 2017).

    Strided convolutions; with three stages, a score sees 38x38 pixels.

    Args:
        channels: of a frame.
        width: channels of the first stage; each further stage has twice as many.
        stages: how often height and width are halved.
    """

    def __init__(self, channels: int = 3, width: int = 32, stages: int = 3):
        super().__init__()
        widths = [channels] + [width * 2**i for i in range(stages)]
        self.stages = nn.ModuleList(nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in pairwise(widths))
        self.score = nn.Conv2d(widths[-1], 1, 3, padding=1)

    def forward(self, frames: Float[Tensor, "B C H W"]) -> tuple[Float[Tensor, "B 1 rows columns"], list[Tensor]]:
        """A score for every patch, above 0 for "real", and the features of every stage.

        Raises:
            ValueError: frames too small to be halved by every stage.
        """
        if min(frames.shape[-2:]) < (least := 2 ** len(self.stages)):
            raise ValueError(f"frames must have at least {least}x{least} pixels, got {'x'.join(map(str, frames.shape[-2:]))}")
        x, features = 2 * frames - 1, []
        for stage in self.stages:
            x = F.leaky_relu(stage(x), 0.2)
            features.append(x)
        return self.score(x), features


def hinge(real: Float[Tensor, "..."], fake: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """The discriminator's loss on its scores: no more to gain above 1 for real, below -1 for fake (Lim & Ye, 2017)."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def feature_matching(real: list[Tensor], fake: list[Tensor]) -> Float[Tensor, ""]:
    """Mean absolute difference of a discriminator's features, mean over its stages (Salimans et al., 2016)."""
    return torch.stack([(a.detach() - b).abs().mean() for a, b in zip(real, fake)]).mean()


def perceptual_network() -> nn.Module:
    """LPIPS with VGG-16 (Zhang et al., 2018) from torchmetrics, frozen: a module of two batches of frames, called with `normalize=True` for
    values in [0, 1].

    Raises:
        ImportError: torchmetrics or torchvision is missing.
        OSError: VGG's weights are not there and cannot be downloaded.
    """
    try:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        metric = LearnedPerceptualImagePatchSimilarity(net_type="vgg", normalize=True)
    except ImportError as error:  # also ModuleNotFoundError, and what torchmetrics says without torchvision
        needed = "the packages torchmetrics and torchvision"
        raise ImportError(f"perceptual > 0 needs {needed}; or set perceptual=0") from error
    except OSError as error:  # also what urllib raises
        needed = f"VGG-16's weights, which could not be downloaded ({error})"
        raise OSError(f"perceptual > 0 needs {needed}; or set perceptual=0") from error
    return metric.net.requires_grad_(False).eval()


def adaptive_weight(
    reconstruction: Float[Tensor, ""], adversarial: Float[Tensor, ""], at: Tensor, limit: float = 1e4
) -> Float[Tensor, ""]:
    """What makes the adversarial loss pull as hard as the reconstruction loss: the ratio of their gradients' norms.

    Esser et al. (2021), Equation 7. Norms and ratio are in float32, clamped, without a gradient of their own.

    Args:
        reconstruction, adversarial: the two losses.
        at: where to take the gradients: the paper takes the decoder's last weights, `VQGANObjective` the pixels.
        limit: the largest weight.
    """
    wanted, found = (
        torch.autograd.grad(loss, at, retain_graph=True)[0].float().norm() for loss in (reconstruction, adversarial)
    )
    return (wanted / (found + 1e-6)).clamp(0, limit).detach()


@dataclass(frozen=True)
class VQGANConfig:
    """What a tokenizer's training adds to the squared error.

    Args:
        adversarial: how many times as hard as the squared error the discriminator pulls at the pixels; 0 trains
            without a discriminator: chapter 03's VQ-VAE.
        matching: weight of feature matching, next to the discriminator's scores.
        start: share of the budget after which the discriminator begins to learn.
        warmup: share of the budget in which its pull grows from 0, from `start` on.
        limit: largest adaptive weight.
        width, stages: of the discriminator, see `PatchDiscriminator`.
        rate: the discriminator's peak learning rate.
        moving: extra weight of the squared error where a pixel differs from the frame before.
        perceptual: weight of LPIPS, which is added to the squared error per latent; needs a network that is downloaded once.
    """

    adversarial: float = 1.5
    matching: float = 1.0
    start: float = 0.4
    warmup: float = 0.2
    limit: float = 1e4
    width: int = 32
    stages: int = 3
    rate: float = 1e-3
    moving: float = 0.0
    perceptual: float = 0.0

    def __post_init__(self):
        for name in ("adversarial", "matching", "moving", "perceptual"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0, and finite, got {getattr(self, name)!r}")
        for name in ("width", "stages"):
            object.__setattr__(self, name, check_whole(getattr(self, name), name))
        for name in ("limit", "rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)!r}")
        for name in ("start", "warmup"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)!r}")
        if self.start + self.warmup > 1:
            raise ValueError(f"start + warmup must be at most 1, the whole budget, got {self.start!r} + {self.warmup!r}")


class VQGAN(nn.Module):
    """Both players in one module, so that one checkpoint holds them. What remains after training is the tokenizer."""

    def __init__(self, tokenizer: Tokenizer, discriminator: PatchDiscriminator):
        super().__init__()
        self.tokenizer, self.discriminator = tokenizer, discriminator


class VQGANObjective(TokenizerObjective):
    """What tokenizer and discriminator minimize, as one loss for chapter 08's `fit` (Esser et al., 2021).

    Each player's term reaches its own parameters only: the tokenizer's sees the discriminator with detached parameters,
    the discriminator's sees detached reconstructions. So one backward pass and one optimizer serve both.

    Args:
        model: both players.
        config: the run.
        source: clips of RGB or grey frames; has `draw` and `example`, like `Photographs`.
        settings: the weights of the terms.
    """

    def __init__(self, model: VQGAN, config: TrainingConfig, source, settings: VQGANConfig = VQGANConfig()):
        super().__init__(model.tokenizer, config, source)
        self.model, self.settings = model, settings  # both players, so that a checkpoint holds both
        self.lpips = perceptual_network() if settings.perceptual else None

    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW for both; the discriminator's averages are shorter, since what it looks at keeps changing."""
        both = MuonAdamW([], self.model.tokenizer.parameters(), adamw_rate=self.config.adamw_rate)
        judge, rate = list(self.model.discriminator.parameters()), self.settings.rate
        both.add_param_group({"params": judge, "lr": rate, "peak": rate, "muon": False, "betas": (0.5, 0.9)})
        return both

    def sample(self, generator: torch.Generator, device: torch.device) -> Tensor:
        """Single frames, or pairs where moving pixels weigh more; four times as many as clips elsewhere."""
        return self.source.draw(4 * self.config.batch, 2 if self.settings.moving else 1, generator, device)

    def prepare(self, clips: Tensor, progress: float, generator: torch.Generator, mine: Callable) -> dict:
        """Arguments of `forward`, for this process's part of the clips."""
        s, clips = self.settings, mine(clips)
        frames = clips[:, -1].contiguous(memory_format=torch.channels_last)
        moved = (frames - clips[:, 0]).abs().amax(1, keepdim=True) > 1 / 64
        pull = min(1.0, (progress - s.start) / s.warmup) if s.warmup else 1.0
        judged = s.adversarial > 0 and progress >= s.start
        pull = torch.tensor(pull if judged else 0.0, device=clips.device)
        return {"frames": frames, "importance": 1 + s.moving * moved, "judged": judged, "pull": pull}

    def forward(self, frames, importance, judged: bool, pull) -> tuple[Tensor, dict]:
        """The loss of both players, and what else is worth a line in the log."""
        s, tokenizer = self.settings, self.model.tokenizer
        reconstruction, indices, commitment = tokenizer(frames)
        reconstruction, latents = reconstruction.float(), indices.numel()
        squared = (reconstruction - frames).square()
        error = (importance * squared).sum() / latents
        if self.lpips is not None:
            rgb = [x.clamp(0, 1).expand(-1, 3, -1, -1) for x in (reconstruction, frames)]
            error = error + s.perceptual * self.lpips(*rgb, normalize=True).mean()
        if judged:
            generator, weight, judge = self.play(reconstruction, frames, error)
        else:  # zeros, whose gradients are there: several processes wait for those of all parameters
            generator = weight = frames.new_zeros(())
            judge = 0 * sum(p.sum() for p in self.model.discriminator.parameters())
        loss = error + tokenizer.config.commitment * commitment + pull * weight * generator + judge
        logs = {"pixels": squared.sum() / len(frames), "generator": generator, "weight": weight, "judge": judge}
        return loss, {name: value.detach() for name, value in logs.items()}

    def play(self, reconstruction: Tensor, frames: Tensor, error: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The generator's loss, its weight, and the discriminator's loss, all in float32."""
        s, judge = self.settings, self.model.discriminator
        with torch.autocast(frames.device.type, enabled=False):
            scores, features = judge(torch.cat([frames, reconstruction.detach()]))
            real, fake = scores.chunk(2)
            frozen = {name: p.detach() for name, p in judge.named_parameters()}
            fooled, seen = functional_call(judge, frozen, reconstruction)
            generator_loss = -fooled.mean() + s.matching * feature_matching([f.chunk(2)[0] for f in features], seen)
            weight = s.adversarial * adaptive_weight(error, generator_loss, reconstruction, s.limit)
            return generator_loss, weight, hinge(real, fake) / 10  # Adam ignores the scale; gradient clipping does not

    @torch.no_grad()
    def show(self, model: VQGAN) -> tuple[dict[str, Tensor], None]:
        """A held-out clip and its reconstruction."""
        clip = self.source.example(next(model.parameters()).device)
        return {"held-out clip": clip, "reconstruction": model.tokenizer.reconstruct(clip)}, None


@torch.no_grad()
def smooth_start(decoder: nn.Sequential) -> None:
    """Make the pixels of every pixel shuffle equal: no checkerboard to unlearn (Aitken et al., 2017)."""
    for convolution, after in pairwise(decoder):
        if isinstance(after, nn.PixelShuffle):
            n = after.upscale_factor**2  # output channels of the convolution that become the n pixels of one channel
            for p in (convolution.weight, convolution.bias):
                p.copy_(p[::n].repeat_interleave(n, dim=0))


def train_vqgan(
    source, out: str | os.PathLike, shape: TokenizerConfig, settings: VQGANConfig = VQGANConfig(),
    minutes: float | None = 10.0, steps: int | None = None, watch: Callable | None = None, **options,
) -> tuple[Tokenizer, dict]:
    """Train a tokenizer on the frames of `source`, with a discriminator unless `settings.adversarial` is 0.

    Called again with the same arguments, it goes on from the last checkpoint.

    Args:
        source: has `draw(n, frames, generator, device)` -> clips (n T C H W) in [0, 1], and `example(device)` -> a
            held-out clip (T C H W); `Photographs` is one.
        out: folder for checkpoints.
        shape: the tokenizer.
        settings: the losses.
        minutes: time budget.
        steps: step budget, in place of minutes.
        watch: see `live_view`.
        options: further fields of `TrainingConfig`, such as batch, seed, adamw_rate or precision; a step draws four
            times `batch` frames.

    Returns:
        The tokenizer, in eval mode on the CPU; save it with `save_tokenizer`. And the record of its run.

    Raises:
        TypeError: an option that `TrainingConfig` does not know.
        ValueError: clips that don't fit `shape`, or an `out` that holds a run with other arguments.
        FloatingPointError, OSError: as `fit`. ImportError, OSError: as `perceptual_network`.
    """
    minutes = None if steps else minutes
    clip = source.example("cpu")
    check_frames(clip, "source.example()", channels=shape.channels, multiple=shape.downsample)
    config = TrainingConfig(out=Path(out), size=clip.shape[-1], minutes=minutes, steps=steps, **options)
    run = json.loads(json.dumps({"tokenizer": asdict(shape), "vqgan": asdict(settings)}))  # as it is read back
    kept = config.out / "vqgan.json"
    then = json.loads(kept.read_text()) if kept.exists() else run
    changed = [f"{name} = {then[part].get(name)!r}, now {now!r}" for part in run for name, now in run[part].items() if then[part].get(name) != now]
    if changed:
        raise ValueError(f"out must be empty or hold a run with these arguments, {config.out} holds one with {', '.join(changed)}")
    write_file(kept, json.dumps(run).encode())
    with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))):  # the caller's generators stay
        seed_everything(config.seed, -1, torch.device("cpu"))
        tokenizer = Tokenizer(shape)
        smooth_start(tokenizer.decoder)
        players = VQGAN(tokenizer, PatchDiscriminator(shape.channels, settings.width, settings.stages))
        objective = VQGANObjective(players.to(memory_format=torch.channels_last), config, source, settings)
        players, record = fit_model(objective, "vqgan", config, watch)
    record["frames_seen"] = record.pop("clips_seen")  # its clips are of one frame
    record |= {"data": {"source": type(source).__name__, "frame": list(clip.shape[1:])}, "vqgan": run["vqgan"]}
    return players.tokenizer.cpu(), record
