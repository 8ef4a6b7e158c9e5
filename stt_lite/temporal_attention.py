# Extracted from notebooks/05_temporal_attention.ipynb by "make extract": edit the notebook, not this file.
"""Temporal attention: every latent pixel looks at its own past. Built in chapter 05."""

from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor, nn

from stt_lite.spatial_attention import MultiHeadAttention, RMSNorm, attention, attention_weights

__all__ = ["KeyValueCache", "TemporalAttention", "padding_mask", "rotary"]


def rotary(
    x: Float[Tensor, "n N T d"], positions: Num[Tensor, "T"] | Num[Tensor, "n T"], base: float = 100.0
) -> Float[Tensor, "n N T d"]:
    """Rotate pairs of channels by angles that grow with position (RoFormer, Su et al., 2021, Section 3.2).

    The dot product of two rotated vectors depends on the difference of their positions only. Channel i is paired with
    channel i + d/2 and turns by base^(-2i/d) radians per frame. The paper's base of 10,000 suits texts of thousands of
    words; 100 gives the slowest pair of a 16-channel head a turn in about 350 frames.

    Args:
        x: queries or keys, d even.
        positions: time of each element in frames, one row for all sequences or one per sequence.
        base: ratio between the fastest and, nearly, the slowest rotation, above 0.

    Raises:
        ValueError: an odd number of channels.
    """
    d = x.shape[-1]
    if d % 2:
        raise ValueError(f"x must have an even number of channels to rotate in pairs, got {d}")
    speed = base ** (-torch.arange(0, d, 2, device=x.device, dtype=torch.float32) / d)  # (d/2), radians per frame
    angle = positions[..., None].float() * speed  # (T d/2) or (n T d/2)
    angle = angle[:, None] if positions.ndim == 2 else angle  # room for the heads
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def padding_mask(lengths: Int[Tensor, "B"], frames: int) -> Bool[Tensor, "B T"]:
    """True for the first `lengths[b]` frames of clip b, False for its padding; T is `frames`."""
    return torch.arange(frames, device=lengths.device) < lengths[:, None]


class KeyValueCache(NamedTuple):
    """What the past already knows: keys and values of the last W frames, newest last, of each of n pixels.

    Shapes never change, so one step compiles and exports; a step returns a new cache and leaves the old one alone.
    Keys are kept rotated to the time of their frame, counted from the first frame that the cache was given.
    """

    keys: Float[Tensor, "n N W d"]
    values: Float[Tensor, "n N W d"]
    frames: Int[Tensor, ""]  # how many it was given so far, which is the time of the next; the last W of them are there

    def add(self, keys: Float[Tensor, "n N T d"], values: Float[Tensor, "n N T d"]) -> "KeyValueCache":
        """The cache after T more frames; as many of the oldest slots drop out.

        Raises:
            ValueError: more frames than slots, T > W.
        """
        T, W = keys.shape[2], self.keys.shape[2]
        if T > W:
            raise ValueError(f"the cache must have a slot for each new frame, got {T} frames for {W} slots")
        keys = torch.cat([self.keys[:, :, T:], keys.to(self.keys.dtype)], dim=2)
        values = torch.cat([self.values[:, :, T:], values.to(self.values.dtype)], dim=2)
        return KeyValueCache(keys, values, self.frames + T)

    def visible(self, frames: int, window: int | None = None) -> Bool[Tensor, "T W"]:
        """The slots that each of the newest `frames` may look at: filled ones up to its own, the last `window` of them."""
        slot = torch.arange(self.keys.shape[2], device=self.keys.device)
        now = slot[-frames:, None]
        seen = (slot <= now) & (slot >= len(slot) - self.frames)
        return seen if window is None else seen & (slot > now - window)


class TemporalAttention(nn.Module):
    """Causal attention of each latent pixel to its own past; no pixel sees another.

    Pre-norm with rotary positions. The residual is the caller's: `x = x + temporal(x)`.

    Args:
        width: channels E.
        heads: number of heads N; E / N must be even.
        qk_norm, dropout: as in `MultiHeadAttention`.
        window: frame t looks at frames t - window + 1 to t; None: at all frames up to t.

    Raises:
        ValueError: heads that do not divide width into even parts, dropout out of range, or a window below 1.
    """

    def __init__(
        self, width: int, heads: int, qk_norm: bool = True, dropout: float = 0.0, window: int | None = None
    ):
        super().__init__()
        if window is not None and window < 1:
            raise ValueError(f"window must be at least 1 frame, or None, got {window}")
        self.attend = MultiHeadAttention(width, heads, qk_norm, dropout)
        if width // heads % 2:
            raise ValueError(f"width / heads must be even for rotary positions, got {width} / {heads}")
        self.norm = RMSNorm(width)
        self.window = window

    def _band(self, frames: int, device: torch.device) -> Bool[Tensor, "1 1 T T"] | None:
        """True where key s is less than `window` frames before query t; None where every frame is."""
        if self.window is None or self.window >= frames:
            return None
        t = torch.arange(frames, device=device)
        return (t[:, None] - t < self.window)[None, None]

    def forward(
        self, x: Float[Tensor, "B T h w E"], lengths: Int[Tensor, "B"] | None = None
    ) -> Float[Tensor, "B T h w E"]:
        """The branch's output, to be added to `x`.

        Padding stands at the end, so the causal mask hides it from all real frames already. It is set to zero here
        all the same: whatever it holds, NaN included, reaches neither outputs nor gradients.

        Args:
            x: T frames of each of B clips.
            lengths: number of real frames of each clip, 1 to T; the output of the others is 0. None: all are real.
        """
        B, T, h, w, _ = x.shape
        real = None if lengths is None else padding_mask(lengths, T)[:, :, None, None, None]
        x = x if real is None else torch.where(real, x, 0)
        t = torch.arange(T, device=x.device)
        sequences = rearrange(self.norm(x), "B T h w E -> (B h w) T E")  # one sequence of T frames per pixel
        y = self.attend(sequences, self._band(T, x.device), causal=True, rotate=lambda x: rotary(x, t))
        y = rearrange(y, "(B h w) T E -> B T h w E", B=B, h=h, w=w)
        return y if real is None else torch.where(real, y, 0)

    def empty_cache(
        self, batch: int, grid: tuple[int, int], window: int | None = None, device=None, dtype=None
    ) -> KeyValueCache:
        """A cache without frames, for `batch` clips on a latent grid of (h, w).

        Args:
            batch, grid: number of clips B, and h and w.
            window: number of frames W to keep; None takes the layer's own window.
            device, dtype: of keys and values; None takes those of the layer's weights.

        Raises:
            ValueError: neither the call nor the layer names a window.
        """
        window = self.window if window is None else window
        if window is None or window < 1:
            raise ValueError(f"window must be at least 1 frame where the layer has none of its own, got {window}")
        weight = self.attend.out.weight
        device, dtype = device or weight.device, dtype or weight.dtype
        shape = (batch * grid[0] * grid[1], self.attend.heads, window, weight.shape[0] // self.attend.heads)
        keys, values = torch.zeros(2, *shape, device=device, dtype=dtype)
        return KeyValueCache(keys, values, torch.zeros((), dtype=torch.long, device=device))

    def step(self, x_t: Float[Tensor, "B h w E"], cache: KeyValueCache) -> tuple[Tensor, KeyValueCache]:
        """One frame: the branch's output (B h w E) for `x_t`, which follows the frames in `cache`, and the new cache.

        Equals `forward` on all frames so far, as long as the cache has a slot for each frame that `forward` looks at.

        Raises:
            ValueError: a cache made for another number of pixels.
        """
        y, cache = self.read(x_t[:, None], cache)
        return y[:, 0], cache

    def read(self, x: Float[Tensor, "B T h w E"], cache: KeyValueCache) -> tuple[Tensor, KeyValueCache]:
        """T frames at once, each of which follows those before it and those in `cache`: outputs (B T h w E), and the new cache.

        Equals T calls of `step`, as long as no frame has to leave the cache.

        Raises:
            ValueError: a cache made for another number of pixels, or with fewer than T slots.
        """
        B, T, h, w, _ = x.shape
        if len(cache.keys) != B * h * w:
            raise ValueError(f"cache must hold B·h·w = {B * h * w} pixels, got {len(cache.keys)}")
        q, k, v = self.attend.split(rearrange(self.norm(x), "B T h w E -> (B h w) T E"))
        now = cache.frames + torch.arange(T, device=x.device)
        q, k = (rotary(part.to(cache.keys.dtype), now) for part in (q, k))
        cache = cache.add(k, v)
        mask = cache.visible(T, self.window)[None, None]  # (1 1 T W); PyTorch's is_causal would let the first query see slot 0 alone
        y = self.attend.merge(attention(q, cache.keys, cache.values, mask).to(v.dtype))
        return rearrange(y, "(B h w) T E -> B T h w E", B=B, h=h, w=w), cache

    def weights(self, x: Float[Tensor, "B T h w E"]) -> Float[Tensor, "B h w N T T2"]:
        """How much each frame (T) looks at each frame (T2) of the same pixel, per head: for figures."""
        B, T, h, w, _ = x.shape
        q, k, _ = self.attend.split(rearrange(self.norm(x), "B T h w E -> (B h w) T E"))
        t = torch.arange(T, device=x.device)
        band = self._band(T, x.device)
        maps = attention_weights(rotary(q, t), rotary(k, t), band, causal=True)
        return rearrange(maps, "(B h w) N T T2 -> B h w N T T2", B=B, h=h, w=w)
