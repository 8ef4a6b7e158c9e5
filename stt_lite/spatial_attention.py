# Extracted from notebooks/04_spatial_attention.ipynb by "make extract": edit the notebook, not this file.
"""Spatial attention: every latent pixel looks at all pixels of its own frame. Built in chapter 04."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

__all__ = ["MultiHeadAttention", "RMSNorm", "SpatialAttention", "attention", "attention_weights"]


def _with_triangle(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """`mask` and the causal triangle, query i looks at keys 0 to i, in one; ValueError where that makes no sense."""
    if q.shape[2] != k.shape[2]:
        raise ValueError(f"causal needs as many queries as keys, got {q.shape[2]} and {k.shape[2]}: pass a mask")
    triangle = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    return triangle[None, None] if mask is None else triangle & mask


def attention_weights(
    q: Float[Tensor, "n N Lq d"],
    k: Float[Tensor, "n N Lk d"],
    mask: Bool[Tensor, "#n #N #Lq #Lk"] | None = None,
    causal: bool = False,
) -> Float[Tensor, "n N Lq Lk"]:
    """How much each query looks at each key: softmax(q·k / sqrt(d)), Vaswani et al. (2017), Equation 1.

    The explicit form, for figures and tests: it keeps all Lq·Lk weights in memory, which `attention` avoids.

    Args:
        q, k: queries and keys of n sequences and N heads, d channels each.
        mask: True where a query may look, at one key or more (with `causal`: of keys 0 to i); broadcast to (n N Lq Lk). None:
            everywhere.
        causal: query i looks at keys 0 to i only.

    Returns:
        Weights in [0, 1]; each row sums to 1.

    Raises:
        ValueError: causal, and the number of queries differs from the number of keys.
    """
    mask = _with_triangle(q, k, mask) if causal else mask
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return scores.softmax(dim=-1)


BATCH_LIMIT = 65_535  # sequences per call: CUDA starts at most so many blocks along its third axis
SHORT = 128  # keys: up to so many, a CPU is faster in half precision where the weights are written out


def attention(
    q: Float[Tensor, "n N Lq d"],
    k: Float[Tensor, "n N Lk d"],
    v: Float[Tensor, "n N Lk d"],
    mask: Bool[Tensor, "#n #N #Lq #Lk"] | None = None,
    causal: bool = False,
    dropout: float = 0.0,
) -> Float[Tensor, "n N Lq d"]:
    """Average of the values, weighted by `attention_weights`, for any number n of sequences.

    `torch.nn.functional.scaled_dot_product_attention` (FlashAttention, Dao et al., 2022, where the device has it)
    takes at most 65,535 sequences on CUDA; more go through it in several parts. On a CPU, in half precision, sequences of
    at most `SHORT` keys are written out instead, which is faster there.

    Args:
        q, k, v: queries, keys and values of n sequences and N heads, d channels each.
        mask: True where a query may look, at one key or more (with `causal`: of keys 0 to i); broadcast to (n N Lq Lk). None:
            everywhere.
        causal: query i looks at keys 0 to i only.
        dropout: share of the weights to drop, in [0, 1). Dropped whenever above 0: pass 0 in evaluation.

    Raises:
        ValueError: causal, and the number of queries differs from the number of keys.
    """
    if q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.float16) and k.shape[2] <= SHORT:
        return F.dropout(attention_weights(q, k, mask, causal), dropout) @ v
    if causal and (mask is not None or q.shape[2] != k.shape[2]):
        mask, causal = _with_triangle(q, k, mask), False

    def fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal)

    if len(q) <= BATCH_LIMIT:
        return fused(q, k, v, mask)
    parts = [t.split(BATCH_LIMIT) for t in (q, k, v)]
    one_mask = mask is None or len(mask) == 1
    masks = [mask] * len(parts[0]) if one_mask else mask.split(BATCH_LIMIT)
    return torch.cat([fused(*part) for part in zip(*parts, masks)])


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean(x²) + eps) over the last dimension, times a learned gain (Zhang & Sennrich, 2019)."""

    def __init__(self, width: int, eps: float = 1e-6):
        super().__init__(width, eps=eps)

    def forward(self, x: Float[Tensor, "*shape E"]) -> Float[Tensor, "*shape E"]:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps).to(x.dtype)


class MultiHeadAttention(nn.Module):
    """Self-attention with several heads over sequences (Vaswani et al., 2017, Section 3.2.2).

    With `qk_norm` each head's queries and keys are RMS-normalized, with a learned gain per channel, so that no score
    exceeds sqrt(d) times the product of the largest gains, however large the input (Henry et al., 2020; Dehghani et
    al., 2023).
    Without it the layer equals `torch.nn.MultiheadAttention`.

    Args:
        width: channels E.
        heads: number of heads N; each has d = E / N channels.
        qk_norm: normalize queries and keys.
        dropout: share of the attention weights dropped in training, in [0, 1).

    Raises:
        ValueError: heads that do not divide width, or dropout out of range.
    """

    def __init__(self, width: int, heads: int, qk_norm: bool = True, dropout: float = 0.0):
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"heads must be at least 1 and divide width = {width}, got {heads}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_q = RMSNorm(width // heads) if qk_norm else nn.Identity()
        self.norm_k = RMSNorm(width // heads) if qk_norm else nn.Identity()

    def split(self, x: Float[Tensor, "n L E"]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of every head, each (n N L d)."""
        q, k, v = rearrange(self.qkv(x), "n L (three N d) -> three n N L d", three=3, N=self.heads)
        return self.norm_q(q), self.norm_k(k), v

    def merge(self, y: Float[Tensor, "n N L d"]) -> Float[Tensor, "n L E"]:
        """The heads' outputs side by side, mixed by the output projection."""
        return self.out(rearrange(y, "n N L d -> n L (N d)"))

    def forward(
        self,
        x: Float[Tensor, "n L E"],
        mask: Bool[Tensor, "#n #N #L #L"] | None = None,
        causal: bool = False,
        rotate: Callable[[Tensor], Tensor] | None = None,
    ) -> Float[Tensor, "n L E"]:
        """Attention among the L elements of each sequence; mask and causal as in `attention`.

        `rotate` is applied to queries and to keys (n N L d); chapter 05 passes rotary positions.
        """
        q, k, v = self.split(x)
        if rotate is not None:
            q, k = rotate(q), rotate(k)
        return self.merge(attention(q, k, v, mask, causal, self.dropout if self.training else 0.0))


class SpatialAttention(nn.Module):
    """Attention among the h·w pixels of each frame; no frame sees another.

    Pre-norm: normalize, look at the neighbours (a depthwise 3x3 convolution), add learned row and column positions,
    attend. The residual is the caller's: `x = x + spatial(x)`.

    Args:
        width: channels E.
        heads: number of heads N.
        grid: height h and width w of the latent grid.
        qk_norm, dropout: as in `MultiHeadAttention`.
        conv: the depthwise convolution, which tells a pixel its neighbourhood before it asks (Chu et al., 2021).

    Raises:
        ValueError: heads that do not divide width, dropout out of range, or an empty grid.
    """

    def __init__(
        self, width: int, heads: int, grid: tuple[int, int], qk_norm: bool = True, dropout: float = 0.0,
        conv: bool = True,
    ):  # fmt: skip
        super().__init__()
        if min(grid) < 1:
            raise ValueError(f"grid must be (h, w), both at least 1, got {grid}")
        self.grid = tuple(grid)
        self.norm = RMSNorm(width)
        self.conv = nn.Conv2d(width, width, 3, padding=1, groups=width) if conv else None
        self.rows = nn.Parameter(0.2 * torch.randn(grid[0], width))
        self.columns = nn.Parameter(0.2 * torch.randn(grid[1], width))
        self.attend = MultiHeadAttention(width, heads, qk_norm, dropout)

    def _pixels(self, x: Float[Tensor, "B T h w E"]) -> Float[Tensor, "B*T h*w E"]:
        """What attention works on: one sequence of h·w pixels per frame."""
        if tuple(x.shape[2:4]) != self.grid:
            raise ValueError(f"x must have shape (B T h w E) with grid (h, w) = {self.grid}, got {tuple(x.shape)}")
        x = self.norm(x)
        if self.conv is not None:
            frames = rearrange(x, "B T h w E -> (B T) E h w")
            x = x + rearrange(self.conv(frames), "(B T) E h w -> B T h w E", B=len(x))
        x = x + self.rows[:, None] + self.columns  # (h 1 E) + (w E): every pixel its row's and its column's vector
        return rearrange(x, "B T h w E -> (B T) (h w) E")

    def forward(self, x: Float[Tensor, "B T h w E"]) -> Float[Tensor, "B T h w E"]:
        """The branch's output, to be added to `x`.

        Raises:
            ValueError: x of another grid.
        """
        B, _, h, w, _ = x.shape
        return rearrange(self.attend(self._pixels(x)), "(B T) (h w) E -> B T h w E", B=B, h=h, w=w)

    def weights(self, x: Float[Tensor, "B T h w E"]) -> Float[Tensor, "B T N h w h2 w2"]:
        """How much each pixel (h w) looks at each pixel (h2 w2) of its frame, per head: for figures."""
        B, _, h, w, _ = x.shape
        q, k, _ = self.attend.split(self._pixels(x))
        maps = attention_weights(q, k)
        return rearrange(maps, "(B T) N (h w) (h2 w2) -> B T N h w h2 w2", B=B, h=h, w=w, h2=h, w2=w)
