# Made from notebooks/93_widgets.ipynb by "make extract".
"""Players and explorers of clips, in a notebook and on a page. Built in appendix 93."""

import html
import itertools
import json
import math
from base64 import b64encode
from collections.abc import Callable, Sequence
from importlib.resources import files

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from stt_lite.strips import (
    GENERATED_COLOUR,
    PROMPT_COLOUR,
    film_strip,
    framed,
    kind_of,
    named,
    png,
)
from stt_lite.video import (
    check_frames,
    check_rate,
    check_shape,
    check_type,
    check_whole,
    to_bytes,
)

__all__ = ["explore", "futures", "live_view", "pick", "scrub", "side_by_side"]


def side_by_side(
    videos: Float[Tensor, "S T C H W"], prompt_frames: int, truth: Tensor | None = None
) -> Float[Tensor, "T 3 H2 W2"]:
    """Clips in a row, as one RGB clip to save, each frame in its border.

    `truth` (T C H W), a real clip of as many frames, stands left of the S videos.
    TypeError, ValueError: what `film_strip` refuses.
    """
    check_frames(videos, "videos", "S T C H W")
    check_whole(prompt_frames, "prompt_frames", 0, videos.shape[1])
    if truth is not None and check_shape(truth, "truth", "T C H W") != videos.shape[1:]:
        wanted = f"videos' shape, {tuple(videos.shape[1:])}"
        raise ValueError(f"truth must have {wanted}, got {tuple(truth.shape)}")
    row = [("", video) for video in videos]
    row = row if truth is None else [("truth", truth), *row]
    tiles = [framed(*clip, prompt_frames, scale=1, border=1) for clip in row]
    return torch.cat([F.pad(tile, (1, 1), value=1) for tile in tiles], dim=-1)


class Sheets:
    """The frames of a player, each kept once: one picture for each size of frames."""

    def __init__(self):
        self.tiles = {}  # shape: {a frame's bytes: its number}

    def add(self, clip: Float[Tensor, "T C H W"]) -> dict:
        """Which sheet holds a clip's frames, and the number of each of them in it."""
        frames = to_bytes(clip)  # (T H W) or (T H W 3)
        tiles = self.tiles.setdefault(frames.shape[1:], {})
        numbers = [tiles.setdefault(f.tobytes(), len(tiles)) for f in frames]
        return {"sheet": list(self.tiles).index(frames.shape[1:]), "tiles": numbers}

    def pictures(self) -> list[dict]:
        """Each sheet as a PNG in a data address, up to 8 frames in a row."""
        found = []
        for shape, tiles in self.tiles.items():
            columns = min(8, len(tiles))
            rows = math.ceil(len(tiles) / columns)
            sheet = np.zeros((rows * columns, *shape), np.uint8)
            for number, pixels in enumerate(tiles):
                sheet[number] = np.frombuffer(pixels, np.uint8).reshape(shape)
            sheet = rearrange(sheet, "(r c) h w ... -> (r h) (c w) ...", c=columns)
            source = data_address(png(Image.fromarray(sheet)))
            size = dict(zip(("height", "width"), shape))
            found.append({"src": source, "columns": columns} | size)
        return found


def data_address(picture: bytes) -> str:
    """A PNG as an address that holds it."""
    return f"data:image/png;base64,{b64encode(picture).decode()}"


class ClipPlayer:
    """A player as one piece of HTML, in `html`, that needs no Python and no network."""

    def __init__(self, data: dict, strip, text: str):
        folder = files("stt_lite") / "data"
        read = (folder / f"player.{k}" for k in ("css", "js"))
        style, script = (path.read_text("utf-8") for path in read)
        style = style.replace("PROMPT", f"rgb{PROMPT_COLOUR}")
        style = style.replace("GENERATED", f"rgb{GENERATED_COLOUR}")
        picture = f'src="{data_address(strip.data)}" alt="{html.escape(strip.alt)}"'
        self.text = text
        self.html = (
            f'<div class="stt-player" data-lm-suppress-shortcuts="true"'
            f' data-player="{html.escape(json.dumps(data))}">'
            f'<style>{style}</style><img class="stt-strip" {picture}></div>'
            f"<script>{script}</script>"
        )

    def __repr__(self):
        return self.text

    def _repr_html_(self) -> str:
        return self.html


def pick(
    choices: dict[str, Sequence],
    show: Callable,
    *,
    start: Sequence[int] = (),
    labels=None,
    prompt_frames: int | None = None,
    fps: float = 5.0,
    width: int | None = None,
    unit: str = "frame",
) -> ClipPlayer:
    """A slider for each choice and one for time, over clips side by side.

    Args:
        choices: what can be chosen: name to the values that its slider shows.
        show: given the number of the value of each choice, from 0, the clips to show,
            as `film_strip` takes them, as many for each choice.
        start: with which number each choice begins, else with its first value.
        labels, prompt_frames: as in `film_strip`.
        fps: speed of play, in frames per second.
        width: of a clip on the screen, about; frames are enlarged by whole numbers.
        unit: what the slider of time counts.

    Returns a `ClipPlayer`. TypeError or ValueError: what `film_strip` refuses; bad fps.
    """
    fps = check_rate(fps) or 5.0
    start, sizes = [*start] or [0] * len(choices), [*map(len, choices.values())]
    fits = len(start) == len(sizes) and unit not in choices
    if not fits or not all(0 <= i < n for i, n in zip(start, sizes)):
        raise ValueError(f"start must number a value of each choice, got {start}")
    sheets, pages, last = Sheets(), [], 0
    for chosen in itertools.product(*(range(len(v)) for v in choices.values())):
        row, longest = named(show(*chosen), labels, prompt_frames)
        after = (kind_of(name, longest, prompt_frames) for name, _ in row)
        pages.append(
            [{"name": n, "after": a, **sheets.add(c)} for (n, c), a in zip(row, after)]
        )
        last = max(last, longest)
    if width is None:
        width = 256 if len(row) == 1 else 192 if len(row) < 4 else 128
    check_whole(width, "width")
    axes = choices | {unit: [f"{t} of {last}" for t in range(1, last + 1)]}
    row, _ = named(show(*start), labels, prompt_frames)
    data = {
        "axes": [{"name": k, "values": [f"{v}" for v in vs]} for k, vs in axes.items()],
        "start": start,
        "pages": pages,
        "sheets": sheets.pictures(),
        "prompt": None if prompt_frames is None else int(prompt_frames),
        "wanted": max(1, round(width / max(clip.shape[3] for _, clip in row))),
        "fps": fps,
    }
    every = math.ceil(last / 10)
    names, clips = zip(*row)
    strip = film_strip(clips, names, prompt_frames=prompt_frames, every=every)
    return ClipPlayer(data, strip, strip.alt.replace("Film strip", "Player"))


def scrub(videos, labels=None, *, prompt_frames=None, **options) -> ClipPlayer:
    """Play, pause and drag through one clip or several side by side.

    Arguments as in `film_strip`; `options` are fps, width and unit of `pick`.
    TypeError, ValueError: what these refuse.
    """
    options |= {"labels": labels, "prompt_frames": prompt_frames}
    return pick({}, lambda: videos, **options)


def futures(
    videos: Float[Tensor, "n A S T C H W"],
    truth: Float[Tensor, "n T C H W"],
    prompt_frames: int,
    temperatures: list[float],
    fps: float = 5.0,
) -> ClipPlayer:
    """Choose a clip and a temperature; scrub S futures beside what really happened.

    `videos` holds S futures of n clips at A temperatures; their first `prompt_frames`
    are those of `truth`. TypeError, ValueError: what `scrub` refuses.
    """
    check_frames(truth, "truth", "n T C H W")
    n, A = check_shape(videos, "videos", "n A S T C H W", n=len(truth))[:2]
    if not isinstance(temperatures, list) or len(temperatures) != A:
        raise ValueError(f"temperatures must be {A} numbers, got {temperatures!r}")

    def show(clip: int, temperature: int) -> dict:
        samples = enumerate(videos[clip, temperature], 1)
        return {"truth": truth[clip]} | {f"future {i}": one for i, one in samples}

    choices = {"clip": range(1, len(videos) + 1)}
    choices["temperature"] = [f"{value:g}" for value in temperatures]
    return pick(choices, show, prompt_frames=prompt_frames, fps=fps, width=128)


def explore(model, clips: Float[Tensor, "B T C H W"], prompt_frames: int = 15):
    """Choose clip, futures, temperature; press "generate"; watch, then scrub `futures`.

    For a running kernel. `model` is anything with the `stream` of a `VideoModel`; the
    real `clips` are black after their end. Returns an `ipywidgets.interactive`: its
    `manual_button` generates, its `result` is the `ClipPlayer` of what was generated.
    TypeError, ValueError: bad clips or prompt_frames, a model that cannot stream.
    """
    check_frames(clips, "clips", "B T C H W")
    check_whole(prompt_frames, "prompt_frames", most=clips.shape[1])
    check_type(getattr(model, "stream", None), Callable, "model.stream")
    import ipywidgets as widgets
    from IPython.display import clear_output, display

    def generate(clip, samples, temperature, new_frames, seed):
        end, truth = prompt_frames + new_frames, clips[clip - 1].cpu()
        truth = F.pad(truth, (0,) * 7 + (max(0, end - len(truth)),))[:end]
        prompt = truth[:prompt_frames]
        video = prompt.expand(samples, *prompt.shape)  # (S T C H W)
        names = ["truth", *(f"future {i + 1}" for i in range(samples))]
        stream = model.stream(
            prompt[None],
            new_frames,
            samples=samples,
            temperature=temperature,
            seed=seed,
        )
        for frames in stream:  # (1 S C H W)
            video = torch.cat([video, frames[0, :, None].cpu()], dim=1)
            end = video.shape[1]
            start = max(0, end - 10)  # the latest ten frames
            seen = [truth[start:end], *video[:, start:]]
            clear_output(wait=True)
            known = max(0, prompt_frames - start)
            display(film_strip(seen, names, prompt_frames=known))
        clear_output(wait=True)
        return futures(video[None, None], truth[None], prompt_frames, [temperature])

    return widgets.interactive(
        generate,
        {"manual": True, "manual_name": "generate"},
        clip=widgets.IntSlider(1, 1, len(clips)),
        samples=widgets.IntSlider(3, 1, 8),
        temperature=widgets.FloatSlider(1.0, min=0.0, max=2.0),
        new_frames=widgets.IntSlider(5, 1, 100),
        seed=widgets.IntText(0),
    )


def live_view(every: int = 2):
    """Loss curves and a film strip, kept fresh: `train(config, watch=live_view())`.

    ValueError: `every`, of the strip's frames, that is no whole number above 0.
    """
    check_whole(every, "every")
    import matplotlib.pyplot as plt
    from IPython.display import display
    from matplotlib.ticker import LogLocator

    curves, places = {}, {}

    def show(key: str, picture) -> None:
        if key in places:
            places[key].update(picture)
        else:
            places[key] = display(picture, display_id=True)

    def watch(name: str, progress, clips: dict, prompt_frames: int | None) -> None:
        curves[name] = progress.history  # (step, seconds, loss)
        figure, axis = plt.subplots(figsize=(8, 2.2), layout="constrained")
        for label, history in curves.items():
            _, seconds, losses = zip(*history)
            axis.plot(seconds, losses, label=label)
        axis.set(yscale="log", xlabel="seconds of training", ylabel="loss")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("")
        axis.legend(frameon=False)
        plt.close(figure)
        show("curves", figure)
        show(name, film_strip(clips, prompt_frames=prompt_frames, every=every))

    return watch
