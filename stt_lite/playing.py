# Made from notebooks/17_a_world_you_play.ipynb by "make extract".
"""A world of keys under your own hands, in a notebook."""

import asyncio
import itertools
import time
from collections.abc import Iterator
from types import SimpleNamespace

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from stt_lite.bundles import HELD_OUT, held_out_clips
from stt_lite.generation import VideoModel
from stt_lite.strips import png
from stt_lite.video import check_type, check_whole, save_video, to_bytes
from stt_lite.worlds import FIRST_SEED, KEYS, coloured, find_paddle, pong_game

__all__ = ["PlayedWorld", "play"]

PROMPT = 8  # real frames at the start


class PlayedWorld:
    """A world from one of its held-out moments on, a key at a time.

    Args:
        model: trained with actions, such as `load_pretrained("pong")`.
        seed: which moment.
        temperature: see `Sampling`.
        ghost: whether the real game is fed the same keys; needs `ale-py`.

    Raises:
        ValueError: a model without actions.
        ImportError: a ghost without ale-py.
    """

    def __init__(
        self,
        model: VideoModel,
        seed: int = 0,
        temperature: float = 0.0,
        ghost: bool = False,
    ):
        if not model.transformer.config.actions:
            raise ValueError("model must be one with actions, such as 'pong'")
        self.model = model
        self.options = {"temperature": temperature, "seed": seed}
        clips, actions = (x[0].cpu() for x in held_out_clips(model, 1, PROMPT, seed))
        self.frames, self.keys = list(clips), actions.tolist()
        self.ghosts = list(clips) if ghost else []  # the real game's frames
        self.real = ghost_of(model, seed) if ghost else None
        self.begin()

    def begin(self) -> None:
        """A new stream, from the last fifteen frames on."""
        seen = min(len(self.frames), self.model.trained_frames - 1)
        prompt, first = torch.stack(self.frames[-seen:]), len(self.keys) - seen
        self.new = self.model.stream(
            prompt, 10**9, actions=lambda t: self.keys[first + t], **self.options
        )

    def step(self, key: int) -> Float[Tensor, "C H W"]:
        """The frame that comes of a key."""
        self.keys.append(key)
        self.frames.append(next(self.new)[0, 0])
        if self.real:
            self.ghosts.append(coloured(torch.from_numpy(self.real.send(key)[0])))
        return self.frames[-1]

    def undo(self, frames: int = 10) -> None:
        """Take back that many frames, but not the real ones, and go on from there.

        The real game cannot go back: its ghost ends.
        """
        kept = max(PROMPT, len(self.frames) - check_whole(frames, "frames"))
        del self.frames[kept:], self.keys[kept:]
        self.ghosts, self.real = [], None
        self.begin()


def ghost_of(model: VideoModel, seed: int) -> Iterator:
    """The real game that `held_out_clips(model, 1, PROMPT, seed)` shows, after it."""
    world = HELD_OUT["pong"](model.record["data"])
    generator = torch.Generator().manual_seed(seed)
    episode, start = (x.item() for x in world.places("test", 1, PROMPT, generator))
    game = pong_game(FIRST_SEED["test"] + episode)
    for _ in itertools.islice(game, 30 + start + PROMPT):
        pass
    return game


def drift(game: PlayedWorld) -> tuple[float, float] | None:
    """Squared error of the newest frame, and how far off the paddle is, in pixels.

    None without a ghost.
    """
    if not game.real:
        return None
    ours, real = game.frames[-1], game.ghosts[-1]
    off = find_paddle(ours) - find_paddle(real)
    return (ours - real).square().sum().item(), off.abs().item()


def picture(game: PlayedWorld, scale: int = 4) -> bytes:
    """The newest frame as a PNG, its ghost half over it."""
    frame = game.frames[-1]
    frame = (frame + game.ghosts[-1]) / 2 if game.real else frame
    image = Image.fromarray(to_bytes(frame[None])[0])
    return png(image.resize([scale * n for n in image.size], Image.NEAREST))


HOLDS = """<div tabindex="0" style="width: 320px; padding: 6px; border: 1px solid"
onkeydown="const n = {{ArrowUp: 1, w: 1, ArrowDown: 2, s: 2}}[event.key];
if (n) {{ event.preventDefault(); if (!event.repeat) {press}(n) }}"
onkeyup="if (/^(Arrow(Up|Down)|w|s)$/.test(event.key)) {press}(0)">
Click here, then hold the arrow keys.</div>"""
PRESS = (
    "(n => this.closest('.stt-play').querySelectorAll('.stt-keys button')[n].click())"
)


def layout(seed: int):
    """The buttons of `play`, by name, and the box that they lie in."""
    import ipywidgets as widgets

    made = SimpleNamespace(
        picture=widgets.Image(format="png", width=320, height=320),
        status=widgets.Label(),
        key=widgets.ToggleButtons(options=[(name, i) for i, name in enumerate(KEYS)]),
        running=widgets.ToggleButton(description="play"),
        step=widgets.Button(description="step"),
        undo=widgets.Button(description="undo 10"),
        save=widgets.Button(description="save"),
        speed=widgets.IntSlider(15, 1, 30, description="frames/s"),
        moment=widgets.IntText(seed, description="moment"),
    )
    made.key.add_class("stt-keys")
    row = widgets.HBox([made.running, made.step, made.undo, made.save])
    holds = widgets.HTML(HOLDS.format(press=PRESS))
    parts = [made.picture, made.status, made.key, holds, row, made.speed, made.moment]
    box = widgets.VBox(parts)
    box.add_class("stt-play")
    return made, box


def play(
    model: VideoModel, seed: int = 0, temperature: float = 0.0, ghost: bool = True
):
    """Play a world in a running notebook: keys, pause, step, undo, speed, save.

    Args:
        model, seed, temperature, ghost: of a `PlayedWorld`; no ghost without ale-py.

    Returns an `ipywidgets.VBox`: its `game` is what is played, its `step()` makes one
    frame. TypeError, ValueError: no model, or one without actions; a bad seed.
    """
    check_type(model, VideoModel, "model")
    check_type(ghost, bool, "ghost")
    check_whole(seed, "seed", least=0)
    on, box = layout(seed)

    def show(_=None) -> None:
        on.picture.value, error = picture(box.game), drift(box.game)
        text = f"frame {len(box.game.frames)}"
        if error:
            text += f", squared error {error[0]:.1f}, paddle off by {error[1]:.1f}"
        on.status.value = text

    def begin(_=None) -> None:
        try:
            box.game = PlayedWorld(model, on.moment.value, temperature, ghost)
        except ImportError:  # ale-py is missing
            box.game = PlayedWorld(model, on.moment.value, temperature)
        show()

    def step(_=None) -> None:
        box.game.step(on.key.value)
        show()

    def undo(_) -> None:
        box.game.undo()
        show()

    def save(_) -> None:
        save_video("played.gif", torch.stack(box.game.frames), fps=15)
        on.status.value = "saved as played.gif"

    async def run() -> None:
        while on.running.value:
            begun = time.perf_counter()
            step()
            took = time.perf_counter() - begun
            await asyncio.sleep(max(0.001, 1 / on.speed.value - took))

    def start(change) -> None:
        if change["new"] and (box.task is None or box.task.done()):  # one at a time
            box.task = asyncio.ensure_future(run())

    for button, press in ((on.step, step), (on.undo, undo), (on.save, save)):
        button.on_click(press)
    on.running.observe(start, "value")
    on.moment.observe(begin, "value")
    box.step, box.task = step, None
    begin()
    return box
