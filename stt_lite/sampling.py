# Made from notebooks/08_generation.ipynb by "make extract".
"""Sampling: how chance comes in, and the one rollout that all others use."""

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stt_lite.temporal_attention import KeyValueCache, rotary
from stt_lite.tokenizer import Tokenizer
from stt_lite.transformer import SpatialTemporalTransformer
from stt_lite.video import (
    check_number,
    check_shape,
    check_tensor,
    check_type,
    check_whole,
    full_precision,
    new_generator,
)

__all__ = [
    "Sampling",
    "continued",
    "draw_tokens",
    "keep_start",
    "prefill",
    "rollout",
    "snap",
]


@dataclass(frozen=True)
class Sampling:
    """How new frames are drawn; ValueError: a number out of range.

    Args:
        temperature: factor on the standard deviation of what is drawn; a token head's
            logits are divided by it. 0 leaves nothing to chance, and shows the mean
            that a regression head predicts instead of its nearest codewords.
        top_k: draw among the k likeliest tokens only; for a token head.
        seed: of at most 64 bits; the same one gives the same futures. None takes
            torch's global generator.
        window: slots of the cache, the start token's included; None: as many frames
            as training saw at once.
    """

    temperature: float = 1.0
    top_k: int | None = None
    seed: int | None = None
    window: int | None = None

    def __post_init__(self):
        t = check_number(self.temperature, "temperature")
        object.__setattr__(self, "temperature", t)
        for name in ("top_k", "window"):
            if getattr(self, name) is not None:
                check_whole(getattr(self, name), name)
        if self.seed is not None:
            new_generator(self.seed)


def snap(
    tokenizer: Tokenizer, prediction: Float[Tensor, "B D_or_K h w"], head: str
) -> Float[Tensor, "B D h w"]:
    """The codewords of a prediction: the nearest ones, or a token head's likeliest."""
    if head == "token":
        return tokenizer.codes(prediction.argmax(1))
    return tokenizer.quantize(prediction)[0]


def draw_tokens(
    logits: Float[Tensor, "B K h w"],
    sampling: Sampling,
    generators: list[torch.Generator],
) -> Float[Tensor, "B K h w"]:
    """Scores whose largest is a draw from softmax(logits / temperature).

    The largest after Gumbel noise is one (Gumbel, 1954); each row's noise comes from
    its own generator.
    """
    logits = full_precision(logits)
    if sampling.top_k is not None:
        k = min(sampling.top_k, logits.shape[1])
        least = logits.topk(k, dim=1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    shape = logits.shape[1:]
    # Minus the log of an exponential draw is Gumbel noise.
    draws = [torch.empty(shape).exponential_(generator=g) for g in generators]
    return logits / sampling.temperature - torch.stack(draws).log().to(logits)


def keep_start(cache: tuple[KeyValueCache, ...]) -> tuple[KeyValueCache, ...]:
    """Copy the start token from slot 0 over slot 1: the next step drops slot 0.

    Without their start token rollouts drift and fade (Xiao et al., 2024). Its keys turn
    one frame on, so that it stays as far back as the cache reaches.
    """
    after = []
    for keys, values, frames in cache:  # keys and values (n N W d)
        one = torch.ones(1, device=keys.device)
        start = rotary(keys[:, :, :1], one)
        keys = torch.cat([keys[:, :, :1], start, keys[:, :, 2:]], dim=2)
        start = values[:, :, :1]
        values = torch.cat([start, start, values[:, :, 2:]], dim=2)
        after.append(KeyValueCache(keys, values, frames))
    return tuple(after)


@torch.no_grad()
def prefill(
    net: SpatialTemporalTransformer,
    latents: Float[Tensor, "B T D h w"],
    slots: int,
    noise: Iterator[Float[Tensor, "B L hP wP Z"]],
    temperature: float = 1.0,
    condition: Float[Tensor, "B T E"] | None = None,
) -> tuple[KeyValueCache, ...]:
    """Read a prompt: the cache that knows all of its frames but the newest.

    What finds no slot is read frame by frame, while the oldest make way. `noise` gives
    one draw for each frame; `condition` is of the prompt's frames.
    """
    T = min(latents.shape[1], slots)
    together = torch.stack([next(noise) for _ in range(T)], dim=1)
    first = None if condition is None else condition[:, :T]
    cache = net.prefill(latents[:, :T], slots, together, temperature, first)
    for t in range(T, latents.shape[1]):
        cache = keep_start(cache) if slots > 1 else cache
        before, now = latents[:, t - 1], latents[:, t]  # known: z is the posterior's
        leads = None if condition is None else condition[:, t]
        _, cache = net.step(before, cache, next(noise), now, temperature, leads)
    return cache


@torch.no_grad()
def rollout(
    net: SpatialTemporalTransformer,
    tokenizer: Tokenizer,
    latent: Float[Tensor, "B D h w"],
    cache: tuple[KeyValueCache, ...],
    noise: Iterable[Float[Tensor, "B L hP wP Z"]],
    sampling: Sampling = Sampling(),
    generators: list[torch.Generator] | None = None,
    conditions: Iterable[Float[Tensor, "B E"] | None] = itertools.repeat(None),
) -> Iterator[tuple[Float[Tensor, "B D h w"], Float[Tensor, "B D_or_K h w"]]]:
    """Frame after frame: yields codewords, and the prediction that they come from.

    The codewords are what the next frame is predicted from.

    Args:
        latent, cache: the newest frame, and what is known before it, from `prefill`.
        noise: one draw for each new frame; it ends the rollout.
        generators: one for each row, to draw a token head's tokens; None takes the
            likeliest.
        conditions: of each new frame, asked for when it is due.

    Raises:
        TypeError, ValueError: an argument of another type or shape, a prediction that
            is not finite.
        RuntimeError, IndexError: noise of another shape.
    """
    check_type(net, SpatialTemporalTransformer, "net")
    check_type(tokenizer, Tokenizer, "tokenizer")
    check_type(sampling, Sampling, "sampling")
    for layer in cache or (None,):
        check_type(layer, KeyValueCache, "each of cache")
    check_shape(latent, "latent", "B D h w", D=net.config.latent_channels)
    head, slots = net.config.head, cache[0].keys.shape[2]
    temperature, known = sampling.temperature, int(cache[0].frames)
    for t, (draw, condition) in enumerate(zip(noise, conditions), start=known):
        check_type(draw, Tensor, "each of noise")
        if t >= slots > 1:  # the cache is full
            cache = keep_start(cache)
        prediction, cache = net.step(latent, cache, draw, None, temperature, condition)
        check_tensor(prediction, f"prediction of frame {t}", "B C h w")
        if head == "token" and generators and temperature > 0:
            prediction = draw_tokens(prediction, sampling, generators)
        latent = snap(tokenizer, prediction, head)
        yield latent, prediction


def continued(
    net: SpatialTemporalTransformer,
    tokenizer: Tokenizer,
    latents: Float[Tensor, "B T D h w"],
    prompt: int,
    noise: Float[Tensor, "B T L hP wP Z"],
    temperature: float = 1.0,
    condition: Float[Tensor, "B T E"] | None = None,
) -> Float[Tensor, "B T D h w"]:
    """The first `prompt` frames as they are, all later ones from the model itself."""
    T, given, sampling = latents.shape[1], latents[:, :prompt], Sampling(temperature)
    before, after = None, [None] * (T - prompt)
    if condition is not None:
        before, after = condition[:, :prompt], condition[:, prompt:].unbind(1)
    draws = iter(noise.unbind(1))  # prefill takes the first ones, rollout the rest
    cache = prefill(net, given, T, draws, temperature, before)
    start = given[:, -1], cache, draws
    new = rollout(net, tokenizer, *start, sampling, conditions=after)
    return torch.stack([*given.unbind(1), *(frame for frame, _ in new)], dim=1)
