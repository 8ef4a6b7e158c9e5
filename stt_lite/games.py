# Made from notebooks/14_game_worlds.ipynb by "make extract".
"""Atari games that a seed plays, and plays again. Built in chapter 14."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8
from tqdm import tqdm

from stt_lite.files import write_file
from stt_lite.video import check_whole

__all__ = [
    "FIELD",
    "GAMES",
    "Episode",
    "Game",
    "Player",
    "play_episode",
    "play_games",
]


FIELD = 160  # edge of the playing field in pixels; what is above it shows the score


@dataclass(frozen=True)
class Game:
    """What there is to know of a game; places are in pixels of its field of 160x160.

    Args:
        ball, ground: RGB in [0, 255] of the ball, 4 rows by 2 columns, and behind it.
        rows: where a ball can be told by its colour: first and last row of each part.
        ram: addresses of the ball's row and column and of the paddle in memory.
        origin: what memory holds for a ball in the field's first row and column.
        along: 0 where the paddle moves along rows, up and down; 1: along columns.
        buttons: the console's names of the actions 0 to 3: nothing, serve, paddle to
            smaller numbers, paddle to larger ones.
    """

    ball: tuple[int, int, int]
    ground: tuple[int, int, int]
    rows: tuple[tuple[int, int], ...]
    ram: tuple[int, int, int]
    origin: tuple[int, int]
    along: Literal[0, 1]
    buttons: tuple[str, str, str, str]


GAMES = {
    "pong": Game(
        ball=(236, 236, 236),
        ground=(144, 72, 17),
        rows=((0, 159),),
        ram=(54, 49, 51),
        origin=(48, 49),
        along=0,
        buttons=("NOOP", "FIRE", "RIGHT", "LEFT"),
    ),
    "breakout": Game(
        ball=(200, 72, 72),
        ground=(0, 0, 0),
        rows=((0, 21), (60, 153)),  # between them are bricks
        ram=(101, 99, 72),
        origin=(25, 49),
        along=1,
        buttons=("NOOP", "FIRE", "LEFT", "RIGHT"),
    ),
}


def known_game(name: str) -> Game:
    """The game of that name; ValueError: there is none."""
    if name not in GAMES:
        raise ValueError(f"game must be one of {', '.join(GAMES)}, got {name!r}")
    return GAMES[name]


class Player:
    """Moves the paddle to where the ball comes, more or less: there games branch.

    When the ball turns towards it, it draws how far beside the paddle's centre it wants
    to meet it, in pixels with the standard deviation `spread` (a paddle is 16 long), so
    that it sometimes misses. While the ball flies away, the paddle rests. A ball out of
    play is served after a random time; if it then comes at once, the old aim holds.
    """

    def __init__(self, game: Game, generator: np.random.Generator, spread: float = 7.0):
        self.game, self.generator, self.spread = game, generator, spread
        self.aim, self.approaching = 0.0, False

    def choose(
        self, ram: UInt8[np.ndarray, "128"], before: UInt8[np.ndarray, "128"]
    ) -> int:
        """An action, from the console's memory now and a moment before."""
        row, column, paddle = self.game.ram
        along = self.game.along
        ball = int(ram[row]), int(ram[column])
        last = int(before[row]), int(before[column])
        if ball[0] == 0 or last[0] == 0:  # out of play
            return int(self.generator.random() < 0.15)
        approaching = ball[1 - along] > last[1 - along]
        if approaching and not self.approaching:
            self.aim = self.generator.normal(0, self.spread)
        self.approaching = approaching
        missing = ball[along] + self.aim - (int(ram[paddle]) + 8)
        if not approaching or abs(missing) < 4:
            return 0
        return 3 if missing > 0 else 2


@dataclass
class Episode:
    """What one seed played.

    Args:
        screens: indices into the palette.
        palette: RGB of each index that occurs, 0 for the others.
        ball: row and column of the ball's centre in pixels of the field, from the
            console's memory; NaN: not to be seen.
        actions: what the player chose at each frame, see `Game`; seen in the next one.
    """

    screens: UInt8[np.ndarray, "T 160 160"]
    palette: UInt8[np.ndarray, "256 3"]
    ball: Float[np.ndarray, "T 2"]
    actions: UInt8[np.ndarray, "T"]


def new_console(game: str, seed: int, sticky: float):
    """The Arcade Learning Environment with a game, and what its actions are called."""
    try:
        import ale_py
        from ale_py import roms
    except ImportError as error:
        hint = "pip install ale-py, or stt_lite[games]"
        raise ImportError(f"games need the package ale-py: {hint}") from error
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    console = ale_py.ALEInterface()
    console.setInt("random_seed", seed)
    console.setFloat("repeat_action_probability", sticky)
    console.loadROM(roms.get_rom_path(game))
    return console, ale_py.Action.__members__


def ball_in(ram: np.ndarray, colours: np.ndarray, game: Game) -> tuple[float, float]:
    """The ball's centre, from memory; NaN unless the screen shows half of it."""
    row, column = (int(ram[game.ram[i]]) - game.origin[i] for i in (0, 1))
    there = colours[max(0, row) : max(0, row + 4), max(0, column) : column + 2]
    seen = (there == game.ball).all(-1).sum() >= 4
    return (row + 1.5, column + 0.5) if seen else (np.nan, np.nan)


def play_episode(
    game: str,
    frames: int = 400,
    seed: int = 0,
    skip: int = 3,
    sticky: float = 0.25,
    spread: float = 7.0,
) -> Episode:
    """Play a game with `Player` on an emulated console (Bellemare et al., 2013).

    Args:
        game: a key of `GAMES`.
        frames: length T of the episode; a game that ends in it starts again.
        seed: of all that is random: the same seed plays the same game.
        skip: the console's frames for each one that is kept, under one action.
        sticky: chance that the console goes on with the last action, in [0, 1)
            (Machado et al., 2018).
        spread: see `Player`.

    Raises:
        ImportError: ale-py is missing.
        ValueError: an unknown game, or a number that is not whole and above 0.
    """
    known = known_game(game)
    check_whole(frames, "frames")
    check_whole(skip, "skip")
    console, actions = new_console(game, seed, sticky)
    player = Player(known, np.random.default_rng(seed), spread)
    field = slice(34, 34 + FIELD)
    kept = Episode(
        screens=np.empty((frames, FIELD, FIELD), np.uint8),
        palette=np.zeros((256, 3), np.uint8),
        ball=np.full((frames, 2), np.nan, np.float32),
        actions=np.empty(frames, np.uint8),
    )
    ram = console.getRAM().copy()
    for t in range(-60, frames):  # the first sixty lead into the game
        before, ram = ram, console.getRAM().copy()
        action = player.choose(ram, before)
        if t >= 0:
            colours = console.getScreenRGB()[field]
            kept.screens[t] = console.getScreen()[field]
            kept.palette[kept.screens[t]] = colours
            kept.ball[t] = ball_in(ram, colours, known)
            kept.actions[t] = action
        for _ in range(skip):
            console.act(actions[known.buttons[action]])
        if console.game_over():
            console.reset_game()
    return kept


def play_games(
    folder: str | os.PathLike,
    games: tuple[str, ...] = tuple(GAMES),
    train: int = 32,
    test: int = 6,
    frames: int = 400,
    seed: int = 0,
    skip: int = 3,
) -> Path:
    """Play episodes of each game, unless they were played so, and keep their screens.

    Args:
        folder: gets screens.npy, ball.npy and index.json.
        games: keys of `GAMES`.
        train, test: episodes of each game, up to 5,000; seeds of the two differ.
        frames, skip: see `play_episode`.
        seed: 0 or above; another one plays other games.

    Returns:
        The folder, for `GameClips`.

    Raises:
        ImportError, TypeError, ValueError: as `play_episode`, or no folder, no games;
            what lies in the folder stays.
        OSError: a folder that cannot be written, a full disk.
    """
    folder = Path(folder).expanduser()
    options = {"train": train, "test": test, "frames": frames, "seed": seed}
    options = options | {"skip": skip, "games": list(games)}
    for name, limits in {"train": (1, 5000), "test": (1, 5000), "seed": (0,)}.items():
        check_whole(options[name], name, *limits)
    for game in games:
        known_game(game)
    check_whole(frames, "frames")
    check_whole(skip, "skip")
    index = folder / "index.json"
    if index.is_file() and json.loads(index.read_text())["options"] == options:
        return folder
    index.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    seeds = {"train": 10_000 * seed, "test": 10_000 * seed + 5_000}
    episodes = [
        {"game": game, "split": split, "seed": first + i}
        for game in games
        for split, first in seeds.items()
        for i in range(options[split])
    ]
    shape, palette = (len(episodes), frames, FIELD, FIELD), np.zeros((256, 3), np.uint8)
    path = folder / "screens.npy"
    screens = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    ball = np.empty((len(episodes), frames, 2), np.float32)
    for i, e in enumerate(tqdm(episodes, "playing", disable=None)):
        played = play_episode(e["game"], frames, e["seed"], skip)
        screens[i], ball[i] = played.screens, played.ball
        palette = np.maximum(palette, played.palette)
    screens.flush()
    np.save(folder / "ball.npy", ball)
    found = {"options": options, "episodes": episodes, "palette": palette.tolist()}
    write_file(index, json.dumps(found).encode())  # last: without it nothing counts
    return folder
