# Extracted from notebooks/09_generation.ipynb by "make extract": edit the notebook, not this file.
"""Generation: continue a video frame by frame, in many ways, for as long as you like. Built in chapter 09."""

import base64
import difflib
import hashlib
import io
import json
import math
import numbers
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from stt_lite.moving_mnist import moving_mnist
from stt_lite.temporal_attention import KeyValueCache, rotary
from stt_lite.training import PRESETS, load_transformer, snap, train
from stt_lite.transformer import SpatialTemporalTransformer, TransformerConfig, count_parameters
from stt_lite.video import (
    GENERATED_COLOUR, PROMPT_COLOUR, check_frames, check_whole, film_strip, load_video, save_video,
)  # fmt: skip
from stt_lite.vq_autoencoder import Tokenizer, load_tokenizer, tokenizer_config, weights_folder

__all__ = [
    "Bundle", "VideoModel", "explore", "futures", "held_out_clips", "load_pretrained", "pretrained", "rollout_error",
    "side_by_side",
]  # fmt: skip

CACHE_BYTES = 2**29  # keys and values that `generate` holds at once: more futures than fit go through in groups


def _generators(seeds: Tensor) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]


class VideoModel(nn.Module):
    """A tokenizer and a transformer that continue videos together.

    Args:
        tokenizer, transformer: a pair, of which the second was trained on the tokens of the first.
        record: what was noted of the training; "data" names size, digits and frames of the training clips.

    Raises:
        ValueError: two parts that do not fit together.
    """

    def __init__(self, tokenizer: Tokenizer, transformer: SpatialTemporalTransformer, record: dict | None = None):
        super().__init__()
        self.tokenizer, self.transformer, self.record = tokenizer, transformer, dict(record or {})
        a, b, size = tokenizer.config, transformer.config, self.record.get("data", {}).get("size")
        pairs = {name: (getattr(a, name), getattr(b, name)) for name in ("latent_channels", "codebook_size")}
        pairs |= {"grid": ((size // a.downsample,) * 2, b.grid)} if size else {}
        for name, (expected, got) in pairs.items():
            if expected != got:
                raise ValueError(f"transformer must fit the tokenizer: {name} must be {expected}, got {got}")

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Channels, height and width (C, H, W) of the model's frames, in pixels."""
        (h, w), edge = self.transformer.config.grid, self.tokenizer.config.downsample
        return self.tokenizer.config.channels, h * edge, w * edge

    @property
    def trained_frames(self) -> int:
        """Number of frames that the transformer saw at once in training."""
        return self.transformer.config.window or self.record.get("data", {}).get("frames", 20)

    @torch.no_grad()
    def generate(
        self,
        prompt: Float[Tensor, "*B T C H W"],
        new_frames: int = 5,
        samples: int = 1,
        temperature: float = 1.0,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        window: int | None = None,
        progress: bool = False,
    ) -> Float[Tensor, "B2 S T2 C H W"]:
        """Continue each clip of a batch in `samples` ways.

        Each future has random numbers of its own, drawn on the CPU, once per frame. Up to rounding, it depends on the place
        of its clip in the batch, but neither on the device, nor on the other clips, nor on the number of samples. More
        futures than fit into `CACHE_BYTES` go through in groups.

        Args:
            prompt: clips with values in [0, 1], of any number of frames T >= 1; (T C H W) counts as a batch of one, and a
                single frame (C H W) is `frame[None]`.
            new_frames: frames to generate, at least 1.
            samples: futures S of each clip, at least 1.
            temperature: factor on the standard deviation of what is drawn; a token head's logits are divided by it. 0 leaves
                nothing to chance, and shows the mean that the regression head predicts instead of its nearest codewords. The
                prompt is read at 1 at most: above, its z would misreport what really happened.
            seed: the same seed, a whole number of at most 64 bits, gives the same futures; None continues `generator` or
                torch's global generator.
            generator: a CPU generator to draw from; not together with `seed`.
            window: number of slots in the cache. Where there are two or more, one is the start token's. When it is full the
                oldest frame leaves, also while a long prompt is read. A transformer with a window of its own lets the start
                token go as well, as in training. None: as many as the model saw at once in training.
            progress: show a bar on stderr.

        Returns:
            Prompt and new frames (B S T+new_frames C H W), float32, on the prompt's device. The prompt's frames come
            back as they were, to the bit.

        Raises:
            TypeError, ValueError: a prompt of the wrong type, rank, size or range, a number out of range, both seed and
                generator, or a model in training mode.
        """
        prompt, slots = self._check(prompt, new_frames, samples, temperature, seed, generator, window)
        (B, T), config = prompt.shape[:2], self.transformer.config
        row_bytes = 4 * 2 * config.layers * math.prod(config.stream_grid) * slots * config.width  # float32 keys and values of one future
        video = prompt.new_empty(B, samples, T + new_frames, *self.frame_shape)
        video[:, :, :T] = prompt[:, None]
        bar = _bar(B * samples * new_frames) if progress else None
        for b, s, roll in self._groups(prompt, samples, temperature, seed, generator, slots, CACHE_BYTES // row_bytes):
            latents = []
            for _ in range(new_frames):
                latents.append(next(roll))  # ((b s) D h w)
                if bar is not None:
                    bar.update(len(latents[-1]))
            frames = torch.cat([self.tokenizer.decode(part) for part in torch.cat(latents).split(256)])
            frames = rearrange(frames, "(T b s) C H W -> b s T C H W", T=new_frames, b=b.stop - b.start)
            video[b, s, T:] = frames.to(video)
        if bar is not None:
            bar.close()
        return video

    def stream(
        self,
        prompt: Float[Tensor, "*B T C H W"],
        new_frames: int = 5,
        samples: int = 1,
        temperature: float = 1.0,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        window: int | None = None,
    ) -> Iterator[Tensor]:
        """The new frames of `generate`, each as soon as it is there: yields (B S C H W), `new_frames` times.

        Arguments and errors as there. All futures advance together, so memory grows with their number.
        """
        prompt, slots = self._check(prompt, new_frames, samples, temperature, seed, generator, window)
        groups = self._groups(prompt, samples, temperature, seed, generator, slots, rows=len(prompt) * samples)
        return self._decoded(groups, new_frames, samples, like=prompt)

    def _decoded(self, groups, new_frames: int, samples: int, like: Tensor) -> Iterator[Tensor]:
        roll = None
        for _ in range(new_frames):
            with torch.no_grad():  # only while it computes: between two frames it is the caller's turn
                roll = next(groups)[-1] if roll is None else roll
                frames = self.tokenizer.decode(next(roll)).unflatten(0, (-1, samples)).to(like)
            yield frames

    def _check(self, prompt, new_frames, samples, temperature, seed, generator, window) -> tuple[Tensor, int]:
        """The prompt as (B T C H W) float32, and the number of slots in the cache; raises what `generate` says."""
        C, H, W = self.frame_shape
        prompt = prompt[None] if isinstance(prompt, Tensor) and prompt.ndim == 4 else prompt
        check_frames(prompt, "prompt", "B T C H W", channels=C)
        if tuple(prompt.shape[-2:]) != (H, W):
            raise ValueError(f"prompt must have frames of {H}x{W} pixels, got {prompt.shape[-2]}x{prompt.shape[-1]}")
        counts = {"new_frames": new_frames, "samples": samples} | ({} if window is None else {"window": window})
        for name, value in counts.items():
            check_whole(value, name)
        if not isinstance(temperature, numbers.Real) or not 0 <= temperature < math.inf:  # NaN fails too
            raise ValueError(f"temperature must be a number of at least 0, got {temperature!r}")
        if seed is not None and generator is not None:
            raise ValueError("give either seed or generator, not both")
        if seed is not None and not (isinstance(seed, numbers.Integral) and -(2**63) <= seed < 2**64):
            raise ValueError(f"seed must be a whole number of at most 64 bits, got {seed!r}")
        if not isinstance(generator, torch.Generator | None):
            raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")
        if generator is not None and generator.device.type != "cpu":
            raise ValueError(f"generator must be on the CPU, got one on {generator.device}")
        if self.tokenizer.training or self.transformer.training:
            raise ValueError("the model must be in eval mode to generate, got training mode: call model.eval() first")
        return prompt.float(), min(window or self.trained_frames, prompt.shape[1] + new_frames)  # more would stay empty

    def _groups(self, prompt, samples, temperature, seed, generator, slots, rows):
        """Yields clips and samples (slices) and their rollout (endless), for groups of at most `rows` futures."""
        generator = generator if seed is None else torch.Generator().manual_seed(int(seed))
        of_clips = _generators(torch.randint(2**62, (len(prompt),), generator=generator))
        seeds = torch.stack([torch.randint(2**62, (1 + samples,), generator=g) for g in of_clips])  # (B 1+S)
        clips_at_once, samples_at_once = max(1, rows // samples), max(1, min(samples, rows))
        for i in range(0, len(prompt), clips_at_once):
            b = slice(i, min(i + clips_at_once, len(prompt)))
            latent, cache = self._read(prompt[b], slots, min(temperature, 1.0), _generators(seeds[b, 0]))
            for j in range(0, samples, samples_at_once):
                s = slice(j, min(j + samples_at_once, samples))
                generators = _generators(seeds[b, 1:][:, s].flatten())
                yield b, s, self._roll(latent, cache, prompt.shape[1], s.stop - s.start, temperature, generators)

    def _read(self, prompt, slots, temperature, generators) -> tuple[Tensor, tuple[KeyValueCache, ...]]:
        """The last frame's latents, and a cache that knows all frames before it."""
        parts = prompt.flatten(0, 1).to(self.transformer.start).split(256)
        latents = torch.cat([self.tokenizer.quantize(self.tokenizer.encode(part))[0] for part in parts])
        latents, T = latents.unflatten(0, prompt.shape[:2]), min(prompt.shape[1], slots)
        noise = torch.cat([self.transformer.draw_noise(1, T, g) for g in generators])
        cache = self.transformer.read(latents[:, :T], slots, noise, temperature)
        for t in range(T, prompt.shape[1]):  # what the cache has no room for: the oldest frames make way one by one
            _, cache = self._step(t, latents[:, t - 1], cache, generators, temperature, target=latents[:, t])
        return latents[:, -1], cache

    def _roll(self, latent, cache, t, samples, temperature, generators) -> Iterator[Tensor]:
        """Yields the latents ((B S) D h w) of frames t, t + 1, ... without end: codewords, or the mean at temperature 0."""
        head, pixels = self.transformer.config.head, math.prod(self.transformer.config.stream_grid)
        mean = head == "regression" and temperature == 0
        latent = repeat(latent, "B D h w -> (B S) D h w", S=samples)
        many = "(B p) N W d -> (B S p) N W d"
        copies = [[repeat(x, many, p=pixels, S=samples) for x in layer[:2]] for layer in cache]
        cache = tuple(KeyValueCache(*copy, layer.frames) for copy, layer in zip(copies, cache))
        while True:
            prediction, cache = self._step(t, latent, cache, generators, temperature)
            if head == "token" and temperature > 0:  # the largest after Gumbel noise: a draw from softmax
                draws = [torch.empty(prediction.shape[1:]).exponential_(generator=g) for g in generators]
                prediction = prediction / temperature - torch.stack(draws).log().to(prediction)
            latent, t = snap(self.tokenizer, prediction, head), t + 1  # what the next step sees are codewords always
            yield prediction if mean else latent

    def _step(self, t, latent, cache, generators, temperature, target=None):
        """The prediction of frame t, and the cache; each row's noise comes from its own generator."""
        slots = cache[0].keys.shape[2]
        if t >= slots > 1 and self.transformer.config.window is None:  # it is full
            cache = self._keep_start(cache)
        noise = torch.cat([self.transformer.draw_noise(1, 1, g)[:, 0] for g in generators])
        return self.transformer.step(latent, cache, noise, target, temperature)

    def _keep_start(self, cache: tuple[KeyValueCache, ...]) -> tuple[KeyValueCache, ...]:
        """Put the start token over the oldest frame, a frame later, so that this one drops out next (Xiao et al., 2024)."""

        def moved(layer: KeyValueCache) -> KeyValueCache:
            keys, values = (x[:, :, :1] for x in layer[:2])
            starts = rotary(keys, torch.ones(1, device=keys.device)), values  # no further back than the cache reaches
            copies = [torch.cat([x[:, :, :1], start, x[:, :, 2:]], dim=2) for x, start in zip(layer[:2], starts)]
            return KeyValueCache(*copies, layer.frames)

        return tuple(moved(layer) for layer in cache)


def _bar(frames: int):
    from tqdm.auto import tqdm

    return tqdm(total=frames, unit="frame")


def _bundled() -> dict[str, tuple[Path, Path]]:
    """Tokenizer and transformer of each bundle."""
    ending, pairs = "-transformer.safetensors", {}
    for path in sorted(weights_folder().glob(f"*{ending}")):
        name = path.name.removesuffix(ending)
        pairs[name] = path.with_name(f"{name}-tokenizer.safetensors"), path
    return pairs


def load_pretrained(name: str | Path = "moving-mnist-tiny", device: torch.device | str = "cpu") -> VideoModel:
    """Load a bundled model by name, or the one that training wrote into a folder.

    Args:
        name: "moving-mnist-tiny" (32x32, one digit), "moving-mnist" (64x64, two digits), "game" (128x128, two games:
            see chapter 12), or a folder that holds tokenizer.safetensors and transformer.safetensors.
        device: where the weights go.

    Returns:
        The model in eval mode; its `record` is what was noted of the transformer's training.

    Raises:
        ValueError: an unknown name (a close one is named), damaged files, or two parts that do not fit together.
        FileNotFoundError: a folder without the two files.
    """
    bundled = _bundled()
    if str(name) in bundled:
        paths = bundled[str(name)]
    elif Path(name).is_dir():
        paths = Path(name) / "tokenizer.safetensors", Path(name) / "transformer.safetensors"
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            raise FileNotFoundError(f"{name} must hold {' and '.join(missing)}, which training writes")
    else:
        closest = difflib.get_close_matches(str(name), bundled, n=1)
        hint = f"; did you mean {closest[0]!r}?" if closest else "."
        raise ValueError(f"no bundled model or folder {str(name)!r}{hint} Bundled: {', '.join(bundled) or 'none'}")
    tokenizer, transformer = load_tokenizer(paths[0], device), load_transformer(paths[1], device)
    record = paths[1].with_suffix(".json")
    record = json.loads(record.read_text()) if record.is_file() else {}
    expected, got = record.get("tokenizer_sha256"), hashlib.sha256(paths[0].read_bytes()).hexdigest()
    if expected not in (None, got):
        raise ValueError(f"{paths[1].name} was trained with a tokenizer of sha256 {expected}, got {got}")
    return VideoModel(tokenizer, transformer, record).eval()


@dataclass(frozen=True)
class Bundle:
    """A bundled model: edge of a frame in pixels, what its clips show, parameters and megabytes of both parts, errors."""

    name: str
    size: int
    content: str
    parameters: int
    megabytes: float
    licence: str
    metrics: dict


class _Table(list):
    """Bundles that show as a table."""

    def __repr__(self):
        rows = [("name", "frames", "content", "parameters", "MB", "15->5 first", "15->5 mean", "10->10 mean", "licence")]
        for b in self:
            near, far = b.metrics.get("15->5", {}), b.metrics.get("10->10", {})
            errors = [near.get("first"), near.get("mean"), far.get("mean")]
            errors = ["-" if error is None else f"{error:.2f}" for error in errors]
            size = f"{b.size}x{b.size}", b.content, f"{b.parameters:,}", f"{b.megabytes:.1f}"
            rows.append((b.name, *size, *errors, b.licence))
        widths = [max(map(len, column)) for column in zip(*rows)]
        return "\n".join("  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in rows)


def pretrained() -> list[Bundle]:
    """What is bundled, from the records beside the weights; shows as a table.

    Errors are squared, summed over a frame, on held-out clips: those of the first generated frame, and the mean.
    """
    table = _Table()
    for name, paths in _bundled().items():
        first, second = (json.loads(path.with_suffix(".json").read_text()) for path in paths)
        a, b = first["config"], second["config"]
        with torch.device("meta"):  # builds without allocating, and without drawing random numbers
            tokenizer = Tokenizer(tokenizer_config(a))
        parameters = sum(p.numel() for p in tokenizer.parameters())
        parameters += count_parameters(TransformerConfig(**b | {"grid": tuple(b["grid"])}))
        data, megabytes = second["data"], sum(path.stat().st_size for path in paths) / 1e6
        licence, metrics = second.get("licence", "-"), second.get("metrics", {})
        content = data.get("content") or f"{data['digits']} digit{'s' * (data['digits'] > 1)}"
        table.append(Bundle(name, data["size"], content, parameters, megabytes, licence, metrics))
    return table


def rollout_error(
    model: VideoModel | None, clips: Float[Tensor, "B T C H W"], prompt: int, temperature: float = 0.0, seed: int = 0
) -> Float[Tensor, "new"]:
    """Squared error of each generated frame, summed over its pixels, mean over clips.

    Args:
        model: what continues the clips; None repeats the prompt's last frame.
        clips: real clips, values in [0, 1].
        prompt: frames that are given, 1 to T - 1; the others are generated.
        temperature, seed: as in `VideoModel.generate`.

    Raises:
        ValueError: a prompt that leaves nothing to generate, and whatever `generate` refuses.
    """
    check_frames(clips, "clips", "B T C H W")
    if not 1 <= prompt < clips.shape[1]:
        raise ValueError(f"prompt must be between 1 and T - 1 = {clips.shape[1] - 1} frames, got {prompt}")
    guess, new = clips[:, prompt - 1 : prompt], clips.shape[1] - prompt
    if model is not None:
        guess = model.generate(clips[:, :prompt], new, temperature=temperature, seed=seed)[:, 0, prompt:]
    return (guess - clips[:, prompt:]).square().sum((2, 3, 4)).mean(0)


def held_out_clips(model: VideoModel, n: int, frames: int, seed: int) -> Float[Tensor, "n T C H W"]:
    """Clips of held-out digits, of the kind that the model was trained on, on its device.

    Raises:
        ValueError: a record that does not say what kind that is, or a number out of range.
    """
    data = model.record.get("data", {})
    if not {"size", "digits"} <= set(data):
        what = f"the model's record must name size and digits of Moving MNIST clips under 'data', got {data}"
        raise ValueError(f"{what}; continue a prompt of your own")
    options = {"split": "test", "stochastic": data.get("stochastic", False), "device": model.transformer.start.device}
    return moving_mnist(n, frames, data["size"], data["digits"], seed=seed, **options)


def side_by_side(
    videos: Float[Tensor, "S T C H W"], prompt_frames: int, truth: Float[Tensor, "T C H W"] | None = None
) -> Float[Tensor, "T 3 H2 W2"]:
    """Clips in a row, as one RGB clip: real frames in a solid blue-grey border, generated ones in a dashed orange one.

    Args:
        videos: S clips with values in [0, 1].
        prompt_frames: their first so many frames are real.
        truth: a real clip of as many frames, to stand left of them.
    """
    clips = videos if truth is None else torch.cat([truth[None].to(videos), videos])
    real = (torch.arange(clips.shape[1]) < prompt_frames).repeat(len(clips), 1)  # (S T)
    real[0] |= truth is not None
    tiles = F.pad(clips.cpu().expand(-1, -1, 3, -1, -1), (1, 1, 1, 1))  # (S T 3 H+2 W+2)
    edge = F.pad(torch.zeros(clips.shape[-2:], dtype=torch.bool), (1, 1, 1, 1), value=True)
    dashes = edge & (torch.arange(edge.shape[0])[:, None] + torch.arange(edge.shape[1])).remainder(6).less(4)
    border = torch.where(real[..., None, None], edge, dashes)[:, :, None]  # (S T 1 H+2 W+2)
    colours = torch.where(real[..., None], torch.tensor(PROMPT_COLOUR), torch.tensor(GENERATED_COLOUR)) / 255  # (S T 3)
    tiles = torch.where(border, colours[..., None, None], tiles)
    return rearrange(F.pad(tiles, (1, 1), value=1), "S T C H W -> T C H (S W)")


def _picture(frame: Float[Tensor, "3 H W"], alt: str, width: int) -> str:
    """HTML of one frame, `width` pixels wide where there is room."""
    from PIL import Image

    file, pixels = io.BytesIO(), frame.mul(255).round().byte().permute(1, 2, 0).contiguous().numpy()
    Image.fromarray(pixels).convert("P", palette=Image.ADAPTIVE, colors=32).save(file, "PNG", optimize=True)
    return (
        f'<figure class="stt-frame" style="margin:0;width:{width}px;max-width:100%"><img alt="{alt}" style="width:100%;'
        f'max-width:none;margin:0;display:block;image-rendering:pixelated" src="data:image/png;base64,'
        f'{base64.b64encode(file.getvalue()).decode()}"></figure>'
    )


def _box(children, png: bytes, name: str):
    """A box of class `name`; the picture stands in where widgets cannot show."""
    import ipywidgets as widgets

    class Explorer(widgets.VBox):
        def _repr_mimebundle_(self, **kwargs):
            stand_in = {"image/png": base64.b64encode(png).decode(), "text/plain": "Explorer of generated futures"}
            return {**super()._repr_mimebundle_(**kwargs), **stand_in}

    box = Explorer(children)
    box.add_class(name)
    return box


def futures(
    videos: Float[Tensor, "n A S T C H W"],
    truth: Float[Tensor, "n T C H W"],
    prompt_frames: int,
    temperatures: list[float],
    fps: float = 5.0,
):
    """Explorer of generated videos: choose a clip and a temperature, scrub S futures beside what really happened.

    Works with a kernel and without one, on a static page.

    Args:
        videos: S futures of n clips at A temperatures, values in [0, 1].
        truth: the real clips.
        prompt_frames: the first so many frames are the prompt.
        temperatures: the A temperatures.
        fps: speed of play in frames per second.

    Returns:
        An `ipywidgets.VBox` of class "stt-scrubber".
    """
    import ipywidgets as widgets

    samples, frames = videos.shape[2:4]
    names, width = ["truth", *(f"future {i + 1}" for i in range(samples))], 128 * (1 + samples)
    bare = widgets.Layout(margin="0")  # one for all, and nothing that adds up in stacks of stacks of stacks
    shared = {"layout": bare, "style": widgets.HTML().style}

    def stack(children):
        return widgets.Stack(children, selected_index=0, layout=bare)

    def pictures(row, part):
        return [widgets.HTML(_picture(row[t], f"Truth and futures, frame {t + 1}", width), **shared) for t in part]

    clips = []
    for real, by_temperature in zip(truth, videos):
        rows = [side_by_side(video, prompt_frames, real) for video in by_temperature]
        prompt = pictures(rows[0], range(prompt_frames))  # the same at all temperatures
        clips.append([stack(prompt + pictures(row, range(prompt_frames, frames))) for row in rows])
    outer = stack([stack(by_temperature) for by_temperature in clips])
    play = widgets.Play(min=0, max=frames - 1, interval=round(1000 / fps), repeat=True)
    layout = widgets.Layout(width="min(360px, 60vw)")
    slider = widgets.IntSlider(min=0, max=frames - 1, description="frame", layout=layout)
    numbers, style = [str(i + 1) for i in range(len(clips))], {"button_width": "auto"}
    clip = widgets.ToggleButtons(options=numbers, description="clip", style=style)
    values = [f"{a:g}" for a in temperatures]
    temperature = widgets.ToggleButtons(options=values, description="temperature", style=style)
    widgets.jslink((play, "value"), (slider, "value"))
    widgets.jslink((clip, "index"), (outer, "selected_index"))
    for by_temperature, stacks in zip(outer.children, clips):
        widgets.jslink((temperature, "index"), (by_temperature, "selected_index"))
        for frames_of_one in stacks:
            widgets.jslink((slider, "value"), (frames_of_one, "selected_index"))
    spans = "".join(f'<span style="flex:1">{name}</span>' for name in names)
    caption = f'<div style="display:flex;font-size:13px;width:{width}px;max-width:100%">{spans}</div>'
    labels = widgets.HTML(caption, layout=bare)
    choices = [choice for choice in (clip, temperature) if len(choice.options) > 1]
    every = -(-frames // 10)
    strip = film_strip([truth[0], *videos[0, -1]], names, prompt_frames=prompt_frames, every=every, width=800)
    return _box([*choices, widgets.HBox([play, slider]), labels, outer], strip.data, "stt-scrubber")


def explore(model: VideoModel, clips: Float[Tensor, "B T C H W"], prompt_frames: int = 15):
    """Live explorer, for a running kernel: choose clip, futures, temperature and frames, and press "generate".

    New frames show as they come; then `futures` scrubs them beside the truth, which is black after the clip's end.

    Args:
        model: what continues the clips.
        clips: real clips, values in [0, 1].
        prompt_frames: frames that the model is given.

    Returns:
        An `ipywidgets.VBox` of class "stt-explorer"; `button` and `view` are its button and what it shows below.
    """
    import ipywidgets as widgets

    clip = widgets.IntSlider(1, 1, len(clips), description="clip")
    samples = widgets.IntSlider(3, 1, 8, description="futures")
    temperature = widgets.FloatSlider(value=1.0, min=0.0, max=2.0, step=0.1, description="temperature")
    new_frames = widgets.IntSlider(5, 1, 100, description="new frames")
    seed = widgets.IntText(0, description="seed")
    button, bar, view = widgets.Button(description="generate"), widgets.IntProgress(0), widgets.VBox()

    def press(_):
        live, button.disabled, bar.value, bar.max = widgets.HTML(), True, 0, new_frames.value
        view.children, end = [live], prompt_frames + new_frames.value
        given = clips[clip.value - 1].cpu()
        truth = F.pad(given, (0, 0, 0, 0, 0, 0, 0, max(0, end - len(given))))[:end]
        video = [given[None, :prompt_frames].expand(samples.value, -1, -1, -1, -1)]
        try:
            for frame in model.stream(video[0][:1], bar.max, samples.value, temperature.value, seed.value):
                video.append(frame[0, :, None].cpu())  # (S 1 C H W)
                row = side_by_side(video[-1], 0, truth[prompt_frames + bar.value][None])[0]
                live.value = _picture(row, "The truth and each future's newest frame", 128 * (1 + samples.value))
                bar.value += 1
            view.children = [futures(torch.cat(video, 1)[None, None], truth[None], prompt_frames, [temperature.value])]
        finally:
            button.disabled = False

    button.on_click(press)
    names = [f"clip {i + 1}" for i in range(len(clips[:3]))]
    strip = film_strip(clips[:3], names, prompt_frames=clips.shape[1], every=2, width=800)
    sliders = [clip, samples, temperature, new_frames, seed]
    box = _box([*sliders, widgets.HBox([button, bar]), view], strip.data, "stt-explorer")
    box.button, box.view = button, view
    return box


@dataclass
class Generate:
    """Continue a video; write prompt and futures side by side.

    Args:
        bundle: bundled model by name, or a folder that training wrote.
        prompt: video file or folder of images to continue; without one, a Moving MNIST clip of held-out digits, whose
            real future then stands on the left.
        clip: which held-out clip, where there is no prompt.
        prompt_frames: frames to continue: the last so many of the prompt.
        new_frames: frames to generate.
        samples: number of futures.
        temperature: how much is left to chance, from 0 (nothing).
        seed: the same seed gives the same futures.
        window: slots of the cache, one of them the start token's; by default as many as in training.
        out: file to write; its name ends in .gif or .mp4.
        fps: speed of that video in frames per second.
        device: "cpu", "cuda", ...; by default cuda where there is one.
    """

    bundle: str = "moving-mnist-tiny"
    prompt: Path | None = None
    clip: int = 0
    prompt_frames: int = 15
    new_frames: int = 5
    samples: int = 1
    temperature: float = 1.0
    seed: int = 0
    window: int | None = None
    out: Path = Path("future.gif")
    fps: float = 5.0
    device: str | None = None

    def run(self) -> None:
        start = time.perf_counter()
        if self.out.suffix.lower() not in (".gif", ".mp4"):
            raise ValueError(f"out must end in .gif or .mp4, got {self.out}")
        check_writable(self.out)
        check_whole(self.prompt_frames, "prompt_frames")
        check_whole(self.new_frames, "new_frames")
        model = load_pretrained(self.bundle, pick_device(self.device))
        if self.prompt is None:
            truth = held_out_clips(model, 1, self.prompt_frames + self.new_frames, seed=self.clip)[0].cpu()
            prompt, note = truth[: self.prompt_frames], "; on the left what really happened"
        else:
            truth, prompt, note = None, _read_prompt(model, self.prompt, self.prompt_frames), ""
        options = dict(temperature=self.temperature, seed=self.seed, window=self.window, progress=sys.stderr.isatty())
        video = model.generate(prompt, self.new_frames, self.samples, **options)[0]
        scale = max(1, 128 // video.shape[-1])
        save_video(self.out, side_by_side(video, len(prompt), truth), fps=self.fps, scale=scale)
        print(f"{self.out.resolve()}")
        print(f"prompt of {len(prompt)} frames, futures: {self.samples}, new frames: {self.new_frames}{note}")
        print(f"loaded, generated and written in {time.perf_counter() - start:.1f} s on {pick_device(self.device)}")


@dataclass
class Pretrained:
    """List the bundled models: frames, parameters, size, errors, licence."""

    def run(self) -> None:
        print(pretrained())


def pick_device(name: str | None) -> str:
    return name or ("cuda" if torch.cuda.is_available() else "cpu")


def check_writable(path: Path) -> None:
    """Make the folder of `path`; OSError where no file can be written into it."""
    if path.is_dir():
        raise OSError(f"out must name a file, {path} is a folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OSError(f"out can't be written: {error.strerror}: {path.parent}") from error


def _read_prompt(model: VideoModel, path: Path, frames: int) -> Float[Tensor, "T C H W"]:
    """The last `frames` frames of a video in the model's size and channels; prints what had to be changed."""
    C, H, W = model.frame_shape
    first, clip, notes = load_video(path, frames=1)[0], load_video(path, size=H, gray=C == 1), []
    if first.shape[1:] != (H, W):
        notes.append(f"centre square of {first.shape[2]}x{first.shape[1]} pixels resized to {W}x{H}")
    if C == 1 and (first - first.mean(0)).abs().max() > 0.05:
        notes.append("colour turned to grey")
    if len(clip) > frames:
        notes.append(f"the last {frames} of {len(clip)} frames taken")
    if notes:
        print(f"{path}: {', '.join(notes)}")
    return clip[-frames:]


def main(arguments: list[str] | None = None, more: dict[str, type] | None = None) -> None:
    """The command `stt-lite`. What goes wrong is one line on stderr, and exit code 2.

    Args:
        arguments: None takes those of the shell.
        more: further subcommands by name, dataclasses with a method `run`; chapter 10 adds two.
    """
    import tyro

    notes = {name: f"{c.size}x{c.size} pixels, digits: {c.digits}" for name, c in PRESETS.items()}
    presets = tyro.extras.subcommand_type_from_defaults(PRESETS, notes)

    @dataclass
    class Train:
        """Train a model: a preset's name, then what to change of it."""

        config: presets

        def run(self) -> None:
            print(f"trained: {train(self.config)}")

    commands = {"generate": Generate, "train": Train, "pretrained": Pretrained, **(more or {})}
    plain_names = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)
    description = "Generate video with a small spatial-temporal transformer."
    try:
        tyro.extras.subcommand_cli_from_dict(
            commands, prog="stt-lite", description=description, args=arguments, config=plain_names
        ).run()
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        print(f"stt-lite: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__" and "__file__" in globals():  # a notebook is __main__ too, but has no file
    main()
