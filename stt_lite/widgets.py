# Made from notebooks/93_widgets.ipynb by "make extract".
"""Players and explorers of clips, in a notebook and on a page. Built in appendix 93."""

import base64
import html
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from stt_lite.strips import (
    GENERATED_COLOUR,
    PROMPT_COLOUR,
    Row,
    film_strip,
    framed,
    kind_of,
    named,
    png,
)
from stt_lite.video import to_bytes

__all__ = ["explore", "futures", "live_view", "scrub", "side_by_side"]


def side_by_side(
    videos: Float[Tensor, "S T C H W"], prompt_frames: int, truth: Tensor | None = None
) -> Float[Tensor, "T 3 H2 W2"]:
    """Clips in a row, as one RGB clip to save, each frame in its border.

    `truth` (T C H W), a real clip of as many frames, stands left of the S videos.
    """
    row = [("", video) for video in videos]
    row = row if truth is None else [("truth", truth), *row]
    tiles = [framed(*clip, prompt_frames, scale=1, border=1) for clip in row]
    return torch.cat([F.pad(tile, (1, 1), value=1) for tile in tiles], dim=-1)


STYLE = f"""<style>
.stt-frames {{ display: flex; flex-wrap: wrap; gap: 6px }}
.stt-frames .stt-frame {{ margin: 0; padding: 0; max-width: 100% }}
.stt-frame img {{ display: block; box-sizing: border-box; width: 100%; margin: 0;
  image-rendering: pixelated; border: 3px solid transparent }}
.stt-prompt img, .stt-real img {{ border-color: rgb{PROMPT_COLOUR} }}
.stt-generated img {{ border: 3px dashed rgb{GENERATED_COLOUR} }}
.stt-frame figcaption {{ font-size: 13px; line-height: 1.5; text-align: left }}
</style>"""


def _box(children: list, name: str, text: str, strip):
    """A box of class `name`; the film strip stands in where widgets cannot show."""
    import ipywidgets as widgets

    class Box(widgets.VBox):
        def __repr__(self):
            return text

        def _repr_mimebundle_(self, **kwargs):
            picture = base64.b64encode(strip.data).decode()
            return {**super()._repr_mimebundle_(**kwargs), "image/png": picture}

    style = widgets.HTML(STYLE, layout=widgets.Layout(display="none"))
    return Box([*children, style]).add_class(name)


def _moment(row: Row, t: int, prompt_frames: int | None, width: int) -> str:
    """Frame t of each clip, as HTML; a shorter clip rests on its last frame."""
    figures = []
    for name, clip in row:
        last = min(t, len(clip) - 1)
        kind = kind_of(name, last, prompt_frames)
        words = [html.escape(word) for word in (name, kind) if word]
        picture = png(Image.fromarray(to_bytes(clip[last : last + 1])[0]))
        picture = base64.b64encode(picture).decode()
        pixels = max(1, round(width / clip.shape[3])) * clip.shape[3] + 6  # two borders
        figures.append(
            f'<figure class="stt-frame stt-{kind or "plain"}" style="width:{pixels}px">'
            f'<img alt="{" · ".join(words) or "clip"}, frame {t + 1}"'
            f' src="data:image/png;base64,{picture}">'
            f"<figcaption>{'<br>'.join(words)}</figcaption></figure>"
        )
    return f'<div class="stt-frames">{"".join(figures)}</div>'


def _player(rows: list[list[Row]], values: list[str], prompt_frames, fps, width):
    """Buttons, slider and play for rows[clip][value], all linked in the browser."""
    import ipywidgets as widgets

    if not 0 < fps < math.inf:
        raise ValueError(f"fps must be above 0, got {fps}")
    bare = widgets.Layout(margin="0")
    style = widgets.HTML().style  # one for all pages: small notebooks
    last = max(len(clip) for _, clip in rows[0][0]) - 1
    play = widgets.Play(max=last, interval=max(1, round(1000 / fps)), repeat=True)
    room = widgets.Layout(width="min(360px, 60vw)")
    slider = widgets.IntSlider(0, 0, last, description="frame", layout=room)
    widgets.jslink((play, "value"), (slider, "value"))

    def choice(name: str, options: list[str]):
        auto = {"button_width": "auto"}
        return widgets.ToggleButtons(options=options, description=name, style=auto)

    def stack(children: list, control, trait: str):
        if len(children) == 1:
            return children[0]
        one = widgets.Stack(children, selected_index=0, layout=bare)
        widgets.jslink((control, trait), (one, "selected_index"))
        return one

    def pages(row: Row, times: range) -> list:
        texts = [_moment(row, t, prompt_frames, width) for t in times]
        return [widgets.HTML(text, layout=bare, style=style) for text in texts]

    numbers = [str(i + 1) for i in range(len(rows))]
    clip = choice("clip", numbers) if len(rows) > 1 else None
    value = choice("temperature", values) if len(values) > 1 else None
    known, stacks = prompt_frames or 0, []
    for by_value in rows:
        prompt = pages(by_value[0], range(known))  # the same for all values
        moving = [prompt + pages(row, range(known, last + 1)) for row in by_value]
        moving = [stack(children, slider, "value") for children in moving]
        stacks.append(stack(moving, value, "index"))
    children = [widgets.HBox([play, slider]), stack(stacks, clip, "index")]
    children = [widget for widget in (clip, value) if widget] + children
    names, clips = zip(*rows[0][-1])
    every = math.ceil((last + 1) / 10)
    strip = film_strip(clips, names, prompt_frames=prompt_frames, every=every)
    return _box(
        children, "stt-scrubber", f"Player of {last + 1} frames: {names}", strip
    )


def futures(
    videos: Float[Tensor, "n A S T C H W"],
    truth: Float[Tensor, "n T C H W"],
    prompt_frames: int,
    temperatures: list[float],
    fps: float = 5.0,
):
    """Choose a clip and a temperature; scrub S futures beside what really happened.

    `videos` holds S futures of n clips at A temperatures; their first `prompt_frames`
    are those of `truth`. Returns what `scrub` returns.
    """
    names = ["truth", *(f"future {i + 1}" for i in range(videos.shape[2]))]
    rows = [
        [list(zip(names, [real, *samples])) for samples in by_temperature]
        for real, by_temperature in zip(truth, videos)
    ]
    values = [f"{value:g}" for value in temperatures]
    return _player(rows, values, prompt_frames, fps, width=128)


def scrub(videos, labels=None, *, prompt_frames=None, fps: float = 5.0, width=None):
    """Play, pause and drag through one clip or several side by side.

    Arguments as in `film_strip`; `fps` is the speed of play; `width` that of a clip on
    the screen, about. Returns an `ipywidgets.VBox` that works without a kernel, too.
    """
    row, _ = named(videos, labels, prompt_frames)
    width = width or (256 if len(row) == 1 else 192 if len(row) < 4 else 128)
    return _player([[row]], [""], prompt_frames, fps, width)


def explore(model, clips: Float[Tensor, "B T C H W"], prompt_frames: int = 15):
    """Choose clip, futures, temperature; press "generate"; watch, then scrub `futures`.

    For a running kernel. `model` is anything with the `stream` of a `VideoModel`; the
    real `clips` are black after their end. Returns an `ipywidgets.VBox`; its `button`
    generates, and its `view` shows.
    """
    import ipywidgets as widgets

    choices = {
        "clip": widgets.IntSlider(1, 1, len(clips)),
        "futures": widgets.IntSlider(3, 1, 8),
        "temperature": widgets.FloatSlider(value=1.0, min=0.0, max=2.0),
        "new frames": widgets.IntSlider(5, 1, 100),
        "seed": widgets.IntText(0),
    }
    for name, choice in choices.items():
        choice.description, choice.style.description_width = name, "90px"
    button, view = widgets.Button(description="generate"), widgets.VBox()

    def press(_):
        chosen, samples, temperature, new, seed = (c.value for c in choices.values())
        end, live = prompt_frames + new, widgets.HTML()
        truth = clips[chosen - 1].cpu()
        truth = F.pad(truth, (0,) * 7 + (max(0, end - len(truth)),))[:end]
        prompt = truth[:prompt_frames]
        video = [prompt.expand(samples, *prompt.shape)]
        view.children, button.disabled = [live], True
        options = {"samples": samples, "temperature": temperature, "seed": seed}
        try:
            for frames in model.stream(prompt[None], new, **options):  # (1 S C H W)
                video.append(frames[0, :, None].cpu())
                row = [(f"future {i + 1}", one) for i, one in enumerate(video[-1])]
                now = truth[prompt_frames + len(video) - 2]
                live.value = STYLE + _moment([("truth", now[None]), *row], 0, 0, 128)
            made = torch.cat(video, dim=1)[None, None]  # (1 1 S T C H W)
            view.children = [futures(made, truth[None], prompt_frames, [temperature])]
        except Exception as error:  # nobody else would show it
            view.children = [widgets.HTML(html.escape(f"{error}"))]
        button.disabled = False

    button.on_click(press)
    strip = film_strip(clips[:3], every=2)
    children = [*choices.values(), button, view]
    box = _box(children, "stt-explorer", f"Explorer of {len(clips)} clips", strip)
    box.button, box.view = button, view
    return box


def live_view(every: int = 2):
    """Loss curves and a film strip, kept fresh: `train(config, watch=live_view())`."""
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
