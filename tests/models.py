"""Small random models and clips that tests share; none is square."""

import itertools
from dataclasses import replace

import pytest
import torch

from stt_lite.generation import VideoModel
from stt_lite.layer import TransformerConfig
from stt_lite.tokenizer import Tokenizer, TokenizerConfig
from stt_lite.transformer import SpatialTemporalTransformer

MODES, HEADS = ("latent", "bottleneck", "off"), ("regression", "token")
every_kind = pytest.mark.parametrize(
    "gaussian, head", list(itertools.product(MODES, HEADS))
)
SHAPE = TransformerConfig(
    latent_channels=4,
    grid=(3, 5),
    width=16,
    layers=2,
    heads=2,
    codebook_size=11,
    noise_channels=3,
)
TOKENS = TokenizerConfig(
    width=16, latent_channels=4, codebook_size=11, residual_blocks=0
)


def small_net(moved: float = 0.05, **options) -> SpatialTemporalTransformer:
    """A transformer whose zero-initialized parts have moved."""
    net = SpatialTemporalTransformer(replace(SHAPE, **options))
    for parameter in net.parameters():
        parameter.data.add_(moved * torch.randn_like(parameter))
    return net


def small_model(
    grid=(2, 3), record=None, tokenizer: dict | None = None, **options
) -> VideoModel:
    """A model of small frames, with codewords far apart, in eval mode.

    Frames, noise and predictions all make a difference.
    """
    torch.manual_seed(0)
    tokens = Tokenizer(replace(TOKENS, **tokenizer or {}))
    tokens.quantizer.codebook.normal_()
    net = small_net(0.2, grid=grid, **options)
    inject = [m.inject for m in net.modules() if hasattr(m, "inject")]
    for linear in (net.head, net.embed, *inject):
        linear.weight.data.mul_(5)
    return VideoModel(tokens, net, record).eval()


def random_clips(batch=2, frames=4, height=8, width=12) -> torch.Tensor:
    """Clips (B T 1 H W) of noise in [0, 1], always the same."""
    generator = torch.Generator().manual_seed(1)
    return torch.rand(batch, frames, 1, height, width, generator=generator)
