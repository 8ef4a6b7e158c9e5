"""Chapter 12: games that a seed plays again, a detector checked against the console's memory, and what the bundle keeps."""

import builtins
import hashlib
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import stt_lite as stt
from stt_lite import game_worlds
from stt_lite.evaluation import main as command
from stt_lite.game_worlds import (
    FIELD, GAMES, Episode, GameClips, Player, area_resize, ball_kept, ball_over_time, compare_moving, find_ball,
    forecast_scores, play, play_games, reconstruction_scores, train_game,
)  # fmt: skip

pytest.importorskip("ale_py")
BOTH = pytest.mark.parametrize("game", GAMES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return play_games(tmp_path_factory.mktemp("games"), train=2, test=2, frames=120)


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
    return torch.from_numpy(episode.palette[episode.screens]).permute(0, 3, 1, 2).float() / 255


# --- playing


@BOTH
def test_a_seed_plays_its_game_again(game):
    a, b, c = (play(game, 60, seed) for seed in (3, 3, 4))
    assert np.array_equal(a.screens, b.screens) and np.array_equal(a.ball, b.ball, equal_nan=True)
    assert not np.array_equal(a.screens, c.screens)


@BOTH
def test_the_players_choices_branch_the_game_by_themselves(game):
    """Without sticky actions, the console does the same for the same buttons: what differs then is the player."""
    a, b = (play(game, 120, seed, sticky=0.0) for seed in (1, 2))
    assert not np.array_equal(a.screens, b.screens)


@BOTH
def test_memory_and_screen_agree_on_the_ball(game):
    """Where memory puts the ball, the screen shows its colour; where it puts none, there is no such spot."""
    episode = play(game, 300, 0)
    frames, ball = coloured(episode), torch.tensor(GAMES[game].ball) / 255
    seen = np.isfinite(episode.ball[:, 0])
    assert 0.6 < seen.mean() < 1
    for t in np.flatnonzero(seen):
        row, column = (int(x) for x in episode.ball[t] - (1.5, 0.5))
        spot = frames[t][:, max(0, row) : row + 4, max(0, column) : column + 2]
        assert (spot == ball[:, None, None]).all(0).sum() >= 4
    if game == "pong":  # nothing else is white
        assert not (frames[~seen] == ball[:, None, None]).all(1).flatten(1).sum(1).ge(4).any()


def test_the_paddle_follows_an_approaching_ball_and_rests_otherwise():
    def ram(row, column, paddle, game):
        memory = np.zeros(128, np.uint8)
        for address, value in zip(GAMES[game].ram, (row, column, paddle)):
            memory[address] = value
        return memory

    def choice(game, now, before):
        return Player(game, np.random.default_rng(0), spread=0.0).choose(ram(*now, game), ram(*before, game))

    smaller, larger = GAMES["pong"].actions  # the ball approaches from the left; the paddle's centre is at 108
    assert choice("pong", (60, 130, 100), (60, 120, 100)) == smaller
    assert choice("pong", (160, 130, 100), (160, 120, 100)) == larger
    assert choice("pong", (110, 130, 100), (110, 120, 100)) == "NOOP"  # there already
    assert choice("pong", (160, 120, 100), (160, 130, 100)) == "NOOP"  # it flies away
    smaller, larger = GAMES["breakout"].actions
    assert choice("breakout", (150, 60, 100), (140, 60, 100)) == smaller
    assert choice("breakout", (150, 160, 100), (140, 160, 100)) == larger
    out_of_play = {choice("breakout", (0, 0, 100), (0, 0, 100))}
    assert out_of_play <= {"FIRE", "NOOP"}


def test_the_aim_decides_how_often_it_misses():
    """The farther beside the paddle's middle it aims, the more often Pong's ball is gone."""
    gone = [np.mean([np.isnan(play("pong", 300, s, spread=x).ball[:, 0]).mean() for s in range(3)]) for x in (0.0, 25.0)]
    assert gone[0] < gone[1]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda f: play("pacman", 10), "game must be one of pong, breakout, got 'pacman'"),
        (lambda f: play("pong", 0), "frames must be a whole number of at least 1, got 0"),
        (lambda f: play("pong", 10, skip=1.5), "skip must be a whole number of at least 1, got 1.5"),
        (lambda f: play("pong", 10, sticky=1.0), r"sticky must be in \[0, 1\), got 1.0"),
        (lambda f: Player("chess", np.random.default_rng(0)), "game must be one of pong, breakout, got 'chess'"),
        (lambda f: play_games(f / "new", test=0), r"test must be a whole number in \[1, 5000\], got 0"),
        (lambda f: play_games(f / "new", train=5001), r"train must be a whole number in \[1, 5000\], got 5001"),
        (lambda f: play_games(f, skip=0), "skip must be a whole number of at least 1, got 0"),
        (lambda f: play_games(f / "new", seed=-1), r"seed must be a whole number in \[0, 100000\], got -1"),
        (lambda f: play_games(f / "new", games=()), "games must be a tuple of names, at least one of pong, breakout, got ()"),
        (lambda f: play_games(f / "new", games=("pong", "go")), "game must be one of pong, breakout, got 'go'"),
        (lambda f: GameClips(f, size=200), r"size must be a whole number in \[1, 160\], got 200"),
        (lambda f: GameClips(f, frames=121), r"frames must be a whole number in \[1, 120\], got 121"),
        (lambda f: GameClips(f).draw(0), "n must be a whole number of at least 1, got 0"),
        (lambda f: GameClips(f).draw(1, split="validation"), "split must be \"train\" or \"test\", got 'validation'"),
        (lambda f: GameClips(f).held_out(1, game="go"), "game must be one of pong, breakout, got 'go'"),
        (lambda f: area_resize(torch.rand(3, 10, 10), 11), r"size must be in \[1, 10\], got 11"),
        (lambda f: find_ball(torch.rand(3, 10, 12), "pong"), "frames must be square, got 10x12"),
        (lambda f: find_ball(torch.rand(1, 10, 10), "pong"), "frames must have 3 channels"),
        (lambda f: find_ball(torch.rand(3, 10, 10), "go"), "game must be one of pong, breakout, got 'go'"),
    ],
)
def test_wrong_arguments_are_named(make, message, folder, unchecked):
    with pytest.raises(ValueError, match=message):
        make(folder)
    assert not (folder / "new" / "index.json").exists() and (folder / "index.json").exists()  # what was there stays


def test_whole_numbers_have_no_mean(unchecked):
    with pytest.raises(TypeError, match="frames must hold floating-point numbers, got torch.uint8"):
        area_resize(torch.full((1, 8, 8), 200, dtype=torch.uint8), 4)


def test_a_missing_package_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("ale_py"):
            raise ImportError("No module named 'ale_py'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install ale-py, or stt_lite\[games\]"):
        play("pong", 5)


# --- resizing


@pytest.mark.parametrize("factor", [1, 2, 5])
def test_a_whole_factor_is_average_pooling(factor):
    x = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(area_resize(x, 40 // factor), F.avg_pool2d(x, factor), atol=1e-6)


@pytest.mark.parametrize("size", [128, 100, 64])
def test_shrinking_keeps_the_light_and_a_constant(size):
    x = torch.rand(1, FIELD, FIELD, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(area_resize(x, size).mean(), x.mean(), atol=1e-5)
    assert torch.allclose(area_resize(torch.full((1, FIELD, FIELD), 0.3), size), torch.tensor(0.3), atol=1e-5)


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


def test_batches_are_pieces_of_the_training_episodes(clips):
    drawn = clips.draw(6, 3, torch.Generator().manual_seed(0))
    assert drawn.shape == (6, 3, 3, 128, 128) and drawn.dtype == torch.float32 and 0 <= drawn.min() <= drawn.max() <= 1
    films = {i: clips._read([(i, 0)], clips.length, "cpu")[0] for i in clips.numbers("train")}

    def holds(film, clip):
        return any(torch.equal(film[t : t + 3], clip) for t in range(len(film) - 2) if torch.equal(film[t], clip[0]))

    assert all(any(holds(film, clip) for film in films.values()) for clip in drawn)


def test_batches_follow_from_the_generator(clips):
    a, b, c = (clips.draw(3, 2, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        d = clips.draw(3, 2)
    assert torch.equal(a, d)


@BOTH
def test_held_out_clips_are_whole_and_their_balls_in_place(clips, game):
    frames, ball = clips.held_out(8, 20, game=game)
    assert torch.equal(frames, clips.held_out(8, 20, game=game)[0])
    found = find_ball(frames, game)
    both = ~found[..., 0].isnan() & ~ball[..., 0].isnan()
    assert both.any() and (found - ball)[both].abs().mean() < 0.3  # half a pixel off would show
    assert torch.equal(clips.example(), clips.held_out(1)[0][0]) and clips.example().shape == (20, 3, 128, 128)


def test_all_held_out_frames_can_be_had_once(clips):
    """As many clips as fit: they do not overlap."""
    (first, second), n = clips.numbers("test", "pong"), 2 * clips.length // 20
    tiled = clips.held_out(n, 20, game="pong")[0].flatten(0, 1)
    whole = torch.cat([clips._read([(i, 0)], clips.length, "cpu")[0] for i in (first, second)])
    assert torch.equal(tiled, whole)


def test_games_are_played_once(folder, tmp_path, monkeypatch):
    options = dict(train=2, test=2, frames=120)
    monkeypatch.setattr(game_worlds, "play", lambda *a: pytest.fail("played again"))
    assert play_games(folder, **options) == folder
    with pytest.raises(pytest.fail.Exception, match="played again"):  # other options: other games
        play_games(tmp_path, **options)
    monkeypatch.undo()
    play_games(tmp_path, ("pong",), train=1, test=1, frames=30)
    play_games(tmp_path, ("pong",), train=1, test=1, frames=40)
    assert GameClips(tmp_path, frames=40).length == 40


def test_a_run_that_was_killed_is_played_anew(tmp_path, monkeypatch):
    real = game_worlds.play
    monkeypatch.setattr(game_worlds, "play", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        play_games(tmp_path, ("pong",), train=1, test=1, frames=20)
    with pytest.raises(FileNotFoundError, match="folder must hold index.json, which play_games writes"):
        GameClips(tmp_path)
    monkeypatch.setattr(game_worlds, "play", real)
    assert GameClips(play_games(tmp_path, ("pong",), train=1, test=1, frames=20)).length == 20


# --- the detector


@BOTH
@pytest.mark.parametrize("size", [160, 128])
def test_the_detector_agrees_with_the_consoles_memory(game, size):
    episode = play(game, 300, 77)
    truth = (torch.from_numpy(episode.ball) + 0.5) * size / FIELD - 0.5
    found = find_ball(area_resize(coloured(episode), size), game)
    row = torch.from_numpy(episode.ball[:, 0])
    searched = torch.stack([(row >= first) & (row <= last) for first, last in GAMES[game].rows]).any(0)
    assert searched.sum() > 150
    assert ((found - truth).abs().amax(1) <= 2)[searched].float().mean() >= 0.99
    assert (found - truth)[searched].abs().nanmean() < 0.5
    exact = (coloured(episode) == torch.tensor(GAMES[game].ball)[:, None, None] / 255).all(1)  # (T 160 160)
    none = ~torch.cat([exact[:, first : last + 1] for first, last in GAMES[game].rows], 1).flatten(1).any(1)
    assert none.any() and found[none].isnan().all()  # and no ball where no pixel has its colour


@BOTH
def test_a_painted_ball_is_found_and_a_larger_thing_is_not(game):
    known = GAMES[game]
    ground = (torch.tensor(known.ground) / 255)[:, None, None].expand(3, 160, 160)
    ball = (torch.tensor(known.ball) / 255)[:, None, None]
    assert find_ball(ground, game).isnan().all()
    for row, column in ((100, 40), (70, 1), (140, 150)):
        frame = ground.clone()
        frame[:, row : row + 4, column : column + 2] = ball
        assert find_ball(frame, game).tolist() == pytest.approx([row + 1.5, column + 0.5], abs=0.6)
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
    assert find_ball(frame, "breakout").isnan().all() and not find_ball(frame.roll(60, 1), "breakout").isnan().any()


def test_the_detector_takes_any_leading_dimensions(clips):
    frames = clips.held_out(2, 3, game="pong")[0]
    flat = torch.stack([find_ball(frame, "pong") for frame in frames.flatten(0, 1)])
    assert torch.equal(find_ball(frames, "pong").flatten(0, 1).nan_to_num(-1), flat.nan_to_num(-1))


@BOTH
def test_kept_means_found_where_it_was(clips, game):
    frames, truth = (x.flatten(0, 1) for x in clips.held_out(6, 20, game=game))
    shown, kept = ball_kept(frames, frames, truth, game)
    assert shown.any() and torch.equal(shown, kept) and not shown[truth[:, 0].isnan()].any()
    ground = (torch.tensor(GAMES[game].ground) / 255)[:, None, None].expand_as(frames)
    assert not ball_kept(frames, ground, truth, game)[1].any()
    moved = frames.roll(5, -1)
    assert ball_kept(frames, moved, truth, game)[1].float().mean() < 0.1  # somewhere else does not count


# --- training


SMALL = stt.TokenizerConfig(
    channels=3, downsample=8, width=16, residual_blocks=0, latent_channels=3, quantizer="fsq", codebook_size=64, levels=(4, 4, 4)
)  # fmt: skip
LOSSES = stt.VQGANConfig(moving=5.0, adversarial=0.2, start=0.5, warmup=0.1, width=8, stages=2)
BRIEF = dict(shape=SMALL, settings=LOSSES, batch=1, width=16, layers=1, heads=2)


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    return train_game(GameClips(folder, frames=5), out, steps=8, **BRIEF)


def test_training_writes_what_load_pretrained_reads(run, clips):
    model = stt.load_pretrained(run)
    assert model.frame_shape == (3, 128, 128) and model.trained_frames == 5
    prompt = clips.held_out(1, 6)[0]
    video = model.generate(prompt, 2, samples=2, seed=0)
    assert video.shape == (1, 2, 8, 3, 128, 128) and torch.equal(video[:, 0, :6], prompt)
    assert model.record["data"]["content"] == "pong and breakout" and model.record["data"]["played"]["frames"] == 120
    tokenizer = json.loads((run / "tokenizer.json").read_text())
    assert tokenizer["vqgan"]["moving"] == 5.0 and tokenizer["data"] == model.record["data"]
    assert tokenizer["steps"] + model.record["steps"] in (8, 9)


def test_training_goes_on_from_what_is_there(run, folder, monkeypatch):
    before = [hashlib.sha256((run / f"{part}.safetensors").read_bytes()).digest() for part in ("tokenizer", "transformer")]
    monkeypatch.setattr(GameClips, "draw", lambda *a, **k: pytest.fail("trained again"))
    train_game(GameClips(folder, frames=5), run, steps=8, **BRIEF)
    after = [hashlib.sha256((run / f"{part}.safetensors").read_bytes()).digest() for part in ("tokenizer", "transformer")]
    assert before == after
    with pytest.raises(ValueError, match="out must be empty or hold a run with these arguments"):
        train_game(GameClips(folder, frames=5), run, steps=8, **BRIEF | {"settings": replace(LOSSES, moving=1.0)})


def test_tokens_stay_when_the_budget_grows(run, folder, tmp_path):
    longer = shutil.copytree(run, tmp_path / "longer")
    train_game(GameClips(folder, frames=5), longer, steps=16, **BRIEF)
    for name in ("tokenizer.safetensors", "tokenizer.json", "vqgan.checkpoint"):
        assert (longer / name).read_bytes() == (run / name).read_bytes(), name
    steps = [json.loads((path / "transformer.json").read_text())["steps"] for path in (run, longer)]
    assert steps[0] < steps[1]


def test_a_run_starts_from_other_weights_and_says_so(run, folder, tmp_path):
    steps = dict(steps=8, **BRIEF)
    for name in ("vqgan.json", "vqgan.checkpoint"):
        (tmp_path / name).write_bytes((run / name).read_bytes())  # the same tokenizer
    start = run / "transformer.safetensors"
    train_game(GameClips(folder, frames=5), tmp_path, start=str(start), muon_rate=1e-9, **steps)
    record = json.loads((tmp_path / "transformer.json").read_text())
    assert record["started_from"]["sha256"] == hashlib.sha256(start.read_bytes()).hexdigest()
    a, b = (stt.load_pretrained(path).transformer.layers[0].feed_forward[1].weight for path in (run, tmp_path))
    assert torch.allclose(a, b, atol=1e-5)  # Muon's steps were too small to lead anywhere else


def test_scores_have_every_game_and_both_rivals(run, clips):
    model = stt.load_pretrained(run)
    kept = reconstruction_scores(model.tokenizer, clips, 2)
    assert set(kept) == set(GAMES) and all(m["frames"] == 40 and 0 <= m["ball_kept"] <= 1 for m in kept.values())
    scores = forecast_scores(model, clips, 2)
    assert set(scores) == {*GAMES, "all"} and len(scores["all"]["model"]["15->5"]["squared_error"]) == 5
    mean = np.mean([scores[game]["copy"]["10->10"]["squared_error"] for game in GAMES], axis=0)
    assert scores["all"]["copy"]["10->10"]["squared_error"] == pytest.approx(mean.tolist())
    real = clips.held_out(2, 20, game="pong")[0]
    wanted = stt.rollout_error(None, real, 15).tolist()
    assert scores["pong"]["copy"]["15->5"]["squared_error"] == pytest.approx(wanted, rel=1e-4)
    shares = ball_over_time(model, clips, 2, new_frames=3)
    truth = clips.held_out(2, 18, game="breakout")[0][:, 15:]
    assert shares["breakout"]["real"] == (~find_ball(truth, "breakout")[..., 0].isnan()).float().mean(0).tolist()
    assert all(len(curve) == 3 and 0 <= min(curve) <= max(curve) <= 1 for g in shares.values() for curve in g.values())


def test_the_comparison_changes_the_weight_and_nothing_else(folder, tmp_path):
    paths = compare_moving(GameClips(folder), tmp_path, (0.0, 4.0), steps=2, n=1, shape=SMALL, settings=LOSSES, batch=1)
    a, b = (json.loads(path.read_text()) for path in paths)
    assert [path.name for path in paths] == ["game-ablation-moving-0.json", "game-ablation-moving-4.json"]
    assert a["vqgan"].pop("moving") == 0 and b["vqgan"].pop("moving") == 4
    assert a["vqgan"] == b["vqgan"] and a["training"] == b["training"] and a["steps"] == b["steps"] == 2
    assert set(a["metrics"]) == set(GAMES) and "out" not in a["training"]


# --- what is bundled


def test_the_bundled_tokenizer_keeps_the_ball(model, held_out, root):
    path = stt.weights_folder() / "game-tokenizer.json"
    record = json.loads(path.read_text())
    assert (root / "book" / "results" / path.name).read_text() == path.read_text()
    assert record["vqgan"]["adversarial"] > 0 and record["vqgan"]["moving"] > 0
    for game, m in record["metrics"].items():
        assert m["psnr"] >= 30 and m["ball_kept"] >= 0.95 and m["ball_shown"] > 0.5, game
    measured = reconstruction_scores(model.tokenizer, held_out, 8)
    for game, m in measured.items():
        assert m["psnr"] >= 30 and m["ball_kept"] >= 0.95
        assert m["psnr"] == pytest.approx(record["metrics"][game]["psnr"], abs=2)


def test_the_recorded_errors_are_those_of_the_bundled_weights(model, held_out):
    record = model.record
    every = held_out.held_out(record["check"]["clips"] // 2, 20, game="pong")[0], held_out.held_out(record["check"]["clips"] // 2, 20, game="breakout")[0]
    for prompt in (15, 10):
        error = stt.rollout_error(model, torch.cat(every), prompt).mean().item()
        assert error == pytest.approx(record["check"][f"{prompt}->{20 - prompt}"], rel=0.02)


def test_the_bundled_model_beats_copying(model):
    """By three tenths of the squared error, over both games, on held-out episodes."""
    error, copied = (model.record[key]["15->5"]["mean"] for key in ("metrics", "copy_last_frame"))
    assert error <= 0.7 * copied
    for scores in model.record["games"].values():
        assert np.mean(scores["model"]["15->5"]["squared_error"]) < np.mean(scores["copy"]["15->5"]["squared_error"])


def test_its_futures_differ(model, held_out):
    prompt = held_out.held_out(1, 15)[0]
    a, b = model.generate(prompt, 10, samples=2, seed=0)[0]
    assert not torch.equal(a, b)


def test_the_weight_of_moving_pixels_keeps_the_ball():
    """The records of chapter 12's pitfall: without the weight, a good PSNR, and fewer balls."""
    without, weighted = (stt.records(f"game-ablation-moving-{weight}")[0] for weight in (0, 20))
    assert without["vqgan"]["moving"] == 0 and weighted["vqgan"]["moving"] == 20
    assert without["steps"] == weighted["steps"] and without["seed"] == weighted["seed"]
    for game in GAMES:
        a, b = without["metrics"][game], weighted["metrics"][game]
        assert a["psnr"] > 30 and a["ball_kept"] < b["ball_kept"] - 0.2


def test_it_is_listed_and_shown(root):
    (bundle,) = (b for b in stt.pretrained() if b.name == "game")
    assert (bundle.size, bundle.content) == (128, "pong and breakout") and bundle.megabytes <= 20
    metrics = json.loads((stt.weights_folder() / "game-tokenizer.json").read_text())["metrics"]
    row = next(line for line in (root / "README.md").read_text().splitlines() if line.startswith("| `game` "))
    error = np.mean([m["squared_error"] for m in metrics.values()])
    assert f"| {error:.2f} |" in row


@pytest.mark.parametrize("arguments", [["generate", "--bundle", "game"], ["evaluate", "--bundle", "game", "--clips", "2"]])
def test_commands_that_need_digits_say_so(arguments, capsys, tmp_path):
    out = ["--out", str(tmp_path / "future.gif")] if arguments[0] == "generate" else []
    with pytest.raises(SystemExit) as exit:
        command([*arguments, *out])
    error = capsys.readouterr().err
    assert exit.value.code == 2 and error.count("\n") == 1 and "must name size and digits of Moving MNIST clips" in error


def test_the_command_continues_a_game_from_a_file(held_out, tmp_path):
    stt.save_video(tmp_path / "pong", held_out.held_out(1, 15, game="pong")[0][0])  # a folder of images: lossless
    command(["generate", "--bundle", "game", "--prompt", str(tmp_path / "pong"), "--new-frames", "2", "--out", str(tmp_path / "f.gif")])
    assert stt.load_video(tmp_path / "f.gif").shape[0] == 17
