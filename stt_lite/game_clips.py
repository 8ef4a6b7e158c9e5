# Made from notebooks/14_game_worlds.ipynb by "make extract".
"""Clips of games, for training, and where their ball is. Built in chapter 14."""

import json
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from stt_lite.bundles import HELD_OUT
from stt_lite.contexts import TrainingConfig
from stt_lite.files import cache_folder
from stt_lite.games import FIELD, Game, known_game, play_games
from stt_lite.moving_mnist import Batch
from stt_lite.tokenizer import TokenizerConfig
from stt_lite.video import check_whole, new_generator
from stt_lite.vqgan import VQGANConfig

__all__ = [
    "GAME_TOKENIZER",
    "GAME_TRAINING",
    "GameClips",
    "area_resize",
    "ball_kept",
    "find_ball",
]


def area_resize(
    frames: Float[Tensor, "*n H W"], size: int
) -> Float[Tensor, "*n size size"]:
    """Shrink: a new pixel is the mean of the area that it covers; nothing is lost.

    ValueError: a size above H or W.
    """
    check_whole(size, "size", most=min(frames.shape[-2:]))

    def shares(n: int) -> Float[Tensor, "size n"]:  # of each old pixel in each new one
        edges = torch.arange(size + 1, dtype=torch.float64) * n / size
        old = torch.arange(n, dtype=torch.float64)
        after = torch.minimum(edges[1:, None], old + 1)
        overlap = after - torch.maximum(edges[:-1, None], old)
        return (overlap.clamp(min=0) * size / n).to(frames)

    return shares(frames.shape[-2]) @ frames @ shares(frames.shape[-1]).T


class GameClips:
    """Clips from a folder that `play_games` wrote: a source (see `Source`).

    Screens stay on the disk; a batch reads its own frames only.

    Args:
        folder: that folder.
        size: height and width of a frame, at most 160.
        frames: of a clip to train on.

    Raises:
        FileNotFoundError: no index.json there.
        TypeError, ValueError: no path, a number out of range.
    """

    channels = 3

    def __init__(self, folder: str | os.PathLike, size: int = 128, frames: int = 20):
        path = Path(folder).expanduser() / "index.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"folder must hold index.json, which play_games writes; there is none "
                f"in {folder}"
            )
        index = json.loads(path.read_text())
        self.options, self.episodes = index["options"], index["episodes"]
        self.length = self.options["frames"]  # of an episode
        self.palette = torch.tensor(index["palette"]) / 255  # (256 3)
        self.screens = np.load(path.with_name("screens.npy"), mmap_mode="r")
        self.ball = torch.from_numpy(np.load(path.with_name("ball.npy")))
        self.size = check_whole(size, "size", most=FIELD)
        self.frames = check_whole(frames, "frames", most=self.length)

    @property
    def data(self) -> dict:
        """What a run's record says of these clips."""
        content = " and ".join(self.options["games"])
        shape = {"size": self.size, "channels": 3, "frames": self.frames}
        return {"content": content} | shape | {"played": self.options}

    def draw(self, n, frames=20, generator=None, device="cpu") -> Batch:
        """Clips of training episodes: all and every place in them equally likely."""
        return Batch(self.random("train", n, frames, generator, device))

    def held_out(
        self, n, frames=20, seed=0, device="cpu"
    ) -> Float[Tensor, "n T 3 H W"]:
        """Clips of the episodes that are held out."""
        generator = new_generator(seed)
        return self.random("test", n, frames, generator, device)

    def random(self, split: str, n: int, frames: int, generator, device) -> Tensor:
        """Random clips of one split."""
        check_whole(n, "n")
        check_whole(frames, "frames", most=self.length)
        numbers, last = self.numbers(split), self.length - frames
        chosen = torch.randint(len(numbers), (n,), generator=generator).tolist()
        starts = torch.randint(last + 1, (n,), generator=generator).tolist()
        places = [(numbers[i], start) for i, start in zip(chosen, starts)]
        return self.read(places, frames, device)

    def read(self, places, frames: int, device) -> Float[Tensor, "n T 3 size size"]:
        """Clips from their places: number of an episode, and first frame."""
        palette, clips = self.palette.T.contiguous().to(device), []  # (3 256)
        for i, t in places:
            screens = np.array(self.screens[i, t : t + frames])
            indices = torch.from_numpy(screens).to(device).int()  # travel as bytes
            clips.append(area_resize(palette[:, indices].movedim(0, 1), self.size))
        return torch.stack(clips)

    def numbers(self, split: str, game: str | None = None) -> list[int]:
        """Places in `episodes` of a split's episodes, of one game or of all."""
        if game is not None and game not in self.options["games"]:
            played = ", ".join(self.options["games"])
            raise ValueError(f"game must be one of {played}, got {game!r}")
        wanted = [split], [game] if game else self.options["games"]
        places = enumerate((e["split"], e["game"]) for e in self.episodes)
        return [i for i, (s, g) in places if s in wanted[0] and g in wanted[1]]

    def with_ball(
        self, n: int, frames: int = 20, device="cpu", game: str | None = None
    ) -> tuple[Float[Tensor, "n T 3 H W"], Float[Tensor, "n T 2"]]:
        """Held-out clips, and the ball's row and column in pixels, from memory, or NaN.

        They are spread evenly over the held-out episodes, of one game or of all, and
        the same at every call.
        """
        check_whole(n, "n")
        check_whole(frames, "frames", most=self.length)
        numbers = self.numbers("test", game)
        room = len(numbers) * self.length - frames  # episodes end to end
        places = [divmod(i * room // max(1, n - 1), self.length) for i in range(n)]
        last = self.length - frames
        places = [(numbers[i], min(start, last)) for i, start in places]
        ball = torch.stack([self.ball[i, t : t + frames] for i, t in places])
        ball = (ball + 0.5) * self.size / FIELD - 0.5
        return self.read(places, frames, device), ball.to(device)


def played_again(data: dict) -> GameClips:
    """The source that a record of games tells of: held-out episodes, played again.

    They go into $STT_LITE_CACHE or the user's cache, some 140 MB.
    """
    options = data["played"] | {"train": 1, "games": tuple(data["played"]["games"])}
    name = "-".join(str(value) for value in [*options["games"], *options.values()][:-1])
    return GameClips(
        play_games(cache_folder() / name, **options), data["size"], data["frames"]
    )


HELD_OUT["played"] = played_again


def find_spot(
    frames: Float[Tensor, "n 3 H H"], game: Game, least: float
) -> Float[Tensor, "n 2"]:
    """Where the ball is in a few frames; see `find_ball`."""
    size, (ball, ground) = (
        frames.shape[-1],
        torch.tensor([game.ball, game.ground]) / 255,
    )
    far = (frames - ball[:, None, None].to(frames)).square().sum(1).sqrt()  # (n H H)
    like = (1 - 2 * far / (ground - ball).norm()).clamp(min=0)
    at = torch.arange(size).to(frames)
    row = (at + 0.5) * FIELD / size - 0.5  # of the field, at a pixel's centre
    parts = [(row >= first) & (row <= last) for first, last in game.rows]
    like = like * torch.stack(parts).any(0)[:, None]
    near = [2 * round(edge * size / FIELD / 2) + 1 for edge in (4, 2)]  # 5x3 of 128x128

    def summed(h: int, w: int) -> Float[Tensor, "n H H"]:  # over windows
        window = torch.ones(1, 1, h, w).to(frames)
        return F.conv2d(like[:, None], window, padding=(h // 2, w // 2))[:, 0]

    inside = summed(*near)
    around = summed(near[0] + 4, near[1] + 4) - inside  # a ring, two pixels wide
    best, place = (inside - 2 * around).flatten(1).max(1)
    middle = torch.stack([place // size, place % size], dim=1)
    off = (at - middle[:, :, None]).abs()  # (n 2 H), rows and columns
    spot = like * (off[:, 0] <= near[0] // 2)[:, :, None]
    spot = spot * (off[:, 1] <= near[1] // 2)[:, None]
    centre = torch.stack([spot.sum(2) @ at, spot.sum(1) @ at], dim=1)
    centre = centre / spot.sum((1, 2)).clamp(min=1e-6)[:, None]
    centre[best < least] = torch.nan
    return centre


def find_ball(
    frames: Float[Tensor, "*n 3 H W"], game: str, least: float = 1.0
) -> Float[Tensor, "*n 2"]:
    """Where the ball is: a small spot of its colour that stands alone.

    Args:
        frames: the playing field, values in [0, 1], square.
        game: a key of `GAMES`; only rows where its ball can be told are searched.
        least: how much of it there must be, in pixels of its pure colour, less twice
            what surrounds it.

    Returns:
        Row and column of its centre in pixels; NaN where there is none.

    Raises:
        ValueError: frames that are not square RGB frames, or an unknown game.
    """
    known, size = known_game(game), frames.shape[-1]
    if frames.shape[-3:] != (3, size, size):
        got = tuple(frames.shape)
        raise ValueError(f"frames must be square and RGB, (... 3 H H), got {got}")
    groups = frames.reshape(-1, 3, size, size).split(64)  # small ones stay in a cache
    found = torch.cat([find_spot(group, known, least) for group in groups])
    return found.view(*frames.shape[:-3], 2)


def ball_kept(
    frames: Float[Tensor, "*n 3 H W"],
    again: Float[Tensor, "*n 3 H W"],
    truth: Float[Tensor, "*n 2"],
    game: str,
    within: float = 2.0,
) -> tuple[Bool[Tensor, "*n"], Bool[Tensor, "*n"]]:
    """Which frames show the ball, and which of these still do after reconstruction.

    Shown is what `find_ball` finds `within` so many pixels of the truth (NaN: nowhere),
    along rows and columns; kept, what it finds there `again`, too.
    """
    shown, found = (
        (find_ball(x, game) - truth).abs().amax(-1) <= within for x in (frames, again)
    )
    return shown, shown & found


GAME_TOKENIZER = VQGANConfig(
    shape=TokenizerConfig(
        channels=3,
        downsample=8,
        residual_blocks=2,
        latent_channels=6,
        quantizer="fsq",
        codebook_size=4**6,
        levels=(4,) * 6,
        group_norm=True,
    ),
    adversarial=0.25,
    start=0.8,
    warmup=0.1,
    width=16,
    moving=20.0,
)
GAME_TRAINING = TrainingConfig(
    out=Path("runs/game"),
    minutes=70.0,
    tokenizer_share=0.35,
    width=96,
    batch=2,
    beta=32.0,
    fade=0.0,
    corruption=0.02,
)
