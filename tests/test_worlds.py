"""Chapter 17: Pong with keys, recorded, found, played, and its real game beside it."""

import asyncio
import builtins
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import stt_lite as stt
from stt_lite import worlds
from stt_lite.playing import PROMPT, PlayedWorld, drift, ghost_of, picture, play
from stt_lite.worlds import (
    COLOURS,
    KEYS,
    PongWorld,
    area_codes,
    coloured,
    find_paddle,
    find_small_ball,
    follow_ball,
    mixed_in,
    pong_game,
    record_pong,
    recorded,
)

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "book" / "experiments"))

GROUND, OPPONENT, GREEN, WHITE = COLOURS / 255


@pytest.fixture(scope="module")
def model():
    return stt.load_pretrained("pong")


def field(**patches) -> torch.Tensor:
    """A large field (160 160 3) of bytes: ground, with patches of a colour."""
    frame = COLOURS[0].byte().expand(160, 160, 3).clone()
    for which, (row, column, height, width) in patches.items():
        index = ("ground", "opponent", "paddle", "ball").index(which)
        frame[row : row + height, column : column + width] = COLOURS[index].byte()
    return frame


def small(frame: torch.Tensor) -> torch.Tensor:
    """A field as the source shows it: (3 80 80)."""
    return coloured(torch.from_numpy(area_codes(frame.numpy())))


@pytest.mark.parametrize("corner", [(40, 60), (41, 60), (40, 61), (41, 61)])
def test_small_frames_are_means_of_areas(corner):
    frame = field(
        ball=(*corner, 4, 2), paddle=(70, 140, 16, 4), opponent=(3, 16, 16, 4)
    )
    expected = F.avg_pool2d(frame.float().movedim(-1, 0) / 255, 2)
    torch.testing.assert_close(small(frame), expected)


@pytest.mark.parametrize("row", [0, 33, 40, 41, 155])
@pytest.mark.parametrize("column", [0, 60, 61, 158])
def test_a_ball_is_found_where_it_is(row, column):
    frame = field(ball=(row, column, 4, 2), opponent=(20, 16, 16, 4))
    found = find_small_ball(small(frame))
    centre = torch.tensor([(row + 1.5) / 2 - 0.25, (column + 0.5) / 2 - 0.25])
    assert (found - centre).abs().max() <= 0.5


@pytest.mark.parametrize("row", [2, 60, 61, 140])
def test_a_paddle_is_found_where_it_is(row):
    frame = field(paddle=(row, 140, 16, 4), ball=(80, 80, 4, 2))
    assert abs(find_paddle(small(frame)) - ((row + 7.5) / 2 - 0.25)) < 0.01


def test_what_is_not_there_is_not_found():
    plain = small(field())
    assert find_small_ball(plain).isnan().all() and find_paddle(plain).isnan()
    paddles = small(field(paddle=(60, 140, 16, 4), opponent=(60, 16, 16, 4)))
    assert find_small_ball(paddles).isnan().all()
    trace = plain + 0.15 * (WHITE - GROUND)[:, None, None]  # everywhere, but faint
    assert find_small_ball(trace).isnan().all() and not mixed_in(trace, 3).any()


def test_a_player_goes_for_the_ball():
    rows = {"stay": 68, "up": 20, "down": 120}  # the paddle's middle is at 68
    for key, row in rows.items():
        frame = field(paddle=(60, 140, 16, 4), ball=(row, 80, 4, 2))
        assert KEYS[follow_ball(small(frame))] == key
    assert follow_ball(small(field(paddle=(60, 140, 16, 4)))) == 0  # nothing to do


def test_detectors_agree_with_the_console():
    held_out = recorded(PongWorld(), "test")
    frames = coloured(torch.from_numpy(held_out["codes"][:, ::20]))
    truth = torch.from_numpy(held_out["ball"][:, ::20])
    found, there = find_small_ball(frames), ~truth[..., 0].isnan()
    assert there.sum() > 150
    assert ((found - truth).abs().amax(-1) <= 1)[there].float().mean() > 0.99
    assert found[~there].isnan().all()


def test_a_game_plays_again_and_is_what_comes_with_the_package():
    pytest.importorskip("ale_py")
    again, kept = record_pong(5_000, 40), recorded(PongWorld(), "test")
    for name, values in again.items():
        np.testing.assert_array_equal(values, kept[name][0, :40], name)
    other = record_pong(5_001, 40)
    assert (other["keys"] != again["keys"]).any()


@pytest.mark.parametrize("key", range(3))
def test_a_key_that_is_sent_does_what_it_says(key):
    pytest.importorskip("ale_py")
    game = pong_game(7)
    for _ in range(60):
        next(game)
    rows = []
    for sent in [0, *[key] * 6]:
        codes, pressed, _ = game.send(sent)
        assert pressed == sent
        rows.append(find_paddle(coloured(torch.from_numpy(codes))))
    moved = float(rows[-1] - rows[0])
    assert {"stay": abs(moved) < 4, "up": moved < -4, "down": moved > 4}[KEYS[key]]


def test_clips_come_with_their_keys():
    world = PongWorld()
    batch = world.held_out(30, 20, seed=1)
    assert (
        batch.clips.shape == (30, 20, 3, 80, 80) and batch.clips.dtype is torch.float32
    )
    assert batch.actions.shape == (30, 20) and batch.actions.dtype is torch.int64
    assert batch.actions.unique().tolist() == [0, 1, 2]
    again = world.held_out(30, 20, seed=1)
    assert torch.equal(batch.clips, again.clips)
    assert not torch.equal(batch.clips, world.held_out(30, 20, seed=2).clips)
    generator = torch.Generator().manual_seed(1)
    drawn = world.draw(30, 20, generator)
    assert drawn.clips.shape == batch.clips.shape and not torch.equal(
        drawn.clips, batch.clips
    )
    i, t = world.places("test", 30, 20, torch.Generator().manual_seed(1))
    kept = recorded(world, "test")
    keys = kept["keys"][i.numpy(), (t + torch.arange(20)).numpy()]
    np.testing.assert_array_equal(batch.actions, keys)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PongWorld(train=0), "train must be"),
        (lambda: PongWorld(test=5001), "test must be"),
        (lambda: PongWorld(frames=501), "frames must be"),
        (lambda: PongWorld().draw(0), "n must be"),
        (lambda: PongWorld().held_out(1, 501), "frames must be"),
        (lambda: record_pong(0, 0), "frames must be"),
    ],
)
def test_bad_numbers_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def no_ale(monkeypatch):
    """As if ale-py were missing."""
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == "ale_py":
            raise ImportError("No module named 'ale_py'", name="ale_py")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)


def test_only_recording_and_the_ghost_need_ale_py(model, monkeypatch, tmp_path):
    no_ale(monkeypatch)
    monkeypatch.setenv("STT_LITE_CACHE", str(tmp_path))
    assert len(PlayedWorld(model).step(1)) == 3
    assert play(model).game.real is None
    for wants in (
        lambda: record_pong(0, 5),
        lambda: PlayedWorld(model, ghost=True),
        lambda: PongWorld(train=1, length=20).draw(1),
    ):
        with pytest.raises(ImportError, match="ale-py"):
            wants()


def test_other_numbers_are_recorded_once(monkeypatch, tmp_path):
    pytest.importorskip("ale_py")
    monkeypatch.setenv("STT_LITE_CACHE", str(tmp_path))
    world = PongWorld(train=2, length=30)
    clips = world.draw(3, 16, torch.Generator().manual_seed(0)).clips
    assert [path.name for path in tmp_path.iterdir()] == ["pong-train-2-30.npz"]
    worlds.recorded.cache_clear()
    no_ale(monkeypatch)
    again = world.draw(3, 16, torch.Generator().manual_seed(0)).clips
    assert torch.equal(clips, again)


# The bundled world


def test_the_bundle_gives_clips_with_keys(model):
    clips, actions = stt.held_out_clips(model, 2, 20, seed=3)
    assert clips.shape == (2, 20, 3, 80, 80) and actions.dtype is torch.int64
    video = model.generate(clips[:, :8], new_frames=12, actions=actions, seed=0)
    assert video.shape == (2, 1, 20, 3, 80, 80)


def test_a_key_moves_the_paddle_at_once_and_nothing_else(model):
    clips, actions = stt.held_out_clips(model, 40, 12, seed=1)
    free = (find_paddle(clips[:, 7]) - 40).abs() < 20  # room for either key
    clips, actions = clips[free], actions[free].clone()
    assert len(clips) > 5
    videos = []
    for key in (1, 2):
        actions[:, 8:] = key
        options = dict(actions=actions, temperature=0.0, seed=0)
        videos.append(model.generate(clips[:, :8], 4, **options)[:, 0])
    up, down = videos
    assert torch.equal(up[:, :8], down[:, :8])
    assert (find_paddle(up[:, 9]) < find_paddle(down[:, 9]) - 1).float().mean() > 0.9
    differs = (up - down)[:, 8].abs().amax(1) > 0.2  # (n 80 80)
    assert differs[:, :, :64].float().mean() < 1e-3 and differs[:, :, 64:].any()


def test_the_record_says_what_the_bundle_keeps(model):
    import world_scores

    (kept,) = (r["metrics"] for r in stt.records("pong-tokenizer"))
    assert kept["ball_kept"] >= 0.98
    assert world_scores.kept(model) == pytest.approx(kept, abs=0.01)


def test_playing_is_generating(model):
    played = PlayedWorld(model, seed=5)
    keys = [1] * 4 + [0, 2]
    frames = torch.stack([played.step(key) for key in keys])
    clips, actions = stt.held_out_clips(model, 1, PROMPT, 5)
    actions = torch.cat([actions, torch.tensor([keys])], dim=1)
    options = dict(actions=actions, temperature=0.0, seed=5)
    expected = model.generate(clips, len(keys), **options)[0, 0, PROMPT:]
    torch.testing.assert_close(frames, expected, atol=1e-5, rtol=0)
    assert drift(played) is None and picture(played)[1:4] == b"PNG"


def test_undo_goes_on_from_there_and_keeps_the_real_frames(model):
    played = PlayedWorld(model, seed=2)
    for _ in range(3):
        played.step(1)
    seen = [frame.clone() for frame in played.frames]
    played.undo(2)
    assert len(played.frames) == PROMPT + 1
    assert torch.equal(torch.stack(played.frames), torch.stack(seen[:-2]))
    played.step(1)
    away = (find_paddle(played.frames[-1]) - find_paddle(seen[-2])).abs()
    assert away < 3  # tokens of its own picture, not those it was drawn from
    played.undo(100)
    assert len(played.frames) == len(played.keys) == PROMPT
    with pytest.raises(ValueError, match="frames must be"):
        played.undo(0)


def test_the_ghost_is_the_recorded_game(model):
    pytest.importorskip("ale_py")
    world = worlds.pong_again(model.record["data"])
    i, t = world.places("test", 1, PROMPT, torch.Generator().manual_seed(4))
    kept, i, after = recorded(world, "test"), i.item(), t.item() + PROMPT
    game = ghost_of(model, 4)
    for n in range(after, min(after + 40, world.length)):
        codes, _, _ = game.send(int(kept["keys"][i, n]))
        np.testing.assert_array_equal(codes, kept["codes"][i, n])


def test_a_ghost_tells_how_far_the_world_drifted(model):
    pytest.importorskip("ale_py")
    played = PlayedWorld(model, seed=5, ghost=True)
    assert drift(played) == (0.0, 0.0)
    played.step(1)
    error, off = drift(played)
    assert 0 < error < 20 and off <= 2
    played.frames[-1] = played.ghosts[-1].roll(5, dims=1)  # five rows lower
    assert drift(played)[1] == pytest.approx(5, abs=0.1)


def test_only_worlds_with_keys_are_played():
    with pytest.raises(ValueError, match="model must be one with actions"):
        play(stt.load_pretrained("moving-mnist-tiny"))


def test_buttons_play_pause_undo_and_save(model, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    box = play(model, seed=1, ghost=False)
    image, status, key, _, row, speed, moment = box.children
    running, step, undo, save = row.children
    before = image.value
    key.value = 1
    step.click()
    assert image.value != before and status.value == f"frame {PROMPT + 1}"
    speed.value = 30

    async def some_seconds():
        running.value = True
        while len(box.game.frames) < PROMPT + 4:
            await asyncio.sleep(0.01)
        running.value = False
        await box.task

    asyncio.run(asyncio.wait_for(some_seconds(), 60))
    count = len(box.game.frames)
    assert box.game.keys[-3:] == [1, 1, 1]
    save.click()
    assert len(stt.load_video("played.gif")) == count
    undo.click()
    assert status.value == f"frame {max(PROMPT, count - 10)}"
    moment.value = 2
    assert status.value == f"frame {PROMPT}"


def test_play_and_pause_in_haste_leave_one_loop(model):
    box = play(model, seed=1, ghost=False)
    running = box.children[4].children[0]

    async def haste():
        running.value = True
        first = box.task
        running.value = False
        running.value = True
        assert box.task is first
        running.value = False
        await first

    asyncio.run(asyncio.wait_for(haste(), 60))


# What counts as impossible


def line(*pieces) -> torch.Tensor:
    """A ball's places: (frames, column) pieces, None where it is not to be seen."""
    places = [
        [float("nan")] * 2 if column is None else [40.0, column]
        for frames, column in pieces
        for _ in range(frames)
    ]
    return torch.tensor(places)


@pytest.mark.parametrize(
    ("pieces", "first", "right"),
    [
        ([(30, 40.0)], 30, 1.0),  # always there
        ([(10, 40.0), (2, None), (18, 40.0)], 30, 28 / 30),  # a flicker
        ([(10, 40.0), (20, None)], 12, 10 / 30),  # gone in mid-air
        ([(10, 76.0), (20, None)], 30, 1.0),  # left at an edge: a serve is due
        ([(10, 76.0), (40, None)], 34, 34 / 50),  # but not for ever
    ],
)
def test_the_drift_clock_stops_at_what_cannot_be(pieces, first, right):
    import world_scores

    ball = line(*pieces)
    single = torch.zeros(len(ball), dtype=torch.bool)
    found = world_scores.holds(ball, single, serve=24)
    assert found == (first, pytest.approx(right))
    double = single.clone()
    double[3:6] = True
    assert world_scores.holds(ball, double, serve=24)[0] == 5
    double[3:6] = torch.tensor([True, True, False])
    assert world_scores.holds(ball, double, serve=24)[0] == first


def test_second_balls_are_counted_away_from_the_first():
    import world_scores

    one = small(field(ball=(40, 60, 4, 2)))
    two = small(field(ball=(40, 60, 4, 2)))
    two = torch.maximum(two, small(field(ball=(100, 100, 4, 2))))
    none = small(field())
    found = world_scores.second_ball(torch.stack([one, two, none]))
    assert found.tolist() == [False, True, False]
