# Made from notebooks/17_a_world_you_play.ipynb by "make extract".
"""A world with keys: Pong that was played on every key, and how to measure it."""

import functools
import io
import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

from stt_lite.bundles import HELD_OUT
from stt_lite.contexts import PRESETS, Preset, TrainingConfig
from stt_lite.files import cache_folder, weights_folder, write_file
from stt_lite.games import FIELD, GAMES, Player, ball_in, new_console
from stt_lite.moving_mnist import Batch
from stt_lite.tokenizer import TokenizerConfig
from stt_lite.video import check_whole, new_generator
from stt_lite.vqgan import VQGANConfig

__all__ = [
    "KEYS",
    "PongWorld",
    "area_colours",
    "coloured",
    "find_paddle",
    "find_small_ball",
    "follow_ball",
    "pong_game",
    "record_pong",
]


KEYS = ("stay", "up", "down")  # actions 0, 1, 2
BUTTONS = ("NOOP", "RIGHT", "LEFT")  # of the console
COLOURS = torch.tensor([[144, 72, 17], [213, 130, 74], [92, 186, 92], [236, 236, 236]])
# of ground, opponent, player and ball


def area_codes(colours: UInt8[np.ndarray, "160 160 3"]) -> UInt8[np.ndarray, "80 80"]:
    """Each 2x2 pixels as a number: how many of each colour, as digits to the base 5."""
    digits = np.zeros((FIELD, FIELD), np.uint8)
    for place, colour in enumerate(COLOURS[1:].numpy().astype(np.uint8)):
        digits += 5**place * (colours == colour).all(-1).astype(np.uint8)
    return digits.reshape(80, 2, 80, 2).sum((1, 3), dtype=np.uint8)


def area_colours() -> Float[Tensor, "125 3"]:
    """The mean colour, in [0, 1], that each such number stands for."""
    n = torch.arange(125)
    counts = torch.stack([n % 5, n // 5 % 5, n // 25], dim=1)  # (125 3)
    counts = torch.cat([4 - counts.sum(1, keepdim=True), counts], dim=1)
    return counts.float() @ COLOURS.float() / (4 * 255)


def coloured(codes: UInt8[Tensor, "*n 80 80"]) -> Float[Tensor, "*n 3 80 80"]:
    """Frames of `area_codes` in colour, values in [0, 1]."""
    return area_colours().to(codes.device)[codes.int()].movedim(-1, -3)


def pong_game(seed: int, skip: int = 4) -> Iterator[tuple[np.ndarray, int, np.ndarray]]:
    """A game of Pong without end: yields frame, the key that led to it, and the ball.

    Chapter 14's `Player`, whose aim is better or worse from game to game, and keys at
    random, each held for a while, take turns, so that every key is pressed in every
    situation. A key does what it says: no sticky actions. What `send` is given is
    pressed instead.

    Args:
        seed: of all that is random.
        skip: the console's frames for each one that is kept, under one key.

    Yields:
        Codes (80 80) of `area_codes`; the key; row and column of the ball in pixels of
        the small frame, NaN where it is not to be seen.

    Raises:
        ImportError: ale-py is missing.
    """
    rng, game = np.random.default_rng(seed), GAMES["pong"]
    console, actions = new_console("pong", seed, 0.0)
    for _ in range(int(rng.integers(1, 60))):  # no two games begin alike
        console.act(actions["NOOP"])
    player, random, key = Player(game, rng, rng.uniform(0, 14)), False, 0
    ram = console.getRAM().copy()
    while True:
        before, ram = ram, console.getRAM().copy()
        screen = console.getScreenRGB()[34 : 34 + FIELD]
        ball = (np.array(ball_in(ram, screen, game)) + 0.5) / 2 - 0.5
        asked = yield area_codes(screen), key, ball
        if rng.random() < 1 / 40:
            random = rng.random() < 0.4
        if not random:  # its 2 and 3 move the paddle, the rest lets it be
            key = max(0, player.choose(ram, before) - 1)
        elif rng.random() < 1 / 5:
            key = int(rng.integers(3))
        key = key if asked is None else asked
        for _ in range(skip):
            console.act(actions[BUTTONS[key]])
        if console.game_over():
            console.reset_game()


def record_pong(seed: int, frames: int = 500) -> dict[str, np.ndarray]:
    """Record `frames` of a `pong_game`, from its thirtieth on.

    "codes" (T 80 80), "keys" (T), bytes, and "ball" (T 2).
    """
    check_whole(frames, "frames")
    game = itertools.islice(pong_game(seed), 30, 30 + frames)
    codes, keys, ball = zip(*game)
    keys, ball = np.array(keys, np.uint8), np.array(ball, np.float32)
    return {"codes": np.stack(codes), "keys": keys, "ball": ball}


@dataclass(frozen=True)
class PongWorld:
    """Recorded Pong as a source of clips with keys, 80x80 RGB; see `pong_game`.

    The default numbers come with the package; others are recorded when clips are first
    asked for, into $STT_LITE_CACHE or the user's cache.

    Args:
        train, test: episodes; seeds of the two differ.
        length: frames of an episode.
        frames: of a clip to train on.

    Raises:
        ValueError: a number out of range.
    """

    train: int = 64
    test: int = 12
    length: int = 500
    frames: int = 16
    size: ClassVar[int] = 80
    channels: ClassVar[int] = 3
    actions: ClassVar[int] = len(KEYS)

    def __post_init__(self):
        for name in ("train", "test", "length"):
            check_whole(getattr(self, name), name, most=5000)
        check_whole(self.frames, "frames", most=self.length)

    @property
    def data(self) -> dict:
        """What a run's record says of these clips."""
        shape = {"size": 80, "channels": 3, "frames": self.frames}
        return shape | {"content": "pong, with keys", "pong": asdict(self)}

    def draw(self, n, frames=16, generator=None, device="cpu") -> Batch:
        """Clips of training episodes: all and every place in them equally likely."""
        return self.clips("train", n, frames, generator, device)

    def held_out(self, n, frames=16, seed=0, device="cpu") -> Batch:
        """Clips of the episodes that are held out, and their keys."""
        generator = new_generator(seed)
        return self.clips("test", n, frames, generator, device)

    def places(self, split: str, n: int, frames: int, generator) -> tuple:
        """In which episode each clip lies, and where it begins: (n 1) each."""
        i = torch.randint(getattr(self, split), (n, 1), generator=generator)
        last = self.length - frames
        return i, torch.randint(last + 1, (n, 1), generator=generator)

    def clips(self, split: str, n: int, frames: int, generator, device) -> Batch:
        """Random clips of one split: `Batch(clips, actions)`."""
        check_whole(n, "n")
        check_whole(frames, "frames", most=self.length)
        episodes = recorded(self, split)
        codes, keys = (torch.from_numpy(episodes[name]) for name in ("codes", "keys"))
        i, t = self.places(split, n, frames, generator)  # (n 1) each
        t = t + torch.arange(frames)  # (n T)
        codes, keys = codes[i, t].to(device), keys[i, t].to(device)  # few bytes travel
        return Batch(coloured(codes), keys.long())


FIRST_SEED = {"train": 0, "test": 5_000}  # of a split's first episode


@functools.lru_cache(maxsize=2)
def recorded(world: PongWorld, split: str) -> dict[str, np.ndarray]:
    """Episodes of a split, from the package or a cache, else recorded: see `PongWorld`.

    Arrays as in `record_pong`, (episodes T …).
    """
    count = getattr(world, split)
    name = f"pong-{split}-{count}-{world.length}.npz"
    path = weights_folder().parent / "data" / name
    if not path.is_file():
        path = cache_folder() / name
    if not path.is_file():
        seeds = range(FIRST_SEED[split], FIRST_SEED[split] + count)
        seeds = tqdm(seeds, "recording", disable=None)
        episodes = [record_pong(seed, world.length) for seed in seeds]
        box = io.BytesIO()
        arrays = {k: np.stack([e[k] for e in episodes]) for k in episodes[0]}
        np.savez_compressed(box, **arrays)
        write_file(path, box.getvalue())
    with np.load(path) as arrays:
        return dict(arrays)


def pong_again(data: dict) -> PongWorld:
    """The source that a record of Pong with keys tells of."""
    names = ("train", "test", "length", "frames")
    return PongWorld(**{name: data["pong"][name] for name in names})


HELD_OUT["pong"] = pong_again


def mixed_in(frames: Float[Tensor, "*n 3 H W"], which: int) -> Float[Tensor, "*n H W"]:
    """How much of a colour of `COLOURS` is mixed into each pixel's ground, 0 to 1.

    The share along the line from ground to colour, less twice the distance from it;
    traces below a fifth are none.
    """
    ground, colour = (COLOURS[i].to(frames) / 255 for i in (0, which))
    line = (colour - ground)[:, None, None]
    off = frames - ground[:, None, None]
    share = (off * line).sum(-3) / line.square().sum()
    beside = (off - share.unsqueeze(-3) * line).square().sum(-3).sqrt()
    share = share - 2 * beside / line.norm()
    return torch.where(share < 0.2, 0, share.clamp(max=1))


def find_small_ball(
    frames: Float[Tensor, "*n 3 80 80"], least: float = 0.8
) -> Float[Tensor, "*n 2"]:
    """Row and column of the ball's centre, NaN where there is none.

    A whole ball holds two pixels of white, spread over up to six; `least` must lie in a
    window of 5x3 pixels.
    """
    white = mixed_in(frames, 3).reshape(-1, 1, 80, 80)
    window = torch.ones(1, 1, 5, 3).to(white)
    amount, place = F.conv2d(white, window, padding=(2, 1)).flatten(1).max(1)
    at = torch.arange(80).to(white)
    rows = (at - place[:, None] // 80).abs() <= 2
    columns = (at - place[:, None] % 80).abs() <= 1
    ball = white[:, 0] * rows[:, :, None] * columns[:, None]
    centre = torch.stack([ball.sum(2) @ at, ball.sum(1) @ at], dim=1)
    centre = centre / ball.sum((1, 2)).clamp(min=1e-6)[:, None]
    centre[amount < least] = torch.nan
    return centre.view(*frames.shape[:-3], 2)


def find_paddle(frames: Float[Tensor, "*n 3 80 80"]) -> Float[Tensor, "*n"]:
    """Row of the centre of the player's paddle, the green one; NaN: there is none."""
    green = mixed_in(frames, 2)[..., 66:76].sum(-1)  # (*n 80)
    at = torch.arange(80).to(green)
    row = (green @ at) / green.sum(-1).clamp(min=1e-6)
    return torch.where(green.sum(-1) > 1, row, torch.nan)


def follow_ball(frame: Float[Tensor, "3 80 80"]) -> int:
    """The key that moves the paddle towards the ball; "stay" where there is none."""
    off = find_small_ball(frame)[0] - find_paddle(frame)
    return 0 if not off.abs() > 3 else 1 if off < 0 else 2


PONG_TOKENIZER = VQGANConfig(
    shape=TokenizerConfig(
        channels=3,
        downsample=8,
        residual_blocks=0,
        latent_channels=3,
        quantizer="fsq",
        codebook_size=512,
        levels=(8, 8, 8),
    ),
    adversarial=0.0,
    moving=40.0,
)
PRESETS["pong"] = Preset(
    TrainingConfig(
        out=Path("runs/pong"),
        minutes=60.0,
        tokenizer_share=0.25,
        width=192,
        layers=4,
        heads=6,
        patch=2,
        head="token",
        moving=4.0,
        beta=1.0,
        fade=0.0,
        corruption=0.02,
    ),
    PongWorld(),
    "pong",
)
