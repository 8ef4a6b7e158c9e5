"""Tokens of a frame in several passes, surest first (MaskGIT, Chang et al., 2022).

A world whose transformer also sees those tokens of the frame it predicts that are drawn
already; how it learns that, and how it draws. `keep_ball.py` asks what it is worth.
"""

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stt_lite.contexts import ContextObjective
from stt_lite.generation import VideoModel
from stt_lite.sampling import keep_start, prefill
from stt_lite.transformer import SpatialTemporalTransformer, prediction_error


class MaskedTransformer(SpatialTemporalTransformer):
    """Also sees those tokens of the frame it predicts that are drawn already."""

    revealed: Float[Tensor, "B T D1 h w"] | None = None  # codewords, and where they are

    def __init__(self, config):
        super().__init__(config)
        channels = (config.latent_channels + 1) * config.patch**2
        self.now = nn.Linear(channels, config.width, bias=False)

    def run_layers(self, x, *rest, **options):
        if self.revealed is not None:
            P = self.config.patch
            parts = "B T D (h p) (w q) -> B T h w (D p q)"
            x = x + self.now(rearrange(self.revealed, parts, p=P, q=P))
        return super().run_layers(x, *rest, **options)


def reveal(
    latents: Float[Tensor, "B T D h w"], known: Bool[Tensor, "B T h w"]
) -> Float[Tensor, "B T D1 h w"]:
    """Codewords where they are known, 0 elsewhere, and a channel that says where."""
    known = known[:, :, None]
    return torch.cat([torch.where(known, latents, 0), known.to(latents)], dim=2)


class MaskObjective(ContextObjective):
    """Tokens of a frame from some of the others (Chang et al., 2022, Section 3.1)."""

    def prepare(self, batch, step) -> dict:
        prepared = super().prepare(batch, step)
        indices, g = prepared["indices"], step.on_device
        u = torch.rand(indices.shape[:2], generator=g)
        chance = torch.rand(indices.shape, generator=g)
        share = torch.cos(math.pi / 2 * u)  # most frames are mostly hidden
        return prepared | {"hidden": chance < share[:, :, None, None]}

    def forward(
        self, clips, context, target, indices, noise, known, actions, hidden
    ) -> tuple[Tensor, dict]:
        self.model.revealed = reveal(target, ~hidden)
        out = self.model(context, noise=noise, condition=self.condition(actions))
        self.model.revealed = None
        weight = torch.ones_like(indices, dtype=torch.float32)
        weight[:, 1:] += self.config.moving * (indices[:, 1:] != indices[:, :-1])
        error = prediction_error(out.prediction, indices, weight=weight * hidden)
        share = hidden.float().mean()  # a hidden token counts as much as elsewhere
        loss = error.mean() / (share * target[0, 0, 0].numel())
        return loss, {"latents": error.mean().detach()}


@dataclass(frozen=True)
class Draw:
    """How tokens are drawn: temperatures of z and of the tokens, and passes."""

    z: float = 0.0
    tokens: float = 0.0
    passes: int = 1
    posterior: bool = False  # z has seen the frame to predict; for one step only

    def __str__(self) -> str:
        z = "posterior" if self.posterior else f"{self.z:g}"
        return f"z {z}, tokens {self.tokens:g}, passes {self.passes}"


def in_passes(model: VideoModel, predict, how: Draw, g) -> tuple[Tensor, object]:
    """Codewords (B T D h w) of what `predict` gives logits (B T K h w) and more for.

    Each pass draws all tokens that are not known yet and keeps the surest; how many it
    leaves hidden falls as a cosine.
    """
    net, tokens, known = model.transformer, None, None
    for i in range(1, how.passes + 1):
        logits, rest = predict()
        scores = logits
        if how.tokens:
            gumbel = -torch.empty_like(logits).exponential_(generator=g).log()
            scores = logits / how.tokens + gumbel
        drawn = scores.argmax(2)  # (B T h w)
        sure = logits.log_softmax(2).gather(2, drawn[:, :, None])[:, :, 0]
        if known is not None:
            drawn = torch.where(known, tokens, drawn)
            sure = torch.where(known, math.inf, sure)
        tokens, sure = drawn, sure.flatten(2)
        hidden = math.cos(math.pi / 2 * i / how.passes)
        count = max(1, round((1 - hidden) * sure.shape[2]))
        best = sure.topk(count, dim=2).indices
        known = torch.zeros_like(sure, dtype=torch.bool).scatter(2, best, True)
        known = known.view_as(tokens)
        codewords = model.tokenizer.codes(tokens.flatten(0, 1))
        codewords = codewords.unflatten(0, tokens.shape[:2])
        if i < how.passes:
            net.revealed = reveal(codewords, known)
    net.revealed = None
    return codewords, rest


@torch.no_grad()
def rolled(model: VideoModel, clips, actions, how: Draw, seed: int = 0) -> Tensor:
    """The frames (B new C H W) that follow clips (B T C H W), keys (B T + new)."""
    net, g = model.transformer, torch.Generator().manual_seed(seed)
    (B, T), slots = clips.shape[:2], model.trained_frames
    latents, leads = model.tokens(clips), net.actions(actions)
    noise = iter(lambda: net.draw_noise(B, 1, g)[:, 0], None)
    cache = prefill(net, latents, slots, noise, how.z, leads[:, :T])
    latent, frames = latents[:, -1], []
    for t in range(T, actions.shape[1]):
        before = keep_start(cache) if t >= slots else cache
        rest = (next(noise), None, how.z, leads[:, t])

        def predict():
            logits, after = net.step(latent, before, *rest)
            return logits[:, None], after

        codewords, cache = in_passes(model, predict, how, g)
        latent = codewords[:, 0]
        frames.append(model.tokenizer.decode(latent))
    return torch.stack(frames, dim=1)
