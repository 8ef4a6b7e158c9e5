# Made from notebooks/03_vq_autoencoder.ipynb by "make extract".
"""Tokenizer: frames to a small grid of codewords, and back. Built in chapter 03."""

import math
import os
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from stt_lite.files import load_weights, save_weights
from stt_lite.quantizers import QUANTIZERS
from stt_lite.video import (
    check_frames,
    check_number,
    check_shape,
    check_tensor,
    check_type,
    check_whole,
    check_wholes,
)

__all__ = [
    "Tokenizer",
    "TokenizerConfig",
    "load_tokenizer",
    "save_tokenizer",
    "token_colours",
    "tokenizer_config",
]


@dataclass(frozen=True)
class TokenizerConfig:
    """Everything that shapes a tokenizer; ValueError: a field out of its range.

    Args:
        channels: channels C of a frame, 1 (grey) or 3 (RGB).
        downsample: pixels per latent along height and width, a power of two from 2 on.
        width: channels of the layers on the latent grid, a multiple of 16; halved with
            each finer stage.
        residual_blocks: residual blocks in the encoder, and again in the decoder.
        latent_channels: latent channels D.
        quantizer: a name of `QUANTIZERS`: "vq" (learned) or "fsq" (fixed levels).
        codebook_size: number of codewords K; for "fsq" the product of the levels.
        levels: levels of each latent channel, for "fsq" only.
        commitment: weight of the commitment loss.
        group_norm: normalize groups of channels over the frame before each residual
            layer: every token then depends on the whole frame.
    """

    channels: int = 1
    downsample: int = 4
    width: int = 64
    residual_blocks: int = 1
    latent_channels: int = 8
    quantizer: str = "vq"
    codebook_size: int = 512
    levels: tuple[int, ...] = ()
    commitment: float = 0.25
    group_norm: bool = False

    def __post_init__(self):
        object.__setattr__(self, "levels", check_wholes(self.levels, "levels", 2))
        for name in ("downsample", "width", "latent_channels", "codebook_size"):
            check_whole(getattr(self, name), name)
        check_whole(self.residual_blocks, "residual_blocks", least=0)
        check_number(self.commitment, "commitment")
        if self.downsample < 2 or self.downsample & (self.downsample - 1):
            expected = "a power of two of at least 2"
            raise ValueError(f"downsample must be {expected}, got {self.downsample}")
        if self.width % 16:
            raise ValueError(f"width must be a multiple of 16, got {self.width}")
        if check_whole(self.channels, "channels") not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {self.channels}")
        if not isinstance(self.quantizer, str) or self.quantizer not in QUANTIZERS:
            known = ", ".join(QUANTIZERS)
            raise ValueError(f"quantizer must be of {known}, got {self.quantizer!r}")
        if self.quantizer == "fsq":
            D, K = self.latent_channels, self.codebook_size
            found = len(self.levels), math.prod(self.levels)
            if found != (D, K):
                expected = f"{D} (latent_channels) with product {K} (codebook_size)"
                raise ValueError(f"levels must be {expected}, got {self.levels}")

    @property
    def stage_widths(self) -> list[int]:
        """Channels of each stage, finest first: halves of `width`, at least 16."""
        stages = self.downsample.bit_length() - 1
        return [max(16, self.width >> i) for i in reversed(range(stages))]


def normalization(config: TokenizerConfig) -> nn.Module:
    """Group normalization where the config asks for it, else nothing."""
    return nn.GroupNorm(8, config.width) if config.group_norm else nn.Identity()


def convolution(config: TokenizerConfig) -> list[nn.Module]:
    """Normalization, if any, SiLU, and a 3x3 convolution that keeps the width."""
    layer = nn.Conv2d(config.width, config.width, 3, padding=1)
    return [normalization(config), nn.SiLU(), layer]


class ResidualBlock(nn.Module):
    """Two convolutions, added to their input (He et al., 2016)."""

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        self.layers = nn.Sequential(*convolution(config), *convolution(config))

    def forward(self, x: Float[Tensor, "B width h w"]) -> Float[Tensor, "B width h w"]:
        return x + self.layers(x)


class Entrance(nn.Conv2d):
    """A convolution that takes its input in any precision."""

    def forward(self, x: Float[Tensor, "B D h w"]) -> Float[Tensor, "B E h2 w2"]:
        return super().forward(x.to(self.weight.dtype))


def encoder(config: TokenizerConfig) -> nn.Sequential:
    """Frames (B C H W) to (B D h w): strided convolutions, residual blocks."""
    widths = config.stage_widths  # finest first, for example [32, 64]
    down = [Entrance(config.channels, widths[0], 4, stride=2, padding=1)]
    for narrow, wide in pairwise(widths):
        down += [nn.SiLU(), nn.Conv2d(narrow, wide, 4, stride=2, padding=1)]
    blocks = [ResidualBlock(config) for _ in range(config.residual_blocks)]
    project = nn.Conv2d(config.width, config.latent_channels, 1)
    return nn.Sequential(*down, *blocks, normalization(config), nn.SiLU(), project)


def decoder(config: TokenizerConfig) -> nn.Sequential:
    """Latents (B D h w) to frames (B C H W): the encoder's mirror image."""
    widths = config.stage_widths[::-1]  # coarsest first, for example [64, 32]
    blocks = [ResidualBlock(config) for _ in range(config.residual_blocks)]
    up = [normalization(config), nn.SiLU()]
    for wide, narrow in pairwise(widths):
        up += [nn.Conv2d(wide, 4 * narrow, 3, padding=1), nn.PixelShuffle(2), nn.SiLU()]
    up += [nn.Conv2d(widths[-1], 4 * config.channels, 3, padding=1), nn.PixelShuffle(2)]
    spread = Entrance(config.latent_channels, config.width, 3, padding=1)
    return nn.Sequential(spread, *blocks, *up)


class Tokenizer(nn.Module):
    """A VQ autoencoder: frames to a small grid of codewords and back.

    `encode` gives continuous latents, `quantize` snaps them to codewords, `decode`
    makes frames (van den Oord et al., 2017). `encode` ends in the quantizer's
    `bound`, so latents live in the codewords' space: a codeword quantizes to itself.
    TypeError: a config that is none.
    """

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        check_type(config, TokenizerConfig, "config")
        self.config = config
        self.encoder = encoder(config)
        self.decoder = decoder(config)
        self.quantizer = QUANTIZERS[config.quantizer](config)

    def forward(
        self, frames: Float[Tensor, "B C H W"]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """For training: unclamped frames (B C H W), indices (B h w), commitment."""
        latents = self.quantizer.bound(self.encoder(frames))
        quantized, indices, commitment = self.quantizer(latents)
        return self.decoder(quantized), indices, commitment

    def encode(self, frames: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        """Frames in [0, 1] to continuous latents.

        Raises:
            TypeError, ValueError: frames of the wrong type, rank, range, channels, or a
                size that `downsample` does not divide.
        """
        channels, multiple = self.config.channels, self.config.downsample
        check_frames(frames, dims="B C H W", channels=channels, multiple=multiple)
        return self.quantizer.bound(self.encoder(frames))

    def quantize(
        self, latents: Float[Tensor, "B D h w"]
    ) -> tuple[Float[Tensor, "B D h w"], Int[Tensor, "B h w"]]:
        """Latents to their nearest codewords, whose gradient passes straight through,
        and the indices of these in [0, K); TypeError, ValueError: as in `decode`."""
        self.check_latents(latents)
        quantized, indices, _ = self.quantizer(latents)
        return quantized, indices

    def decode(self, latents: Float[Tensor, "B D h w"]) -> Float[Tensor, "B C H W"]:
        """Latents to frames, clamped to [0, 1].

        Raises:
            TypeError, ValueError: latents of another type, rank or D, or not finite.
        """
        self.check_latents(latents)
        return self.decoder(latents).clamp(0, 1)

    def codes(self, indices: Int[Tensor, "B h w"]) -> Float[Tensor, "B D h w"]:
        """The codewords that indices name; TypeError or ValueError for what are none.

        These are whole numbers in [0, K).
        """
        most = self.quantizer.codebook_size - 1
        check_tensor(indices, "indices", "B h w", 0, most, whole=True)
        return self.quantizer.codes(indices).movedim(-1, 1)

    @torch.no_grad()
    def reconstruct(
        self, clips: Float[Tensor, "*B C H W"]
    ) -> Float[Tensor, "*B C H W"]:
        """Frames or clips through encode, quantize and decode, 256 frames at a time.

        TypeError, ValueError: as in `encode`.
        """
        still = isinstance(clips, Tensor) and clips.ndim == 4
        check_shape(clips, "clips", "B C H W" if still else "B T C H W")
        groups = clips.reshape(-1, *clips.shape[-3:]).split(256)
        decoded = [self.decode(self.quantize(self.encode(g))[0]) for g in groups]
        return torch.cat(decoded).reshape(clips.shape).to(clips)

    def check_latents(self, latents: Tensor) -> None:
        """TypeError or ValueError for what is not (B D h w) and finite."""
        check_tensor(latents, "latents", "B D h w", D=self.config.latent_channels)


@torch.no_grad()
def token_colours(
    tokenizer: Tokenizer, frames: Float[Tensor, "T C H W"]
) -> Float[Tensor, "T 3 H W"]:
    """The token grid of each frame as a colour picture of its size, in [0, 1].

    The most frequent codeword is dark; another's colour is its distance from that one
    along the codebook's first three principal axes.
    """
    _, indices = tokenizer.quantize(tokenizer.encode(frames))
    K = tokenizer.quantizer.codebook_size
    book = tokenizer.quantizer.codes(torch.arange(K, device=frames.device))  # (K D)
    _, spread, axes = torch.linalg.svd(book - book.mean(0), full_matrices=False)
    distance = ((book - book[indices.flatten().mode().values]) @ axes[:3].T).abs()
    colours = (0.1 + 0.4 * distance / (spread[0] / K**0.5)).clamp(0, 1)  # (K, up to 3)
    colours = F.pad(colours, (0, 3 - colours.shape[1]), value=0.1)[indices]  # (T h w 3)
    scale = tokenizer.config.downsample
    return F.interpolate(colours.movedim(-1, 1), scale_factor=scale, mode="nearest")


save_tokenizer = save_weights  # (tokenizer, path, record)


def tokenizer_config(fields: dict) -> TokenizerConfig:
    """The config of a record's fields; an old one without `group_norm` had it."""
    levels = tuple(fields["levels"])  # JSON has no tuples
    return TokenizerConfig(**{"group_norm": True} | fields | {"levels": levels})


def load_tokenizer(
    name: str | os.PathLike, device: torch.device | str = "cpu"
) -> Tokenizer:
    """A bundled tokenizer by name, such as "moving-mnist", or any by path, to evaluate.

    Raises what `load_weights` does: ValueError, FileNotFoundError, TypeError (no path)
    and RuntimeError (no device).
    """

    def build(fields):
        return Tokenizer(tokenizer_config(fields))

    return load_weights(name, "tokenizer", build, device)
