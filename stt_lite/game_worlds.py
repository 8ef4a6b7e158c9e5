# Extracted from notebooks/12_game_worlds.ipynb by "make extract": edit the notebook, not this file.
"""Game worlds: colour video of Atari games, its tokenizer, which keeps the ball, and its transformer. Built in chapter 12."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from stt_lite.evaluation import copy_last_frame, evaluate, mean_of, psnr, squared_error, without_chance
from stt_lite.generation import VideoModel
from stt_lite.training import TrainingConfig, new_accelerator, train_transformer
from stt_lite.video import check_frames, check_whole
from stt_lite.vq_autoencoder import Tokenizer, TokenizerConfig, codebook_usage, save_tokenizer, write_file
from stt_lite.vqgan import VQGANConfig, train_vqgan

__all__ = [
    "FIELD", "GAMES", "GAME_LOSSES", "GAME_TOKENIZER", "Episode", "Game", "GameClips", "Player", "area_resize", "ball_kept",
    "ball_over_time", "compare_moving", "find_ball", "forecast_scores", "play", "play_games", "reconstruction_scores",
    "train_game",
]  # fmt: skip


FIELD = 160  # edge of the playing field in pixels, the same for all games here: what is above it shows the score


@dataclass(frozen=True)
class Game:
    """What a player and a test need to know about a game; all in pixels of its playing field of 160x160.

    Args:
        ball, ground: RGB in [0, 255] of the ball, 4 rows by 2 columns large, and of what is behind it.
        rows: first and last of the rows where a ball can be told by its colour, one pair for each part of the field.
        ram: addresses of the ball's row and column, and of the player's paddle, in the console's memory.
        origin: what memory holds there for a ball in the field's first row and column.
        along: 0 if the paddle moves along rows, up and down; 1 along columns.
        actions: names of the two that move the paddle to smaller and to larger numbers.
    """

    ball: tuple[int, int, int]
    ground: tuple[int, int, int]
    rows: tuple[tuple[int, int], ...]
    ram: tuple[int, int, int]
    origin: tuple[int, int]
    along: Literal[0, 1]
    actions: tuple[str, str]


GAMES = {
    "pong": Game((236, 236, 236), (144, 72, 17), ((0, 159),), (54, 49, 51), (48, 49), 0, ("RIGHT", "LEFT")),
    "breakout": Game((200, 72, 72), (0, 0, 0), ((0, 21), (60, 153)), (101, 99, 72), (25, 49), 1, ("LEFT", "RIGHT")),
}


def _game(name: str) -> Game:
    if name not in GAMES:
        raise ValueError(f"game must be one of {', '.join(GAMES)}, got {name!r}")
    return GAMES[name]


class Player:
    """Moves the paddle to where the ball is going to hit it, more or less: that is where the game branches.

    When the ball turns towards it, it draws how far beside the paddle's centre it wants the ball, so that it sometimes
    misses; while the ball flies away, the paddle rests. A ball that is out of play is served after a random time; if it
    then comes towards the player at once, the aim that missed still holds.

    Args:
        game: a key of `GAMES`.
        generator: a NumPy generator, where all its choices come from.
        spread: standard deviation of its aim in pixels; a paddle is 16 long.

    Raises:
        ValueError: an unknown game.
    """

    def __init__(self, game: str, generator: np.random.Generator, spread: float = 7.0):
        self.game, self.generator, self.spread = _game(game), generator, spread
        self.aim, self.approaching = 0.0, False

    def choose(self, ram: UInt8[np.ndarray, "128"], before: UInt8[np.ndarray, "128"]) -> str:
        """The name of an action, from the console's memory now and a moment before."""
        game = self.game
        ball, last = ([int(memory[address]) for address in game.ram[:2]] for memory in (ram, before))
        if ball[0] == 0 or last[0] == 0:
            return "FIRE" if self.generator.random() < 0.15 else "NOOP"
        approaching = ball[1 - game.along] > last[1 - game.along]
        if approaching and not self.approaching:
            self.aim = self.generator.normal(0, self.spread)
        self.approaching = approaching
        missing = ball[game.along] + self.aim - (int(ram[game.ram[2]]) + 8)
        if not approaching or abs(missing) < 4:
            return "NOOP"
        return game.actions[int(missing > 0)]


@dataclass
class Episode:
    """What one seed played.

    Args:
        screens: indices into the palette.
        palette: RGB of each index that occurs, 0 for the others.
        ball: row and column of the ball's centre in pixels of the field, from the console's memory; NaN: not to be seen.
    """

    screens: UInt8[np.ndarray, "T 160 160"]
    palette: UInt8[np.ndarray, "256 3"]
    ball: Float[np.ndarray, "T 2"]


def play(
    game: str, frames: int = 400, seed: int = 0, skip: int = 3, sticky: float = 0.25, spread: float = 7.0
) -> Episode:
    """Play a game with `Player` in the Arcade Learning Environment (Bellemare et al., 2013).

    Args:
        game: a key of `GAMES`.
        frames: length T of the episode; a game that ends in it starts again.
        seed: of the player and of the sticky actions. The same seed plays the same game.
        skip: the console's frames for each frame that is kept; an action holds for so many.
        sticky: chance that the console goes on with the last action (Machado et al., 2018), in [0, 1).
        spread: see `Player`.

    Raises:
        ImportError: ale-py is missing.
        ValueError: an unknown game, or a number out of range.
    """
    known = _game(game)
    frames, skip = check_whole(frames, "frames"), check_whole(skip, "skip")
    if not 0 <= sticky < 1:
        raise ValueError(f"sticky must be in [0, 1), got {sticky!r}")
    try:
        import ale_py
        from ale_py import roms
    except ImportError as error:
        raise ImportError("games need the package ale-py: pip install ale-py, or stt_lite[games]") from error
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    console = ale_py.ALEInterface()
    console.setInt("random_seed", seed)
    console.setFloat("repeat_action_probability", sticky)
    console.loadROM(roms.get_rom_path(game))
    player, top = Player(game, np.random.default_rng(seed), spread), 34
    screens, palette = np.empty((frames, FIELD, FIELD), np.uint8), np.zeros((256, 3), np.uint8)
    ball = np.full((frames, 2), np.nan, np.float32)
    ram = console.getRAM().copy()
    for t in range(-60, frames):  # the first sixty lead into the game
        before, ram = ram, console.getRAM().copy()
        if t >= 0:
            colours = console.getScreenRGB()[top : top + FIELD]
            screens[t] = console.getScreen()[top : top + FIELD]
            palette[screens[t]] = colours
            row, column = (int(ram[address]) - zero for address, zero in zip(known.ram, known.origin))
            seen = (colours[max(0, row) : max(0, row + 4), max(0, column) : column + 2] == known.ball).all(-1)
            if seen.sum() >= 4:  # half of it or more
                ball[t] = row + 1.5, column + 0.5
        action = getattr(ale_py.Action, player.choose(ram, before))
        for _ in range(skip):
            console.act(action)
        if console.game_over():
            console.reset_game()
    return Episode(screens, palette, ball)


def area_resize(frames: Float[Tensor, "*n H W"], size: int) -> Float[Tensor, "*n size size"]:
    """Shrink so that each new pixel is the mean of the area it covers: nothing falls between two pixels.

    Args:
        frames: values of any range, floating point.
        size: new height and width, at most the old ones.

    Raises:
        TypeError: frames of whole numbers, which can't hold a mean.
        ValueError: a size out of range.
    """
    if not frames.is_floating_point():
        raise TypeError(f"frames must hold floating-point numbers, got {frames.dtype}")
    if not 1 <= size <= min(frames.shape[-2:]):
        raise ValueError(f"size must be in [1, {min(frames.shape[-2:])}], got {size!r}")

    def shares(n: int) -> Tensor:  # (size n): how much of each new pixel comes from each old one
        edges = torch.arange(size + 1, dtype=torch.float64) * n / size
        old = torch.arange(n, dtype=torch.float64)
        overlap = torch.minimum(edges[1:, None], old + 1) - torch.maximum(edges[:-1, None], old)
        return (overlap.clamp(min=0) * size / n).to(frames)

    return shares(frames.shape[-2]) @ frames @ shares(frames.shape[-1]).T


def play_games(
    folder: str | os.PathLike, games: tuple[str, ...] = tuple(GAMES), train: int = 32, test: int = 6, frames: int = 400,
    seed: int = 0, skip: int = 3,
) -> Path:
    """Play episodes of every game and keep their screens, one byte per pixel: played once, read many times.

    Args:
        folder: gets screens.npy, ball.npy and index.json. Called again with the same options, nothing is played.
        games: keys of `GAMES`.
        train, test: episodes of each game; those for testing have seeds of their own, up to 5,000 of either.
        frames: of each episode.
        seed: 0 or above; another one plays other games.
        skip: see `play`.

    Returns:
        The folder, for `GameClips`.

    Raises:
        ImportError: as `play`.
        ValueError: an unknown game or none, or a number that is not whole or out of range; what lies in the folder stays.
        OSError: a folder that cannot be written, a full disk.
    """
    folder, options = Path(folder), {"train": train, "test": test, "frames": frames, "seed": seed, "skip": skip}
    ranges = {"train": (1, 5000), "test": (1, 5000), "frames": (1,), "seed": (0, 10**5), "skip": (1,)}
    options = {name: check_whole(options[name], name, *limits) for name, limits in ranges.items()}
    if isinstance(games, str) or not games:
        raise ValueError(f"games must be a tuple of names, at least one of {', '.join(GAMES)}, got {games!r}")
    for game in games:
        _game(game)
    options |= {"games": list(games)}
    index = folder / "index.json"
    if index.is_file() and json.loads(index.read_text())["options"] == options:
        return folder
    index.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    seeds = {"train": 10_000 * seed, "test": 10_000 * seed + 5_000}
    plan = [(g, s, seeds[s] + i) for g in games for s in ("train", "test") for i in range(options[s])]
    shape, palette = (len(plan), frames, FIELD, FIELD), np.zeros((256, 3), np.uint8)
    screens = np.lib.format.open_memmap(folder / "screens.npy", "w+", np.uint8, shape)
    balls = np.empty((len(plan), frames, 2), np.float32)
    for i, (game, _, number) in enumerate(plan):
        episode = play(game, frames, number, skip)
        screens[i], balls[i] = episode.screens, episode.ball
        palette = np.maximum(palette, episode.palette)
    screens.flush()
    np.save(folder / "ball.npy", balls)
    episodes = [{"game": game, "split": split, "seed": number} for game, split, number in plan]
    found = {"options": options, "episodes": episodes, "palette": palette.tolist()}
    write_file(index, json.dumps(found).encode())
    return folder


class GameClips:
    """Clips of games from a folder that `play_games` wrote. Screens stay on the disk; a batch reads its own frames only.

    Args:
        folder: that folder.
        size: height and width of a frame, at most 160.
        frames: length of `example` and default length of a clip.

    Attributes:
        episodes: game, split and seed of each.

    Raises:
        FileNotFoundError: no index.json there.
        ValueError: a number out of range.
    """

    def __init__(self, folder: str | os.PathLike, size: int = 128, frames: int = 20):
        path = Path(folder) / "index.json"
        if not path.is_file():
            raise FileNotFoundError(f"folder must hold index.json, which play_games writes; there is none in {folder}")
        index = json.loads(path.read_text())
        self.options, self.episodes, self.length = index["options"], index["episodes"], index["options"]["frames"]
        self.palette = torch.tensor(index["palette"]) / 255  # (256 3)
        self.screens = np.load(path.with_name("screens.npy"), mmap_mode="r")  # (episodes T 160 160)
        self.ball = torch.from_numpy(np.load(path.with_name("ball.npy")))  # (episodes T 2)
        self.size, self.frames = check_whole(size, "size", 1, FIELD), frames
        self._length(1, frames)

    @property
    def data(self) -> dict:
        """What a run's record says of these clips."""
        noted = {"content": " and ".join(self.options["games"]), "size": self.size, "channels": 3, "frames": self.frames}
        return noted | {"played": self.options}

    def numbers(self, split: Literal["train", "test"] = "train", game: str | None = None) -> list[int]:
        """Places in `episodes` of a split's episodes, of one game or of all.

        Raises:
            ValueError: an unknown split, or a game that was not played.
        """
        if split not in ("train", "test"):
            raise ValueError(f'split must be "train" or "test", got {split!r}')
        if game is not None and game not in self.options["games"]:
            raise ValueError(f"game must be one of {', '.join(self.options['games'])}, got {game!r}")
        return [i for i, e in enumerate(self.episodes) if e["split"] == split and game in (None, e["game"])]

    def draw(
        self, n: int, frames: int | None = None, generator: torch.Generator | None = None,
        device: torch.device | str = "cpu", split: Literal["train", "test"] = "train", game: str | None = None,
    ) -> Float[Tensor, "n T 3 H W"]:
        """Random clips: every episode and every place in it equally likely.

        Args:
            n: number of clips.
            frames: T; None: `self.frames`.
            generator: a CPU generator; None draws from torch's global one.
            device: where the clips go; they travel as bytes.
            split, game: see `numbers`.

        Returns:
            Clips with values in [0, 1], float32.

        Raises:
            ValueError: a number out of range, an unknown split or game.
        """
        frames, numbers = self._length(n, frames), self.numbers(split, game)
        chosen = torch.randint(len(numbers), (n,), generator=generator).tolist()
        starts = torch.randint(self.length - frames + 1, (n,), generator=generator).tolist()
        return self._read([(numbers[i], start) for i, start in zip(chosen, starts)], frames, device)

    def held_out(
        self, n: int, frames: int | None = None, device: torch.device | str = "cpu", game: str | None = None
    ) -> tuple[Float[Tensor, "n T 3 H W"], Float[Tensor, "n T 2"]]:
        """Clips of the episodes held out for testing, spread evenly over them, the same at every call.

        Clips overlap, or are the same, where there are fewer frames than asked for.

        Args:
            n, frames, device, game: as in `draw`.

        Returns:
            The clips; and row and column of the ball's centre in each frame, in pixels of the clip, NaN where memory and
            screen show none.

        Raises:
            ValueError: as `draw`.
        """
        frames, numbers = self._length(n, frames), self.numbers("test", game)
        room = len(numbers) * self.length - frames  # episodes end to end
        places = [divmod(i * room // max(1, n - 1), self.length) for i in range(n)]
        chosen = [(numbers[i], min(start, self.length - frames)) for i, start in places]
        ball = torch.stack([self.ball[i, start : start + frames] for i, start in chosen])
        return self._read(chosen, frames, device), ((ball + 0.5) * self.size / FIELD - 0.5).to(device)

    def example(self, device: torch.device | str = "cpu") -> Float[Tensor, "T 3 H W"]:
        """A held-out clip, the same at every call."""
        return self.held_out(1, device=device)[0][0]

    def _length(self, n: int, frames: int | None) -> int:
        check_whole(n, "n")
        return check_whole(self.frames if frames is None else frames, "frames", 1, self.length)

    def _read(self, places: list[tuple[int, int]], frames: int, device) -> Tensor:
        screens = np.stack([self.screens[i, start : start + frames] for i, start in places])
        colours = self.palette.to(device)[torch.from_numpy(screens).to(device).long()]  # (n T 160 160 3)
        return area_resize(colours.movedim(-1, 2).contiguous(), self.size)


def find_ball(frames: Float[Tensor, "*n 3 H W"], game: str, least: float = 1.0) -> Float[Tensor, "*n 2"]:
    """Where the ball is: a small spot of its colour that stands alone.

    Args:
        frames: the playing field, values in [0, 1], square.
        game: a key of `GAMES`.
        least: how much there must be of it, in pixels of its pure colour, less twice what surrounds it.

    Returns:
        Row and column of its centre in pixels, NaN where there is none. Rows where it can't be told by its colour, such as
        between Breakout's bricks, are not searched.

    Raises:
        ValueError: frames that are not square RGB frames, or an unknown game.
    """
    known, size = _game(game), frames.shape[-1]
    check_frames(frames.reshape(-1, *frames.shape[-3:]), "frames", channels=3)
    if frames.shape[-2] != size:
        raise ValueError(f"frames must be square, got {frames.shape[-2]}x{size} pixels")
    ball, ground = (torch.tensor(colour).to(frames) / 255 for colour in (known.ball, known.ground))
    far = (frames - ball[:, None, None]).square().sum(-3).sqrt() / (ground - ball).norm()  # (*n H W)
    like = (1 - 2 * far).clamp(min=0).reshape(-1, 1, size, size)
    at = torch.arange(size, device=frames.device).to(like)
    row = (at + 0.5) * FIELD / size - 0.5  # of the field, at a pixel's centre
    inside = torch.stack([(row >= first) & (row <= last) for first, last in known.rows]).any(0)
    like = like * inside[:, None]
    near = [2 * round(edge * size / FIELD / 2) + 1 for edge in (4, 2)]  # rows and columns, odd; 5x3 of 128x128 pixels
    wide = [edge + 4 for edge in near]  # with the ring, two pixels on each side
    window, both = (F.avg_pool2d(like, w, 1, [edge // 2 for edge in w]) * w[0] * w[1] for w in (near, wide))
    score = (window - 2 * (both - window)).flatten(1)
    best, place = score.max(1)
    masses = torch.cat([like, like * at[:, None], like * at], dim=1)  # and its moments: their ratio is the centre
    masses = F.avg_pool2d(masses, near, 1, [e // 2 for e in near]).flatten(2)
    mass, *moments = masses.gather(2, place[:, None, None].expand(-1, 3, 1))[..., 0].unbind(1)
    centre = torch.stack(moments, 1) / mass.clamp(min=1e-6)[:, None]
    centre[best < least] = torch.nan
    return centre.view(*frames.shape[:-3], 2)


@torch.no_grad()
def ball_kept(
    frames: Float[Tensor, "*n 3 H W"], again: Float[Tensor, "*n 3 H W"], truth: Float[Tensor, "*n 2"], game: str,
    within: float = 2.0,
) -> tuple[Bool[Tensor, "*n"], Bool[Tensor, "*n"]]:
    """Which frames show the ball, and which of them still show it after reconstruction.

    Args:
        frames, again: real frames and what became of them, values in [0, 1].
        truth: row and column of the ball from the console's memory, NaN where there is none.
        game: a key of `GAMES`.
        within: how far from the truth it may be found, in pixels along either axis.

    Returns:
        Shown: `find_ball` finds it in the real frame, where memory says it is. Kept: shown, and found there again.
    """
    shown, found = ((find_ball(x, game) - truth).abs().amax(-1) <= within for x in (frames, again))  # NaN: False
    return shown, shown & found



@torch.no_grad()
def reconstruction_scores(tokenizer: Tokenizer, clips: GameClips, n: int = 40) -> dict[str, dict[str, float]]:
    """What a tokenizer keeps of each game, on `n` held-out clips.

    Returns:
        For each game "psnr" and "squared_error", means over frames; "ball_shown", the share of frames in which `find_ball`
        finds the real ball; "ball_kept", the share of those in which it finds it after reconstruction; "ball_invented",
        the share of the others in which it then finds one all the same; and "codebook_usage".
    """
    device, found = next(tokenizer.parameters()).device, {}
    for game in clips.options["games"]:
        frames, truth = (x.flatten(0, 1) for x in clips.held_out(n, device=device, game=game))
        again = tokenizer.reconstruct(frames)
        shown, kept = ball_kept(frames, again, truth, game)
        without = again[truth[:, 0].isnan()]
        invented = (~find_ball(without, game)[:, 0].isnan()).float().mean().item() if len(without) else 0.0
        indices = torch.cat([tokenizer.quantize(tokenizer.encode(part))[1] for part in frames.split(200)])
        found[game] = {
            "frames": len(frames), "psnr": psnr(again, frames).mean().item(),
            "squared_error": squared_error(again, frames).mean().item(),
            "ball_shown": shown.float().mean().item(), "ball_kept": (kept.sum() / shown.sum()).item(),
            "ball_invented": invented,
            "codebook_usage": codebook_usage(indices, tokenizer.quantizer.codebook_size),
        }  # fmt: skip
    return found


GAME_TOKENIZER = TokenizerConfig(
    channels=3, downsample=8, width=64, residual_blocks=2, latent_channels=6, quantizer="fsq", codebook_size=4**6,
    levels=(4,) * 6, group_norm=True,
)  # fmt: skip
GAME_LOSSES = VQGANConfig(moving=20.0, adversarial=0.25, start=0.8, warmup=0.1, width=16)


def train_game(
    clips: GameClips, out: str | os.PathLike, minutes: float | None = 75.0, steps: int | None = None,
    shape: TokenizerConfig = GAME_TOKENIZER, settings: VQGANConfig = GAME_LOSSES, watch: Callable | None = None, **options,
) -> Path:
    """Train a tokenizer with a discriminator, then a transformer on its latents. `load_pretrained(out)` loads both.

    Called again with the same arguments, it goes on where the last checkpoint stands; with a larger budget too, in which the
    tokenizer trains on only if the transformer has not begun.

    Args:
        clips: the games.
        out: folder for weights, records and checkpoints.
        minutes: time budget for both; `tokenizer_share` of it is the tokenizer's.
        steps: step budget, in place of minutes.
        shape, settings: the tokenizer and its losses.
        watch: see `live_view`.
        options: further fields of `TrainingConfig`, such as width, layers, batch, start, tokenizer_share or seed.

    Returns:
        `out`: tokenizer.safetensors, transformer.safetensors, a record of each, and the checkpoints.

    Raises:
        TypeError, ValueError, FloatingPointError, OSError: as `train_vqgan` and `fit`.
    """
    out, minutes = Path(out), None if steps else minutes
    config = TrainingConfig(
        out=out, size=clips.size, frames=clips.frames, minutes=minutes, steps=steps, codebook_size=shape.codebook_size,
        **{"tokenizer_share": 0.35, "width": 96, "batch": 2, "fade": 0.0, "corruption": 0.02, "pixel_weight": 10.0, "beta": 32.0}
        | options,
    )  # fmt: skip

    shared = {name: getattr(config, name) for name in ("batch", "seed", "precision", "checkpoint_seconds", "adamw_rate")}
    budget, begun = config.part(config.tokenizer_share), (out / "transformer.checkpoint").exists()
    minutes, steps = (None, 1) if begun else (budget.minutes, budget.steps)  # a step long taken: the tokenizer comes back as it is
    tokenizer, record = train_vqgan(clips, out, shape, settings, minutes, steps, watch=watch, **shared)
    record["data"] = clips.data
    if not begun:
        save_tokenizer(tokenizer, out / "tokenizer.safetensors", record)
    with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))):  # the caller's generators stay
        budget = config.part(1 - config.tokenizer_share)
        train_transformer(budget, tokenizer, new_accelerator(budget), source=clips, watch=watch)
    return out


def compare_moving(
    clips: GameClips, out: str | os.PathLike, weights: tuple[float, ...] = (0.0, 20.0), steps: int = 2000, n: int = 40,
    shape: TokenizerConfig = GAME_TOKENIZER, settings: VQGANConfig = replace(GAME_LOSSES, adversarial=0.0), **options,
) -> list[Path]:
    """Train one tokenizer for each weight of moving pixels, all else equal, and write a record of each.

    Args:
        clips: the games.
        out: folder for the records, `game-ablation-moving-WEIGHT.json`, and in `out`/runs for checkpoints.
        weights: the values of `VQGANConfig.moving`.
        steps: of each run.
        n: clips of each game to measure on, see `reconstruction_scores`.
        shape, settings: the tokenizer and its other losses; without a discriminator by default, which is quicker.
        options: further fields of `TrainingConfig`.

    Returns:
        The records' paths.
    """
    paths = []
    for weight in weights:
        name = f"game-ablation-moving-{weight:g}"
        losses, run = replace(settings, moving=weight), Path(out) / "runs" / name
        tokenizer, record = train_vqgan(clips, run, shape, losses, steps=steps, **{"batch": 2} | options)
        record["training"].pop("out")
        record |= {"data": clips.data, "metrics": reconstruction_scores(tokenizer, clips, n)}
        paths.append(Path(out) / f"{name}.json")
        write_file(paths[-1], (json.dumps(record, indent=1) + "\n").encode())
    return paths


def forecast_scores(model: VideoModel, clips: GameClips, n: int = 40, batch: int = 20) -> dict[str, dict]:
    """How well a model continues each game, beside copying the prompt's last frame, on `n` held-out clips.

    Returns:
        For each game and for "all", both protocols, 15->5 and 10->10, of "model" (without chance) and "copy", as
        `evaluate` returns them.
    """
    device, names, found = model.transformer.start.device, ("15->5", "10->10"), {}
    for game in clips.options["games"]:
        real = clips.held_out(n, 20, device, game)[0]
        who = {"model": without_chance(model), "copy": copy_last_frame}
        found[game] = {name: evaluate(forecast, real, names, batch) for name, forecast in who.items()}
    every = list(found.values())
    found["all"] = {name: mean_of([scores[name] for scores in every])[0] for name in ("model", "copy")}
    return found


@torch.no_grad()
def ball_over_time(
    model: VideoModel, clips: GameClips, n: int = 16, new_frames: int = 60, prompt: int = 15, temperature: float = 1.0,
    seed: int = 0,
) -> dict[str, dict[str, list[float]]]:
    """How often a long rollout shows a ball: for each game and new frame, the share of `n` held-out clips, 0 to 1.

    Args:
        model: goes on from the first `prompt` frames of each clip, once.
        temperature, seed: as in `VideoModel.generate`.

    Returns:
        For each game "generated", and "real" for what happened.
    """
    device, found = model.transformer.start.device, {}
    for game in clips.options["games"]:
        real = clips.held_out(n, prompt + new_frames, device, game)[0]
        video = torch.cat([
            model.generate(part[:, :prompt], new_frames, temperature=temperature, seed=seed + i)[:, 0]
            for i, part in enumerate(real.split(8))
        ])  # fmt: skip
        shows = {"generated": video, "real": real}
        found[game] = {who: (~find_ball(x[:, prompt:], game)[..., 0].isnan()).float().mean(0).tolist() for who, x in shows.items()}
    return found


@dataclass
class Run:
    """Play the games and train on them; called again, it goes on where it stopped.

    Args:
        out: folder for weights, records, checkpoints and the games' screens.
        minutes: time budget of tokenizer and transformer.
        tokenizer_share: the tokenizer's part of it.
        moving_steps: instead of that, train tokenizers with and without the weight of moving pixels, so many steps each.
        games: folder for the games' screens; None: `out`/games.
    """

    out: Path = Path("runs/game")
    minutes: float = 70.0
    tokenizer_share: float = 0.35
    moving_steps: int = 0
    games: Path | None = None

    def run(self) -> None:
        clips = GameClips(play_games(self.games or self.out / "games"), frames=12)
        if self.moving_steps:
            print(*compare_moving(clips, self.out, steps=self.moving_steps), sep="\n")
        else:
            print(f"trained: {train_game(clips, self.out, self.minutes, tokenizer_share=self.tokenizer_share)}")


def main() -> None:
    """`python -m stt_lite.game_worlds --out runs/game --minutes 70`."""
    import tyro

    tyro.cli(Run).run()


if __name__ == "__main__" and "__file__" in globals():  # a notebook is __main__ too, but has no file
    main()
