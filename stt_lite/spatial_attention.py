# Made from notebooks/04_spatial_attention.ipynb by "make extract".
"""Spatial attention: every latent pixel looks at all pixels of its own frame."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stt_lite.video import check_shape, check_whole, check_wholes

__all__ = [
    "MultiHeadAttention",
    "RMSNorm",
    "SpatialAttention",
    "attention",
    "attention_weights",
]


def attention_weights(
    q: Float[Tensor, "n N Lq d"],
    k: Float[Tensor, "n N Lk d"],
    mask: Bool[Tensor, "#n #N #Lq #Lk"] | None = None,
    causal: bool = False,
) -> Float[Tensor, "n N Lq Lk"]:
    """softmax(q·k / sqrt(d)): how much each query looks at each key; rows sum to 1.

    Vaswani et al. (2017), Equation 1. Arguments as in `attention`.
    """
    scores = q @ k.mT / math.sqrt(q.shape[-1])  # (n N Lq Lk)
    if causal:
        mask = _no_later_key(q, k, mask)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return scores.softmax(dim=-1)


def _no_later_key(q: Tensor, k: Tensor, mask: Tensor | None) -> Bool[Tensor, "_ _ L L"]:
    """`mask` and the causal triangle in one: query i looks at keys 0 to i."""
    Lq, Lk = q.shape[2], k.shape[2]
    if Lq != Lk:
        raise ValueError(f"causal needs as many queries as keys, got {Lq} and {Lk}")
    triangle = torch.ones(Lq, Lk, dtype=torch.bool, device=q.device).tril()[None, None]
    return triangle if mask is None else triangle & mask


BATCH_LIMIT = 65_535  # sequences per call: CUDA starts no more blocks along one axis
SHORT = 128  # keys up to which half precision is faster written out, on a CPU


def attention(
    q: Float[Tensor, "n N Lq d"],
    k: Float[Tensor, "n N Lk d"],
    v: Float[Tensor, "n N Lk d"],
    mask: Bool[Tensor, "#n #N #Lq #Lk"] | None = None,
    causal: bool = False,
) -> Float[Tensor, "n N Lq d"]:
    """Average of the values, weighted by `attention_weights`, without keeping these.

    Fused (Dao et al., 2022) where that is faster; in parts where CUDA takes no more.

    Args:
        q, k, v: of n sequences and N heads, with d channels each.
        mask: True where a query may look, at one key or more; None: everywhere.
        causal: query i looks at keys 0 to i only; Lq must be Lk.

    Raises:
        TypeError, ValueError: of another type or shape.
        RuntimeError, IndexError: of different precision, a mask that does not fit.
    """
    n, N, _, d = check_shape(q, "q", "n N L d")
    _, _, L, _ = check_shape(k, "k", "n N L d", n=n, N=N, d=d)
    check_shape(v, "v", "n N L d", n=n, N=N, L=L, d=d)
    half = q.dtype in (torch.bfloat16, torch.float16)
    if q.device.type == "cpu" and half and k.shape[2] <= SHORT:
        return attention_weights(q, k, mask, causal) @ v  # (n N Lq Lk) @ (n N Lk d)
    fused = F.scaled_dot_product_attention  # takes a mask or causal, not both
    if causal and (mask is not None or q.shape[2] != k.shape[2]):
        mask, causal = _no_later_key(q, k, mask), False
    if len(q) <= BATCH_LIMIT:
        return fused(q, k, v, mask, is_causal=causal)
    parts = []
    for i in range(0, len(q), BATCH_LIMIT):
        part = slice(i, i + BATCH_LIMIT)
        own = mask if mask is None or len(mask) == 1 else mask[part]
        parts.append(fused(q[part], k[part], v[part], own, is_causal=causal))
    return torch.cat(parts)


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean(x²) + eps), times a learned gain (Zhang & Sennrich, 2019)."""

    def __init__(self, width: int, eps: float = 1e-6):
        super().__init__(width, eps=eps)

    def forward(self, x: Float[Tensor, "*shape E"]) -> Float[Tensor, "*shape E"]:
        gain = self.weight.to(x.dtype)  # so that half precision stays half precision
        return F.rms_norm(x, self.normalized_shape, gain, self.eps).to(x.dtype)


class MultiHeadAttention(nn.Module):
    """Self-attention with several heads (Vaswani et al., 2017, Section 3.2.2).

    Each head's queries and keys are RMS-normalized, so that no score exceeds sqrt(d)
    times the largest gains, however large the input (Henry et al., 2020).

    Args:
        width: channels E.
        heads: number of heads N, each with d = E / N channels (else a ValueError).
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        check_whole(width, "width")
        if width % check_whole(heads, "heads"):
            raise ValueError(f"heads must divide width = {width}, got {heads}")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_q = RMSNorm(width // heads)
        self.norm_k = RMSNorm(width // heads)

    def split(self, x: Float[Tensor, "n L E"]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of every head, each (n N L d)."""
        q, k, v = rearrange(
            self.qkv(x), "n L (three N d) -> three n N L d", three=3, N=self.heads
        )
        return self.norm_q(q), self.norm_k(k), v

    def merge(self, y: Float[Tensor, "n N L d"]) -> Float[Tensor, "n L E"]:
        """The heads' outputs side by side, mixed by one more linear map."""
        return self.out(rearrange(y, "n N L d -> n L (N d)"))

    def forward(
        self,
        x: Float[Tensor, "n L E"],
        mask: Bool[Tensor, "#n #N #L #L"] | None = None,
        causal: bool = False,
        rotate: Callable[[Tensor], Tensor] | None = None,
    ) -> Float[Tensor, "n L E"]:
        """Each of L elements looks at all; `rotate` turns queries and keys."""
        q, k, v = self.split(x)  # each (n N L d)
        if rotate is not None:
            q, k = rotate(q), rotate(k)
        return self.merge(attention(q, k, v, mask, causal))  # (n L E)


class SpatialAttention(nn.Module):
    """Attention among the h·w pixels of each frame; no frame sees another.

    Returns a branch: the residual is the caller's, `x = x + spatial(x)`.

    Args:
        width: channels E.
        heads: number of heads N, a divisor of E (else a ValueError).
        grid: height h and width w of the latent grid, both at least 1 (likewise).
    """

    def __init__(self, width: int, heads: int, grid: tuple[int, int]):
        super().__init__()
        self.grid = check_wholes(grid, "grid", count=2)
        check_whole(width, "width")
        self.norm = RMSNorm(width)
        self.conv = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.rows = nn.Parameter(0.2 * torch.randn(grid[0], width))
        self.columns = nn.Parameter(0.2 * torch.randn(grid[1], width))
        self.attend = MultiHeadAttention(width, heads)

    def pixels(self, x: Float[Tensor, "B T h w E"]) -> Float[Tensor, "B*T h*w E"]:
        """One sequence of h·w pixels per frame; each knows its neighbours and place."""
        if tuple(x.shape[2:4]) != self.grid:
            raise ValueError(
                f"x must have grid {self.grid}, got shape {tuple(x.shape)}"
            )
        x = self.norm(x)
        frames = rearrange(x, "B T h w E -> (B T) E h w")
        x = x + rearrange(self.conv(frames), "(B T) E h w -> B T h w E", B=len(x))
        x = x + self.rows[:, None] + self.columns  # (h 1 E) + (w E) = (h w E)
        return rearrange(x, "B T h w E -> (B T) (h w) E")

    def forward(self, x: Float[Tensor, "B T h w E"]) -> Float[Tensor, "B T h w E"]:
        """What the other pixels of a frame have to say to each, to be added to x."""
        B, _, h, w, _ = x.shape
        y = self.attend(self.pixels(x))  # (B·T h·w E)
        return rearrange(y, "(B T) (h w) E -> B T h w E", B=B, h=h, w=w)

    def weights(
        self, x: Float[Tensor, "B T h w E"]
    ) -> Float[Tensor, "B T N h w h2 w2"]:
        """How much pixel (h w) looks at pixel (h2 w2), per head: for figures."""
        B, _, h, w, _ = x.shape
        q, k, _ = self.attend.split(self.pixels(x))  # each (B·T N h·w d)
        maps = attention_weights(q, k)  # (B·T N h·w h2·w2)
        named = "(B T) N (h w) (h2 w2) -> B T N h w h2 w2"
        return rearrange(maps, named, B=B, h=h, w=w, h2=h, w2=w)
