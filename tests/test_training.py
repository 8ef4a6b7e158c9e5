"""Chapter 09: what is minimized, and the loop that minimizes it."""

import math

import pytest
import torch
from torch import nn

import stt_lite.training as training
from stt_lite.machines import seed_everything
from stt_lite.moving_mnist import Batch, MovingDigits
from stt_lite.runs import Run, RunConfig, Step
from stt_lite.tokenizer import Tokenizer, TokenizerConfig, load_tokenizer
from stt_lite.training import (
    Objective,
    TeacherForcing,
    TokenizerObjective,
    TransformerObjective,
    fit,
)
from stt_lite.transformer import SpatialTemporalTransformer, TransformerConfig

CPU = torch.device("cpu")


def step_of(number=0, done=0.0, process=0, processes=1):
    return Step(done, *seed_everything(0, number, CPU), process, processes)


def net(**changes):
    return SpatialTemporalTransformer(
        TransformerConfig(**{"width": 16, "layers": 2, "heads": 2} | changes)
    )


def objective(folder, frames=6, **changes):
    """A small transformer's objective, on the bundled tokenizer's latents."""
    config = TeacherForcing(out=folder, **{"steps": 8, "batch": 2} | changes)
    model = net(gaussian=config.gaussian, head=config.head)
    tokenizer = load_tokenizer("moving-mnist-tiny")
    source = MovingDigits(frames=frames)
    return TransformerObjective(model, tokenizer, config, source).train()


def prepared(of, step=None):
    step = step or step_of()
    return of.prepare(of.sample(step, CPU), step)


# --- the loop


class Line(Objective):
    """w of y = 3 x, from clips whose pixels are x."""

    def __init__(self, config, averaged=0.0, spoil=None):
        super().__init__(nn.Linear(1, 1, bias=False), config, MovingDigits(frames=2))
        self.averaged, self.spoil, self.seen = averaged, spoil, []

    def forward(self, clips):
        x = clips.mean((1, 2, 3, 4))[:, None]
        self.seen.append(x)
        error = (self.model(x) - 3 * x).square().mean()
        if len(self.seen) == self.spoil:
            error = error + (self.model(x).sum() * 0).abs().sqrt()  # gradient: NaN
        return 100 * error, {"w": self.model.weight.detach().sum()}


def line(folder, **changes):
    config = TeacherForcing(out=folder, **{"steps": 30, "adamw_rate": 0.1} | changes)
    return config, Run(config, "line")


def test_fit_learns_whatever_an_objective_says(tmp_path):
    config, run = line(tmp_path)
    nn.init.zeros_((of := Line(config)).model.weight)
    model = fit(of, run)
    assert model is of.model and not model.training
    assert 1.5 < model.weight.item() < 3.2
    first, *_, last = (loss for _, _, loss in run.progress.history)
    assert last < 0.5 * first
    assert run.logs["w"] == pytest.approx(model.weight.item(), abs=0.2)
    assert run.progress.step == 30 and run.progress.clips == 120


def test_gradients_are_clipped(tmp_path, monkeypatch):
    config, run = line(tmp_path, steps=1)
    of, norms = Line(config), []
    nn.init.constant_((weight := of.model.weight), 1e4)
    weight.register_post_accumulate_grad_hook(lambda p: norms.append(p.grad.norm()))
    step = training.MuonAdamW.step

    def stepped(*arguments):
        norms.append(weight.grad.norm())
        return step(*arguments)

    monkeypatch.setattr(training.MuonAdamW, "step", stepped)
    fit(of, run)
    assert norms[0] > 10 and norms[1] == pytest.approx(1.0, rel=1e-4)


def test_what_is_averaged_lags_behind(tmp_path):
    weights = {}
    for averaged in (0.0, 0.9):
        config, run = line(tmp_path / str(averaged))
        nn.init.zeros_((of := Line(config, averaged)).model.weight)
        best = fit(of, run)
        weights[averaged] = best.weight.item(), of.model.weight.item()
        state = torch.load(run.path, weights_only=True)
        assert ("average" in state) == bool(averaged)
    assert weights[0.0][0] == weights[0.0][1] == weights[0.9][1] > weights[0.9][0]


def test_what_is_averaged_are_the_weights_after_a_step(tmp_path):
    config, run = line(tmp_path, steps=5, schedule="cosine")
    of = Line(config, averaged=1e-9)  # as good as no average: the last weights alone
    best = fit(of, run)
    assert best is not of.model
    assert best.weight.item() == pytest.approx(of.model.weight.item(), abs=1e-7)


def test_the_rate_follows_the_schedule(tmp_path, monkeypatch):
    config, run = line(tmp_path, steps=10, schedule="cosine", adamw_rate=0.1)
    rates, step = [], training.MuonAdamW.step

    def stepped(self, *arguments):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *arguments)

    monkeypatch.setattr(training.MuonAdamW, "step", stepped)
    fit(Line(config), run)
    expected = [training.learning_rate(i / 10, "cosine") for i in range(10)]
    assert rates == pytest.approx([0.1 * factor for factor in expected])


def test_a_gradient_that_is_not_finite_does_not_reach_the_weights(tmp_path):
    config, run = line(tmp_path, checkpoint_seconds=0.0)
    of = Line(config, spoil=3)
    with pytest.raises(
        FloatingPointError, match="gradient's norm nan at step 2 of the"
    ):
        fit(of, run)
    state = torch.load(run.path, weights_only=True)
    assert state["progress"]["step"] == 1  # that its loss was good, the second one said
    state = torch.load(run.next, weights_only=True)
    assert torch.equal(state["model"]["weight"], of.model.weight)


def test_a_loss_that_is_not_finite_names_the_step(tmp_path):
    config, run = line(tmp_path)
    of = Line(config)
    nn.init.constant_(of.model.weight, math.inf)
    with pytest.raises(FloatingPointError, match="loss is (nan|inf) .*begins anew"):
        fit(of, run)


def test_a_run_stopped_halfway_sees_the_rest_of_the_clips(tmp_path):
    config, run = line(tmp_path / "whole")
    torch.manual_seed(1)
    whole = Line(config, 0.9)
    best = fit(whole, run)
    config, run = line(tmp_path / "halves", checkpoint_seconds=0.0)
    torch.manual_seed(1)
    halves = Line(config, 0.9, spoil=13)
    with pytest.raises(FloatingPointError):
        fit(halves, run)
    config, run = line(tmp_path / "halves")
    rest = Line(config, 0.9)
    assert torch.equal(fit(rest, run).weight, best.weight)
    assert torch.equal(torch.cat(whole.seen[11:]), torch.cat(rest.seen))


def test_watch_is_shown_clips_and_a_model_that_learns_on(tmp_path):
    shown, modes = [], []

    def watch(name, progress, clips, prompt):
        shown.append((name, progress.step, prompt))
        assert not of.model.training
        assert clips["truth"].shape == (2, 1, 32, 32)

    config, run = line(tmp_path, steps=3)
    run.due = lambda: True
    of = Line(config)
    of.register_forward_pre_hook(lambda *_: modes.append(of.model.training))
    fit(of, run, watch)
    assert shown == [("line", step, None) for step in (1, 2, 3)]
    assert modes == [True] * 3


# --- the tokenizer


def test_a_tokenizers_loss_is_that_of_chapter_03(tmp_path):
    config = TeacherForcing(out=tmp_path, steps=2, batch=2)
    tokenizer = Tokenizer(TokenizerConfig(width=16, codebook_size=32)).eval()
    of = TokenizerObjective(tokenizer, config, MovingDigits())
    arguments = prepared(of)
    frames = arguments["frames"]
    assert frames.shape == (8, 1, 32, 32)  # four times as many as clips
    loss, logs = of(frames)
    rebuilt, _, commitment = tokenizer(frames)
    error = (rebuilt - frames).square().sum() / 8
    assert logs["pixels"] == pytest.approx(error.item(), rel=1e-4)
    assert loss.item() == pytest.approx(
        (error / 64 + 0.25 * commitment).item(), rel=1e-4
    )
    clips, prompt = of.show(tokenizer)
    assert [*clips] == ["truth", "reconstruction"] and prompt is None


# --- the transformer


def test_the_optimizer_knows_all_weights_once_and_saves_its_state(tmp_path):
    of = objective(tmp_path)
    optimizer = of.optimizer()
    groups = [group["params"] for group in optimizer.param_groups]
    params = sum(groups, [])
    assert {id(p) for p in params} == {id(p) for p in of.model.parameters()}
    assert len(params) == len({id(p) for p in params})
    assert all(p.ndim == 2 for p in groups[1])
    assert not any(p is of.model.head.weight for p in groups[1])
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer.step()
    again = of.optimizer()
    again.load_state_dict(optimizer.state_dict())
    for p in params:
        for name, value in optimizer.state[p].items():
            assert torch.equal(again.state[p][name], value), name


def test_the_tokenizer_is_frozen(tmp_path):
    of = objective(tmp_path)
    before = {name: v.clone() for name, v in of.tokenizer.state_dict().items()}
    assert of.model.training and not of.tokenizer.training
    loss, _ = of(**prepared(of))
    loss.backward()
    after = of.tokenizer.state_dict()
    assert all(torch.equal(before[name], value) for name, value in after.items())
    assert all(p.grad is None for p in of.tokenizer.parameters())
    assert all(p.grad is not None for p in of.model.parameters())


def test_tokens_are_the_tokenizers(tmp_path):
    of = objective(tmp_path)
    clips = of.source.held_out(2, 5)
    latents, indices = of.tokens(clips)
    alone, index = of.tokenizer.quantize(of.tokenizer.encode(clips[1]))
    assert torch.equal(indices[1], index)
    torch.testing.assert_close(latents[1], alone)


def test_the_context_is_true_and_so_is_the_target(tmp_path):
    of = objective(tmp_path)
    arguments = prepared(of)
    assert torch.equal(arguments["context"], arguments["target"])
    assert arguments["known"] is True and not arguments["target"].requires_grad


def test_the_loss_is_errors_and_nats_per_latent(tmp_path):
    of = objective(tmp_path, pixel_weight=3.0, beta=5.0)
    for p in of.model.parameters():  # at first z changes nothing
        nn.init.normal_(p, std=0.3)
    loss, logs = of(**prepared(of))
    total = logs["latents"] + 5 * logs["nats"] + 3 * logs["pixels"]
    assert loss.item() == pytest.approx((total / 64).item(), rel=1e-4)
    assert min(logs.values()) > 0
    _, logs = objective(tmp_path, pixel_weight=0.0)(**prepared(of))
    assert "pixels" not in logs


@pytest.mark.parametrize("head", ["regression", "token"])
def test_what_moves_weighs_more(tmp_path, head):
    of = objective(tmp_path, moving=3.0, pixel_weight=0.0, head=head)
    given = prepared(of)
    out = of.model(given["context"], noise=given["noise"], target=given["target"])
    logits, indices = out.prediction, given["indices"]
    if head == "token":
        shares = logits.log_softmax(2).gather(2, indices[:, :, None])
        each = -shares[:, :, 0]
    else:
        each = (logits - given["target"]).square().sum(2)
    moved = torch.zeros_like(each)
    moved[:, 1:] = (indices[:, 1:] != indices[:, :-1]).float()
    assert 0 < moved.mean() < 0.9
    expected = ((1 + 3 * moved) * each).sum((2, 3)).mean()
    torch.testing.assert_close(of(**given)[1]["latents"], expected)


class Told(MovingDigits):
    """Digits with actions, which lead to nothing."""

    actions = 3

    def draw(self, n, frames, generator=None, device="cpu"):
        clips = super().draw(n, frames, generator, device).clips
        return Batch(clips, torch.randint(3, (n, frames), generator=generator))

    def held_out(self, n, frames, seed=0, device="cpu"):
        return self.draw(n, frames, torch.Generator().manual_seed(seed), device)


def told(folder, **changes):
    config = TeacherForcing(out=folder, **{"steps": 8, "batch": 2} | changes)
    model, tokenizer = net(actions=3), load_tokenizer("moving-mnist-tiny")
    model.actions.weight.data.mul_(10)
    return TransformerObjective(model, tokenizer, config, Told(frames=6)).train()


def test_actions_reach_the_loss_and_learn(tmp_path):
    of = told(tmp_path)
    for p in of.model.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    given = prepared(of)
    loss, _ = of(**given)
    loss.backward()
    assert of.model.actions.weight.grad.abs().sum() > 0
    other, _ = of(**given | {"actions": (given["actions"] + 1) % 3})
    assert not torch.equal(loss, other)


def test_processes_share_the_actions(tmp_path):
    of = told(tmp_path, batch=4)
    whole = prepared(of)["actions"]
    for process in range(2):
        half = prepared(of, step_of(process=process, processes=2))["actions"]
        assert torch.equal(half, whole[process::2])


def test_what_is_shown_follows_the_clips_own_actions(tmp_path, monkeypatch):
    of, seen = told(tmp_path), []
    monkeypatch.setattr(
        training, "continued", lambda *given: seen.append(given[-1]) or given[2]
    )
    of.show(of.model.eval())
    actions = of.source.held_out(1, 6, 1).actions
    assert torch.equal(seen[0], of.model.actions(actions))


def test_processes_share_a_step_and_what_it_draws(tmp_path):
    of = objective(tmp_path, batch=4)
    whole = prepared(of)
    halves = [prepared(of, step_of(process=p, processes=2)) for p in range(2)]
    for name in ("clips", "target", "noise"):
        for process, half in enumerate(halves):
            torch.testing.assert_close(half[name], whole[name][process::2])


def test_what_is_shown_is_a_clip_and_its_continuation(tmp_path):
    of = objective(tmp_path, frames=8)
    clips, prompt = of.show(of.model.eval())
    assert prompt == 6 and [*clips] == ["truth", "continued"]
    rebuilt = of.tokenizer.reconstruct(clips["truth"])
    torch.testing.assert_close(clips["continued"][:6], rebuilt[:6])


@pytest.mark.parametrize(
    "changes, share",
    [
        ({}, 0.8),
        ({"gaussian": "bottleneck", "beta": 0.01, "pixel_weight": 1.0}, 0.8),
        ({"gaussian": "off", "head": "token"}, 0.95),
    ],
)
def test_training_learns(tmp_path, changes, share):
    of = objective(tmp_path, steps=25, batch=4, **changes)
    run = Run(of.config, "transformer")
    fit(of, run)
    first, *_, last = (loss for _, _, loss in run.progress.history)
    assert last < share * first, run.progress.history


def test_a_source_gives_batches(tmp_path):
    """The default objective draws clips of its source, and takes its share of them."""
    of = Objective(nn.Linear(1, 1), RunConfig(out=tmp_path, batch=4), MovingDigits())
    step = step_of(process=1, processes=2)
    batch = of.sample(step, CPU)
    assert isinstance(batch, Batch) and batch.clips.shape == (4, 20, 1, 32, 32)
    assert torch.equal(of.prepare(batch, step)["clips"], batch.clips[1::2])
