# Made from notebooks/07_transformer.ipynb by "make extract".
"""One layer of the transformer, and the config of all of it."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from stt_lite.gaussian import GaussianLayer
from stt_lite.spatial_attention import RMSNorm, SpatialAttention
from stt_lite.temporal_attention import KeyValueCache, TemporalAttention
from stt_lite.video import check_whole, check_wholes

__all__ = ["FeedForward", "TransformerConfig", "TransformerLayer", "transformer_config"]


@dataclass(frozen=True)
class TransformerConfig:
    """Everything that shapes a transformer.

    Args:
        latent_channels: channels D of the tokenizer's latents.
        grid: height h and width w of the latent grid.
        width: channels E of the stream.
        layers: number of layers L.
        heads: heads N of each attention; E / N must be even, for rotary positions.
        codebook_size: number of codewords K, the classes of the token head.
        patch: edge P of a patch: the stream has one vector for each P x P latents.
        kernel_size: odd edge of the Gaussian layer's convolution, in stream pixels.
        gaussian: "latent", "bottleneck" or "off", see `GaussianLayer`.
        head: "regression" (the next latents) or "token" (logits over codewords).
        noise_channels: channels Z of the random variable in mode "latent".
        actions: how many actions a player can take; 0: nobody plays.

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
    actions: int = 0

    def __post_init__(self):
        modes, heads = ("latent", "bottleneck", "off"), ("regression", "token")
        for name, known in (("gaussian", modes), ("head", heads)):
            value = getattr(self, name)
            if value not in known:
                raise ValueError(f"{name} must be one of {known}, got {value!r}")
        object.__setattr__(self, "grid", check_wholes(self.grid, "grid", count=2))
        for name in ("latent_channels", "layers", "codebook_size", "patch"):
            check_whole(getattr(self, name), name)
        check_whole(self.actions, "actions", least=0)
        if any(n % self.patch for n in self.grid):
            expected = f"divide the latent grid (h, w) = {self.grid}"
            raise ValueError(f"patch must {expected}, got {self.patch}")

    @property
    def stream_grid(self) -> tuple[int, int]:
        """Height and width of the stream's grid: of attention, cache, noise."""
        h, w = self.grid
        return h // self.patch, w // self.patch

    @property
    def out_channels(self) -> int:
        """Channels of a prediction: D for the regression head, K for the token head."""
        token = self.head == "token"
        return self.codebook_size if token else self.latent_channels


GONE = {"mlp_ratio": 4, "conv": True, "window": None, "dropout": 0.0}


def transformer_config(record: dict) -> TransformerConfig:
    """The config that a record holds; one of the first edition has four fields more.

    TypeError: one of these with another value than the one that is left.
    """
    fields = {n: value for n, value in record.items() if GONE.get(n, ...) != value}
    return TransformerConfig(**fields | {"grid": tuple(fields["grid"])})


class FeedForward(nn.Sequential):
    """Two linear maps and a GELU, at each pixel by itself. Pre-norm."""

    def __init__(self, width: int):
        super().__init__(
            RMSNorm(width),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
        )


class TransformerLayer(nn.Module):
    """Spatial attention, temporal attention, feed-forward, Gaussian."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        E, N, mode = config.width, config.heads, config.gaussian
        self.spatial = SpatialAttention(E, N, config.stream_grid)
        self.temporal = TemporalAttention(E, N)
        self.feed_forward = FeedForward(E)
        self.gaussian = None
        if mode != "off":
            k, Z = config.kernel_size, config.noise_channels
            self.gaussian = GaussianLayer(E, k, mode, Z)

    def forward(
        self, x, noise, seen=None, temperature=1.0, lengths=None, cache=None
    ) -> tuple[Tensor, Tensor, KeyValueCache | None]:
        """The stream x (B T hP wP E) one layer on, KL (B T), and the cache after x.

        `noise` (B T hP wP Z), `seen` and `temperature` are as in `GaussianLayer`,
        `lengths`, `cache` as in `TemporalAttention`; no cache: x begins a clip.
        """
        x = x + self.spatial(x)
        if cache is None:
            x = x + self.temporal(x, lengths)
        else:
            y, cache = self.temporal.prefill(x, cache)
            x = x + y
        x = x + self.feed_forward(x)
        if self.gaussian is None:
            kl = x.new_zeros(x.shape[:2], dtype=torch.float32)
        else:
            x, kl = self.gaussian(x, noise, seen, temperature)
        return x, kl, cache
