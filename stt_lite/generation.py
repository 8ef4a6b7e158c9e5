# Made from notebooks/08_generation.ipynb by "make extract".
"""Generation: a model that continues videos, in many ways, as long as you like."""

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from stt_lite.sampling import Sampling, prefill, rollout
from stt_lite.temporal_attention import KeyValueCache
from stt_lite.tokenizer import Tokenizer
from stt_lite.transformer import SpatialTemporalTransformer
from stt_lite.video import check_frames, check_type, check_whole

__all__ = ["VideoModel"]


CACHE_BYTES = 2**29  # keys and values that `generate` holds at once


def seeded(seeds: Int[Tensor, "n"]) -> list[torch.Generator]:
    """A generator on the CPU for each seed."""
    return [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]


def future_seeds(
    clips: int, samples: int, seed: int | None
) -> Int[Tensor, "B {1+samples}"]:
    """A seed for reading each clip's prompt, and one for each of its S futures.

    `seed` makes one for each clip, which makes the others: none depends on S.
    """
    master = None if seed is None else torch.Generator().manual_seed(int(seed))
    each = seeded(torch.randint(2**62, (clips,), generator=master))
    rows = [torch.randint(2**62, (1 + samples,), generator=g) for g in each]
    return torch.stack(rows)


def row_noise(
    net: SpatialTemporalTransformer, generators: list[torch.Generator]
) -> Iterator[Float[Tensor, "B L hP wP Z"]]:
    """Noise without end, each row from its own generator."""
    while True:
        yield torch.cat([net.draw_noise(1, 1, g)[:, 0] for g in generators])


def check_actions(actions, count: int, shape: tuple[int, ...]) -> Tensor:
    """Actions as int64 of that shape; ValueError: others, or not in [0, count)."""
    x = actions if isinstance(actions, Tensor) else torch.as_tensor(np.asarray(actions))
    if x.ndim < len(shape):  # of one clip
        x = x[None]
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise ValueError(f"actions must be whole numbers, got {x.dtype}")
    if tuple(x.shape) != shape:
        wanted = f"{shape}, one for each frame of each clip, the prompt's too"
        raise ValueError(f"actions must have shape {wanted}, got {tuple(x.shape)}")
    if x.min() < 0 or x.max() >= count:
        got = f"{int(x.min())} to {int(x.max())}"
        raise ValueError(f"actions must lie in [0, {count}), got {got}")
    return x.long()


class VideoModel(nn.Module):
    """A tokenizer and a transformer that continue videos together.

    Args:
        tokenizer, transformer: the second was trained on the first one's tokens.
        record: what was noted of the training; "data" tells of its clips.

    Raises:
        TypeError, ValueError: what are no such parts, or do not fit together.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        transformer: SpatialTemporalTransformer,
        record: dict | None = None,
    ):
        super().__init__()
        self.tokenizer, self.transformer = tokenizer, transformer
        check_type(tokenizer, Tokenizer, "tokenizer")
        check_type(transformer, SpatialTemporalTransformer, "transformer")
        self.record = {} if record is None else dict(record)
        for name in ("latent_channels", "codebook_size"):
            wanted, got = (getattr(p.config, name) for p in (tokenizer, transformer))
            if wanted != got:
                raise ValueError(
                    f"transformer must have the tokenizer's {name}, {wanted}, got {got}"
                )

    def __repr__(self) -> str:
        (h, w), K = self.transformer.config.grid, self.transformer.config.codebook_size
        frames = "{}x{}x{}, channels, height, width".format(*self.frame_shape)
        return (
            f"VideoModel {self.record.get('bundle', 'of your own')}\n"
            f"  frames: {frames}\n  tokens: {h}x{w} of {K} codewords\n"
            f"  parameters: {sum(p.numel() for p in self.parameters()):,}"
        )

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Channels, height and width (C, H, W) of the model's frames, in pixels."""
        (h, w), edge = self.transformer.config.grid, self.tokenizer.config.downsample
        return self.tokenizer.config.channels, h * edge, w * edge

    @property
    def trained_frames(self) -> int:
        """Number of frames that the transformer saw at once in training."""
        return self.record.get("data", {}).get("frames", 20)

    def check(self, prompt: Tensor, new_frames: int, samples: int) -> Tensor:
        """The prompt as (B T C H W) float32; raises what `generate` says."""
        C, H, W = self.frame_shape
        if isinstance(prompt, Tensor) and prompt.ndim == 4:
            prompt = prompt[None]
        check_frames(prompt, "prompt", "B T C H W", channels=C)
        h, w = prompt.shape[-2:]
        if (h, w) != (H, W):
            raise ValueError(f"prompt must have frames of {H}x{W} pixels, got {h}x{w}")
        check_whole(new_frames, "new_frames")
        check_whole(samples, "samples")
        if self.tokenizer.training or self.transformer.training:
            raise ValueError("model must be in eval mode to generate: model.eval()")
        return prompt.float()

    def leads(self, actions, clips: int, frames: int) -> Callable | None:
        """A function of t: the embedding (B E) of the action that leads to frame t.

        None for a model without actions. `actions` are as in `generate` and `stream`.
        """
        net, count = self.transformer, self.transformer.config.actions
        if not count:
            if actions is not None:
                raise ValueError("actions must be None: the model was trained without")
            return None
        if actions is None:
            raise ValueError(
                f"actions must be given, {clips} x {frames} numbers in [0, {count}): "
                "the model was trained with them; got None"
            )
        device = net.start.device
        if callable(actions):
            return lambda t: net.actions(
                check_actions(actions(t), count, (clips,)).to(device)
            )
        known = check_actions(actions, count, (clips, frames)).to(device)
        return lambda t: net.actions(known[:, t])

    def tokens(self, clips: Float[Tensor, "B T C H W"]) -> Float[Tensor, "B T D h w"]:
        """The codewords of real frames."""
        frames = clips.flatten(0, 1).to(self.transformer.start.device)
        encoded = [self.tokenizer.encode(part) for part in frames.split(256)]
        codewords = [self.tokenizer.quantize(latents)[0] for latents in encoded]
        return torch.cat(codewords).unflatten(0, clips.shape[:2])

    def rollouts(self, prompt, new_frames, samples, sampling, most_bytes, leads=None):
        """Groups of futures whose caches hold so many bytes: clips and samples, frames.

        Clips and samples are slices; the frames' latents (b·s D h w) come without end.
        A prompt is read once for all of its futures. `leads` is as in the method.
        """
        net, c = self.transformer, self.transformer.config
        B, T = prompt.shape[:2]
        slots = min(sampling.window or self.trained_frames, T + new_frames)
        bytes_each = 4 * 2 * c.layers * math.prod(c.stream_grid) * slots * c.width
        rows = max(1, int(min(most_bytes / bytes_each, B * samples)))
        seeds = future_seeds(B, samples, sampling.seed)
        clips_at_once, samples_at_once = max(1, rows // samples), min(samples, rows)
        before = None if leads is None else torch.stack([*map(leads, range(T))], 1)
        for i in range(0, B, clips_at_once):
            b = slice(i, min(i + clips_at_once, B))
            latents = self.tokens(prompt[b])
            noise = row_noise(net, seeded(seeds[b, 0]))
            real = min(sampling.temperature, 1.0)  # above, z would misreport the prompt
            known = None if before is None else before[b]
            cache = prefill(net, latents, slots, noise, real, known)
            for j in range(0, samples, samples_at_once):
                s = slice(j, min(j + samples_at_once, samples))
                generators = seeded(seeds[b, 1:][:, s].flatten())
                after = itertools.repeat(None)
                if leads is not None:
                    after = (leads(t)[b] for t in itertools.count(T))
                yield b, s, self.roll(latents, cache, sampling, generators, after)

    def roll(self, latents, cache, sampling, generators, after) -> Iterator[Tensor]:
        """The latents to show of each clip's next frames, for len(generators) rows."""
        net, B = self.transformer, len(latents)
        S = len(generators) // B
        latent = repeat(latents[:, -1], "B D h w -> (B S) D h w", S=S)
        many = "(B p) N W d -> (B S p) N W d"
        cache = tuple(
            KeyValueCache(*(repeat(x, many, B=B, S=S) for x in layer[:2]), layer.frames)
            for layer in cache
        )
        mean = net.config.head == "regression" and sampling.temperature == 0
        noise = row_noise(net, generators)
        after = (None if x is None else x.repeat_interleave(S, 0) for x in after)
        given = latent, cache, noise, sampling, generators, after
        for codewords, prediction in rollout(net, self.tokenizer, *given):
            yield prediction if mean else codewords

    @torch.no_grad()
    def generate(
        self,
        prompt: Float[Tensor, "*B T C H W"],
        new_frames: int = 5,
        samples: int = 1,
        temperature: float = 1.0,
        seed: int | None = None,
        progress: bool = False,
        actions: Int[Tensor, "*B T2"] | None = None,
        **options,
    ) -> Float[Tensor, "B2 S T2 C H W"]:
        """Continue each clip of a batch in `samples` ways.

        Each future has random numbers of its own, drawn on the CPU: up to rounding it
        depends on the place of its clip in the batch, but neither on the device, nor
        on other clips, nor on the number of samples.

        Args:
            prompt: clips with values in [0, 1], of any number of frames T >= 1; one
                clip (T C H W) counts as a batch of one.
            new_frames: frames to generate, at least 1.
            samples: futures S of each clip, at least 1.
            temperature, seed: see `Sampling`; `options` are its other fields.
            progress: show a bar on stderr.
            actions: what leads to each frame, of the prompt, too, (B T+new_frames).

        Returns:
            Prompt and new frames (B S T+new_frames C H W), float32, on the prompt's
            device. The prompt's frames come back as they were, to the bit.

        Raises:
            TypeError, ValueError: a prompt, number or actions that do not fit, a model
                in training mode, a prediction that is not finite.
        """
        sampling = Sampling(temperature, seed=seed, **options)
        prompt = self.check(prompt, new_frames, samples)
        B, T = prompt.shape[:2]
        leads = self.leads(actions, B, T + new_frames)
        video = prompt.new_empty(B, samples, T + new_frames, *self.frame_shape)
        video[:, :, :T] = prompt[:, None]

        check_type(progress, bool, "progress")
        bar = tqdm(total=B * samples * new_frames, unit="frame", disable=not progress)
        given = prompt, new_frames, samples, sampling, CACHE_BYTES, leads
        for b, s, frames in self.rollouts(*given):
            latents = []
            for _ in range(new_frames):
                latents.append(next(frames))  # (b·s D h w)
                bar.update(len(latents[-1]))
            parts = torch.cat(latents).split(256)
            new = torch.cat([self.tokenizer.decode(part) for part in parts])
            new = rearrange(
                new, "(T b s) C H W -> b s T C H W", T=new_frames, b=b.stop - b.start
            )
            video[b, s, T:] = new.to(video)
        bar.close()
        return video

    def stream(
        self,
        prompt: Float[Tensor, "*B T C H W"],
        new_frames: int = 5,
        samples: int = 1,
        actions: Int[Tensor, "*B T2"] | Callable[[int], int | Tensor] | None = None,
        **options,
    ) -> Iterator[Float[Tensor, "B S C H W"]]:
        """The new frames of `generate`, each as soon as it is there.

        All futures advance together. `options` are those of `Sampling`. `actions` are
        those of `generate`, or a function that is asked for the action (or those of B
        clips) that leads to frame t, for the prompt's at once, then frame by frame.
        TypeError, ValueError: as in `generate`.
        """
        sampling = Sampling(**options)
        prompt = self.check(prompt, new_frames, samples)
        leads = self.leads(actions, len(prompt), prompt.shape[1] + new_frames)
        groups = self.rollouts(prompt, new_frames, samples, sampling, math.inf, leads)

        def frames():
            latents = None
            for _ in range(new_frames):
                with torch.no_grad():  # only while it computes
                    latents = latents or next(groups)[-1]
                    frame = self.tokenizer.decode(next(latents))
                yield frame.unflatten(0, (-1, samples)).to(prompt)

        return frames()
