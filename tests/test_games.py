"""Chapter 14: games that a seed plays again, a detector checked against memory."""

import builtins
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import stt_lite as stt
from stt_lite import games
from stt_lite.bundles import HELD_OUT
from stt_lite.evaluation import rollout_error
from stt_lite.files import weights_folder
from stt_lite.game_clips import (
    GAME_TOKENIZER,
    GAME_TRAINING,
    GameClips,
    area_resize,
    ball_kept,
    find_ball,
)
from stt_lite.games import FIELD, GAMES, Episode, Player, play_episode, play_games
from stt_lite.tokenizer import TokenizerConfig
from stt_lite.vqgan import VQGANConfig

pytest.importorskip("ale_py")
BOTH = pytest.mark.parametrize("game", GAMES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return play_games(tmp_path_factory.mktemp("games"), train=2, test=2, frames=120)


def test_the_home_is_expanded(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    short = f"~/{folder.name}"
    assert play_games(short, train=2, test=2, frames=120) == folder  # nothing is played
    assert len(GameClips(short).episodes) == len(GameClips(folder).episodes)


@pytest.fixture(scope="module")
def clips(folder):
    return GameClips(folder)


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    """The held-out episodes of the bundle's record."""
    return GameClips(play_games(tmp_path_factory.mktemp("held out"), train=1))


@pytest.fixture(scope="module")
def model():
    return stt.load_pretrained("game")


def coloured(episode: Episode) -> torch.Tensor:
    """All frames of an episode, (T 3 160 160) in [0, 1]."""
    return (
        torch.from_numpy(episode.palette[episode.screens]).permute(0, 3, 1, 2).float()
        / 255
    )


# --- playing


@BOTH
def test_a_seed_plays_its_game_again(game):
    a, b, c = (play_episode(game, 60, seed) for seed in (3, 3, 4))
    assert np.array_equal(a.screens, b.screens) and np.array_equal(
        a.ball, b.ball, equal_nan=True
    )
    assert not np.array_equal(a.screens, c.screens)


@BOTH
def test_the_players_choices_branch_the_game_by_themselves(game):
    """Without sticky actions, the same buttons do the same: players differ."""
    a, b = (play_episode(game, 120, seed, sticky=0.0) for seed in (1, 2))
    assert not np.array_equal(a.screens, b.screens)


@BOTH
def test_memory_and_screen_agree_on_the_ball(game):
    """Where memory puts the ball, the screen shows its colour, and nowhere else."""
    episode = play_episode(game, 300, 0)
    frames, ball = coloured(episode), torch.tensor(GAMES[game].ball) / 255
    seen = np.isfinite(episode.ball[:, 0])
    assert 0.6 < seen.mean() < 1
    for t in np.flatnonzero(seen):
        row, column = (int(x) for x in episode.ball[t] - (1.5, 0.5))
        spot = frames[t][:, max(0, row) : row + 4, max(0, column) : column + 2]
        assert (spot == ball[:, None, None]).all(0).sum() >= 4
    if game == "pong":  # nothing else is white
        assert (
            not (frames[~seen] == ball[:, None, None])
            .all(1)
            .flatten(1)
            .sum(1)
            .ge(4)
            .any()
        )


def test_the_paddle_follows_an_approaching_ball_and_rests_otherwise():
    def ram(row, column, paddle, game):
        memory = np.zeros(128, np.uint8)
        memory[list(game.ram)] = row, column, paddle
        return memory

    def choice(name, now, before):
        game = GAMES[name]
        player = Player(game, np.random.default_rng(0), spread=0.0)
        return game.buttons[player.choose(ram(*now, game), ram(*before, game))]

    # In Pong the ball approaches from the left; the paddle's centre is at 108.
    assert choice("pong", (60, 130, 100), (60, 120, 100)) == "RIGHT"  # up
    assert choice("pong", (160, 130, 100), (160, 120, 100)) == "LEFT"
    assert choice("pong", (110, 130, 100), (110, 120, 100)) == "NOOP"  # there already
    assert choice("pong", (160, 120, 100), (160, 130, 100)) == "NOOP"  # it flies away
    assert choice("breakout", (150, 60, 100), (140, 60, 100)) == "LEFT"
    assert choice("breakout", (150, 160, 100), (140, 160, 100)) == "RIGHT"
    assert choice("breakout", (0, 0, 100), (0, 0, 100)) in ("FIRE", "NOOP")


@BOTH
def test_an_action_moves_the_paddle_in_the_frames_after_it(game):
    """Without sticky actions; in what direction, the paddle's place in memory tells."""
    episode = play_episode(game, 300, 0, sticky=0.0)
    assert episode.actions.shape == (300,) and episode.actions.max() <= 3
    assert set(np.unique(episode.actions)) >= {0, 2, 3}
    band, along = (slice(0, None), slice(138, 146)), GAMES[game].along
    if game == "breakout":
        band = (slice(155, 159), slice(8, 152))
    paddle = (92, 186, 92) if game == "pong" else (200, 72, 72)
    colours = episode.palette[episode.screens][:, band[0], band[1]]
    there = (colours == paddle).all(-1).any(2 - along)  # (T length)
    places = np.arange(there.shape[1])
    with np.errstate(invalid="ignore"):
        middle = (there * places).sum(1) / there.sum(1)
    moved = middle[2:] - middle[:-2]  # over two frames: paddles have inertia
    towards = {k: np.nanmean(moved[episode.actions[:-2] == k]) for k in (2, 3)}
    assert towards[2] < -1 and towards[3] > 1


def test_the_aim_decides_how_often_it_misses():
    """The farther beside the middle it aims, the more often Pong's ball is gone."""

    def gone(spread: float) -> float:
        balls = [
            play_episode("pong", 300, seed, spread=spread).ball for seed in range(3)
        ]
        return np.isnan(np.stack(balls)[..., 0]).mean()

    assert gone(0.0) < gone(25.0)


UNKNOWN = "game must be one of pong, breakout, got 'go'"


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda f: play_episode("go", 10), UNKNOWN),
        (
            lambda f: play_episode("pong", 0),
            "frames must be a whole number of at least 1, got 0",
        ),
        (
            lambda f: play_episode("pong", 9, skip=1.5),
            "skip must be a whole number .*, got 1.5",
        ),
        (lambda f: play_games(f / "new", test=0), r"test must be .*\[1, 5000\], got 0"),
        (lambda f: play_games(f / "new", train=5001), r"train must be .*, got 5001"),
        (lambda f: play_games(f, skip=0), "skip must be a whole number .*, got 0"),
        (lambda f: play_games(f, seed=-1), "seed must be a whole number .*, got -1"),
        (lambda f: play_games(f / "new", games=("pong", "go")), UNKNOWN),
        (lambda f: GameClips(f, size=200), r"size must be .* in \[1, 160\], got 200"),
        (lambda f: GameClips(f, frames=121), r"frames must be .*\[1, 120\], got 121"),
        (
            lambda f: GameClips(f).draw(0),
            "n must be a whole number of at least 1, got 0",
        ),
        (
            lambda f: GameClips(f).held_out(1, 121),
            r"frames must be .*\[1, 120\], got 121",
        ),
        (lambda f: GameClips(f).with_ball(1, game="go"), UNKNOWN),
        (lambda f: area_resize(torch.rand(3, 10, 10), 11), r"size .*\[1, 10\], got 11"),
        (lambda f: find_ball(torch.rand(3, 10, 12), "pong"), r"square .*\(3, 10, 12\)"),
        (
            lambda f: find_ball(torch.rand(1, 10, 10), "pong"),
            r"RGB.* got \(1, 10, 10\)",
        ),
        (lambda f: find_ball(torch.rand(3, 10, 10), "go"), UNKNOWN),
    ],
)
def test_wrong_arguments_are_named(make, message, folder, unchecked):
    with pytest.raises(ValueError, match=message):
        make(folder)
    assert not (folder / "new" / "index.json").exists()
    assert (folder / "index.json").exists()  # what was there stays


def test_a_missing_package_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("ale_py"):
            raise ImportError("No module named 'ale_py'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install ale-py, or stt_lite\[games\]"):
        play_episode("pong", 5)


# --- resizing


@pytest.mark.parametrize("factor", [1, 2, 5])
def test_a_whole_factor_is_average_pooling(factor):
    x = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(
        area_resize(x, 40 // factor), F.avg_pool2d(x, factor), atol=1e-6
    )


@pytest.mark.parametrize("size", [128, 100, 64])
def test_shrinking_keeps_the_light_and_a_constant(size):
    x = torch.rand(1, FIELD, FIELD, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(area_resize(x, size).mean(), x.mean(), atol=1e-5)
    assert torch.allclose(
        area_resize(torch.full((1, FIELD, FIELD), 0.3), size),
        torch.tensor(0.3),
        atol=1e-5,
    )


def test_a_ball_keeps_its_place_and_four_fifths_of_its_brightness():
    for row, column in np.random.default_rng(0).integers(0, 150, (40, 2)).tolist():
        x = torch.zeros(1, FIELD, FIELD)
        x[0, row : row + 4, column : column + 2] = 1
        y = area_resize(x, 128)[0]
        assert y.max() >= 0.8 - 1e-5
        at = torch.arange(128)
        centre = (y.sum(1) * at).sum() / y.sum(), (y.sum(0) * at).sum() / y.sum()
        assert centre[0] == pytest.approx((row + 2) * 0.8 - 0.5, abs=0.2)
        assert centre[1] == pytest.approx((column + 1) * 0.8 - 0.5, abs=0.2)


# --- clips


def test_held_out_episodes_have_seeds_of_their_own(clips):
    seeds = [(e["game"], e["seed"]) for e in clips.episodes]
    assert len(set(seeds)) == len(seeds) == 8
    test = {i for game in GAMES for i in clips.numbers("test", game)}
    assert test == set(clips.numbers("test")) and len(test) == 4
    assert test.isdisjoint(clips.numbers("train")) and len(clips.numbers("train")) == 4


def film(clips: GameClips, number: int) -> torch.Tensor:
    """A whole episode as `GameClips` shows it."""
    return clips.read([(number, 0)], clips.length, "cpu")[0]


def holds(film: torch.Tensor, clip: torch.Tensor) -> bool:
    T = len(clip)
    starts = [t for t in range(len(film) - T + 1) if torch.equal(film[t], clip[0])]
    return any(torch.equal(film[t : t + T], clip) for t in starts)


@pytest.mark.parametrize("split", ["train", "test"])
def test_batches_are_pieces_of_their_split(clips, split):
    if split == "train":
        batch = clips.draw(6, 3, torch.Generator().manual_seed(0))
        drawn = batch.clips
        assert batch.actions is None
    else:
        drawn = clips.held_out(6, 3, seed=0)
    assert drawn.shape == (6, 3, 3, 128, 128) and drawn.dtype == torch.float32
    assert 0 <= drawn.min() <= drawn.max() <= 1
    films = [film(clips, number) for number in clips.numbers(split)]
    assert all(any(holds(film, clip) for film in films) for clip in drawn)


def test_batches_follow_from_the_generator(clips):
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 0, 1)]
    a, b, c = (clips.draw(3, 2, generator).clips for generator in generators)
    assert torch.equal(a, b) and not torch.equal(a, c)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert torch.equal(a, clips.draw(3, 2).clips)
    held_out = [clips.held_out(3, 2, seed) for seed in (0, 0, 1)]
    assert torch.equal(held_out[0], held_out[1])
    assert not torch.equal(held_out[0], held_out[2])


@BOTH
def test_held_out_clips_are_whole_and_their_balls_in_place(clips, game):
    frames, ball = clips.with_ball(8, 20, game=game)
    assert torch.equal(frames, clips.with_ball(8, 20, game=game)[0])
    found = find_ball(frames, game)
    both = ~found[..., 0].isnan() & ~ball[..., 0].isnan()
    assert both.any()
    assert (found - ball)[both].abs().mean() < 0.3  # half a pixel off would show


def test_all_held_out_frames_can_be_had_once(clips):
    """As many clips as fit: they do not overlap."""
    (first, second), n = clips.numbers("test", "pong"), 2 * clips.length // 20
    tiled = clips.with_ball(n, 20, game="pong")[0].flatten(0, 1)
    assert torch.equal(tiled, torch.cat([film(clips, first), film(clips, second)]))


def test_a_record_plays_its_held_out_games_again(clips, tmp_path, monkeypatch):
    monkeypatch.setenv("STT_LITE_CACHE", str(tmp_path))
    data = json.loads(json.dumps(clips.data))  # as a record holds it
    again = HELD_OUT["played"](data)
    assert again.size == clips.size and again.frames == clips.frames
    assert torch.equal(again.held_out(3, 5, seed=2), clips.held_out(3, 5, seed=2))
    monkeypatch.setattr(games, "play_episode", lambda *a: pytest.fail("played again"))
    HELD_OUT["played"](data)  # it lies in the cache


def test_games_are_played_once(folder, tmp_path, monkeypatch):
    options = dict(train=2, test=2, frames=120)
    monkeypatch.setattr(games, "play_episode", lambda *a: pytest.fail("played again"))
    assert play_games(folder, **options) == folder
    with pytest.raises(
        pytest.fail.Exception, match="played again"
    ):  # other options: other games
        play_games(tmp_path, **options)
    monkeypatch.undo()
    play_games(tmp_path, ("pong",), train=1, test=1, frames=30)
    play_games(tmp_path, ("pong",), train=1, test=1, frames=40)
    assert GameClips(tmp_path, frames=40).length == 40


def test_a_run_that_was_killed_is_played_anew(tmp_path, monkeypatch):
    real = games.play_episode
    monkeypatch.setattr(
        games, "play_episode", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        play_games(tmp_path, ("pong",), train=1, test=1, frames=20)
    with pytest.raises(
        FileNotFoundError, match="folder must hold index.json, which play_games writes"
    ):
        GameClips(tmp_path)
    monkeypatch.setattr(games, "play_episode", real)
    assert (
        GameClips(play_games(tmp_path, ("pong",), train=1, test=1, frames=20)).length
        == 20
    )


# --- the detector


@BOTH
@pytest.mark.parametrize("size", [160, 128])
def test_the_detector_agrees_with_the_consoles_memory(game, size):
    episode = play_episode(game, 300, 77)
    truth = (torch.from_numpy(episode.ball) + 0.5) * size / FIELD - 0.5
    found = find_ball(area_resize(coloured(episode), size), game)
    row = torch.from_numpy(episode.ball[:, 0])
    searched = torch.stack(
        [(row >= first) & (row <= last) for first, last in GAMES[game].rows]
    ).any(0)
    assert searched.sum() > 150
    assert ((found - truth).abs().amax(1) <= 2)[searched].float().mean() >= 0.99
    assert (found - truth)[searched].abs().nanmean() < 0.5
    exact = (
        coloured(episode) == torch.tensor(GAMES[game].ball)[:, None, None] / 255
    ).all(1)  # (T 160 160)
    none = ~torch.cat(
        [exact[:, first : last + 1] for first, last in GAMES[game].rows], 1
    ).flatten(1).any(1)
    assert (
        none.any() and found[none].isnan().all()
    )  # and no ball where no pixel has its colour


@BOTH
def test_a_painted_ball_is_found_and_a_larger_thing_is_not(game):
    known = GAMES[game]
    ground = (torch.tensor(known.ground) / 255)[:, None, None].expand(3, 160, 160)
    ball = (torch.tensor(known.ball) / 255)[:, None, None]
    assert find_ball(ground, game).isnan().all()
    for row, column in ((100, 40), (70, 1), (140, 150)):
        frame = ground.clone()
        frame[:, row : row + 4, column : column + 2] = ball
        assert find_ball(frame, game).tolist() == pytest.approx(
            [row + 1.5, column + 0.5], abs=0.6
        )
    paddle = ground.clone()
    paddle[:, 100:104, 40:56] = ball  # as wide as Breakout's paddle
    paddle[:, 60:76, 90:94] = ball  # as tall as Pong's
    assert find_ball(paddle, game).isnan().all()
    both = paddle.clone()
    both[:, 130:134, 20:22] = ball
    assert find_ball(both, game).tolist() == pytest.approx([131.5, 20.5], abs=0.6)


def test_the_detector_does_not_look_between_the_bricks():
    frame = torch.zeros(3, 160, 160)
    frame[:, 40:44, 80:82] = (torch.tensor(GAMES["breakout"].ball) / 255)[:, None, None]
    assert (
        find_ball(frame, "breakout").isnan().all()
        and not find_ball(frame.roll(60, 1), "breakout").isnan().any()
    )


def test_the_detector_takes_any_leading_dimensions(clips):
    frames = clips.with_ball(2, 3, game="pong")[0]
    flat = torch.stack([find_ball(frame, "pong") for frame in frames.flatten(0, 1)])
    assert torch.equal(
        find_ball(frames, "pong").flatten(0, 1).nan_to_num(-1), flat.nan_to_num(-1)
    )


@BOTH
def test_kept_means_found_where_it_was(clips, game):
    frames, truth = (x.flatten(0, 1) for x in clips.with_ball(6, 20, game=game))
    shown, kept = ball_kept(frames, frames, truth, game)
    assert (
        shown.any()
        and torch.equal(shown, kept)
        and not shown[truth[:, 0].isnan()].any()
    )
    ground = (torch.tensor(GAMES[game].ground) / 255)[:, None, None].expand_as(frames)
    assert not ball_kept(frames, ground, truth, game)[1].any()
    moved = frames.roll(5, -1)
    assert (
        ball_kept(frames, moved, truth, game)[1].float().mean() < 0.1
    )  # somewhere else does not count


# --- training


SMALL = TokenizerConfig(
    channels=3,
    downsample=8,
    width=16,
    residual_blocks=0,
    latent_channels=3,
    quantizer="fsq",
    codebook_size=64,
    levels=(4, 4, 4),
)
LOSSES = VQGANConfig(
    SMALL, moving=5.0, adversarial=0.2, start=0.5, warmup=0.1, width=8, stages=2
)


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    brief = dict(out=out, steps=8, batch=1, width=16, layers=1, heads=2)
    config = replace(GAME_TRAINING, **brief)
    return stt.train(config, GameClips(folder, frames=5), LOSSES)


def test_training_writes_what_load_pretrained_reads(run, clips):
    model = stt.load_pretrained(run)
    assert model.frame_shape == (3, 128, 128) and model.trained_frames == 5
    prompt = clips.held_out(1, 6)
    video = model.generate(prompt, 2, samples=2, seed=0)
    assert video.shape == (1, 2, 8, 3, 128, 128)
    assert torch.equal(video[:, 0, :6], prompt)
    data = json.loads((run / "tokenizer.json").read_text())["data"]
    assert model.record["data"] == data
    assert data["content"] == "pong and breakout" and data["played"]["frames"] == 120


def test_the_recipe_is_the_bundles():
    """What the record of the bundled model says of its tokenizer and its losses."""
    (record,) = stt.records("game-tokenizer")
    shape = GAME_TOKENIZER.shape
    known = {
        name: getattr(shape, name) for name in record["config"] if name in vars(shape)
    }
    assert known == record["config"] | {"levels": tuple(record["config"]["levels"])}
    for name, value in record["vqgan"].items():
        if name != "limit":  # a constant now
            assert getattr(GAME_TOKENIZER, name) == value, name
    (record,) = stt.records("game-transformer")
    for name in ("width", "layers", "heads", "patch"):
        if name in record["config"]:
            assert getattr(GAME_TRAINING, name) == record["config"][name], name


# --- what is bundled


def test_the_bundled_tokenizer_keeps_the_ball(model, held_out, root):
    path = weights_folder() / "game-tokenizer.json"
    record = json.loads(path.read_text())
    assert (root / "book" / "results" / path.name).read_text() == path.read_text()
    assert record["vqgan"]["adversarial"] > 0 and record["vqgan"]["moving"] > 0
    for game, m in record["metrics"].items():
        assert m["psnr"] >= 30 and m["ball_kept"] >= 0.95 and m["ball_shown"] > 0.5
        frames, truth = (x.flatten(0, 1) for x in held_out.with_ball(8, 20, game=game))
        again = model.tokenizer.reconstruct(frames)
        shown, kept = ball_kept(frames, again, truth, game)
        assert kept.sum() / shown.sum() >= 0.95
        decibels = stt.psnr(again, frames).mean().item()
        assert decibels == pytest.approx(m["psnr"], abs=2) and decibels >= 30


def test_the_recorded_errors_are_those_of_the_bundled_weights(model, held_out):
    check = model.record["check"]
    n = check["clips"] // 2
    every = torch.cat([held_out.with_ball(n, 20, game=game)[0] for game in GAMES])
    for prompt in (15, 10):
        error = rollout_error(model, every, prompt).mean().item()
        assert error == pytest.approx(check[f"{prompt}->{20 - prompt}"], rel=0.02)


def test_the_bundled_model_beats_copying(model):
    """By three tenths of the squared error, over both games, on held-out episodes."""
    names = ("metrics", "copy_last_frame")
    error, copied = (model.record[name]["15->5"]["mean"] for name in names)
    assert error <= 0.7 * copied
    for scores in model.record["games"].values():
        error = {
            who: np.mean(of["15->5"]["squared_error"]) for who, of in scores.items()
        }
        assert error["model"] < error["copy"]


def test_its_futures_differ(model, held_out):
    prompt = held_out.held_out(1, 15)
    a, b = model.generate(prompt, 10, samples=2, seed=0)[0]
    assert not torch.equal(a, b)


def test_the_weight_of_moving_pixels_keeps_the_ball():
    """The records of the chapter's pitfall: a good PSNR without it, but fewer balls."""
    names = (f"game-ablation-moving-{weight}" for weight in (0, 20))
    without, weighted = (stt.records(name)[0] for name in names)
    assert without["vqgan"]["moving"] == 0 and weighted["vqgan"]["moving"] == 20
    assert without["steps"] == weighted["steps"]
    assert without["seed"] == weighted["seed"]
    for game in GAMES:
        a, b = without["metrics"][game], weighted["metrics"][game]
        assert a["psnr"] > 30 and a["ball_kept"] < b["ball_kept"] - 0.2


def test_it_is_listed_and_shown(root):
    (bundle,) = (b for b in stt.pretrained() if b.name == "game")
    assert (bundle.size, bundle.content) == (128, "pong and breakout")
    assert bundle.megabytes <= 20
    metrics = stt.records("game-tokenizer")[0]["metrics"]
    lines = (root / "README.md").read_text().splitlines()
    row = next(line for line in lines if line.startswith("| `game` "))
    error = np.mean([m["squared_error"] for m in metrics.values()])
    assert f"| {error:.2f} |" in row
