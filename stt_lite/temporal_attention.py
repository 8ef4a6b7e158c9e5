# Made from notebooks/05_temporal_attention.ipynb by "make extract".
"""Temporal attention: every latent pixel looks at its own past."""

from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor, nn

from stt_lite.spatial_attention import (
    MultiHeadAttention,
    RMSNorm,
    attention,
    attention_weights,
)

__all__ = ["KeyValueCache", "TemporalAttention", "padding_mask", "rotary"]


def rotary(
    x: Float[Tensor, "n N T d"], positions: Num[Tensor, "#T"], base: float = 100.0
) -> Float[Tensor, "n N T d"]:
    """Turn pairs of channels by angles that grow with time (RoFormer, Su et al., 2021).

    Channel i is paired with channel i + d/2 (d even, else a ValueError) and turns by
    base^(-2i/d) radians a frame, so that the dot product of two turned vectors depends
    only on how many frames lie between their `positions`.
    """
    d = x.shape[-1]
    if d % 2:
        raise ValueError(f"x must have an even number of channels to turn, got {d}")
    i = torch.arange(d // 2, device=x.device, dtype=torch.float32)
    speed = base ** (-2 * i / d)  # (d/2), radians per frame
    angle = positions[:, None].float() * speed  # (T d/2)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)  # each (n N T d/2)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def padding_mask(lengths: Int[Tensor, "B"], frames: int) -> Bool[Tensor, "B T"]:
    """True for the first `lengths[b]` of T = `frames` frames of clip b."""
    return torch.arange(frames, device=lengths.device) < lengths[:, None]


class KeyValueCache(NamedTuple):
    """Keys and values of the last W frames, newest last, of each of n pixels.

    Shapes never change, so that one step compiles and exports. Keys are kept turned to
    the time of their frame, counted from the first frame that the cache was given.
    """

    keys: Float[Tensor, "n N W d"]
    values: Float[Tensor, "n N W d"]
    frames: Int[Tensor, ""]  # how many it was given so far: the time of the next one

    def add(
        self, keys: Float[Tensor, "n N T d"], values: Float[Tensor, "n N T d"]
    ) -> "KeyValueCache":
        """A cache with T <= W frames more; as many of the oldest slots drop out."""
        T, W = keys.shape[2], self.keys.shape[2]
        if T > W:
            raise ValueError(f"cache must have {T} slots or more, got {W}")
        keys = torch.cat([self.keys[:, :, T:], keys.to(self.keys.dtype)], dim=2)
        values = torch.cat([self.values[:, :, T:], values.to(self.values.dtype)], dim=2)
        return KeyValueCache(keys, values, self.frames + T)

    def visible(self, new: int) -> Bool[Tensor, "T W"]:
        """Slots that each of the newest frames may look at: filled, up to its own."""
        slot = torch.arange(self.keys.shape[2], device=self.keys.device)  # (W)
        now = slot[-new:, None]  # (T 1)
        return (slot <= now) & (slot >= len(slot) - self.frames)


class TemporalAttention(nn.Module):
    """Causal attention of each latent pixel to its own past; no pixel sees another.

    Returns a branch: the residual is the caller's, `x = x + temporal(x)`.

    Args:
        width: channels E.
        heads: number of heads N; E / N must be even (else a ValueError).
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attend = MultiHeadAttention(width, heads)
        if width // heads % 2:
            raise ValueError(f"width / heads must be even, got {width} / {heads}")
        self.norm = RMSNorm(width)

    def sequences(self, x: Float[Tensor, "B T h w E"]) -> Float[Tensor, "B*h*w T E"]:
        """One sequence of T frames per pixel."""
        return rearrange(self.norm(x), "B T h w E -> (B h w) T E")

    def forward(
        self, x: Float[Tensor, "B T h w E"], lengths: Int[Tensor, "B"] | None = None
    ) -> Float[Tensor, "B T h w E"]:
        """What a pixel's past has to say to it, to be added to x.

        `lengths` counts the real frames of each clip, 1 to T, with padding at the end,
        where the output is 0; whatever stands there, NaN included, reaches nothing.
        """
        B, T, h, w, _ = x.shape
        if lengths is not None:
            real = padding_mask(lengths, T)[:, :, None, None, None]  # (B T 1 1 1)
            x = torch.where(real, x, 0)
        t = torch.arange(T, device=x.device)
        y = self.attend(self.sequences(x), causal=True, rotate=lambda qk: rotary(qk, t))
        y = rearrange(y, "(B h w) T E -> B T h w E", B=B, h=h, w=w)
        return y if lengths is None else torch.where(real, y, 0)

    def empty_cache(
        self, batch: int, grid: tuple[int, int], slots: int
    ) -> KeyValueCache:
        """A cache for W = `slots` >= 1 frames of `batch` clips on a grid (h, w)."""
        if slots < 1:
            raise ValueError(f"slots must be at least 1 frame, got {slots}")
        weight, N = self.attend.out.weight, self.attend.heads
        n, d = batch * grid[0] * grid[1], len(weight) // N
        keys, values = weight.new_zeros(2, n, N, slots, d)
        return KeyValueCache(keys, values, keys.new_zeros((), dtype=torch.long))

    def prefill(
        self, x: Float[Tensor, "B T h w E"], cache: KeyValueCache
    ) -> tuple[Float[Tensor, "B T h w E"], KeyValueCache]:
        """Outputs of T >= 1 frames that follow those in the cache, and a new cache.

        Equals `forward` on all frames so far, as long as none had to leave the cache.
        ValueError: a cache for another number of pixels, or with fewer than T slots.
        """
        B, T, h, w, _ = x.shape
        q, k, v = self.attend.split(self.sequences(x))  # each (n N T d)
        if len(cache.keys) != len(k):
            raise ValueError(f"cache must hold {len(k)} pixels, got {len(cache.keys)}")
        t = cache.frames + torch.arange(T, device=x.device)
        q, k = (rotary(part.to(cache.keys.dtype), t) for part in (q, k))
        cache = cache.add(k, v)
        mask = cache.visible(T)[None, None]  # (1 1 T W)
        y = attention(q, cache.keys, cache.values, mask).to(v.dtype)  # (n N T d)
        y = rearrange(self.attend.merge(y), "(B h w) T E -> B T h w E", B=B, h=h, w=w)
        return y, cache

    def weights(self, x: Float[Tensor, "B T h w E"]) -> Float[Tensor, "B h w N T T2"]:
        """How much frame T looks at frame T2, per pixel and head: for figures."""
        B, T, h, w, _ = x.shape
        q, k, _ = self.attend.split(self.sequences(x))  # each (B·h·w N T d)
        t = torch.arange(T, device=x.device)
        maps = attention_weights(rotary(q, t), rotary(k, t), causal=True)
        return rearrange(maps, "(B h w) N T T2 -> B h w N T T2", B=B, h=h, w=w)
