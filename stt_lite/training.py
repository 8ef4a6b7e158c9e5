# Extracted from notebooks/08_training.ipynb by "make extract": edit the notebook, not this file.
"""Training: one loop for the tokenizer and the transformer, on a CPU, a GPU or several. Built in chapter 08."""

import hashlib
import io
import json
import math
import os
import pickle
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from stt_lite.gaussian_parameterization import beta_warmup
from stt_lite.moving_mnist import moving_mnist
from stt_lite.transformer import SpatialTemporalTransformer, TransformerConfig, prediction_error
from stt_lite.video import film_strip
from stt_lite.vq_autoencoder import (
    Tokenizer, TokenizerConfig, load_tokenizer, load_weights, save_tokenizer, save_weights, weights_folder, write_file,
)  # fmt: skip

__all__ = [
    "MuonAdamW", "PRESETS", "TokenizerObjective", "TrainingConfig", "TransformerObjective", "blur", "corrupt", "fit",
    "grow", "hide", "learning_rate", "live_view", "load_transformer", "orthogonalize", "roll_out", "save_transformer", "snap", "train",
]  # fmt: skip


def orthogonalize(update: Float[Tensor, "n a b"], steps: int = 5) -> Float[Tensor, "n a b"]:
    """The nearest matrices whose singular values are all about 1, by a Newton-Schulz iteration (Jordan et al., 2024).

    Under autocast its products are in half precision, which is enough. Singular values above 0.0015 of the matrix's Frobenius norm
    end between 0.68 and 1.21; smaller ones would need more steps.
    """
    tall = update.shape[1] > update.shape[2]
    x = update.mT if tall else update
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # no singular value above 1
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


class MuonAdamW(torch.optim.Optimizer):
    """Muon for the layers' matrices, AdamW for everything else (embeddings, norms, convolutions, the head).

    Muon (Jordan et al., 2024) is momentum whose step is orthogonalized, so that it moves a matrix equally far in all of
    its directions.

    Args:
        matrices: parameters of two dimensions for Muon; may be empty.
        others: parameters for AdamW.
        muon_rate, adamw_rate: peak learning rates.
        momentum: Muon's share of the old average, in [0, 1).
        betas: AdamW's.
    """

    def __init__(self, matrices, others, muon_rate=0.02, adamw_rate=2e-3, momentum=0.95, betas=(0.9, 0.95)):
        groups = [
            {"params": list(others), "lr": adamw_rate, "peak": adamw_rate, "muon": False},
            {"params": list(matrices), "lr": muon_rate, "peak": muon_rate, "muon": True},
        ]
        super().__init__([group for group in groups if group["params"]], {"momentum": momentum, "betas": betas})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            for p in params:
                if not self.state[p]:
                    self.state[p]["average"] = torch.zeros_like(p)
                    if not group["muon"]:
                        self.state[p] |= {"square": torch.zeros_like(p), "step": torch.zeros(())}
            if group["muon"]:
                self._muon(params, group)
            elif params:
                state = [self.state[p] for p in params]
                adamw(
                    params, [p.grad for p in params], [s["average"] for s in state], [s["square"] for s in state], [],
                    [s["step"] for s in state], foreach=True, amsgrad=False, beta1=group["betas"][0],
                    beta2=group["betas"][1], lr=group["lr"], weight_decay=0.0, eps=1e-8, maximize=False,
                )  # fmt: skip

    def _muon(self, params, group) -> None:
        for shape in {p.shape for p in params}:  # matrices of one shape go through together
            same = [p for p in params if p.shape == shape]
            for p in same:
                self.state[p]["average"].lerp_(p.grad, 1 - group["momentum"])
            update = torch.stack([p.grad.lerp(self.state[p]["average"], group["momentum"]) for p in same])  # Nesterov
            rate = group["lr"] * math.sqrt(max(1, shape[0] / shape[1]))
            for p, change in zip(same, orthogonalize(update)):
                p.sub_(change, alpha=rate)


def learning_rate(progress: float, schedule: str = "wsd", decay_share: float = 0.2, warmup: float = 0.02) -> float:
    """Factor on the peak learning rate at `progress` in [0, 1]: a line up to 1 first, then what the schedule says.

    Args:
        schedule: "wsd": stable at 1, and in the last `decay_share` down to 0 as 1 - sqrt (Hägele et al., 2024, Section 4).
            "cosine": half a cosine, from the warm-up on, down to 0.01.
        decay_share, warmup: shares of the run, in (0, 1).
    """
    if progress < warmup:
        return progress / warmup
    if schedule == "wsd":
        decayed = max(0.0, (progress - (1 - decay_share)) / decay_share)  # from 0 to 1
        return 1 - math.sqrt(decayed)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def moving_average(decay: float) -> Callable:
    """How `torch.optim.swa_utils.AveragedModel` updates its weights; at first it follows the model more closely."""

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor) -> None:
        weight = 1 - ((1 + count) / (10 + count)).clamp(max=decay)
        for old, new in zip(averaged, current):
            old.lerp_(new, weight.to(old.dtype))

    return update


@dataclass(frozen=True)
class TrainingConfig:
    """One training run. `stt-lite train --help` and `python -m stt_lite.training --help` list the same fields.

    Args:
        out: folder for weights, their records and checkpoints; a run that stopped goes on from what lies there.
        size, digits, frames, stochastic: the clips, see `moving_mnist`.
        tokenizer: a bundled tokenizer's name or a path; None trains one first.
        codebook_size: codewords K of a tokenizer trained here.
        tokenizer_share: share of the budget for that tokenizer, in (0, 1).
        width, layers, heads, patch, gaussian, head: the transformer, see `TransformerConfig`.
        start: a bundled transformer's name or a path to start from, grown where it is narrower than `width`, see `grow`;
            None starts from random weights.
        minutes: time budget, saving and evaluation not counted.
        steps: step budget; instead of `minutes`.
        batch: clips per step, over all processes together.
        adamw_rate, muon_rate: peak learning rates.
        schedule: of the learning rates over the budget, see `learning_rate`: "wsd" or "cosine".
        decay_share: share of the budget, at its end, in which "wsd" brings them down to 0; in (0, 1).
        clip: largest norm of the gradient.
        average: decay of the moving average of the transformer's weights, in [0, 1).
        pixel_weight: weight of the squared error in pixels, through the frozen decoder, next to that in latents.
        beta: weight of the KL, in squared latent units per nat: what a nat of z must save; larger frames, whose summed errors
            are larger, want a larger one.
        beta_warmup: share of the budget after which beta is reached, from 0 on; 0 for no warm-up.
        forecast_share: share of the steps, in [0, 1), in which only a prompt's frames take z from the posterior, and all later
            ones the prior's mean, as at temperature 0. The prompt is a quarter to a half of the clip; with own rollouts, theirs.
        corruption: each clip draws a rate from 0 to this, and replaces that share of its context by random tokens.
        fade: each clip draws a rate up to this, mostly near 0, and dims each frame of its context by 0 up to that share.
        blur: each clip draws a width up to this in pixels, mostly near 0, and blurs its context by it, from some frame on.
        hide: share of the clips whose context is black in a random box: a part of the frame, for some frames; in [0, 1).
        rollout_share: share of the budget, at its end, in which the context holds the model's own rollouts.
        rollout_length: share of a clip's frames that such a rollout replaces at most, in (0, 1).
        seed: everything random follows from it and the step.
        precision: "no" (float32), "bf16" or "fp16"; "auto" takes bf16, or fp16 on a GPU without it, or "no" on a CPU.
        compile: torch.compile; None: on a GPU only.
        checkpoint_seconds: time between two checkpoints; 0 writes one after every step.
        tensorboard: also log to `out`/tensorboard.
    """

    out: Path = Path("runs/moving-mnist-tiny")
    size: int = 32
    digits: int = 1
    frames: int = 20
    stochastic: bool = False
    tokenizer: str | None = None
    codebook_size: int = 256
    tokenizer_share: float = 0.2
    width: int = 64
    layers: int = 3
    heads: int = 4
    patch: int = 1
    gaussian: Literal["latent", "bottleneck", "off"] = "latent"
    head: Literal["regression", "token"] = "regression"
    start: str | None = None
    minutes: float | None = 10.0
    steps: int | None = None
    batch: int = 4
    adamw_rate: float = 2e-3
    muon_rate: float = 0.02
    schedule: Literal["wsd", "cosine"] = "wsd"
    decay_share: float = 0.2
    clip: float = 1.0
    average: float = 0.995
    pixel_weight: float = 1.0
    beta: float = 8.0
    beta_warmup: float = 0.3
    forecast_share: float = 0.0
    corruption: float = 0.05
    fade: float = 0.2
    blur: float = 0.0
    hide: float = 0.0
    rollout_share: float = 0.15
    rollout_length: float = 0.5
    seed: int = 0
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    compile: bool | None = None
    checkpoint_seconds: float = 60.0
    tensorboard: bool = False

    def __post_init__(self):
        object.__setattr__(self, "out", Path(self.out))
        if (self.steps is None) == (self.minutes is None):
            raise ValueError(f"give either steps or minutes, got steps={self.steps} and minutes={self.minutes}")
        for name in ("steps", "minutes", "batch", "frames", "clip", "adamw_rate", "muon_rate"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value!r}")
        for name in ("average", "beta_warmup", "forecast_share", "corruption", "fade", "hide", "rollout_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)!r}")
        if not 0 <= self.blur < math.inf:
            raise ValueError(f"blur must be at least 0 pixels, got {self.blur!r}")
        if self.schedule not in ("wsd", "cosine"):
            raise ValueError(f'schedule must be "wsd" or "cosine", got {self.schedule!r}')
        for name in ("tokenizer_share", "rollout_length", "decay_share"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must be in (0, 1), got {getattr(self, name)!r}")

    def part(self, share: float) -> "TrainingConfig":
        """The same run with a share of the budget, in (0, 1]: at least one step, or so many of the minutes."""
        if self.steps:
            return replace(self, steps=max(1, round(share * self.steps)))
        return replace(self, minutes=share * self.minutes)


class TokenizerObjective(nn.Module):
    """What the tokenizer minimizes: squared error per latent and commitment loss, on single frames."""

    def __init__(self, model: Tokenizer, config: TrainingConfig, source=None):
        super().__init__()
        self.model, self.config, self.source = model, config, source or MovingDigits(config)

    averaged = False  # its codebook is a moving average already

    def optimizer(self) -> torch.optim.Optimizer:
        return MuonAdamW([], self.model.parameters(), adamw_rate=self.config.adamw_rate)

    def sample(self, generator: torch.Generator, device: torch.device) -> Tensor:
        """Clips of one frame, of all processes together; four times as many as clips elsewhere, since they are short."""
        return self.source.draw(4 * self.config.batch, 1, generator, device)

    def prepare(self, clips: Tensor, progress: float, generator: torch.Generator, mine: Callable) -> dict:
        """Arguments of `forward`, for this process's part of the clips."""
        return {"frames": mine(clips)[:, 0].contiguous(memory_format=torch.channels_last)}

    def forward(self, frames: Float[Tensor, "B C H W"]) -> tuple[Tensor, dict]:
        """The loss, and what else is worth a line in the log."""
        reconstruction, indices, commitment = self.model(frames)
        error = (reconstruction.float() - frames).square().flatten(1).sum(1).mean()
        return error / indices[0].numel() + self.model.config.commitment * commitment, {"pixels": error.detach()}

    @torch.no_grad()
    def show(self, model: Tokenizer) -> tuple[dict[str, Tensor], None]:
        """A held-out clip and its reconstruction."""
        clip = self.source.example(next(model.parameters()).device)
        return {"held-out clip": clip, "reconstruction": model.reconstruct(clip)}, None


def draw_clips(config: TrainingConfig, n: int, frames: int, **options) -> Float[Tensor, "n T C H W"]:
    """Clips of the kind that the config names; options as those of `moving_mnist`."""
    return moving_mnist(n, frames, config.size, config.digits, stochastic=config.stochastic, **options)


class MovingDigits:
    """The clips that a config describes: the source that an objective draws from, where it is given no other.

    A source is any object with these two methods and, if it likes, a dictionary `data` of what a run's record should say
    of its clips. Photographs, games and your own files follow in chapters 11 to 13.
    """

    def __init__(self, config: TrainingConfig):
        self.config = config
        self.data = {name: getattr(config, name) for name in ("size", "digits", "frames", "stochastic")}

    def draw(
        self, n: int, frames: int, generator: torch.Generator, device: torch.device
    ) -> Float[Tensor, "n T C H W"]:
        """Clips to train on, values in [0, 1], float32; `generator` is on the CPU, the clips are on `device`."""
        return draw_clips(self.config, n, frames, generator=generator, device=device)

    def example(self, device: torch.device) -> Float[Tensor, "T C H W"]:
        """A held-out clip, the same at every call."""
        return draw_clips(self.config, 1, self.config.frames, split="test", seed=1, device=device)[0]


def corrupt(
    latents: Float[Tensor, "B T D h w"],
    tokenizer: Tokenizer,
    rate: Float[Tensor, "B"],
    chance: Float[Tensor, "B T h w"],
    random: Int[Tensor, "B T h w"],
) -> Float[Tensor, "B T D h w"]:
    """Replace tokens by the codewords `random` where `chance`, drawn evenly from [0, 1), is below the clip's `rate`."""
    codes = tokenizer.codes(random.flatten(0, 1)).view_as(latents)
    return torch.where((chance < rate[:, None, None, None])[:, :, None], codes, latents)


def blur(frames: Float[Tensor, "*n C H W"], width: Float[Tensor, "*n"]) -> Float[Tensor, "*n C H W"]:
    """Gaussian blur, each frame with a standard deviation of its own in pixels; it is black outside the frame.

    Args:
        frames: values in [0, 1].
        width: at least 0, and small beside the frame.
    """
    H, W = frames.shape[-2:]
    wide = F.pad(frames.float(), (0, W, 0, H))  # what leaves on one side does not come in on the other
    down, across = torch.fft.fftfreq(2 * H, device=frames.device), torch.fft.rfftfreq(2 * W, device=frames.device)
    squared = down[:, None] ** 2 + across**2  # frequencies in cycles per pixel: (2H W+1)
    kept = torch.exp(-2 * math.pi**2 * width[..., None, None, None] ** 2 * squared)
    return torch.fft.irfft2(torch.fft.rfft2(wide) * kept, s=(2 * H, 2 * W))[..., :H, :W].clamp(0, 1)


def hide(
    clips: Float[Tensor, "B T C H W"], low: Float[Tensor, "B 3"], high: Float[Tensor, "B 3"]
) -> Float[Tensor, "B T C H W"]:
    """Black inside a box of each clip.

    Args:
        low, high: where the box begins and ends in time, height and width, as shares of the clip's; what lies outside
            [0, 1] is cut off, and where `high` is not above `low` nothing is hidden.
    """
    T, _, H, W = clips.shape[1:]
    middles = [(torch.arange(n, device=clips.device) + 0.5) / n for n in (T, H, W)]
    t, y, x = ((m >= low[:, i, None]) & (m < high[:, i, None]) for i, m in enumerate(middles))  # (B T), (B H), (B W)
    box = t[:, :, None, None] & y[:, None, :, None] & x[:, None, None, :]  # (B T H W)
    return clips.masked_fill(box[:, :, None], 0.0)


def snap(tokenizer: Tokenizer, prediction: Float[Tensor, "B D_or_K h w"], head: str) -> Float[Tensor, "B D h w"]:
    """The codewords of a prediction: the nearest ones of the regression head, the likeliest ones of the token head."""
    if head == "token":
        return tokenizer.codes(prediction.argmax(1))
    with torch.autocast(prediction.device.type, enabled=False):
        nearest = tokenizer.quantizer.nearest(rearrange(prediction.float(), "B D h w -> (B h w) D"))
    return tokenizer.codes(nearest.view_as(prediction[:, 0]))


@torch.no_grad()
def roll_out(
    net: SpatialTemporalTransformer,
    tokenizer: Tokenizer,
    latents: Float[Tensor, "B T D h w"],
    prompt: int,
    noise: Float[Tensor, "B T L hP wP Z"] | None = None,
    temperature: float = 1.0,
) -> Float[Tensor, "B T D h w"]:
    """The first `prompt` frames as they are, all later ones from the model itself, one after the other.

    Args:
        latents: of whole clips; only the first `prompt` frames are looked at.
        prompt: frames to keep, 1 to T.
        noise: from `net.draw_noise`.
    """
    B, T = latents.shape[:2]
    noise = net.draw_noise(B, T) if noise is None else noise
    frames = list(latents[:, :prompt].unbind(1))
    cache = net.read(latents[:, :prompt], T, noise[:, :prompt], temperature)
    for t in range(prompt, T):
        prediction, cache = net.step(frames[-1], cache, noise[:, t], temperature=temperature)
        frames.append(snap(tokenizer, prediction, net.config.head))
    return torch.stack(frames, dim=1)


class TransformerObjective(nn.Module):
    """What the transformer minimizes: the error of each frame in latents and in pixels, and the price of its z."""

    def __init__(self, model: SpatialTemporalTransformer, tokenizer: Tokenizer, config: TrainingConfig, source=None):
        super().__init__()
        self.model, self.tokenizer, self.config = model, tokenizer.requires_grad_(False).eval(), config
        self.source = source or MovingDigits(config)

    averaged = True

    def train(self, mode: bool = True):
        super().train(mode)
        self.tokenizer.eval()  # frozen: its codebook does not move either
        return self

    def optimizer(self) -> torch.optim.Optimizer:
        inner = {id(m.weight) for m in self.model.layers.modules() if isinstance(m, nn.Linear)}
        matrices = [p for p in self.model.parameters() if id(p) in inner]
        others = [p for p in self.model.parameters() if id(p) not in inner]
        return MuonAdamW(matrices, others, self.config.muon_rate, self.config.adamw_rate)

    def sample(self, generator: torch.Generator, device: torch.device) -> Tensor:
        """Clips of one step, of all processes together."""
        return self.source.draw(self.config.batch, self.config.frames, generator, device)

    @torch.no_grad()
    def prepare(self, clips: Tensor, progress: float, generator: torch.Generator, mine: Callable) -> dict:
        """Arguments of `forward`: what the model sees, and what it should say.

        Args:
            clips: of all processes together.
            progress: how much of the budget is used up, from 0 to 1.
            generator: on the clips' device.
            mine: takes this process's part of a tensor that all processes drew alike.
        """
        model, tokenizer, c = self.model, self.tokenizer, self.config
        B, T, h, w = *clips.shape[:2], *model.config.grid
        draw = dict(generator=generator, device=clips.device)  # drawn for all processes, so that all agree
        noise = mine(model.draw_noise(B, T, generator))
        rate, chance = mine(c.corruption * torch.rand(B, **draw)), mine(torch.rand(B, T, h, w, **draw))
        random = mine(torch.randint(tokenizer.quantizer.codebook_size, (B, T, h, w), **draw))
        prompt = torch.randint(max(1, int(c.frames * (1 - c.rollout_length))), c.frames, (), **draw).item()
        dim = mine(c.fade * torch.rand(B, 1, 1, 1, 1, **draw) ** 3 * torch.rand(B, T, 1, 1, 1, **draw))
        forecast = torch.rand((), **draw).item() < c.forecast_share
        known = torch.randint(max(1, c.frames // 4), c.frames // 2 + 1, (), **draw).item() if forecast else True
        clips = mine(clips)  # from here on; B still counts those of all processes
        target, indices = tokenizer.quantize(tokenizer.encode(clips.flatten(0, 1)))
        target, indices = target.unflatten(0, clips.shape[:2]), indices.unflatten(0, clips.shape[:2])
        context = target
        if c.fade or c.blur or c.hide:
            spoiled = self.spoil((1 - dim) * clips, B, draw, mine)
            context = tokenizer.quantize(tokenizer.encode(spoiled.flatten(0, 1)))[0].view_as(target)
        context = corrupt(context, tokenizer, rate, chance, random)
        if progress > 1 - c.rollout_share:  # the last part: learn to continue what it made itself
            known = prompt if forecast else True
            seen, how = context[:, :-1], 0.0 if forecast else 1.0  # what stands in the last place, no prediction sees
            context[:, :-1] = roll_out(model, tokenizer, seen, prompt, noise[:, :-1], temperature=how)
        beta = beta_warmup(round(1000 * progress), round(1000 * c.beta_warmup), c.beta)  # in thousandths of the budget
        beta = torch.tensor(beta, device=clips.device)  # a tensor: a compiled forward need not be compiled again
        return dict(clips=clips, context=context, target=target, indices=indices, noise=noise, beta=beta, known=known)

    def spoil(self, clips: Tensor, B: int, draw: dict, mine: Callable) -> Tensor:
        """This process's clips, blurred and partly hidden as the config says; B counts those of all processes."""
        c, T = self.config, clips.shape[1]
        if c.blur:
            start = T * (2 * torch.rand(B, 1, **draw) - 1)  # in half of the clips before the first frame
            grown = ((torch.arange(T, device=clips.device) - start) / 3).clamp(0, 1)  # (B T): over three frames
            clips = blur(clips, mine(c.blur * torch.rand(B, 1, **draw) ** 3 * grown))
        if c.hide:
            u = torch.rand(3, B, 3, **draw)  # time, height, width
            least, most = torch.tensor([[0.05, 0.25, 0.25], [0.4, 0.75, 0.75]], device=clips.device)
            low, size = 1.25 * u[0] - 0.25, torch.lerp(least, most, u[1]) * (u[2, :, :1] < c.hide)  # (B 3)
            clips = hide(clips, mine(low), mine(low + size))
        return clips

    def forward(self, clips, context, target, indices, noise, beta, known) -> tuple[Tensor, dict]:
        """The loss, and what else is worth a line in the log."""
        c, latents_per_frame = self.config, target[0, 0, 0].numel()
        out = self.model(context, noise=noise, target=target, posterior=known)
        error = prediction_error(out.prediction, target if c.head == "regression" else indices)  # (B T)
        loss = error.mean() + beta * out.kl.sum(-1).mean()
        logs = {"latents": error.detach().mean(), "nats": out.kl.detach().sum(-1).mean()}
        if c.pixel_weight and c.head == "regression":
            decoded = self.tokenizer.decoder(out.prediction.flatten(0, 1)).float().unflatten(0, clips.shape[:2])
            pixels = (decoded - clips).square().sum((2, 3, 4))  # (B T)
            loss = loss + c.pixel_weight * pixels.mean()
            logs["pixels"] = pixels.detach().mean()
        return loss / latents_per_frame, logs

    @torch.no_grad()
    def show(self, model: SpatialTemporalTransformer) -> tuple[dict[str, Tensor], int]:
        """A held-out clip, what the model makes of its first three quarters, and how many frames those are."""
        clip, prompt = self.source.example(next(model.parameters()).device), 3 * self.config.frames // 4
        latents = self.tokenizer.quantize(self.tokenizer.encode(clip))[0]
        rolled = roll_out(model, self.tokenizer, latents[None], prompt, temperature=0.0)[0]
        return {"held-out clip": clip, "continued": self.tokenizer.decode(rolled)}, prompt


def mixed_precision(device: torch.device) -> str:
    """The fastest precision that is safe: bf16 where a GPU has it, else fp16 (a T4), on a CPU float32 ("no")."""
    if device.type != "cuda":
        return "no"
    return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"


def new_accelerator(config: TrainingConfig):
    """The `accelerate.Accelerator` that a config asks for: devices, processes, precision, compilation, log."""
    from accelerate import Accelerator, PartialState  # takes seconds to import, and generation does without
    from accelerate.state import AcceleratorState
    from accelerate.utils import TorchDynamoPlugin, parse_flag_from_env

    cpu = parse_flag_from_env("ACCELERATE_USE_CPU", not torch.cuda.is_available())
    device = PartialState(cpu=cpu).device
    compiled = device.type == "cuda" if config.compile is None else config.compile
    AcceleratorState._reset_state()  # or a second run in this process would have the first one's precision and compiler
    return Accelerator(
        cpu=cpu,
        mixed_precision=mixed_precision(device) if config.precision == "auto" else config.precision,
        dynamo_plugin=TorchDynamoPlugin("inductor" if compiled else "no", use_regional_compilation=compiled),  # one layer for all
        log_with="tensorboard" if config.tensorboard else None,
        project_dir=config.out,
    )


@dataclass
class Progress:
    """Where a run stands: what a checkpoint holds besides weights and optimizer."""

    step: int = 0
    clips: int = 0
    seconds: float = 0.0  # of training, without saving and showing
    decaying: bool = False  # the learning rate has begun its last fall
    history: list[list[float]] = field(default_factory=list)  # step, seconds and mean loss, every five steps

    def done(self, config: TrainingConfig, share: float) -> float:
        """How much of the budget is used up, from 0 to 1."""
        if config.steps is not None:
            return self.step / max(1, round(share * config.steps))
        return self.seconds / (60 * share * config.minutes)


def seed_everything(seed: int, step: int, device: torch.device) -> list[torch.Generator]:
    """Seed torch's global generators, and return a generator on the CPU and one on the device, for one step alone.

    No state of a generator has to be saved: seed and step bring it back, whatever ran before and on however many
    processes.
    """
    mixed = int.from_bytes(hashlib.sha256(f"{seed} {step}".encode()).digest()[:7], "little")
    torch.manual_seed(mixed)
    return [torch.Generator("cpu").manual_seed(mixed + 1), torch.Generator(device).manual_seed(mixed + 2)]


MAY_CHANGE = {"out", "steps", "minutes", "batch", "schedule", "decay_share", "precision", "compile", "checkpoint_seconds", "tensorboard"}


def save_checkpoint(path: Path, config: TrainingConfig, progress: Progress, **parts) -> None:
    """Write config, progress and the `state_dict` of each part, in one step: a killed run leaves the old file whole.

    Raises:
        OSError: a folder that cannot be written or a full disk; the last checkpoint is still there.
    """
    state = {name: part.state_dict() for name, part in parts.items() if part is not None}
    buffer = io.BytesIO()
    torch.save({"config": plain(config), "progress": asdict(progress), **state}, buffer)
    try:
        write_file(path, buffer.getvalue())
    except OSError as error:
        kept = "the one before it is still there" if path.exists() else "there is none before it"
        message = f"could not write the checkpoint of step {progress.step} ({error.strerror}); {kept}"
        raise OSError(error.errno, message, str(path)) from error


def load_checkpoint(path: Path, config: TrainingConfig, **parts) -> Progress:
    """Bring the parts back to where `save_checkpoint` found them, and return the progress.

    Raises:
        ValueError: a checkpoint of another config, or a file that is not a checkpoint.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        then, progress = state["config"], Progress(**state["progress"])
        progress.clips = progress.clips or progress.step * then["batch"]  # older ones don't tell
    except (RuntimeError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is not a whole checkpoint: {type(error).__name__}") from error
    refuse_another(path, then, config)
    for name, part in parts.items():
        if part is not None:
            if name == "scaler" and name not in state:  # the run was not in float16 so far: its factor is found anew
                continue
            try:
                part.load_state_dict(state[name])
            except (RuntimeError, ValueError) as error:  # weights of another shape
                reason = str(error).splitlines()[0]
                raise ValueError(f"{path} does not fit: {reason}; choose another `out`") from error
    return progress


def refuse_another(path: Path, then: dict, config: TrainingConfig) -> None:
    """ValueError where `path` was written under a config that differs in more than `MAY_CHANGE`.

    What was written before a field was there counts as written with its default.
    """
    then, now = plain(TrainingConfig()) | then, plain(config)
    changed = [name for name in now if name not in MAY_CHANGE and then[name] != now[name]]
    if changed:
        other = [f"{name} = {then[name]!r}, now {now[name]!r}" for name in changed]
        raise ValueError(f"{path} is of another config: {', '.join(other)}; choose another `out`")


def plain(config: TrainingConfig) -> dict:
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()}


def fit(
    objective: nn.Module, name: str, share: float, config: TrainingConfig, accelerator, watch: Callable | None = None
) -> tuple[nn.Module, Progress]:
    """Train `objective.model` until `share` of the config's budget is used, going on from the last checkpoint if any.

    Args:
        objective: `TokenizerObjective` or `TransformerObjective`.
        name: of the checkpoint, `out`/`name`.checkpoint.
        share: of the config's budget, in (0, 1].
        accelerator: an `accelerate.Accelerator`, which knows devices, processes and precision.
        watch: called now and then on the main process, `watch(name, progress, clips, prompt_frames)`: see `live_view`.

    Returns:
        The trained model, averaged over the last steps where the objective says so, and the progress.

    Raises:
        FloatingPointError: the loss or the gradient is not finite. The message names the step; the last good checkpoint
            stays.
        ValueError: the folder's checkpoint belongs to another config.
    """
    device, main, processes = accelerator.device, accelerator.is_main_process, accelerator.num_processes
    model, path = objective.to(device).train().model, config.out / f"{name}.checkpoint"
    optimizer = objective.optimizer()
    average = AveragedModel(model, multi_avg_fn=moving_average(config.average)) if objective.averaged else None
    parts = {"model": model, "optimizer": optimizer, "average": average, "scaler": accelerator.scaler}
    progress = load_checkpoint(path, config, **parts) if path.exists() else Progress()
    stable = path.with_name(f"{name}-stable.checkpoint")
    if progress.decaying and progress.done(config, share) < 1 - config.decay_share and stable.exists():
        progress = load_checkpoint(stable, config, **parts)  # there is more time now: go on as if it had not decayed
    trained, stepper = accelerator.prepare(objective, optimizer)
    unit, total = ("step", config.steps) if config.steps else ("s", 60 * config.minutes)
    bar = tqdm(desc=name, total=round(share * total), unit=unit, disable=not main)
    bar.update(min(bar.total, progress.step if config.steps else int(progress.seconds)))
    clock = pace = saved = shown = time.perf_counter()
    recent = []
    while (done := progress.done(config, share)) < 1:
        if config.schedule == "wsd" and done >= 1 - config.decay_share and not progress.decaying:
            if main:
                save_checkpoint(stable, config, progress, **parts)
            progress.decaying = True
        on_cpu, on_device = seed_everything(config.seed, progress.step, device)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * learning_rate(done, config.schedule, config.decay_share)
        with accelerator.autocast():
            clips = objective.sample(on_cpu, device)
            batch = objective.prepare(clips, done, on_device, lambda x: x[accelerator.process_index :: processes])
        loss, logs = trained(**batch)
        now = time.perf_counter()
        seconds, clock = progress.seconds + now - clock, now
        told = processes * seconds if main else 0.0  # only the main process tells its clock, so the mean of all is that clock
        report = torch.stack([torch.tensor(told, device=device), loss.detach().float(), *logs.values()])
        progress.seconds, mean, *values = accelerator.reduce(report, "mean").tolist()  # the same everywhere
        accelerator.backward(loss)
        norm = float(accelerator.clip_grad_norm_(model.parameters(), config.clip))
        if not math.isfinite(mean) or not (math.isfinite(norm) or accelerator.scaler):  # a scaler leaves such steps out
            kept = f"{path} is the last good one" if path.exists() else "there is none yet"
            what = f"the loss is {mean} and its gradient's norm {norm}"
            raise FloatingPointError(f"{what} at step {progress.step} of the {name}; checkpoint: {kept}")
        with accelerator.autocast():  # for Muon's products
            stepper.step()
        stepper.zero_grad()
        if average is not None:
            average.update_parameters(model)
        progress.step += 1
        progress.clips += len(clips)
        if not main:
            continue
        recent.append(mean)
        ended, pause = progress.done(config, share) >= 1, time.perf_counter()
        bar.update(1 if config.steps else min(bar.total, int(progress.seconds)) - bar.n)
        if progress.step % 5 == 0 or ended:
            progress.history.append([progress.step, progress.seconds, sum(recent) / len(recent)])
            speed, pace = len(recent) * len(clips) / (pause - pace), pause
            bar.set_postfix_str(f"loss {progress.history[-1][2]:.4f}, {speed:.1f} clips/s", refresh=False)
            accelerator.log({f"{name}/{key}": v for key, v in zip(["loss", *logs], [mean, *values])}, progress.step)
            recent.clear()
        if ended or pause - saved >= config.checkpoint_seconds:
            save_checkpoint(path, config, progress, **parts)
            saved = time.perf_counter()
        if watch is not None and (ended or pause - shown >= 5):
            watch(name, progress, *objective.show((model if average is None else average.module).eval()))
            objective.train()
            shown = time.perf_counter()
        clock += time.perf_counter() - pause  # saving and showing do not count
    bar.close()
    accelerator.wait_for_everyone()
    accelerator.free_memory()
    return (model if average is None else average.module).eval(), progress


def save_transformer(net: SpatialTemporalTransformer, path: str | os.PathLike, record: dict | None = None) -> Path:
    """Write a transformer as safetensors, and beside it a JSON record with its hash. As `save_tokenizer`."""
    return save_weights(net, path, record)


def load_transformer(name: str | os.PathLike, device: torch.device | str = "cpu") -> SpatialTemporalTransformer:
    """Load a bundled transformer by name, or any by the path of its .safetensors file, in eval mode.

    Raises:
        ValueError, FileNotFoundError: as `load_tokenizer`.
    """

    def build(config: dict) -> SpatialTemporalTransformer:
        return SpatialTemporalTransformer(TransformerConfig(**config | {"grid": tuple(config["grid"])}))

    return load_weights(name, "transformer", build, device)


WRITERS = ("embed.weight", "embed.bias", "start", "out.weight", "out.bias", "feed_forward.3.weight", "feed_forward.3.bias",
           "inject.weight", "inject.bias", "prior.convolution.weight", "posterior.convolution.weight")  # fmt: skip


@torch.no_grad()
def grow(net: SpatialTemporalTransformer, config: TransformerConfig) -> SpatialTemporalTransformer:
    """A wider transformer that computes what `net` computes, with room to learn more (Net2Net, Chen et al., 2016).

    Args:
        net: the narrower one; it is returned as it is where `config` is its own.
        config: as `net.config`, with more channels E and, in proportion, more heads N.

    Raises:
        ValueError: a config that differs in something else, a narrower one, or the Gaussian layer's mode "bottleneck",
            which replaces the stream.
    """
    old, E = net.config, net.config.width
    if config == old:
        return net
    head = old.width // old.heads
    if old.gaussian == "bottleneck" or config.width < E or replace(old, width=config.width, heads=config.width // head) != config:
        raise ValueError(f"config must be that of net but for more width, in heads of {head} channels: {old}, got {config}")
    wide, weights = SpatialTemporalTransformer(config), net.state_dict()
    for name, new in wide.state_dict().items():
        value = weights[name]
        if name.endswith(WRITERS) and new.shape != value.shape:
            new.zero_()
        if name.endswith(("norm.weight", "feed_forward.0.weight")) and new.shape != value.shape:
            new.fill_(1.0)
            value = value * math.sqrt(E / config.width)
        if name.endswith(("qkv.weight", "qkv.bias")):
            new, value = (x.unflatten(0, (3, -1)) for x in (new, value))
        if name.endswith("qkv.weight"):
            new[:, :E, E:] = 0
        if name.endswith("posterior.convolution.weight"):  # it reads the stream and the frame to come
            new, value = (x.unflatten(1, (2, -1)) for x in (new, value))
        new[tuple(slice(n) for n in value.shape)] = value
    return wide.train(net.training)


def new_tokenizer(config: TrainingConfig) -> Tokenizer:
    """A tokenizer with random weights, of the shape that `config.out` holds where the run has trained one already."""
    kept = config.out / "tokenizer.safetensors"
    shape = load_tokenizer(kept).config if kept.exists() else TokenizerConfig(codebook_size=config.codebook_size)
    tokenizer = Tokenizer(shape)
    return tokenizer.to(memory_format=torch.channels_last)  # convolutions are faster so


def transformer_config(config: TrainingConfig, tokenizer: Tokenizer) -> TransformerConfig:
    """The transformer that `config` asks for, on the latents of `tokenizer`.

    Raises:
        ValueError: a size that the tokenizer's `downsample` does not divide.
    """
    multiple = tokenizer.config.downsample
    if config.size % multiple:
        raise ValueError(f"size must be a multiple of the tokenizer's {multiple} pixels, got {config.size}")
    return TransformerConfig(
        tokenizer.config.latent_channels, (config.size // multiple,) * 2, config.width, config.layers, config.heads,
        tokenizer.quantizer.codebook_size, config.patch, gaussian=config.gaussian, head=config.head,
    )  # fmt: skip


def run_record(objective: nn.Module, progress: Progress, accelerator) -> dict:
    """What to note of a run beside its weights."""
    config = objective.config
    root = weights_folder().parents[1]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True).stdout.strip()
    points = progress.history[:: max(1, len(progress.history) // 100)]
    curve = [[round(seconds, 1), round(loss, 4)] for _, seconds, loss in points]
    return {
        "training": plain(config), "commit": commit or None, "hardware": hardware(accelerator.device),
        "processes": accelerator.num_processes, "precision": accelerator.mixed_precision, "torch": torch.__version__,
        "seed": config.seed, "steps": progress.step, "seconds": round(progress.seconds),
        "data": getattr(objective.source, "data", {}), "licence": "Apache-2.0", "curve": curve,
    }  # fmt: skip


def read_record(name: str | os.PathLike) -> dict:
    """The record of a transformer without its config: what a run that starts from it should say of it."""
    path = Path(name)
    path = weights_folder() / f"{name}-transformer.json" if path.suffix == "" else path.with_suffix(".json")
    record = json.loads(path.read_text()) if path.exists() else {}
    return {key: value for key, value in record.items() if key not in ("config", "data")}


def hardware(device: torch.device) -> str:
    """The processor's name as its system tells it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"CPU, {torch.get_num_threads()} threads, {names[0] if names else platform.processor()}"


def train_transformer(
    config: TrainingConfig, tokenizer: Tokenizer, accelerator, share: float = 1.0, source=None, watch: Callable | None = None,
    notes: dict | None = None,
) -> None:
    """The second half of a run: train a transformer on a tokenizer's latents, and write it to `config.out`.

    Args:
        tokenizer: the one that `config.out` holds.
        accelerator, share, watch: as in `fit`.
        source: of the clips; None: those of the config, see `MovingDigits`.
        notes: what else the record should say.
    """
    shape, notes = transformer_config(config, tokenizer), dict(notes or {})
    seed_everything(config.seed, -2, accelerator.device)
    if config.start is None:
        net = SpatialTemporalTransformer(shape)
    else:
        net, notes["started_from"] = grow(load_transformer(config.start), shape), read_record(config.start)
    objective = TransformerObjective(net, tokenizer, config, source)
    net, progress = fit(objective, "transformer", share, config, accelerator, watch)
    if accelerator.is_main_process:
        notes["clips_seen"] = progress.clips
        notes["tokenizer_sha256"] = json.loads((config.out / "tokenizer.json").read_text())["sha256"]
        record = run_record(objective, progress, accelerator) | notes
        save_transformer(net, config.out / "transformer.safetensors", record)


def settled(tokenizer: Tokenizer, config: TrainingConfig) -> bool:
    """Whether a transformer has begun to learn the run's own tokens; `tokenizer` then takes the weights that `config.out` holds.

    From there on they stay, also where the budget grows: a tokenizer that trained on would change the meaning of the tokens.

    Raises:
        ValueError: a `tokenizer` of another config than the run's.
    """
    begun = (config.out / "transformer.checkpoint").exists()
    if begun:
        kept = load_tokenizer(config.out / "tokenizer.safetensors")
        if kept.config != tokenizer.config:
            raise ValueError(f"{config.out} holds a run with the tokenizer {kept.config}, got {tokenizer.config}; choose another `out`")
        tokenizer.load_state_dict(kept.state_dict())
    return begun


def train(config: TrainingConfig, watch: Callable | None = None) -> Path:
    """Train a tokenizer, unless the config names one, then a transformer on its latents.

    Called again with the same config, it goes on where the last checkpoint in `config.out` stands; with a larger budget too, in
    which the tokenizer trains on only if the transformer has not begun. The same call serves
    one process and several (`accelerate launch -m stt_lite.training`, `accelerate.notebook_launcher`).

    Args:
        watch: see `live_view`.

    Returns:
        The folder: tokenizer.safetensors, transformer.safetensors, a record of each, and the checkpoints.

    Raises:
        ValueError: a batch that the processes can't share evenly, a checkpoint of another config, or a `start` that does
            not fit.
        ImportError: `tensorboard` asked for but not installed.
        FloatingPointError: the loss is not finite.
        OSError: a folder that cannot be written, a full disk.
    """
    if config.tensorboard and find_spec("tensorboard") is None:
        raise ImportError("tensorboard=True needs the package tensorboard: pip install tensorboard")
    accelerator = new_accelerator(config)
    device, main = accelerator.device, accelerator.is_main_process
    if config.batch % accelerator.num_processes:
        raise ValueError(f"batch must be a multiple of the {accelerator.num_processes} processes, got {config.batch}")
    path = config.out / "config.json"
    if path.exists():
        refuse_another(path, json.loads(path.read_text()), config)
    if main:  # a folder that can't be written stops the run here
        write_file(path, json.dumps(plain(config), indent=2).encode())
    accelerator.init_trackers("tensorboard")
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):  # the caller's generators stay
        seed_everything(config.seed, -1, device)  # a step that no run has: for the first weights
        share = 0.0 if config.tokenizer else config.tokenizer_share
        tokenizer = load_tokenizer(config.tokenizer) if config.tokenizer else new_tokenizer(config)
        transformer_config(config, tokenizer)  # a size that does not fit stops the run here, before any training
        notes = {"copied_from": config.tokenizer}
        done = config.tokenizer is None and settled(tokenizer, config)
        if config.tokenizer is None and not done:
            objective = TokenizerObjective(tokenizer, config)
            tokenizer, progress = fit(objective, "tokenizer", share, config, accelerator, watch)
            notes = run_record(objective, progress, accelerator)
        tokenizer = tokenizer.to(device).eval()
        if main and not done:
            save_tokenizer(tokenizer, config.out / "tokenizer.safetensors", notes)
        train_transformer(config, tokenizer, accelerator, 1 - share, watch=watch)
    for tracker in accelerator.trackers:
        tracker.finish()
    accelerator.wait_for_everyone()
    return config.out


def live_view(every: int = 2) -> Callable:
    """For `train(config, watch=live_view())` in a notebook: loss curves and a film strip, redrawn while it trains.

    Args:
        every: show every so-many-th frame.
    """
    import matplotlib.pyplot as plt
    from IPython.display import display
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    curves, places = {}, {}

    def watch(name: str, progress: Progress, clips: dict, prompt_frames: int | None) -> None:
        curves[name] = progress.history
        figure, axis = plt.subplots(figsize=(8, 2.2), layout="constrained")
        for label, history in curves.items():
            axis.plot([seconds for _, seconds, _ in history], [loss for _, _, loss in history], label=label)
        axis.set(yscale="log", xlabel="seconds of training", ylabel="loss")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(ScalarFormatter())
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.legend(frameon=False)
        plt.close(figure)
        strip = film_strip(clips, prompt_frames=prompt_frames, every=every)
        for key, picture in (("curves", figure), (name, strip)):
            if key in places:
                places[key].update(picture)
            else:
                places[key] = display(picture, display_id=True)

    return watch


RECIPE = dict(
    pixel_weight=10.0, beta_warmup=0.0, forecast_share=0.9, fade=0.15, corruption=0.03, rollout_share=0.25, average=0.998,
)  # fmt: skip
PRESETS = {
    "moving-mnist-tiny": TrainingConfig(tokenizer="moving-mnist-tiny", minutes=60.0, beta=20.0, **RECIPE),
    "moving-mnist": TrainingConfig(
        out=Path("runs/moving-mnist"), size=64, digits=2, tokenizer="moving-mnist", codebook_size=512, width=192, layers=6,
        heads=6, patch=2, minutes=180.0, beta=160.0, **RECIPE,
    ),
}  # fmt: skip


def main() -> None:
    """`python -m stt_lite.training PRESET --minutes 10`, also under `accelerate launch`."""
    import tyro

    described = "{0.size}x{0.size}, digits: {0.digits}, width {0.width}, layers {0.layers}".format
    presets = {name: (described(config), config) for name, config in PRESETS.items()}
    print(f"trained: {train(tyro.extras.overridable_config_cli(presets))}")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__" and "__file__" in globals():  # a notebook is __main__ too, but has no file
    main()
