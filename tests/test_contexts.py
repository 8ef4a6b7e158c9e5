"""Chapter 10: what a model sees in training, and what it should say."""

from dataclasses import replace

import pytest
import torch

from stt_lite.contexts import (
    PRESETS,
    ContextObjective,
    TrainingConfig,
    corrupt,
    dim,
)
from stt_lite.files import read_record
from stt_lite.machines import seed_everything
from stt_lite.moving_mnist import MovingDigits
from stt_lite.pipeline import shape_of, train
from stt_lite.runs import Step
from stt_lite.sampling import continued
from stt_lite.tokenizer import load_tokenizer
from stt_lite.transformer import SpatialTemporalTransformer

CPU = torch.device("cpu")
NONE = {"forecast_share": 0.0, "corruption": 0.0, "fade": 0.0, "rollout_share": 0.0}


def step_of(number=0, done=0.0, process=0, processes=1):
    return Step(done, *seed_everything(0, number, CPU), process, processes)


def objective(frames=8, batch=4, **changes):
    """A small transformer's objective, with no remedy but those in `changes`."""
    small = {"width": 16, "layers": 2, "heads": 2, "batch": batch, "steps": 10}
    config = TrainingConfig(**small | NONE | changes)
    source, tokenizer = MovingDigits(frames=frames), load_tokenizer("moving-mnist-tiny")
    torch.manual_seed(0)
    net = SpatialTemporalTransformer(shape_of(config, source, tokenizer.config))
    return config.objective(net, tokenizer, source).train()


def prepared(of, step=None):
    step = step or step_of()
    return of.prepare(of.sample(step, CPU), step)


def test_corrupt_replaces_the_share_it_is_told():
    tokenizer = load_tokenizer("moving-mnist-tiny")
    latents = torch.zeros(3, 20, 8, 8, 8)
    chance, random = torch.rand(3, 20, 8, 8), torch.randint(256, (3, 20, 8, 8))
    seen = corrupt(latents, tokenizer, torch.tensor([0.0, 0.3, 1.0]), chance, random)
    changed = (seen != 0).any(2).float().mean((1, 2, 3))
    assert changed[0] == 0 and changed[2] == 1 and abs(changed[1] - 0.3) < 0.05
    codes = tokenizer.codes(random.flatten(0, 1)).view_as(latents)
    assert torch.equal(seen[2], codes[2])


def test_dim_takes_each_frames_share_of_each_clips_most():
    clips = torch.rand(2, 3, 1, 4, 4)
    share = torch.tensor([[0.0, 0.5, 1.0], [1.0, 1.0, 0.0]])
    darker = dim(clips, torch.tensor([0.2, 1.0]), share)
    kept = torch.tensor([[1.0, 0.9, 0.8], [0.0, 0.0, 1.0]])
    assert torch.allclose(darker, clips * kept[:, :, None, None, None])


def test_without_remedies_the_context_is_the_truth():
    of = objective()
    for done in (0.0, 0.99):
        given = prepared(of, step_of(done=done))
        assert torch.equal(given["context"], given["target"])
        assert given["known"] is True


@pytest.mark.parametrize("remedy", [{"corruption": 0.9}, {"fade": 0.9}])
def test_what_is_spoiled_is_the_context_and_not_the_target(remedy):
    plain, spoiled = prepared(objective()), prepared(objective(**remedy))
    assert torch.equal(spoiled["target"], plain["target"])
    assert torch.equal(spoiled["clips"], plain["clips"])
    assert not torch.equal(spoiled["context"], spoiled["target"])


def test_dimmed_contexts_hold_less_ink():
    of = objective(batch=16, fade=0.9)
    given = prepared(of)
    with torch.no_grad():
        ink = {
            name: of.tokenizer.decode(given[name].flatten(0, 1)).sum()
            for name in ("context", "target")
        }
    assert 0.5 < ink["context"] / ink["target"] < 0.95


def test_forecasts_know_a_quarter_to_a_half_of_the_clip():
    of = objective(frames=12, batch=1, forecast_share=0.999)
    known = {prepared(of, step_of(number))["known"] for number in range(60)}
    assert known == {3, 4, 5, 6}


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_own_rollouts_come_last_and_replace_at_most_their_share(share):
    of = objective(rollout_share=0.3, rollout_length=share)
    before = prepared(of, step_of(done=0.69))
    assert torch.equal(before["context"], before["target"])
    prompts = set()
    for number in range(12):
        given = prepared(of, step_of(number, done=0.71))
        differs = (given["context"] != given["target"]).any(4).any(3).any(2).any(0)
        assert not differs[: int(8 * (1 - share))].any()
        assert not differs[-1]  # which no prediction sees
        prompts.add(differs.tolist().index(True) if differs.any() else 7)
    assert len(prompts) > 1


def test_an_own_rollout_is_the_models_from_its_own_noise():
    of = objective(rollout_share=0.3, forecast_share=0.999)
    given = prepared(of, step_of(done=0.9))
    prompt = given["known"]
    expected = continued(
        of.model,
        of.tokenizer,
        given["target"][:, :-1],
        prompt,
        given["noise"][:, :-1],
        temperature=0.0,
    )
    torch.testing.assert_close(given["context"][:, :-1], expected)


def test_processes_share_what_one_would_draw():
    changes = {"corruption": 0.5, "fade": 0.5, "forecast_share": 0.5}
    whole = prepared(objective(**changes))
    parts = [
        prepared(objective(**changes), step_of(process=i, processes=2)) for i in (0, 1)
    ]
    for name in ("clips", "context", "target", "noise"):
        halves = torch.stack([part[name] for part in parts], dim=1).flatten(0, 1)
        torch.testing.assert_close(halves, whole[name])
    assert {part["known"] for part in parts} == {whole["known"]}


def test_a_bad_share_is_refused_by_name():
    for name in NONE:
        with pytest.raises(ValueError, match=f"{name} must be in .0, 1., got 1.5"):
            TrainingConfig(**{name: 1.5})


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_trains(name, tmp_path):
    config, source, tokenizer = PRESETS[name]
    config = replace(config, out=tmp_path, steps=1, batch=1, rollout_share=0.9)
    source = replace(source, frames=4)
    assert isinstance(config, TrainingConfig)
    out = train(config, source, tokenizer)
    record = read_record(out / "transformer.safetensors")
    assert record["steps"] == 1 and record["data"]["size"] == source.size
    assert record["config"]["patch"] == config.patch


def test_presets_minimize_with_contexts():
    config, source, tokenizer = PRESETS["moving-mnist-tiny"]
    tokenizer = load_tokenizer(tokenizer)
    net = SpatialTemporalTransformer(shape_of(config, source, tokenizer.config))
    assert type(config.objective(net, tokenizer, source)) is ContextObjective
