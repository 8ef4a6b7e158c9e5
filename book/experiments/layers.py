# Made from notebooks/12_what_each_idea_is_worth.ipynb by "make extract".
"""Ablations: a transformer layer with one part replaced. Chapter 12."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from stt_lite.layer import TransformerConfig, TransformerLayer
from stt_lite.spatial_attention import SpatialAttention, attention
from stt_lite.temporal_attention import KeyValueCache, rotary


class Silent(nn.Module):
    """Stands where an attention is left out: adds 0, remembers nothing."""

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        return torch.zeros_like(x)

    def prefill(self, x: Tensor, cache: KeyValueCache) -> tuple[Tensor, KeyValueCache]:
        return torch.zeros_like(x), cache

    def empty_cache(self, batch: int, grid: tuple, slots: int) -> KeyValueCache:
        nothing = torch.zeros(batch * grid[0] * grid[1], 1, slots, 0)
        return KeyValueCache(nothing, nothing, torch.zeros((), dtype=torch.long))


class SpatialOnly(TransformerLayer):
    """No temporal attention: each frame is predicted from the one before alone."""

    def __init__(self, config: TransformerConfig):
        super().__init__(config)
        self.temporal = Silent()


class TemporalOnly(TransformerLayer):
    """No spatial attention: pixels hear of each other by the Gaussian layer only."""

    def __init__(self, config: TransformerConfig):
        super().__init__(config)
        self.spatial = Silent()


class NoResidual(TransformerLayer):
    """Each part's output replaces the stream instead of being added to it."""

    def forward(
        self, x, noise, seen=None, temperature=1.0, lengths=None, cache=None
    ) -> tuple[Tensor, Tensor, KeyValueCache | None]:
        x = self.spatial(x)
        if cache is None:
            x = self.temporal(x, lengths)
        else:
            x, cache = self.temporal.prefill(x, cache)
        x = self.feed_forward(x)
        kl = x.new_zeros(x.shape[:2], dtype=torch.float32)
        if self.gaussian is not None:
            x, kl = self.gaussian(x, noise, seen, temperature)
        return x, kl, cache


class JointAttention(SpatialAttention):
    """Attention of each pixel to all pixels of its own and all earlier frames."""

    def forward(
        self, x: Float[Tensor, "B T h w E"], lengths: Tensor | None = None
    ) -> Float[Tensor, "B T h w E"]:
        B, T, h, w, _ = x.shape
        time = torch.arange(T, device=x.device).repeat_interleave(h * w)
        mask = (time[:, None] >= time)[None, None]  # by the frame of each token
        tokens = rearrange(self.pixels(x), "(B T) p E -> B (T p) E", B=B)
        y = self.attend(tokens, mask, rotate=lambda q: rotary(q, time))
        return rearrange(y, "B (T h w) E -> B T h w E", T=T, h=h, w=w)

    def empty_cache(self, batch: int, grid: tuple, slots: int) -> KeyValueCache:
        weight, N = self.attend.out.weight, self.attend.heads
        n, d = batch * grid[0] * grid[1], len(weight) // N
        keys, values = weight.new_zeros(2, n, N, slots, d)
        return KeyValueCache(keys, values, keys.new_zeros((), dtype=torch.long))

    def prefill(
        self, x: Float[Tensor, "B T h w E"], cache: KeyValueCache
    ) -> tuple[Tensor, KeyValueCache]:
        """As `TemporalAttention.prefill`; the cache holds keys and values per pixel."""
        B, T, h, w, _ = x.shape
        tokens = rearrange(self.pixels(x), "(B T) p E -> B (T p) E", B=B)
        q, k, v = self.attend.split(tokens)  # each (B N T·p d)
        time = cache.frames + torch.arange(T, device=x.device)
        time = time.repeat_interleave(h * w)
        q, k = rotary(q, time), rotary(k, time)
        per_pixel = "B N (T p) d -> (B p) N T d"
        cache = cache.add(*(rearrange(t, per_pixel, T=T) for t in (k, v)))
        whole = "(B p) N W d -> B N (W p) d"
        keys, values = (rearrange(t, whole, B=B) for t in cache[:2])
        mask = cache.visible(T).repeat_interleave(h * w, 0)
        mask = mask.repeat_interleave(h * w, 1)[None, None]
        y = self.attend.merge(attention(q, keys, values, mask))
        return rearrange(y, "B (T h w) E -> B T h w E", T=T, h=h), cache


class Joint(TransformerLayer):
    """Joint space-time attention in place of spatial and temporal attention."""

    def __init__(self, config: TransformerConfig):
        super().__init__(config)
        self.spatial = Silent()
        self.temporal = JointAttention(config.width, config.heads, config.stream_grid)
