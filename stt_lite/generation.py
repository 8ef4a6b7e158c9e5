"""Generation: a model that continues videos in many ways. Built in chapter 08."""

import math
from collections.abc import Iterator

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from stt_lite.sampling import Sampling, prefill, rollout
from stt_lite.temporal_attention import KeyValueCache
from stt_lite.tokenizer import Tokenizer
from stt_lite.transformer import SpatialTemporalTransformer
from stt_lite.video import check_frames, check_whole

__all__ = ["VideoModel"]

CACHE_BYTES = 2**29  # keys and values that `generate` holds at once


def seeded(seeds: Tensor) -> list[torch.Generator]:
    """A generator for each seed."""
    return [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]


def row_noise(
    net: SpatialTemporalTransformer, generators: list[torch.Generator]
) -> Iterator[Float[Tensor, "B L hP wP Z"]]:
    """Noise without end, each row from its own generator: no row depends on others."""
    while True:
        yield torch.cat([net.draw_noise(1, 1, g)[:, 0] for g in generators])


def pieces(total: int, size: int) -> Iterator[slice]:
    """0 to `total` in slices of at most `size`."""
    for first in range(0, total, size):
        yield slice(first, min(first + size, total))


def copied(layer: KeyValueCache, clips: int, samples: int) -> KeyValueCache:
    """The cache of `samples` futures of each clip, which all begin alike."""
    many = "(B p) N W d -> (B S p) N W d"
    keys, values = (repeat(x, many, B=clips, S=samples) for x in layer[:2])
    return KeyValueCache(keys, values, layer.frames)


class VideoModel(nn.Module):
    """A tokenizer and a transformer that continue videos together.

    Args:
        tokenizer, transformer: the second was trained on the first one's tokens.
        record: what was noted of the training; "data" tells of its clips.

    Raises:
        ValueError: two parts that do not fit together.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        transformer: SpatialTemporalTransformer,
        record: dict | None = None,
    ):
        super().__init__()
        self.tokenizer, self.transformer = tokenizer, transformer
        self.record = dict(record or {})
        a, b = tokenizer.config, transformer.config
        for name in ("latent_channels", "codebook_size"):
            expected, got = getattr(a, name), getattr(b, name)
            if expected != got:
                raise ValueError(
                    f"transformer must fit the tokenizer: {name} must be {expected}, "
                    f"got {got}"
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
        if self.training or self.tokenizer.training or self.transformer.training:
            raise ValueError(
                "the model must be in eval mode to generate, got training mode: "
                "call model.eval() first"
            )
        return prompt.float()

    def tokens(self, clips: Float[Tensor, "B T C H W"]) -> Float[Tensor, "B T D h w"]:
        """The codewords of real frames."""
        frames = clips.flatten(0, 1).to(self.transformer.start)
        latents = [
            self.tokenizer.quantize(self.tokenizer.encode(part))[0]
            for part in frames.split(256)
        ]
        return torch.cat(latents).unflatten(0, clips.shape[:2])

    def rollouts(self, prompt, samples: int, slots: int, sampling: Sampling, rows: int):
        """Groups of at most `rows` futures: slices of clips and samples, and frames.

        A group's frames are (b·s D h w) without end. A prompt is read once for all of
        its futures. Each future has a generator of its own.
        """
        net, master = self.transformer, None
        if sampling.seed is not None:
            master = torch.Generator().manual_seed(int(sampling.seed))
        clips = seeded(torch.randint(2**62, (len(prompt),), generator=master))
        seeds = [torch.randint(2**62, (1 + samples,), generator=g) for g in clips]
        seeds = torch.stack(seeds)  # (B 1+S)
        mean = net.config.head == "regression" and sampling.temperature == 0
        for b in pieces(len(prompt), max(1, rows // samples)):
            latents = self.tokens(prompt[b])
            noise = row_noise(net, seeded(seeds[b, 0]))
            real = min(sampling.temperature, 1.0)  # above, z would misreport the prompt
            cache = prefill(net, latents, slots, noise, real)
            for s in pieces(samples, max(1, min(samples, rows))):
                S = s.stop - s.start
                own = seeded(seeds[b, 1:][:, s].flatten())
                newest = repeat(latents[:, -1], "B D h w -> (B S) D h w", S=S)
                copies = tuple(copied(layer, len(latents), S) for layer in cache)
                frames = rollout(
                    net,
                    self.tokenizer,
                    newest,
                    copies,
                    prompt.shape[1],
                    row_noise(net, own),
                    sampling,
                    own,
                )
                yield b, s, (frame[int(mean)] for frame in frames)

    def slots(self, frames: int, sampling: Sampling) -> int:
        """Slots of the cache for clips of `frames` frames: more would stay empty."""
        return min(sampling.window or self.trained_frames, frames)

    @torch.no_grad()
    def generate(
        self,
        prompt: Float[Tensor, "*B T C H W"],
        new_frames: int = 5,
        samples: int = 1,
        temperature: float = 1.0,
        seed: int | None = None,
        top_k: int | None = None,
        window: int | None = None,
        progress: bool = False,
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
            temperature, seed, top_k, window: see `Sampling`.
            progress: show a bar on stderr.

        Returns:
            Prompt and new frames (B S T+new_frames C H W), float32, on the prompt's
            device. The prompt's frames come back as they were, to the bit.

        Raises:
            TypeError, ValueError: a prompt of the wrong type, rank, size or range, a
                number out of range, or a model in training mode.
        """
        sampling = Sampling(temperature, top_k, seed, window)
        prompt = self.check(prompt, new_frames, samples)
        (B, T), config = prompt.shape[:2], self.transformer.config
        slots = self.slots(T + new_frames, sampling)
        pixels = math.prod(config.stream_grid)
        bytes_per_future = 4 * 2 * config.layers * pixels * slots * config.width
        rows = CACHE_BYTES // bytes_per_future
        video = prompt.new_empty(B, samples, T + new_frames, *self.frame_shape)
        video[:, :, :T] = prompt[:, None]
        bar = tqdm(total=B * samples * new_frames, unit="frame", disable=not progress)
        for b, s, frames in self.rollouts(prompt, samples, slots, sampling, rows):
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
        temperature: float = 1.0,
        seed: int | None = None,
        top_k: int | None = None,
        window: int | None = None,
    ) -> Iterator[Float[Tensor, "B S C H W"]]:
        """The new frames of `generate`, each as soon as it is there.

        Arguments and errors as there. All futures advance together.
        """
        sampling = Sampling(temperature, top_k, seed, window)
        prompt = self.check(prompt, new_frames, samples)
        slots = self.slots(prompt.shape[1] + new_frames, sampling)
        rows = len(prompt) * samples

        def frames():
            latents = None
            for _ in range(new_frames):
                with torch.no_grad():  # only while it computes
                    if latents is None:
                        groups = self.rollouts(prompt, samples, slots, sampling, rows)
                        latents = next(groups)[-1]
                    new = self.tokenizer.decode(next(latents))
                yield new.unflatten(0, (-1, samples)).to(prompt)

        return frames()
