"""The graphs of a model that a page runs: modules that `torch.onnx` can export.

`Encode` (a frame to latents), `Step` (one frame on) and `Decode` (latents to a frame);
book/browser.py writes them, book/js/world.js runs them.
"""

import copy

import torch
from torch import Tensor, nn

import stt_lite as stt
from stt_lite.gaussian import reparameterize
from stt_lite.sampling import keep_start
from stt_lite.spatial_attention import attention_weights
from stt_lite.temporal_attention import KeyValueCache, rotary


def pack(cache: tuple[KeyValueCache, ...]) -> Tensor:
    """Keys and values of all layers in one tensor (L 2 n N W d), for a page to pass."""
    return torch.stack([torch.stack(layer[:2]) for layer in cache])


class EitherGaussian(nn.Module):
    """A Gaussian layer in one graph: posterior where the frame is known, else prior."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x, noise, seen, temperature) -> tuple[Tensor, Tensor]:
        here, unknown = self.layer.norm(x), seen.isnan().any()
        posterior = self.layer.posterior(torch.cat([here, seen.nan_to_num()], dim=-1))
        both = zip(self.layer.prior(here), posterior)
        normal = [torch.where(unknown, p, q) for p, q in both]
        z = reparameterize(*normal, noise, temperature)
        return x + self.layer.inject(z), x.new_zeros(x.shape[:2])


class WatchedAttention(nn.Module):
    """Attention of one frame's pixels that adds its weights (N h·w h·w) to a list."""

    def __init__(self, attention: nn.Module, seen: list[Tensor]):
        super().__init__()
        self.attention, self.note = attention, seen.append

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.attention.split(x)  # each (1 N h·w d)
        weights = attention_weights(q, k)
        self.note(weights[0])
        return self.attention.merge(weights @ v)


class WatchedTemporal(nn.Module):
    """`TemporalAttention` that adds one frame's weights (N h·w W) to a list."""

    def __init__(self, attention: nn.Module, seen: list[Tensor]):
        super().__init__()
        self.attention, self.note = attention, seen.append

    def prefill(self, x: Tensor, cache: KeyValueCache) -> tuple[Tensor, KeyValueCache]:
        attend, now = self.attention.attend, cache.frames[None]
        q, k, v = attend.split(self.attention.sequences(x))  # each (h·w N 1 d)
        cache = cache.add(rotary(k, now), v)
        mask = cache.visible(1)[None, None]
        weights = attention_weights(rotary(q, now), cache.keys, mask)  # (h·w N 1 W)
        self.note(weights[:, :, 0].transpose(0, 1))
        y = attend.merge(weights @ cache.values)  # (h·w 1 E)
        return y.view_as(x), cache


class Encode(nn.Module):
    """A frame (1 C H W) to its codewords (1 D h w).

    `Tokenizer.encode` checks values, which no graph can: so here are its two parts.
    """

    def __init__(self, model: stt.VideoModel):
        super().__init__()
        self.tokenizer = model.tokenizer

    def forward(self, frame: Tensor) -> Tensor:
        latent = self.tokenizer.quantizer.bound(self.tokenizer.encoder(frame))
        return self.tokenizer.quantize(latent)[0]


class Step(nn.Module):
    """One frame on, known or not: what `prefill` and `rollout` do, in one graph.

    NaN stands for "there is none": `latent`, the frame before, at the very start, and
    `target`, the frame itself, where it is not known but generated.
    """

    def __init__(self, model: stt.VideoModel, inside: bool = False):
        super().__init__()
        self.model = copy.deepcopy(model)
        self.seen = {"spatial": [], "temporal": []}
        for layer in self.model.transformer.layers:
            if self.model.transformer.config.gaussian == "latent":
                layer.gaussian = EitherGaussian(layer.gaussian)
            if inside:
                spatial, temporal = self.seen.values()
                attend = WatchedAttention(layer.spatial.attend, spatial)
                layer.spatial.attend = attend
                layer.temporal = WatchedTemporal(layer.temporal, temporal)

    def forward(
        self,
        latent,
        target,
        cache,
        frames,
        noise,
        temperature,
        gumbel=None,
        action=None,
    ) -> tuple[Tensor, ...]:
        """The next frame's codewords, the latents to show, and the cache after.

        With `inside` then where each layer looked: (L N h·w h·w) and (L N h·w W).
        `gumbel` (1 K h w) is the chance in a token head's draw: see `draw_tokens`.
        """
        for maps in self.seen.values():
            maps.clear()
        tokenizer, net = self.model.tokenizer, self.model.transformer
        full, packed = frames >= cache.shape[4], cache
        cache = tuple(KeyValueCache(*layer.unbind(0), frames) for layer in packed)
        packed = torch.where(full, pack(keep_start(cache)), packed)
        cache = tuple(KeyValueCache(*layer.unbind(0), frames) for layer in packed)
        before = net.to_stream(latent[:, None])
        x = torch.where(before.isnan().any(), net.start, before)
        if action is not None:
            x = x + net.actions(action)[:, None, None, None]
        seen = net.to_stream(target[:, None])
        prediction, _, cache = net.run_layers(
            x, noise[:, None], seen, temperature, cache=cache
        )
        prediction = prediction[:, 0]
        inside = [torch.stack(maps) for maps in self.seen.values() if maps]
        if net.config.head == "token":  # as `snap`, whose checks no graph can hold
            scores = prediction + temperature * gumbel
            codewords = tokenizer.quantizer.codes(scores.argmax(1)).movedim(-1, 1)
            return codewords, codewords, pack(cache), *inside
        codewords = tokenizer.quantize(prediction)[0]
        shown = torch.where(temperature == 0, prediction, codewords)  # as `generate`
        return codewords, shown, pack(cache), *inside


class Decode(nn.Module):
    """Latents (1 D h w) to the frame (1 C H W) that they stand for."""

    def __init__(self, model: stt.VideoModel):
        super().__init__()
        self.tokenizer = model.tokenizer

    def forward(self, latent: Tensor) -> Tensor:
        return self.tokenizer.decode(latent)
