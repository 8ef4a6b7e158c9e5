"""One layer of the transformer, and the config of all of it. Built in chapter 07."""

from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor, nn

from stt_lite.gaussian import GaussianLayer
from stt_lite.spatial_attention import RMSNorm, SpatialAttention
from stt_lite.temporal_attention import KeyValueCache, TemporalAttention
from stt_lite.video import check_whole

__all__ = ["FeedForward", "TransformerConfig", "TransformerLayer", "transformer_config"]


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
        patch: edge P of a patch: the stream has one vector for each P x P latents.
        kernel_size: odd edge of the Gaussian layer's convolution, in stream pixels.
        gaussian: "latent", "bottleneck" or "off", see `GaussianLayer`.
        head: "regression" (the next latents) or "token" (logits over codewords).
        noise_channels: channels Z of the random variable in mode "latent".

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

    def __post_init__(self):
        object.__setattr__(self, "grid", tuple(self.grid))  # JSON gives back a list
        if self.gaussian not in ("latent", "bottleneck", "off"):
            known = '"latent", "bottleneck" or "off"'
            raise ValueError(f"gaussian must be {known}, got {self.gaussian!r}")
        if self.head not in ("regression", "token"):
            known = '"regression" or "token"'
            raise ValueError(f"head must be {known}, got {self.head!r}")
        check_whole(self.patch, "patch")
        if any(n % self.patch for n in self.grid):
            raise ValueError(
                f"patch must divide the latent grid (h, w) = {self.grid}, "
                f"got {self.patch}"
            )

    @property
    def stream_grid(self) -> tuple[int, int]:
        """Height and width of the stream's grid: of attention, cache, noise."""
        h, w = self.grid
        return h // self.patch, w // self.patch

    @property
    def out_channels(self) -> int:
        """Channels of a prediction: D for the regression head, K for the token head."""
        if self.head == "regression":
            return self.latent_channels
        return self.codebook_size


def transformer_config(record: dict) -> TransformerConfig:
    """The config that a record or a weights file holds, first edition's included.

    Raises:
        ValueError: a field that no transformer has any more, with another value than
            the one that all have now.
    """
    gone = {"mlp_ratio": 4, "conv": True, "window": None, "dropout": 0.0}
    known = {field.name for field in fields(TransformerConfig)}
    for name, value in record.items():
        if name not in known and (name not in gone or gone[name] != value):
            raise ValueError(f"no transformer has {name} = {value!r} any more")
    return TransformerConfig(**{n: v for n, v in record.items() if n in known})


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
        c = config
        self.spatial = SpatialAttention(c.width, c.heads, c.stream_grid)
        self.temporal = TemporalAttention(c.width, c.heads)
        self.feed_forward = FeedForward(c.width)
        self.gaussian = None
        if c.gaussian != "off":
            self.gaussian = GaussianLayer(
                c.width, c.kernel_size, c.gaussian, c.noise_channels
            )

    def forward(
        self, x, noise, seen=None, temperature=1.0, lengths=None, cache=None
    ) -> tuple[Tensor, Tensor, KeyValueCache | None]:
        """One layer of the stream x (B T hP wP E).

        Args:
            noise: this layer's draws (B T hP wP Z).
            seen, temperature: `posterior_input` and factor, as in `GaussianLayer`.
            lengths: real frames of each clip, as in `TemporalAttention`.
            cache: what is known of the frames before x; None: x begins the clip.

        Returns:
            The stream, the KL of each frame (B T), and the cache after x.
        """
        x = x + self.spatial(x)
        if cache is None:
            x = x + self.temporal(x, lengths)
        else:
            y, cache = self.temporal.prefill(x, cache)
            x = x + y
        x = x + self.feed_forward(x)
        if self.gaussian is None:
            return x, x.new_zeros(x.shape[:2], dtype=torch.float32), cache
        x, kl = self.gaussian(x, noise, seen, temperature)
        return x, kl, cache
