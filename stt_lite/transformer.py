# Made from notebooks/07_transformer.ipynb by "make extract".
"""The whole model: each frame's latents from those of all frames before it."""

import os
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from stt_lite.files import load_weights, save_weights
from stt_lite.layer import TransformerConfig, TransformerLayer, transformer_config
from stt_lite.spatial_attention import RMSNorm
from stt_lite.temporal_attention import KeyValueCache, padding_mask
from stt_lite.video import check_shape, check_type, check_whole

__all__ = [
    "SpatialTemporalTransformer",
    "TransformerOutput",
    "count_flops",
    "count_parameters",
    "load_transformer",
    "prediction_error",
    "save_transformer",
]


class TransformerOutput(NamedTuple):
    """What `SpatialTemporalTransformer` returns; place t is about frame t."""

    prediction: Float[Tensor, "B T D_or_K h w"]  # from frames before t
    kl: Float[Tensor, "B T L"]  # nats per frame and layer; 0 for padding


class SpatialTemporalTransformer(nn.Module):
    """Predicts each frame's latents from those of all frames before it.

    TypeError: a config that is none.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        check_type(config, TransformerConfig, "config")
        c = self.config = config
        self.embed = nn.Linear(c.latent_channels * c.patch**2, c.width)
        self.start = nn.Parameter(0.02 * torch.randn(c.width))  # "before frame 0"
        self.layers = nn.ModuleList(TransformerLayer(c) for _ in range(c.layers))
        self.norm = RMSNorm(c.width)
        self.head = nn.Linear(c.width, c.out_channels * c.patch**2)
        self.actions = nn.Embedding(c.actions, c.width) if c.actions else None

    def to_stream(
        self,
        latents: Float[Tensor, "B T D h w"],
        real: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T hP wP E"]:
        """Each patch of latents as one vector of the stream; padding as zeros."""
        latents = latents.detach()  # the tokenizer does not learn from the predictor
        if real is not None:  # where, not times: what is padding may be NaN
            latents = torch.where(real[:, :, None, None, None], latents, 0)
        P = self.config.patch
        patches = rearrange(latents, "B T D (h p) (w q) -> B T h w (D p q)", p=P, q=P)
        return self.embed(patches.to(self.start.dtype))  # any precision comes in

    def from_stream(
        self, x: Float[Tensor, "B T hP wP E"]
    ) -> Float[Tensor, "B T D_or_K h w"]:
        """What the head makes of each vector, put back into its patch."""
        P = self.config.patch
        patches = self.head(self.norm(x))
        return rearrange(patches, "B T h w (D p q) -> B T D (h p) (w q)", p=P, q=P)

    def shift(
        self,
        frames: Float[Tensor, "B T hP wP E"],
        condition: Float[Tensor, "B T E"] | None,
    ) -> Float[Tensor, "B T hP wP E"]:
        """Place t holds frame t - 1, place 0 the start token; plus the condition."""
        start = self.start.to(frames.dtype).expand_as(frames[:, :1])
        x = torch.cat([start, frames[:, :-1]], dim=1)
        if condition is None:
            return x
        return x + condition[:, :, None, None].to(self.start.dtype)

    def run_layers(self, x, noise, seen, temperature, lengths=None, cache=None):
        """All layers: prediction (B T D_or_K h w), KL (B T L), and the cache after."""
        kls, after = [], []
        for i, layer in enumerate(self.layers):
            known = None if cache is None else cache[i]
            x, kl, known = layer(x, noise[:, :, i], seen, temperature, lengths, known)
            kls.append(kl)
            after.append(known)
        return self.from_stream(x), torch.stack(kls, dim=-1), tuple(after)

    def draw_noise(
        self, batch: int, frames: int, generator: torch.Generator | None = None
    ) -> Float[Tensor, "B T L hP wP Z"]:
        """Draws from N(0, 1): by the frame or at once, one generator gives the same."""
        c, device = self.config, self.start.device
        channels = {"off": 0, "bottleneck": c.width, "latent": c.noise_channels}
        shape = (batch, c.layers, *c.stream_grid, channels[c.gaussian])
        source = device if generator is None else generator.device
        draws = [
            torch.randn(shape, generator=generator, device=source)
            for _ in range(frames)
        ]
        return torch.stack(draws, dim=1).to(device)

    def empty_cache(self, batch: int, slots: int) -> tuple[KeyValueCache, ...]:
        """One cache per layer, for `batch` clips and `slots` frames."""
        grid = self.config.stream_grid
        return tuple(
            layer.temporal.empty_cache(batch, grid, slots) for layer in self.layers
        )

    def check_latents(self, latents: Tensor) -> None:
        """TypeError or ValueError unless latents are (B T D h w) as the config says."""
        D, (h, w) = self.config.latent_channels, self.config.grid
        check_shape(latents, "latents", "B T D h w", D=D, h=h, w=w)

    def forward(
        self,
        latents: Float[Tensor, "B T D h w"],
        lengths: Int[Tensor, "B"] | None = None,
        noise: Float[Tensor, "B T L hP wP Z"] | None = None,
        posterior: bool | int | None = None,
        temperature: float = 1.0,
        target: Float[Tensor, "B T D h w"] | None = None,
        condition: Float[Tensor, "B T E"] | None = None,
    ) -> TransformerOutput:
        """Predict all frames of known clips at once, each from the frames before it.

        Args:
            latents: the tokenizer's latents.
            lengths: real frames of each clip, 1 to T, padding at the end; None: all.
            noise: from `draw_noise`; None draws it from torch's global generator.
            posterior: how many first frames z may see, in mode "latent": True all,
                False or 0 none (the prior draws), a number as many as a prompt has;
                after them z is the prior's mean. None: True in training only.
            temperature: factor on the standard deviation of what is drawn.
            target: what the posterior sees, where `latents` are not the true ones.
            condition: added to the stream where frame t is predicted, such as an
                embedding of the action that leads to it.

        Raises:
            TypeError, ValueError: latents or target of another type or shape.
        """
        self.check_latents(latents)
        if target is not None and target.shape != latents.shape:
            shape = tuple(latents.shape)
            raise ValueError(
                f"target must have latents' shape, {shape}, got {tuple(target.shape)}"
            )
        B, T = latents.shape[:2]
        real = None if lengths is None else padding_mask(lengths, T)
        frames = truth = self.to_stream(latents, real)  # (B T hP wP E)
        if target is not None:
            truth = self.to_stream(target, real)
        posterior = self.training if posterior is None else posterior
        known = T if posterior is True else int(posterior)
        seen = truth[:, :known] if known else None
        noise = self.draw_noise(B, T) if noise is None else noise
        x = self.shift(frames, condition)
        prediction, kl, _ = self.run_layers(x, noise, seen, temperature, lengths)
        if real is not None:
            kl = torch.where(real[..., None], kl, 0)
        return TransformerOutput(prediction, kl)

    def step(
        self,
        latent: Float[Tensor, "B D h w"] | None,
        cache: tuple[KeyValueCache, ...],
        noise: Float[Tensor, "B L hP wP Z"] | None = None,
        target: Float[Tensor, "B D h w"] | None = None,
        temperature: float = 1.0,
        condition: Float[Tensor, "B E"] | None = None,
    ) -> tuple[Float[Tensor, "B D_or_K h w"], tuple[KeyValueCache, ...]]:
        """One frame on: the prediction of the next frame, and the cache after.

        In evaluation mode, and with `noise` passed, a pure function.

        Args:
            latent: the newest frame; None at the very start.
            noise, temperature, condition: as in `forward`, of the frame to predict.
            target: the frame to predict, where it is known, as in a prompt: z is then
                drawn from the posterior, and tells later frames what happened.
        """
        h, w = self.config.stream_grid
        B = len(cache[0].keys) // (h * w)
        if latent is None:
            x = self.start.expand(B, 1, h, w, -1)
        else:
            x = self.to_stream(latent[:, None])  # (B 1 hP wP E)
        if condition is not None:
            x = x + condition[:, None, None, None].to(self.start.dtype)
        noise = self.draw_noise(B, 1) if noise is None else noise[:, None]
        seen = None if target is None else self.to_stream(target[:, None])
        prediction, _, cache = self.run_layers(x, noise, seen, temperature, cache=cache)
        return prediction[:, 0], cache

    def prefill(
        self,
        latents: Float[Tensor, "B T D h w"],
        slots: int,
        noise: Float[Tensor, "B T L hP wP Z"] | None = None,
        temperature: float = 1.0,
        condition: Float[Tensor, "B T E"] | None = None,
    ) -> tuple[KeyValueCache, ...]:
        """A prompt at once: the cache after T calls of `step` with known frames.

        It has `slots` >= T, and knows the start token and all frames but the newest,
        which the next step takes. In mode "latent" each z is drawn from the posterior.
        TypeError, ValueError: latents of another type or shape, or too few slots.
        """
        check_whole(slots, "slots")
        self.check_latents(latents)
        B, T = latents.shape[:2]
        frames = self.to_stream(latents)
        noise = self.draw_noise(B, T) if noise is None else noise
        cache = self.empty_cache(B, slots)
        x = self.shift(frames, condition)
        return self.run_layers(x, noise, frames, temperature, cache=cache)[2]


def prediction_error(
    prediction: Float[Tensor, "B T D_or_K h w"],
    target: Float[Tensor, "B T D h w"] | Int[Tensor, "B T h w"],
    lengths: Int[Tensor, "B"] | None = None,
    weight: Float[Tensor, "B T h w"] | None = None,
) -> Float[Tensor, "B T"]:
    """Error of each frame, 0 for padding: what training minimizes, next to the KL.

    Latents against latents: squared error, summed over the frame. Logits against
    codeword indices: cross-entropy in nats, summed. `weight` is of each latent. No
    gradient reaches the target.
    """
    prediction = prediction.float()
    if target.is_floating_point():
        error = (prediction - target.detach()).square().sum(2)  # (B T h w)
    else:
        logits = prediction.movedim(2, 1)  # (B K T h w)
        error = F.cross_entropy(logits, target, reduction="none")
    error = (error if weight is None else weight * error).sum((2, 3))
    if lengths is None:
        return error
    return torch.where(padding_mask(lengths, error.shape[1]), error, 0)


def count_parameters(config: TransformerConfig) -> int:
    """Number of parameters, without allocating them."""
    with torch.device("meta"):
        net = SpatialTemporalTransformer(config)
    return sum(p.numel() for p in net.parameters())


def count_flops(config: TransformerConfig, frames: int, posterior: bool = False) -> int:
    """Operations of `forward` per frame of a clip of so many; a multiply-add is two.

    Matrix products, convolutions and attention, as torch's `FlopCounterMode` counts
    them, on tensors without content. With `posterior`, its convolution, too.
    """
    with torch.device("meta"):
        net = SpatialTemporalTransformer(config)
        latents = torch.empty(1, frames, config.latent_channels, *config.grid)
        with FlopCounterMode(display=False) as counter:
            net(latents, posterior=posterior)
    return counter.get_total_flops() // frames


save_transformer = save_weights  # (net, path, record)


def load_transformer(
    name: str | os.PathLike, device: torch.device | str = "cpu"
) -> SpatialTemporalTransformer:
    """A bundled transformer by name, or any by its path, to evaluate.

    Raises what `load_weights` does: ValueError, FileNotFoundError, TypeError (no path)
    and RuntimeError (no device).
    """

    def build(fields):
        return SpatialTemporalTransformer(transformer_config(fields))

    return load_weights(name, "transformer", build, device)
