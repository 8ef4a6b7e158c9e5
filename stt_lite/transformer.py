# Extracted from notebooks/07_transformer.ipynb by "make extract": edit the notebook, not this file.
"""The spatial-temporal transformer: the next frame's latents from all frames before. Built in chapter 07."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from stt_lite.gaussian_parameterization import GaussianLayer
from stt_lite.spatial_attention import RMSNorm, SpatialAttention
from stt_lite.temporal_attention import KeyValueCache, TemporalAttention, padding_mask
from stt_lite.video import check_whole

__all__ = [
    "FeedForward", "SpatialTemporalTransformer", "TransformerConfig", "TransformerLayer", "TransformerOutput",
    "count_flops", "count_parameters", "prediction_error",
]  # fmt: skip


@dataclass(frozen=True)
class TransformerConfig:
    """Everything that shapes a transformer.

    Args:
        latent_channels: channels D of the tokenizer's latents.
        grid: height h and width w of the latent grid.
        width: channels E of the stream.
        layers: number of layers L.
        heads: number of heads N of each attention; E / N must be even.
        codebook_size: number of codewords K, the classes of the token head.
        patch: edge P of a patch: the stream has one vector for each P x P latents, so it is P² times shorter. Divides h and w.
        kernel_size: odd edge of the Gaussian layer's convolution, in pixels of the stream's grid.
        gaussian: "latent", "bottleneck" or "off", see `GaussianLayer`.
        head: "regression" (the next latents) or "token" (logits over codewords).
        noise_channels: channels Z of the random variable in mode "latent".
        mlp_ratio: hidden channels of the feed-forward part, in units of E.
        conv: the depthwise convolution in spatial attention.
        window: frames that temporal attention sees, itself included; None: all.
        dropout: share dropped in training from attention weights and from each branch's output, in [0, 1).

    Raises:
        ValueError: an unknown mode or head, or a patch that does not divide the grid.
    """

    latent_channels: int = 8
    grid: tuple[int, int] = (8, 8)
    width: int = 64
    layers: int = 3
    heads: int = 4
    codebook_size: int = 256
    patch: int = 1
    kernel_size: int = 3
    gaussian: Literal["latent", "bottleneck", "off"] = "latent"
    head: Literal["regression", "token"] = "regression"
    noise_channels: int = 4
    mlp_ratio: int = 4
    conv: bool = True
    window: int | None = None
    dropout: float = 0.0

    def __post_init__(self):
        object.__setattr__(self, "grid", tuple(self.grid))  # JSON gives back a list
        for name, known in (("gaussian", ("latent", "bottleneck", "off")), ("head", ("regression", "token"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")
        check_whole(self.patch, "patch")
        if any(n % self.patch for n in self.grid):
            raise ValueError(f"patch must divide the latent grid (h, w) = {self.grid}, got {self.patch}")

    @property
    def stream_grid(self) -> tuple[int, int]:
        """Height and width of the stream's grid: of attention, cache, noise and Gaussian layer."""
        h, w = self.grid
        return h // self.patch, w // self.patch

    @property
    def out_channels(self) -> int:
        """Channels of a prediction: D for the regression head, K for the token head."""
        return self.latent_channels if self.head == "regression" else self.codebook_size


class FeedForward(nn.Sequential):
    """Two linear maps and a GELU, at each pixel of each frame by itself. Pre-norm, the residual is the caller's."""

    def __init__(self, width: int, ratio: int = 4):
        super().__init__(RMSNorm(width), nn.Linear(width, ratio * width), nn.GELU(), nn.Linear(ratio * width, width))


class TransformerLayer(nn.Module):
    """Spatial attention, temporal attention, feed-forward, Gaussian, on a stream x (B T h w E)."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        width, heads, dropout, mode = config.width, config.heads, config.dropout, config.gaussian
        self.spatial = SpatialAttention(width, heads, config.stream_grid, dropout=dropout, conv=config.conv)
        self.temporal = TemporalAttention(width, heads, dropout=dropout, window=config.window)
        self.feed_forward = FeedForward(width, config.mlp_ratio)
        self.gaussian = None if mode == "off" else GaussianLayer(width, config.kernel_size, mode, config.noise_channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, noise, posterior_input=None, temperature=1.0, lengths=None, cache=None):
        """The stream after the layer, the KL of each frame (B T), and the cache, which knows the T frames now, where given.

        `noise` (B T h w Z) is this layer's alone; `posterior_input` (B known h w E) and the rest are as in `GaussianLayer`.
        """
        x = x + self.dropout(self.spatial(x))
        if cache is None:
            x = x + self.dropout(self.temporal(x, lengths))
        else:  # x holds the newest frames; the cache knows the others. For generation, where nothing drops out
            y, cache = self.temporal.read(x, cache)
            x = x + y
        x = x + self.dropout(self.feed_forward(x))
        kl = x.new_zeros(x.shape[:2], dtype=torch.float32)
        if self.gaussian is not None:
            x, kl = self.gaussian(x, noise, posterior_input, temperature)
        return x, kl, cache


class TransformerOutput(NamedTuple):
    """What `SpatialTemporalTransformer` returns; place t is about frame t."""

    prediction: Float[Tensor, "B T D_or_K h w"]  # from frames before t: latents (D), or logits over codewords (K)
    kl: Float[Tensor, "B T L"]  # nats per frame and layer, summed over pixels and channels; 0 for padding


class SpatialTemporalTransformer(nn.Module):
    """Predicts each frame's latents from those of all frames before it."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.embed = nn.Linear(config.latent_channels * config.patch**2, config.width)
        self.start = nn.Parameter(0.02 * torch.randn(config.width))  # stands where the frame before the first would
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width)
        self.head = nn.Linear(config.width, config.out_channels * config.patch**2)

    def forward(
        self,
        latents: Float[Tensor, "B T D h w"],
        lengths: Int[Tensor, "B"] | None = None,
        noise: Float[Tensor, "B T L hP wP Z"] | None = None,
        posterior: bool | int | None = None,
        temperature: float = 1.0,
        target: Float[Tensor, "B T D h w"] | None = None,
    ) -> TransformerOutput:
        """Predict all frames of known clips at once, each from the frames before it.

        Args:
            latents: the tokenizer's latents, of a codeword each.
            lengths: real frames of each clip, 1 to T, padding at the end; None: all are real.
            noise: from `draw_noise`; None draws it from torch's global generator.
            posterior: for mode "latent": let frame t's own posterior see frame t. None: in training only. False or 0: the
                prior draws everywhere. A number above: so many first frames see themselves, as in a prompt; after them z
                is the prior's mean, as in a forecast.
            temperature: factor on the standard deviation of what is drawn.
            target: the true latents, where `latents` was corrupted or is the model's own rollout: what the posterior
                sees; None: `latents` itself.

        Raises:
            ValueError: latents of another shape than the config says, or a target of another shape than `latents`.
        """
        self._check(latents)
        if target is not None and target.shape != latents.shape:
            raise ValueError(f"target must have latents' shape, {tuple(latents.shape)}, got {tuple(target.shape)}")
        B, T = latents.shape[:2]
        real = None if lengths is None else padding_mask(lengths, T)
        frames = self._embed(latents, real)
        truth = frames if target is None else self._embed(target, real)
        x = self._shift(frames)
        noise = self.draw_noise(B, T) if noise is None else noise
        posterior = self.training if posterior is None else posterior
        seen = truth[:, : T if posterior is True else posterior] if posterior else None
        prediction, kl, _ = self._run(x, noise, seen, temperature, lengths)
        return TransformerOutput(prediction, kl if real is None else torch.where(real[..., None], kl, 0))

    def _check(self, latents: Tensor) -> None:
        expected = (self.config.latent_channels, *self.config.grid)
        if latents.ndim != 5 or tuple(latents.shape[2:]) != expected:
            raise ValueError(f"latents must have shape (B T D h w), (D h w) = {expected}, got {tuple(latents.shape)}")

    def _shift(self, frames: Float[Tensor, "B T h w E"]) -> Float[Tensor, "B T h w E"]:
        """Place t holds frame t - 1, and place 0 the start token."""
        start = self.start.to(frames.dtype).expand_as(frames[:, :1])
        return torch.cat([start, frames[:, :-1]], dim=1)

    def _run(self, x, noise, seen, temperature, lengths=None, cache=None):
        """All layers and the head: prediction (B T D_or_K h w), KL (B T L), and what the cache, if any, knows after."""
        kls, after = [], []
        for i, layer in enumerate(self.layers):
            x, kl, known = layer(x, noise[:, :, i], seen, temperature, lengths, None if cache is None else cache[i])
            kls.append(kl)
            after.append(known)
        patches, P = self.head(self.norm(x)), self.config.patch
        prediction = rearrange(patches, "B T h w (D p q) -> B T D (h p) (w q)", p=P, q=P)
        return prediction, torch.stack(kls, dim=-1), tuple(after)

    def _embed(self, latents: Float[Tensor, "B T D h w"], real: Bool[Tensor, "B T"] | None = None) -> Tensor:  # (B T h w E)
        latents = latents.detach()  # the tokenizer does not learn from the predictor
        if real is not None:  # whatever stands in the padding reaches neither outputs nor gradients
            latents = torch.where(real[:, :, None, None, None], latents, 0)
        P = self.config.patch
        return self.embed(rearrange(latents, "B T D (h p) (w q) -> B T h w (D p q)", p=P, q=P))

    def step(
        self,
        latent: Float[Tensor, "B D h w"] | None,
        cache: tuple[KeyValueCache, ...],
        noise: Float[Tensor, "B L hP wP Z"] | None = None,
        target: Float[Tensor, "B D h w"] | None = None,
        temperature: float = 1.0,
    ) -> tuple[Float[Tensor, "B D_or_K h w"], tuple[KeyValueCache, ...]]:
        """One frame on: the prediction of the next frame, and the cache that now knows `latent`.

        In evaluation mode, and with `noise` passed, a pure function.

        Args:
            latent: the newest frame; None at the very start, where no frame is known.
            noise, temperature: as in `forward`; noise[:, t] is for the step that predicts frame t.
            target: for mode "latent", the frame to predict, where it is known, as in a prompt: z is then drawn from the
                posterior, and tells later frames what really happened.
        """
        h, w = self.config.stream_grid
        B = len(cache[0].keys) // (h * w)
        x = self.start.expand(B, 1, h, w, -1) if latent is None else self._embed(latent[:, None])  # (B 1 h w E)
        noise = self.draw_noise(B, 1) if noise is None else noise[:, None]
        seen = None if target is None else self._embed(target[:, None])
        prediction, _, cache = self._run(x, noise, seen, temperature, cache=cache)
        return prediction[:, 0], cache

    def read(
        self,
        latents: Float[Tensor, "B T D h w"],
        window: int | None = None,
        noise: Float[Tensor, "B T L hP wP Z"] | None = None,
        temperature: float = 1.0,
    ) -> tuple[KeyValueCache, ...]:
        """A prompt at once: the cache after T calls of `step` with known frames. The next step takes `latents[:, -1]`.

        In mode "latent" each z is drawn from the posterior, as in `step` with a `target`.

        Args:
            latents: the prompt's frames. The cache knows all but the newest, and the start token before them.
            window: slots of the cache, at least T; None takes the config's window.
            noise, temperature: as in `forward`.

        Raises:
            ValueError: latents of another shape than the config says, or fewer than T slots.
        """
        self._check(latents)
        B, T = latents.shape[:2]
        frames = self._embed(latents)
        noise = self.draw_noise(B, T) if noise is None else noise
        _, _, cache = self._run(self._shift(frames), noise, frames, temperature, cache=self.empty_cache(B, window))
        return cache

    def empty_cache(self, batch: int, window: int | None = None) -> tuple[KeyValueCache, ...]:
        """One cache per layer for `batch` clips and `window` frames; None takes the config's window."""
        return tuple(layer.temporal.empty_cache(batch, self.config.stream_grid, window) for layer in self.layers)

    def draw_noise(self, batch: int, frames: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws from N(0, 1), (B T L hP wP Z), (hP wP) = (h / P, w / P): by the frame or at once, one generator gives the same."""
        config, device = self.config, self.start.device
        channels = {"off": 0, "bottleneck": config.width, "latent": config.noise_channels}[config.gaussian]
        shape = (batch, config.layers, *config.stream_grid, channels)
        source = device if generator is None else generator.device
        draws = [torch.randn(shape, generator=generator, device=source) for _ in range(frames)]
        return torch.stack(draws, dim=1).to(device)


def prediction_error(
    prediction: Float[Tensor, "B T D_or_K h w"],
    target: Float[Tensor, "B T D h w"] | Int[Tensor, "B T h w"],
    lengths: Int[Tensor, "B"] | None = None,
) -> Float[Tensor, "B T"]:
    """Error of each frame, 0 for padding: what training minimizes, next to the KL.

    Latents against the tokenizer's latents: squared error, summed over the frame. Logits against its codeword indices:
    cross-entropy in nats, summed. No gradient goes into the target.
    """
    if target.is_floating_point():
        error = (prediction.float() - target.detach()).square().sum((2, 3, 4))
    else:
        error = F.cross_entropy(prediction.float().movedim(2, 1), target, reduction="none").sum((2, 3))
    return error if lengths is None else torch.where(padding_mask(lengths, error.shape[1]), error, 0)


def count_parameters(config: TransformerConfig) -> int:
    """Number of parameters, from the config alone."""
    E, Z = config.width, config.noise_channels
    taken, given = (n * config.patch**2 for n in (config.latent_channels, config.out_channels))  # per patch
    taps, r = config.kernel_size**2, config.mlp_ratio
    attention = E + (3 * E * E + 3 * E) + 2 * E // config.heads + (E * E + E)  # norm, q k v, their norms, output
    spatial = attention + sum(config.stream_grid) * E + (9 * E + E if config.conv else 0)
    feed_forward = E + (r * E * E + r * E) + (r * E * E + E)
    latent = E + (taps * E * 2 * Z + 2 * Z) + (taps * 2 * E * 2 * Z + 2 * Z) + (Z * E + E)  # norm, prior, posterior, inject
    gaussian = {"off": 0, "bottleneck": taps * E * 2 * E + 2 * E, "latent": latent}[config.gaussian]
    layers = config.layers * (spatial + attention + feed_forward + gaussian)
    return (taken * E + E) + E + layers + E + (E * given + given)  # embed, start, norm, head


def count_flops(config: TransformerConfig, frames: int, posterior: bool = False) -> int:
    """Floating-point operations of `forward` per frame of a clip of `frames` frames; a multiply-add counts as two.

    Matrix products and convolutions, and attention over all `frames`, as torch's `FlopCounterMode` counts them. A
    training step takes about three times as many. `posterior`: count the posterior's convolution too.
    """
    E, Z = config.width, config.noise_channels
    taken, given = (n * config.patch**2 for n in (config.latent_channels, config.out_channels))  # per patch
    taps, r, pixels = config.kernel_size**2, config.mlp_ratio, math.prod(config.stream_grid)
    spatial = 4 * E * E + 2 * pixels * E + (9 * E if config.conv else 0)  # q k v out; scores, sums; per pixel
    temporal = 4 * E * E + 2 * frames * E  # the same over T frames
    feed_forward = 2 * r * E * E
    latent = taps * E * 2 * Z + Z * E + (taps * 2 * E * 2 * Z if posterior else 0)
    gaussian = {"off": 0, "bottleneck": taps * E * 2 * E, "latent": latent}[config.gaussian]
    layer = spatial + temporal + feed_forward + gaussian
    return 2 * pixels * (taken * E + config.layers * layer + E * given)
