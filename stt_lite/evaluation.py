# Extracted from notebooks/10_evaluation.ipynb by "make extract": edit the notebook, not this file.
"""Evaluation: metrics, baselines, ablations and many futures, with a record of every run. Built in chapter 10."""

import importlib.resources
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from stt_lite.generation import VideoModel, check_writable, held_out_clips, load_pretrained, pick_device
from stt_lite.generation import main as command_line
from stt_lite.moving_mnist import canonical_test_set
from stt_lite.spatial_attention import SpatialAttention, attention
from stt_lite.temporal_attention import KeyValueCache, rotary
from stt_lite.training import (
    PRESETS, RECIPE, MuonAdamW, TokenizerObjective, TrainingConfig, TransformerObjective, MovingDigits, draw_clips, fit,
    load_transformer, new_accelerator, read_record, run_record, save_transformer, seed_everything, transformer_config,
)  # fmt: skip
from stt_lite.transformer import SpatialTemporalTransformer, TransformerConfig, TransformerLayer
from stt_lite.vq_autoencoder import Tokenizer, TokenizerConfig, load_tokenizer, weights_folder, write_file

__all__ = [
    "METRICS", "PROTOCOLS", "VARIANTS", "ConvLSTM", "ConvLSTMCell", "ConvLSTMObjective", "Failure", "JointAttention",
    "LatentVelocity", "Variant", "absolute_error", "bounces", "centroid", "copy_last_frame", "empty_frame",
    "evaluate", "evaluate_model", "expected_best", "explain", "frechet_distance", "ink", "many_futures", "perceptual", "psnr",
    "records", "squared_error", "ssim", "train_variant", "without_chance", "worst",
]  # fmt: skip


def _pair(video: Tensor, truth: Tensor) -> None:
    if video.ndim < 3 or video.shape != truth.shape:
        got = f"{tuple(video.shape)} and {tuple(truth.shape)}"
        raise ValueError(f"video and truth must have one shape, (... C H W), got {got}")


def squared_error(video: Float[Tensor, "*n C H W"], truth: Float[Tensor, "*n C H W"]) -> Float[Tensor, "*n"]:
    """Squared error of each frame, summed over its pixels, as published Moving MNIST tables have it.

    Args:
        video, truth: frames with values in [0, 1].

    Raises:
        ValueError: two different shapes. So do all metrics here.
    """
    _pair(video, truth)
    return (video - truth).square().sum((-3, -2, -1))


def absolute_error(video: Float[Tensor, "*n C H W"], truth: Float[Tensor, "*n C H W"]) -> Float[Tensor, "*n"]:
    """Absolute error of each frame, summed over its pixels."""
    _pair(video, truth)
    return (video - truth).abs().sum((-3, -2, -1))


def psnr(video: Float[Tensor, "*n C H W"], truth: Float[Tensor, "*n C H W"]) -> Float[Tensor, "*n"]:
    """Peak signal-to-noise ratio of each frame in decibels, for values in [0, 1]; 100 at most (two equal frames).

    Average it over frames, not the squared error before the logarithm: the two differ.
    """
    _pair(video, truth)
    return -10 * (video - truth).square().mean((-3, -2, -1)).clamp(min=1e-10).log10()


def ssim(
    video: Float[Tensor, "*n C H W"], truth: Float[Tensor, "*n C H W"], data_range: float = 1.0, window: int = 7
) -> Float[Tensor, "*n"]:
    """Structural similarity of each frame, at most 1 (Wang et al., 2004, Equation 13), in square windows.

    The same as scikit-image's `structural_similarity` for `channel_axis` and its defaults: unbiased variances, windows
    that lie inside the frame, mean over channels.

    Args:
        data_range: difference between the largest and the smallest value that a pixel can have.
        window: edge of the window in pixels, odd.
    """
    _pair(video, truth)
    if window % 2 == 0 or not 1 < window <= min(video.shape[-2:]):
        raise ValueError(f"window must be odd, above 1 and at most a frame's edge, got {window}")
    x, y = (t.flatten(0, -4).double() if t.ndim > 3 else t[None].double() for t in (video, truth))  # (n C H W)

    def mean(t: Tensor) -> Tensor:
        return F.avg_pool2d(t, window, stride=1)

    unbiased = window**2 / (window**2 - 1)
    mean_x, mean_y = mean(x), mean(y)
    variance_x, variance_y = unbiased * (mean(x * x) - mean_x**2), unbiased * (mean(y * y) - mean_y**2)
    covariance = unbiased * (mean(x * y) - mean_x * mean_y)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    likeness = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    likeness = likeness / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))
    return likeness.mean((1, 2, 3)).view(video.shape[:-3]).to(video.dtype)


def ink(video: Float[Tensor, "*n C H W"]) -> Float[Tensor, "*n"]:
    """Sum of all pixels of each frame: what a digit that fades away loses."""
    return video.sum((-3, -2, -1))


METRICS = {
    "squared_error": squared_error,
    "absolute_error": absolute_error,
    "psnr": psnr,
    "ssim": ssim,
    "ssim_inflated": lambda video, truth: ssim(video, truth, data_range=2.0),  # the range that older tables assumed
    "ink_ratio": lambda video, truth: ink(video) / ink(truth).clamp(min=1e-6),
}


def frechet_distance(a: Float[Tensor, "n F"], b: Float[Tensor, "m F"]) -> float:
    """Squared Fréchet distance of two normal distributions, each fitted to features (Heusel et al., 2017, Equation 6).

    With the features of a network that was trained on video it is what published tables call FVD.

    Raises:
        ValueError: fewer than two rows of features, or two numbers of features.
    """
    if min(len(a), len(b)) < 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"features must be (n F) and (m F) with n, m >= 2, got {tuple(a.shape)} and {tuple(b.shape)}")
    a, b = a.double(), b.double()
    product = a.T.cov() @ b.T.cov() if a.shape[1] > 1 else (a.var() * b.var()).view(1, 1)
    spread = a.var(0).sum() + b.var(0).sum() - 2 * torch.linalg.eigvals(product).sqrt().real.sum()
    return ((a.mean(0) - b.mean(0)).square().sum() + spread).item()


def perceptual(video: Float[Tensor, "B T C H W"], truth: Float[Tensor, "B T C H W"]) -> dict[str, float]:
    """Metrics that need pretrained networks: "lpips" (Zhang et al., 2018) and "frechet_r3d".

    LPIPS with AlexNet, from torchmetrics. The Fréchet distance of clips takes the features of torchvision's R3D-18,
    trained on Kinetics, not the network of published FVD tables: compare it with itself only. Networks are downloaded
    once, with their hashes checked; what cannot be had is left out, and a line says why.

    Args:
        video, truth: clips with values in [0, 1].
    """
    _pair(video, truth)
    found = {}

    def rgb(x: Tensor) -> Tensor:
        return x.expand(-1, -1, 3, -1, -1) if x.shape[2] == 1 else x

    def lpips() -> float:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        network = LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True)
        frames = [F.interpolate(rgb(x).flatten(0, 1), size=(64, 64)) for x in (video, truth)]
        return network(*frames).item()

    def frechet_r3d() -> float:
        from torchvision.models.video import R3D_18_Weights, r3d_18

        weights = R3D_18_Weights.KINETICS400_V1
        network = r3d_18(weights=weights).eval()
        network.fc = nn.Identity()
        with torch.no_grad():
            features = [network(weights.transforms()(rgb(x))) for x in (video, truth)]
        return frechet_distance(*features)

    for name, measure in (("lpips", lpips), ("frechet_r3d", frechet_r3d)):
        try:
            found[name] = measure()
        except (ImportError, ModuleNotFoundError) as error:
            print(f"{name} left out: it needs torchmetrics and torchvision ({error})")
        except OSError as error:  # also what urllib raises
            print(f"{name} left out: its network could not be downloaded ({error})")
    return found


def copy_last_frame(prompt: Float[Tensor, "B T C H W"], new_frames: int) -> Float[Tensor, "B new C H W"]:
    """The baseline that costs nothing: the prompt's last frame, again and again."""
    return repeat(prompt[:, -1], "B C H W -> B new C H W", new=new_frames)


def empty_frame(prompt: Float[Tensor, "B T C H W"], new_frames: int) -> Float[Tensor, "B new C H W"]:
    """The baseline that says nothing: black frames. What a forecast's error is worth shows beside it."""
    return torch.zeros_like(copy_last_frame(prompt, new_frames))


class LatentVelocity:
    """The baseline of constant velocity: the step between the prompt's last two latents, taken again and again.

    Args:
        tokenizer: its continuous latents are extrapolated, and decoded as they are.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer

    @torch.no_grad()
    def __call__(self, prompt: Float[Tensor, "B T C H W"], new_frames: int) -> Float[Tensor, "B new C H W"]:
        if prompt.shape[1] < 2:
            raise ValueError(f"prompt must have at least 2 frames to have a velocity, got {prompt.shape[1]}")
        before, last = self.tokenizer.encode(prompt[:, -2:].flatten(0, 1)).unflatten(0, (-1, 2)).unbind(1)  # (B D h w)
        steps = torch.arange(1, new_frames + 1, device=prompt.device)[:, None, None, None]
        latents = last[:, None] + steps * (last - before)[:, None]  # (B new D h w)
        return self.tokenizer.decode(latents.flatten(0, 1)).unflatten(0, latents.shape[:2])


class ConvLSTMCell(nn.Module):
    """An LSTM whose states are images and whose matrices are convolutions (Shi et al., 2015, Equation 3, no peepholes).

    Args:
        channels: of the input.
        hidden: channels of the state.
        kernel_size: odd edge of the convolution.
    """

    def __init__(self, channels: int, hidden: int, kernel_size: int = 3):
        super().__init__()
        self.gates = nn.Conv2d(channels + hidden, 4 * hidden, kernel_size, padding=kernel_size // 2)

    def forward(self, x: Float[Tensor, "B C h w"], state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Hidden state and memory (each B hidden h w) after input `x`."""
        hidden, memory = state
        take, keep, show, new = self.gates(torch.cat([x, hidden], dim=1)).chunk(4, dim=1)
        memory = (keep + 1).sigmoid() * memory + take.sigmoid() * new.tanh()  # + 1: at first it keeps most
        return show.sigmoid() * memory.tanh(), memory


class ConvLSTM(nn.Module):
    """Predicts each frame from all before, in patches of pixels instead of latents (Shi et al., 2015, Section 3.2).

    Args:
        channels: of a frame.
        patch: edge of the patches; each becomes one pixel of the states.
        hidden: channels of each layer's state.
        layers: number of layers.
    """

    def __init__(self, channels: int = 1, patch: int = 4, hidden: int = 64, layers: int = 3):
        super().__init__()
        self.patch, self.hidden = patch, hidden
        inputs = [channels * patch**2] + [hidden] * (layers - 1)
        self.cells = nn.ModuleList(ConvLSTMCell(n, hidden) for n in inputs)
        self.out = nn.Conv2d(layers * hidden, channels * patch**2, 1)

    def forward(self, frames: Float[Tensor, "B T C H W"], prompt: int, new_frames: int) -> Float[Tensor, "B T2 C H W"]:
        """Predictions of frames 1 to prompt + new_frames - 1, from real frames first and then from its own.

        Args:
            frames: at least `prompt` frames, values in [0, 1]; later ones are not looked at.
            prompt: real frames that it is given.
            new_frames: frames to predict after them.
        """
        B, _, _, H, W = frames.shape
        size = (2, B, self.hidden, H // self.patch, W // self.patch)
        states, predictions = [tuple(frames.new_zeros(size)) for _ in self.cells], []
        for t in range(prompt + new_frames - 1):
            frame = frames[:, t] if t < prompt else predictions[-1].clamp(0, 1)
            x, shown = F.pixel_unshuffle(frame, self.patch), []
            for i, cell in enumerate(self.cells):
                states[i] = cell(x, states[i])
                x = states[i][0]
                shown.append(x)
            predictions.append(F.pixel_shuffle(self.out(torch.cat(shown, dim=1)), self.patch))
        return torch.stack(predictions, dim=1)

    @torch.no_grad()
    def forecast(self, prompt: Float[Tensor, "B T C H W"], new_frames: int) -> Float[Tensor, "B new C H W"]:
        """The next frames."""
        return self(prompt, prompt.shape[1], new_frames)[:, -new_frames:].clamp(0, 1)


class ConvLSTMObjective(nn.Module):
    """What the ConvLSTM minimizes: the squared error of its predictions, first from real frames, then from its own."""

    averaged = True

    def __init__(self, model: ConvLSTM, config: TrainingConfig):
        super().__init__()
        self.model, self.config, self.source = model, config, MovingDigits(config)

    def optimizer(self) -> torch.optim.Optimizer:
        return MuonAdamW([], self.model.parameters(), adamw_rate=self.config.adamw_rate)

    def sample(self, generator: torch.Generator, device: torch.device) -> Tensor:
        """Clips of one step, of all processes together."""
        return self.source.draw(self.config.batch, self.config.frames, generator, device)

    def prepare(self, clips: Tensor, progress: float, generator: torch.Generator, mine: Callable) -> dict:
        """Arguments of `forward`; the prompt takes a quarter of the clip or more, so that it learns to go on for long."""
        frames = self.config.frames
        prompt = torch.randint(frames // 4, frames, (), generator=generator, device=clips.device).item()
        return {"clips": mine(clips), "prompt": prompt}

    def forward(self, clips: Float[Tensor, "B T C H W"], prompt: int) -> tuple[Tensor, dict]:
        """The loss, and what else is worth a line in the log."""
        predictions = self.model(clips, prompt, clips.shape[1] - prompt)
        error = squared_error(predictions.float(), clips[:, 1:]).mean()
        return error / 64, {"pixels": error.detach()}

    @torch.no_grad()
    def show(self, model: ConvLSTM) -> tuple[dict[str, Tensor], int]:
        """A held-out clip, what the model makes of its first three quarters, and how many frames those are."""
        clip = self.source.example(next(model.parameters()).device)
        prompt = 3 * len(clip) // 4
        new = model.forecast(clip[None, :prompt], len(clip) - prompt)[0]
        return {"held-out clip": clip, "continued": torch.cat([clip[:prompt], new])}, prompt


PROTOCOLS = {"15->5": (15, 5), "10->10": (10, 10), "15->30": (15, 30)}


@torch.no_grad()
def evaluate(
    forecast: Callable, clips: Float[Tensor, "B T C H W"], protocols: tuple[str, ...] = tuple(PROTOCOLS), batch: int = 100
) -> dict[str, dict[str, list[float]]]:
    """All metrics of a forecast on real clips, per generated frame, mean over clips.

    Args:
        forecast: (prompt (B T C H W), new_frames) -> new frames (B new C H W); `copy_last_frame` is one. What it says of
            the next frames must not depend on how many are asked for.
        clips: real clips with values in [0, 1], as long as the longest of the protocols.
        protocols: keys of `PROTOCOLS`, prompt and new frames of each.
        batch: clips that go through at once.

    Returns:
        For each protocol and each of `METRICS` a list of one value per generated frame.

    Raises:
        ValueError: clips too short for a protocol.
    """
    for name in protocols:
        if clips.shape[1] < sum(PROTOCOLS[name]):
            raise ValueError(f"clips must have {sum(PROTOCOLS[name])} frames for {name}, got {clips.shape[1]}")
    curves = {}  # of each prompt length, as far as the longest protocol asks: the others are its beginning
    for prompt in {PROTOCOLS[name][0] for name in protocols}:
        new = max(PROTOCOLS[name][1] for name in protocols if PROTOCOLS[name][0] == prompt)
        sums = {metric: 0.0 for metric in METRICS}
        for part in clips.split(batch):
            video, truth = forecast(part[:, :prompt], new).float(), part[:, prompt : prompt + new]
            for metric, of in METRICS.items():
                sums[metric] = sums[metric] + of(video, truth).double().sum(0)
        curves[prompt] = {metric: (total / len(clips)).tolist() for metric, total in sums.items()}
    return {name: {m: curves[PROTOCOLS[name][0]][m][: PROTOCOLS[name][1]] for m in METRICS} for name in protocols}


def mean_of(results: list[dict]) -> tuple[dict, dict]:
    """Mean and sample standard deviation of each value over several results of `evaluate` (seeds, say)."""
    mean, spread = {}, {}
    for protocol, metrics in results[0].items():
        stacked = {m: torch.tensor([r[protocol][m] for r in results], dtype=torch.float64) for m in metrics}
        mean[protocol] = {m: values.mean(0).tolist() for m, values in stacked.items()}
        over_frames = {m: values.mean(1) for m, values in stacked.items()}  # the spread of means, not of single frames
        spread[protocol] = {m: v.std().item() if len(v) > 1 else None for m, v in over_frames.items()}
    return mean, spread


class Nothing(nn.Module):
    """Stands where an attention is left out: adds 0 to the stream, remembers nothing."""

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        return torch.zeros_like(x)

    def read(self, x: Tensor, cache: KeyValueCache) -> tuple[Tensor, KeyValueCache]:
        return torch.zeros_like(x), cache

    def empty_cache(self, batch: int, grid: tuple[int, int], window: int | None = None) -> KeyValueCache:
        nothing = torch.zeros(batch * grid[0] * grid[1], 1, window or 1, 0)
        return KeyValueCache(nothing, nothing, torch.zeros((), dtype=torch.long))


class SpatialOnly(TransformerLayer):
    """No temporal attention: each frame is predicted from the one before alone."""

    def __init__(self, config: TransformerConfig):
        super().__init__(config)
        self.temporal = Nothing()


class TemporalOnly(TransformerLayer):
    """No spatial attention and no convolution before it: a pixel hears of others by the Gaussian layer's only."""

    def __init__(self, config: TransformerConfig):
        super().__init__(config)
        self.spatial = Nothing()


class NoResidual(TransformerLayer):
    """Each part's output replaces the stream instead of being added to it."""

    def forward(self, x, noise, posterior_input=None, temperature=1.0, lengths=None, cache=None):
        x = self.spatial(x)
        if cache is None:
            x = self.temporal(x, lengths)
        else:
            x, cache = self.temporal.read(x, cache)
        x = self.feed_forward(x)
        kl = x.new_zeros(x.shape[:2], dtype=torch.float32)
        if self.gaussian is not None:
            x, kl = self.gaussian(x, noise, posterior_input, temperature)
        return x, kl, cache


class JointAttention(SpatialAttention):
    """Attention of each pixel to all pixels of its own and all earlier frames at once: space and time not factorised.

    Positions in space are those of `SpatialAttention`, positions in time those of `TemporalAttention`. With h·w·T
    tokens in one sequence it does T times the work of spatial attention.
    """

    def forward(self, x: Float[Tensor, "B T h w E"], lengths: Tensor | None = None) -> Float[Tensor, "B T h w E"]:
        B, T, h, w, _ = x.shape
        time = torch.arange(T, device=x.device).repeat_interleave(h * w)  # frame of each token
        mask = (time[:, None] >= time)[None, None]
        tokens = rearrange(self._pixels(x), "(B T) p E -> B (T p) E", B=B)
        y = self.attend(tokens, mask, rotate=lambda q: rotary(q, time))
        return rearrange(y, "B (T h w) E -> B T h w E", T=T, h=h, w=w)

    def empty_cache(self, batch: int, grid: tuple[int, int], window: int | None = None) -> KeyValueCache:
        weight, heads = self.attend.out.weight, self.attend.heads
        keys, values = weight.new_zeros(2, batch * grid[0] * grid[1], heads, window, weight.shape[0] // heads)
        return KeyValueCache(keys, values, torch.zeros((), dtype=torch.long, device=weight.device))

    def read(self, x: Float[Tensor, "B T h w E"], cache: KeyValueCache) -> tuple[Tensor, KeyValueCache]:
        """As `TemporalAttention.read`; the cache holds the same keys and values, per pixel."""
        B, T, h, w, _ = x.shape
        q, k, v = self.attend.split(rearrange(self._pixels(x), "(B T) p E -> B (T p) E", B=B))  # (B N T·p d)
        now = (cache.frames + torch.arange(T, device=x.device)).repeat_interleave(h * w)
        q, k = rotary(q, now), rotary(k, now)
        cache = cache.add(*(rearrange(t, "B N (T p) d -> (B p) N T d", T=T) for t in (k, v)))
        keys, values = (rearrange(t, "(B p) N W d -> B N (W p) d", B=B) for t in cache[:2])
        mask = cache.visible(T).repeat_interleave(h * w, 0).repeat_interleave(h * w, 1)[None, None]
        y = self.attend.merge(attention(q, keys, values, mask))
        return rearrange(y, "B (T h w) E -> B T h w E", T=T, h=h), cache


class Joint(TransformerLayer):
    """Joint space-time attention in place of spatial and temporal attention."""

    def __init__(self, config: TransformerConfig):
        super().__init__(config)
        self.spatial = Nothing()
        self.temporal = JointAttention(config.width, config.heads, config.stream_grid, conv=config.conv)


@dataclass(frozen=True)
class Variant:
    """One model of the comparison: what it changes of the base, which is a latent-Gaussian regression transformer.

    Args:
        title: as tables show it.
        training: changes of `TrainingConfig`.
        layer: the transformer's layer; None: a ConvLSTM instead of a transformer.
        tokenizer: changes of `TokenizerConfig`, for a tokenizer trained for the comparison; None: the bundled one.
    """

    title: str
    training: dict = field(default_factory=dict)
    layer: type[nn.Module] | None = TransformerLayer
    tokenizer: dict | None = None


TINY_RECIPE = RECIPE | {"beta": PRESETS["moving-mnist-tiny"].beta}
ROLLOUTS = {"rollout_share": 0.7, "rollout_length": 0.75, "fade": 0.1}
LONG_CLIPS = {"frames": 40, "batch": 2}
TUNED = {"gaussian": "off", "rollout_share": 0.4, "rollout_length": 0.6, "fade": 0.0} | LONG_CLIPS
VARIANTS = {
    "base": Variant("base"),
    "convlstm": Variant("ConvLSTM", layer=None),
    "joint": Variant("joint space-time attention", layer=Joint),
    "spatial-only": Variant("spatial attention only", layer=SpatialOnly),
    "temporal-only": Variant("temporal attention only", layer=TemporalOnly),
    "no-residual": Variant("no residual stream", layer=NoResidual),
    "gaussian-off": Variant("Gaussian off", {"gaussian": "off"}),
    "bottleneck": Variant("Gaussian bottleneck", {"gaussian": "bottleneck", "beta": 0.01}),  # 16 times as many channels
    "forecast": Variant("forecasts in 9 steps of 10", {"forecast_share": 0.9}),
    "token-head": Variant("token head", {"head": "token"}),
    "no-corruption": Variant("no context corruption", {"corruption": 0.0}),
    "vq-8": Variant("VQ, grid 8x8", tokenizer={}),
    "vq-16": Variant("VQ, grid 16x16", tokenizer={"downsample": 2}),
    "fsq-8": Variant("FSQ, grid 8x8", tokenizer={"quantizer": "fsq", "levels": (8, 8, 4), "latent_channels": 3}),
    "recipe": Variant("the presets' recipe", TINY_RECIPE),
    "rollouts": Variant("the recipe, long rollouts", TINY_RECIPE | ROLLOUTS),
    "rollouts-off": Variant("the recipe, long rollouts, Gaussian off", TINY_RECIPE | ROLLOUTS | {"gaussian": "off"}),
    "convlstm-40": Variant("ConvLSTM, clips of 40 frames", LONG_CLIPS, layer=None),
    "tuned": Variant("tuned for squared error, Gaussian off", TINY_RECIPE | TUNED),
}


def fit_model(
    objective: nn.Module, name: str, config: TrainingConfig, watch: Callable | None = None
) -> tuple[nn.Module, dict]:
    """Train with chapter 08's loop for the whole budget of `config`; the model, and a record of the run."""
    accelerator = new_accelerator(replace(config, compile=bool(config.compile)))  # a minute of compiling is too much here
    config.out.mkdir(parents=True, exist_ok=True)
    model, progress = fit(objective, name, 1.0, config, accelerator, watch)
    return model, run_record(objective, progress, accelerator) | {"clips_seen": progress.clips}


def take_over(net: nn.Module, trained: nn.Module) -> int:
    """Copy all weights that `net` and `trained` have in common, but for the Gaussian layers; how many numbers that are."""
    own = net.state_dict()
    shared = {
        name: value
        for name, value in trained.state_dict().items()
        if ".gaussian." not in name and name in own and own[name].shape == value.shape
    }
    net.load_state_dict(shared, strict=False)
    return sum(value.numel() for value in shared.values())


def train_variant(
    name: str, config: TrainingConfig, tokenizer_minutes: float = 4.0, watch: Callable | None = None
) -> tuple[Callable, nn.Module, dict]:
    """Train one variant of the comparison.

    Args:
        name: a key of `VARIANTS`.
        config: the base's config; `config.out` holds checkpoints, from which a run that stopped goes on. Where it names
            a `start`, a variant takes over its width, layers and heads, and the weights that both have in common, but for the
            Gaussian layers.
        tokenizer_minutes: time for a tokenizer of the variant's own, where it has one.
        watch: as in `train`.

    Returns:
        Its forecast, (prompt, new_frames) -> frames; the model; and the record of its run.

    Raises:
        ValueError: an unknown name.
    """
    if name not in VARIANTS:
        raise ValueError(f"name must be one of {', '.join(VARIANTS)}, got {name!r}")
    variant = VARIANTS[name]
    trained = load_transformer(config.start) if config.start and variant.layer else None
    if trained is not None:
        config = replace(config, **{size: getattr(trained.config, size) for size in ("width", "layers", "heads")})
    config = replace(config, **variant.training)
    if config.stochastic:  # a rollout that bounced another way has no real frame to lead to
        config = replace(config, rollout_share=0.0)
    notes, cuda = {}, list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=cuda):  # the caller's generators stay
        seed_everything(config.seed, -1, torch.device("cpu"))
        if variant.layer is None:
            model, record = fit_model(ConvLSTMObjective(ConvLSTM(), config), name, config, watch)
            forecast, net = model.forecast, model
        else:
            if variant.tokenizer is None:
                tokenizer = load_tokenizer(config.tokenizer)
            else:
                shape = TokenizerConfig(**{"codebook_size": config.codebook_size} | variant.tokenizer)
                tokenizer = Tokenizer(shape).to(memory_format=torch.channels_last)
                timed = replace(config, minutes=tokenizer_minutes, steps=None)
                tokenizer, notes = fit_model(TokenizerObjective(tokenizer, timed), f"{name}-tokenizer", timed, watch)
                notes = {"tokenizer": {"config": asdict(shape), "seconds": notes["seconds"]}}
            shape = transformer_config(config, tokenizer)
            seed_everything(config.seed, -2, torch.device("cpu"))
            net = SpatialTemporalTransformer(shape)
            net.layers = nn.ModuleList(variant.layer(shape) for _ in range(shape.layers))
            if trained is not None:
                take_over(net, trained)
                notes["started_from"] = read_record(config.start)
            net, record = fit_model(TransformerObjective(net, tokenizer.eval(), config), name, config, watch)
            model = VideoModel(tokenizer, net, {"data": record["data"]}).eval()
            forecast = without_chance(model)
    parameters = sum(p.numel() for p in net.parameters())
    return forecast, model, record | notes | {"variant": name, "parameters": parameters}


def without_chance(model: VideoModel) -> Callable:
    """A model's forecast at temperature 0: (prompt, new_frames) -> the new frames (B new C H W)."""
    return lambda prompt, new_frames: model.generate(prompt, new_frames, temperature=0.0, seed=0)[:, 0, -new_frames:]


def expected_best(scores: Float[Tensor, "*n N"]) -> Float[Tensor, "*n N"]:
    """Expected best of k scores drawn without replacement from N, for k = 1 to N: each way to draw them counted.

    The i-th smallest is the best of k in C(i - 1, k - 1) of the C(N, k) ways, so no order of the samples is special and
    no draw has to be repeated.
    """
    N = scores.shape[-1]
    i = torch.arange(1, N + 1, dtype=torch.float64)
    log_factorial = torch.lgamma(torch.arange(N + 1, dtype=torch.float64) + 1)  # of 0 to N

    def log_choose(n: Tensor, k: Tensor) -> Tensor:
        ways = log_factorial[n.long()] - log_factorial[k.long()] - log_factorial[(n - k).clamp(min=0).long()]
        return torch.where(n >= k, ways, -math.inf)

    k = i[:, None]
    weights = (log_choose(i - 1, k - 1) - log_choose(torch.tensor(float(N)), k)).exp()  # (k i)
    return (scores.sort(-1).values.double() @ weights.T).to(scores.dtype)


def centroid(video: Float[Tensor, "*n C H W"]) -> Float[Tensor, "*n 2"]:
    """Where the ink is: the mean position of each frame's ink, row and column in pixels."""
    weight = video.sum(-3)
    rows, columns = (torch.arange(n, dtype=video.dtype, device=video.device) for n in weight.shape[-2:])
    total = weight.sum((-2, -1)).clamp(min=1e-6)
    return torch.stack([(weight.sum(-1) * rows).sum(-1), (weight.sum(-2) * columns).sum(-1)], dim=-1) / total[..., None]


@torch.no_grad()
def many_futures(
    model: VideoModel, clips: Float[Tensor, "B T C H W"], prompt: int, samples: int = 100, temperature: float = 1.0,
    seed: int = 0,
) -> dict:
    """What a model's futures are like, and what the best of them are worth.

    Args:
        model: draws `samples` futures of each clip.
        clips: real clips with values in [0, 1].
        prompt: frames that are given; the others are generated.
        samples, temperature, seed: as in `VideoModel.generate`.

    Returns:
        "psnr" and "ssim": the best of k futures for k = 1 to `samples`, by its mean over frames, mean over clips.
        "spread": standard deviation of the centroid among futures, in pixels, per generated frame.
        "inside": how often the truth's centroid lies within the futures' range, per generated frame, mean over rows and
        columns; "inside_expected": that share for a truth that is one more future, (N - 1) / (N + 1).
        "rank": histogram of how many of the N futures' centroids lie below the truth's, in ten classes from none to all; each
        is 0.1 for a truth that is one more future (Hamill, 2001).

    Raises:
        ValueError: a prompt that leaves nothing to generate, and whatever `generate` refuses.
    """
    if not 1 <= prompt < clips.shape[1]:
        raise ValueError(f"prompt must be between 1 and T - 1 = {clips.shape[1] - 1} frames, got {prompt}")
    best, spread, inside, ranks = {"psnr": [], "ssim": []}, [], [], []
    for i, clip in enumerate(clips):
        new = clip.shape[0] - prompt
        video = model.generate(clip[:prompt], new, samples, temperature, seed=seed + i)[0, :, prompt:].cpu()
        truth = clip[prompt:].cpu().expand_as(video)
        for metric in best:
            best[metric].append(expected_best(METRICS[metric](video, truth).mean(1)))
        places, real = centroid(video), centroid(truth[0])  # (S new 2), (new 2)
        spread.append(places.std(0).square().sum(-1).sqrt() if samples > 1 else torch.zeros(new))
        inside.append(((places.amin(0) <= real) & (real <= places.amax(0))).float().mean(-1))
        ranks.append((places < real).sum(0).flatten())
    ranks = torch.cat(ranks).bincount(minlength=samples + 1)  # how often 0, 1, …, N futures lie below the truth
    ranks = ranks.repeat_interleave(10).view(10, samples + 1).sum(1)  # N + 1 ranks into ten classes: each spread evenly
    return {
        **{metric: torch.stack(curves).mean(0).tolist() for metric, curves in best.items()},
        "spread": torch.stack(spread).mean(0).tolist(),
        "inside": torch.stack(inside).mean(0).tolist(),
        "inside_expected": (samples - 1) / (samples + 1),
        "rank": (ranks / ranks.sum()).tolist(),
    }


def bounces(clip: Float[Tensor, "T C H W"]) -> list[tuple[int, str]]:
    """Frames in which a clip of one digit has turned round, and the border that it met, from the path of its ink."""
    path = centroid(clip)  # (T 2)
    step = path.diff(dim=0)
    found = []
    for axis, names in enumerate((("top", "bottom"), ("left", "right"))):
        for t in range(1, len(step)):
            before, after = step[t - 1, axis].item(), step[t, axis].item()
            if before * after < 0 and max(abs(before), abs(after)) > 0.5:  # less is a digit's whole pixels wobbling
                found.append((t, names[before > 0]))
    return sorted(found)


def explain(
    clip: Float[Tensor, "T C H W"], video: Float[Tensor, "T C H W"], prompt: int, reconstruction_ratio: float
) -> str:
    """One sentence on what coincides with a bad continuation of a clip of one digit, from what can be measured.

    Args:
        clip: what really happened.
        video: the same prompt with generated frames.
        prompt: frames that were given.
        reconstruction_ratio: the tokenizer's error on this clip, in units of its median over clips.
    """
    away = (centroid(video[-1:]) - centroid(clip[-1:])).norm().item()
    left = (ink(video[-1:]) / ink(clip[-1:])).item()
    end = f"at the end the digit is {away:.1f} pixels off"
    end += f" and has {left:.0%} of its ink" if abs(left - 1) > 0.15 else ""
    turns = [(t, border) for t, border in bounces(clip) if prompt - 1 <= t < len(clip)]
    if turns:
        where = " and the ".join(f"{border} border in frame {t + 1}" for t, border in turns)
        return f"It bounces off the {where}; {end}."
    if reconstruction_ratio > 2:
        return f"A rare shape: even its reconstruction has {reconstruction_ratio:.1f} times the usual error; {end}."
    return f"It just flies on, and the model misjudged its {'path' if away > 1 else 'shape'}; {end}."


@dataclass(frozen=True)
class Failure:
    """One clip of a failure gallery: its number, its squared error per frame, both videos, and why."""

    clip: int
    error: float
    truth: Float[Tensor, "T C H W"]
    video: Float[Tensor, "T C H W"]
    why: str


@torch.no_grad()
def worst(model: VideoModel, clips: Float[Tensor, "B T C H W"], prompt: int = 15, n: int = 10) -> list[Failure]:
    """The clips that a model continues worst, at temperature 0, worst first.

    Args:
        model: continues the clips.
        clips: real clips of one digit.
        prompt: frames that are given; the others are generated.
        n: how many of the worst to return.
    """
    new = clips.shape[1] - prompt
    videos = torch.cat([model.generate(part[:, :prompt], new, temperature=0.0, seed=0)[:, 0] for part in clips.split(100)])
    errors = squared_error(videos, clips)[:, prompt:].mean(1)
    shape = torch.cat([squared_error(model.tokenizer.reconstruct(part), part).mean(1) for part in clips.split(100)])
    shape = shape / shape.median()
    chosen = errors.argsort(descending=True)[:n].tolist()
    return [
        Failure(i, errors[i].item(), clips[i], videos[i], explain(clips[i], videos[i], prompt, shape[i].item()))
        for i in chosen
    ]


def results_folder() -> Path:
    """Where the records of the runs lie: `book/results` of a checkout, or the copy that comes with the package."""
    checkout = weights_folder().parents[1] / "book" / "results"
    return checkout if checkout.is_dir() else Path(str(importlib.resources.files("stt_lite.results")))


def records(pattern: str) -> list[dict]:
    """The records whose file names match, for example "compare-*-seed*".

    Raises:
        FileNotFoundError: there is none: no figure without a record.
    """
    paths = sorted(results_folder().glob(f"{pattern}.json"))
    if not paths:
        raise FileNotFoundError(f"no record {pattern!r} in {results_folder()}")
    return [json.loads(path.read_text()) for path in paths]


@dataclass
class Evaluate:
    """Evaluate a model on held-out clips, beside copying the last frame, and beside its record.

    Args:
        bundle: bundled model by name, or a folder that training wrote.
        clips: number of clips of each seed.
        seeds: one set of clips each; figures are their mean and standard deviation.
        canonical: evaluate a 64x64 model on so many clips of the canonical test set, too, where it can be downloaded.
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
        start, model = time.perf_counter(), load_pretrained(self.bundle, pick_device(self.device))
        canonical = on_canonical(model, self.canonical) if self.canonical else {}
        record = evaluate_model(model, self.clips, self.seeds) | {"canonical": canonical}
        recorded = model.record.get("evaluation", {}).get("model")
        print(f"held-out clips: {self.clips} of each of the seeds {', '.join(map(str, self.seeds))}; mean ± deviation")
        print(f"{'':24}{'frames':>8}{'first frame':>13}{'mean':>16}{'PSNR':>8}{'SSIM':>8}{'recorded':>11}")
        for who, name in ((self.bundle, "model"), ("copy the last frame", "copy")):
            for protocol, m in record[name].items():
                spread = record[f"{name}_spread"][protocol]["squared_error"]
                known = fmean(recorded[protocol]["squared_error"]) if recorded and name == "model" else None
                print(table_line(who, protocol, m, spread, known))
        for protocol, m in canonical.items():
            print(table_line(f"canonical set, {self.canonical}", protocol, m))
        print(f"squared error per frame; evaluated in {time.perf_counter() - start:.0f} s")
        if self.out is not None:
            write_file(self.out, (json.dumps({"bundle": self.bundle, **record}, indent=2) + "\n").encode())
            print(self.out.resolve())


def table_line(who: str, protocol: str, m: dict, spread: float | None = None, recorded: float | None = None) -> str:
    """A line of the table that `stt-lite evaluate` prints, for the measures `m` of one protocol."""
    error = m["squared_error"]
    around = f"{fmean(error):.2f}" + ("" if spread is None else f" ± {spread:.2f}")
    known = "" if recorded is None else f"{recorded:11.2f}"
    return f"{who:24}{protocol:>8}{error[0]:13.2f}{around:>16}{fmean(m['psnr']):8.2f}{fmean(m['ssim']):8.3f}{known}"


def on_canonical(model: VideoModel, n: int) -> dict:
    """`evaluate` on the first `n` clips of the canonical test set; empty where it can't be downloaded, and a line says so.

    Raises:
        ValueError: a model of other frames than 64x64 grey ones, or n out of range.
    """
    if model.frame_shape != (1, 64, 64):
        raise ValueError(f"canonical needs a model of frames (1, 64, 64), got {model.frame_shape}")
    try:
        clips, _ = canonical_test_set(n, fallback=False)
    except ConnectionError as error:
        print(f"canonical test set left out: {error}")
        return {}
    return evaluate(without_chance(model), clips.to(model.transformer.start.device), ("15->5", "10->10"))


def evaluate_model(
    model: VideoModel, n: int = 500, seeds: tuple[int, ...] = (1, 2, 3), draw: Callable | None = None
) -> dict:
    """The protocol of this book: all metrics of a model and of copying, on `n` held-out clips of each seed.

    Args:
        draw: (n, frames, seed) -> held-out clips (n T C H W), for a model of other clips than Moving MNIST.

    Returns:
        "model" and "copy" as `evaluate` returns them, mean over seeds, and "model_spread" and "copy_spread", the
        standard deviation over seeds of the mean over frames.

    Raises:
        ValueError: fewer than 1 clip, no seeds, or a record that does not say what clips the model is for.
    """
    if n < 1 or not seeds:
        raise ValueError(f"there must be at least 1 clip and 1 seed, got {n} and {list(seeds)}")
    frames, table = max(sum(p) for p in PROTOCOLS.values()), {}
    sets = [draw(n, frames, seed) if draw else held_out_clips(model, n, frames, seed) for seed in seeds]
    for name, forecast in (("model", without_chance(model)), ("copy", copy_last_frame)):
        table[name], table[f"{name}_spread"] = mean_of([evaluate(forecast, clips) for clips in sets])
    return {"clips": n, "seeds": list(seeds)} | table


@dataclass
class Compare:
    """Train variants of the tiny model for equal times, evaluate them on the same clips, and write a record of each.

    What a variant does not change is as `TrainingConfig` has it by default. A run whose record is there is skipped, one
    that stopped goes on.

    Args:
        variants: which; by default all.
        minutes: of training, each.
        tokenizer_minutes: of training a tokenizer, for the variants that have one of their own.
        seeds: one run each.
        stochastic: clips that bounce in random directions; also draw `futures` clips' futures.
        beta: weight of the KL, see `TrainingConfig`; None: its default.
        start: a bundled transformer's name or a path: variants start from what they have in common with it, but for the
            Gaussian layers. None: from random weights.
        futures: clips whose 100 futures are drawn, where stochastic.
        clips: held-out clips to evaluate on.
        out: folder for the records.
        runs: folder for checkpoints and weights.
    """

    variants: tuple[Literal[tuple(VARIANTS)], ...] = tuple(VARIANTS)
    minutes: float = 5.0
    tokenizer_minutes: float = 4.0
    seeds: tuple[int, ...] = (0,)
    stochastic: bool = False
    beta: float | None = None
    start: str | None = None
    futures: int = 100
    clips: int = 500
    out: Path = Path("results")
    runs: Path = Path("runs")

    def run(self) -> None:
        study = "futures" if self.stochastic else "compare"
        for seed in self.seeds:
            for name in self.variants:
                path = self.out / f"{study}-{name}-seed{seed}.json"
                if path.exists():
                    print(f"{path}: there already")
                    continue
                check_writable(path)
                base = TrainingConfig(tokenizer="moving-mnist-tiny")
                config = replace(base, out=self.runs / path.stem, minutes=self.minutes, seed=seed, start=self.start)
                config = replace(config, stochastic=self.stochastic, beta=base.beta if self.beta is None else self.beta)
                forecast, model, record = train_variant(name, config, self.tokenizer_minutes)
                clips = draw_clips(config, self.clips, 45, split="test", seed=1)
                record |= {"study": study, "test_clips": f"{self.clips} clips, held-out digits, seed 1"}
                record["metrics"] = evaluate(forecast, clips)
                if self.stochastic and isinstance(model, VideoModel):
                    record["futures"] = future_study(model, clips[: self.futures, :20])
                    save_transformer(model.transformer, config.out / "transformer.safetensors", record)
                record["training"] = {k: v for k, v in record["training"].items() if k not in ("out", "start")}
                write_file(path, (json.dumps(record, indent=1) + "\n").encode())
                error = record["metrics"]["15->5"]["squared_error"]
                print(f"{path}: 15->5 first {error[0]:.2f}, mean {fmean(error):.2f}")


def future_study(model: VideoModel, clips: Float[Tensor, "B T C H W"], prompt: int = 10) -> dict:
    """`many_futures`: of 100 futures at temperature 1, and of 20 at others."""
    others = {f"{a:g}": many_futures(model, clips, prompt, samples=20, temperature=a) for a in (0.25, 0.5, 0.75, 1.5, 2.0)}
    return {"prompt": prompt, "clips": len(clips), "1": many_futures(model, clips, prompt)} | others


def main(arguments: list[str] | None = None) -> None:
    """The command `stt-lite`: chapter 09's, with `evaluate` and `compare`.

    Args:
        arguments: None takes those of the shell.
    """
    command_line(arguments, {"evaluate": Evaluate, "compare": Compare})


if __name__ == "__main__" and "__file__" in globals():  # a notebook is __main__ too, but has no file
    main()
