# Made from notebooks/09_training.ipynb by "make extract".
"""Optimizer: Muon for matrices, AdamW for the rest; schedule. Built in chapter 09."""

import math
from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.adamw import adamw

__all__ = ["MuonAdamW", "learning_rate", "moving_average", "orthogonalize"]


def orthogonalize(
    update: Float[Tensor, "n a b"], steps: int = 5
) -> Float[Tensor, "n a b"]:
    """The nearest matrices whose singular values are all about 1.

    A Newton-Schulz iteration (Jordan et al., 2024); under autocast in half precision,
    which is enough. Singular values above 0.0015 of the matrix's Frobenius norm end
    between 0.68 and 1.21; smaller ones would need more steps.
    """
    tall = update.shape[1] > update.shape[2]
    x = update.mT if tall else update
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # no value above 1
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


class MuonAdamW(torch.optim.Optimizer):
    """Muon for the layers' matrices, AdamW for everything else.

    Muon (Jordan et al., 2024) is momentum whose step is orthogonalized, so that it
    moves a matrix equally far in all of its directions.

    Args:
        matrices: parameters of two dimensions for Muon; may be empty.
        others: parameters for AdamW: embeddings, norms, convolutions, the head.
        muon_rate, adamw_rate: peak learning rates.
        momentum: Muon's share of the old average, in [0, 1).
        betas: AdamW's.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        muon_rate: float = 0.02,
        adamw_rate: float = 2e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
    ):
        def group(params, rate, muon):
            return {"params": list(params), "lr": rate, "peak": rate, "muon": muon}

        groups = [group(others, adamw_rate, False), group(matrices, muon_rate, True)]
        defaults = {"momentum": momentum, "betas": betas}
        super().__init__([g for g in groups if g["params"]], defaults)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            for p in params:
                if not self.state[p]:
                    self.state[p]["average"] = torch.zeros_like(p)
                    if not group["muon"]:
                        self.state[p]["square"] = torch.zeros_like(p)
                        self.state[p]["step"] = torch.zeros(())
            if group["muon"]:
                self.muon(params, group)
            elif params:
                self.adamw(params, group)

    def adamw(self, params: list[nn.Parameter], group: dict) -> None:
        """One step of Adam (Kingma & Ba, 2015) on all parameters at once."""
        state = [self.state[p] for p in params]
        adamw(
            params,
            [p.grad for p in params],
            [s["average"] for s in state],
            [s["square"] for s in state],
            [],
            [s["step"] for s in state],
            foreach=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )

    def muon(self, params: list[nn.Parameter], group: dict) -> None:
        """One step of Muon; matrices of one shape go through together."""
        momentum = group["momentum"]
        for shape in {p.shape for p in params}:
            same = [p for p in params if p.shape == shape]
            averages = [self.state[p]["average"] for p in same]
            for p, average in zip(same, averages, strict=True):
                average.lerp_(p.grad, 1 - momentum)
            update = [  # Nesterov's: the average, one step ahead
                p.grad.lerp(average, momentum)
                for p, average in zip(same, averages, strict=True)
            ]
            rate = group["lr"] * math.sqrt(max(1, shape[0] / shape[1]))
            changes = orthogonalize(torch.stack(update))
            for p, change in zip(same, changes, strict=True):
                p.sub_(change, alpha=rate)


def learning_rate(
    progress: float,
    schedule: str = "wsd",
    decay_share: float = 0.2,
    warmup: float = 0.02,
) -> float:
    """Factor on the peak learning rate at `progress`, from 0 to 1 of the budget.

    Args:
        schedule: after a line up to 1: "wsd", stable at 1, and in the last
            `decay_share` down to 0 as 1 - sqrt (Hägele et al., 2024, Section 4); or
            "cosine", half a cosine down to 0.01.
        decay_share, warmup: shares of the run, in (0, 1).
    """
    if progress < warmup:
        return progress / warmup
    if schedule == "wsd":
        decayed = max(0.0, progress - (1 - decay_share)) / decay_share  # 0 to 1
        return 1 - math.sqrt(decayed)
    angle = math.pi * (progress - warmup) / (1 - warmup)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(angle))


def moving_average(decay: float) -> Callable:
    """How `torch.optim.swa_utils.AveragedModel` updates its weights.

    At first the average follows the model more closely than `decay` says.
    """

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor) -> None:
        weight = 1 - ((1 + count) / (10 + count)).clamp(max=decay)
        for old, new in zip(averaged, current, strict=True):
            old.lerp_(new, weight.to(old.dtype))

    return update
