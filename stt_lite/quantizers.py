# Made from notebooks/03_vq_autoencoder.ipynb by "make extract".
"""Quantizers: latents to the nearest of a few codewords. Built in chapter 03."""

import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from stt_lite.video import (
    check_number,
    check_tensor,
    check_whole,
    check_wholes,
    full_precision,
)

__all__ = [
    "QUANTIZERS",
    "FiniteScalarQuantizer",
    "Quantizer",
    "VectorQuantizer",
    "codebook_usage",
    "perplexity",
    "straight_through",
]


def straight_through(z: Tensor, codewords: Tensor) -> Tensor:
    """Forward exactly the codewords, backward the identity (Bengio et al., 2013)."""
    return codewords + (z - z.detach())


class VectorQuantizer(nn.Module):
    """A learned codebook, which follows the latents by moving averages.

    van den Oord et al. (2017), Appendix A.1; k-means at the start after Lancucki et al.
    (2020), new places for dead codewords after Dhariwal et al. (2020). In float32, also
    under autocast. All state is in buffers. Processes share one codebook.

    Args:
        codebook_size: number of codewords K.
        latent_channels: channels D of a codeword.
        decay: share of the old average kept at each update, in [0, 1).
        dead_below: a codeword used less often than this share of the average is dead:
            a latent of the batch takes its place; 0 never replaces.
        kmeans_iterations: of the first training batch; 0 keeps the random codebook.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self,
        codebook_size: int,
        latent_channels: int,
        decay: float = 0.99,
        dead_below: float = 0.1,
        kmeans_iterations: int = 10,
    ):
        super().__init__()
        self.codebook_size = check_whole(codebook_size, "codebook_size")
        check_whole(latent_channels, "latent_channels")
        self.kmeans_iterations = check_whole(kmeans_iterations, "kmeans_iterations", 0)
        self.decay = check_number(decay, "decay", most=1)
        self.dead_below = check_number(dead_below, "dead_below")
        codebook = torch.randn(codebook_size, latent_channels) / codebook_size
        self.register_buffer("codebook", codebook)  # (K D): e
        self.register_buffer("usage", torch.ones(codebook_size))  # (K): N
        self.register_buffer("total", codebook.clone())  # (K D): m
        self.register_buffer("initialized", torch.tensor(kmeans_iterations == 0))

    def bound(self, z: Float[Tensor, "B D h w"]) -> Float[Tensor, "B D h w"]:
        """As it is: the codebook goes where the latents are."""
        return z

    def nearest(self, z: Float[Tensor, "n D"]) -> Int[Tensor, "n"]:
        """Index of the nearest codeword; TypeError, ValueError: no finite latents."""
        check_tensor(z, "z", "n D", D=self.codebook.shape[1])
        return self._nearest(full_precision(z))

    def _nearest(self, z: Float[Tensor, "n D"]) -> Int[Tensor, "n"]:
        """The same without checks, in pieces whose distances fit into a cache."""
        codebook = self.codebook.to(z.dtype)
        squared = codebook.square().sum(1)  # (K)
        nearest = [
            torch.addmm(squared, piece, codebook.T, alpha=-2).argmin(1)
            for piece in z.split(2048 if z.device.type == "cpu" else 65_536)
        ]
        return torch.cat(nearest)

    def codes(self, indices: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape D"]:
        """The codewords that `indices` name; TypeError, ValueError: not in [0, K)."""
        check_tensor(indices, "indices", "...", 0, self.codebook_size - 1, whole=True)
        return full_precision(self.codebook[indices.long()])

    def forward(self, z: Float[Tensor, "B D h w"]) -> tuple[Tensor, Tensor, Tensor]:
        """Codewords, indices and commitment loss; in training the codebook follows."""
        with torch.autocast(z.device.type, enabled=False):
            z = full_precision(z).movedim(1, -1)  # (B h w D)
            flat = z.detach().flatten(0, 2)  # (n D)
            if self.training and not self.initialized:
                self._kmeans(flat)
            nearest = self._nearest if self.training else self.nearest
            indices = nearest(flat)  # in training the loss tells what is not finite
            codewords = full_precision(self.codebook[indices]).view_as(z)  # a copy
            if self.training:
                self._follow(flat, indices)
                self._revive(flat)
            commitment = F.mse_loss(z, codewords)  # a buffer: no gradient reaches it
            quantized = straight_through(z, codewords)
        return quantized.movedim(-1, 1), indices.view(z.shape[:-1]), commitment

    @torch.no_grad()
    def _follow(self, flat: Float[Tensor, "n D"], indices: Int[Tensor, "n"]) -> None:
        """One step of the moving averages."""
        count, total = self._count(flat, indices)
        self.usage.lerp_(count, 1 - self.decay)
        self.total.lerp_(total, 1 - self.decay)
        n, eps = self.usage.sum(), 1e-5  # smoothing, so that nothing is divided by 0
        smoothed = (self.usage + eps) / (n + self.codebook_size * eps) * n
        self.codebook.copy_(self.total / smoothed[:, None])

    def _count(self, flat: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """How many latents of all processes chose each codeword, and their sums."""
        ones = torch.ones_like(flat[:, 0])
        count = torch.zeros_like(self.usage).index_add_(0, indices, ones)  # (K)
        total = torch.zeros_like(self.total).index_add_(0, indices, flat)  # (K D)
        if self._shared():
            torch.distributed.all_reduce(count)  # a sum
            torch.distributed.all_reduce(total)
        return count, total

    @staticmethod
    def _shared() -> bool:
        return torch.distributed.is_available() and torch.distributed.is_initialized()

    @torch.no_grad()
    def _revive(self, flat: Float[Tensor, "n D"]) -> None:
        """Latents of the batch take the place of dead codewords."""
        average = self.usage.sum() / self.codebook_size
        dead = self.usage < self.dead_below * average
        fresh = self._random_latents(flat)  # drawn always: no branch on device data
        self.codebook.copy_(torch.where(dead[:, None], fresh, self.codebook))
        self.total.copy_(torch.where(dead[:, None], fresh * average, self.total))
        self.usage.copy_(torch.where(dead, average, self.usage))

    @torch.no_grad()
    def _kmeans(self, flat: Float[Tensor, "n D"]) -> None:
        """Start from k-means on the first batch (Lloyd's algorithm)."""
        self.codebook.copy_(self._random_latents(flat))
        for _ in range(self.kmeans_iterations):
            count, total = self._count(flat, self._nearest(flat))
            mean = total / count.clamp(min=1)[:, None]
            self.codebook.copy_(torch.where(count[:, None] > 0, mean, self.codebook))
        count, total = self._count(flat, self._nearest(flat))
        self.usage.copy_(count.clamp(min=1))
        self.total.copy_(torch.where(count[:, None] > 0, total, self.codebook))
        self.initialized.fill_(True)

    def _random_latents(self, flat: Float[Tensor, "n D"]) -> Float[Tensor, "K D"]:
        """K of the latents, drawn with replacement; the same in all processes."""
        shape = (self.codebook_size,)
        chosen = flat[torch.randint(len(flat), shape, device=flat.device)]
        if self._shared():
            torch.distributed.broadcast(chosen, src=0)
        return chosen


class FiniteScalarQuantizer(nn.Module):
    """Rounds each channel to a few levels: no codebook to learn (Mentzer et al., 2023).

    Channel i takes `levels[i]` values, evenly spaced in [-1, 1]; K is their product.

    Args:
        levels: number of levels of each channel, each at least 2, such as (8, 8, 4).

    Raises:
        ValueError: other levels, or more than 2**31 codewords.
    """

    def __init__(self, levels: tuple[int, ...]):
        super().__init__()
        levels = check_wholes(levels, "levels", least=2)
        self.codebook_size = check_whole(math.prod(levels), "levels' product", 2, 2**31)
        basis = [math.prod(levels[:i]) for i in range(len(levels))]
        self.register_buffer("levels", torch.tensor(levels), persistent=False)  # (D)
        self.register_buffer("basis", torch.tensor(basis), persistent=False)  # (D)

    def bound(self, z: Float[Tensor, "B D h w"]) -> Float[Tensor, "B D h w"]:
        """Squashed into (-1, 1), where the codewords are."""
        return full_precision(z).tanh()

    def nearest(self, z: Float[Tensor, "n D"]) -> Int[Tensor, "n"]:
        """Index of the nearest codeword; TypeError, ValueError: no finite latents."""
        check_tensor(z, "z", "n D", D=len(self.levels))
        return self._nearest(full_precision(z))

    def _nearest(self, z: Float[Tensor, "n D"]) -> Int[Tensor, "n"]:
        """The same without checks: each channel's level is a digit of the index."""
        level = ((z + 1) / 2 * (self.levels - 1)).round()
        level = level.clamp(min=0).minimum(self.levels - 1)
        return (level.long() * self.basis).sum(-1)

    def codes(self, indices: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape D"]:
        """The codewords that `indices` name; TypeError, ValueError: not in [0, K)."""
        check_tensor(indices, "indices", "...", 0, self.codebook_size - 1, whole=True)
        return self._codes(indices.long())

    def _codes(self, indices: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape D"]:
        """The same without checks."""
        level = indices[..., None] // self.basis % self.levels  # (*shape D)
        return level / (self.levels - 1) * 2 - 1

    def forward(self, z: Float[Tensor, "B D h w"]) -> tuple[Tensor, Tensor, Tensor]:
        """Codewords, indices, and a commitment loss that is always zero."""
        with torch.autocast(z.device.type, enabled=False):
            z = full_precision(z).movedim(1, -1)  # (B h w D)
            nearest = self._nearest if self.training else self.nearest
            indices = nearest(z.detach().flatten(0, 2)).view(z.shape[:-1])
            quantized = straight_through(z, self._codes(indices))
        return quantized.movedim(-1, 1), indices, z.new_zeros(())


@runtime_checkable
class Quantizer(Protocol):
    """What a tokenizer asks of a quantizer, a module with K codewords of D channels.

    `bound` takes an encoder's output into the codewords' space. There, `nearest` gives
    the index of the nearest codeword, in [0, K), `codes` the codewords of indices, and
    `forward` codewords with the gradient of `z`, indices (B h w) and a commitment loss.
    """

    codebook_size: int

    def bound(self, z: Float[Tensor, "B D h w"]) -> Float[Tensor, "B D h w"]: ...

    def nearest(self, z: Float[Tensor, "n D"]) -> Int[Tensor, "n"]: ...

    def codes(self, indices: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape D"]: ...

    def forward(self, z: Float[Tensor, "B D h w"]) -> tuple[Tensor, Tensor, Tensor]: ...


# How a tokenizer's config names and builds its quantizer: add your own
QUANTIZERS: dict[str, Callable[..., Quantizer]] = {
    "vq": lambda config: VectorQuantizer(config.codebook_size, config.latent_channels),
    "fsq": lambda config: FiniteScalarQuantizer(config.levels),
}


def codebook_usage(indices: Int[Tensor, "..."], codebook_size: int) -> float:
    """Share of the codebook that `indices` use at least once, in [0, 1]."""
    return indices.unique().numel() / codebook_size


def perplexity(indices: Int[Tensor, "..."], codebook_size: int) -> float:
    """Effective number of codewords: exp of the entropy of their frequencies."""
    p = torch.bincount(indices.flatten(), minlength=codebook_size).cpu().double()
    return torch.special.entr(p / p.sum()).sum().exp().item()
