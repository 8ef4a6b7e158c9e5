"""Chapter 08: the optimizer against torch's own, exact resume, several processes, and runs that must stop."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import safetensors.torch
import stt_lite as stt
import stt_lite.training as training
import torch
from conftest import ROOT
from scipy.ndimage import gaussian_filter

TINY = dict(width=16, layers=2, heads=2, batch=2, frames=6, minutes=None, steps=8, checkpoint_seconds=0.0)


def tiny(folder, **changes):
    return stt.TrainingConfig(out=folder, **TINY | {"tokenizer": "moving-mnist-tiny"} | changes)


def command(folder, **changes):
    """The same run as a shell command."""
    flags = []
    for name, value in (TINY | {"tokenizer": "moving-mnist-tiny", "out": folder} | changes).items():
        flags += [f"--{name.replace('_', '-')}", str(value)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    return [sys.executable, "-m", "stt_lite.training", "moving-mnist-tiny", *flags], environment


def weights(folder, name="transformer"):
    return safetensors.torch.load_file(folder / f"{name}.safetensors")


# --- the optimizer


def test_orthogonalize_brings_singular_values_close_to_one():
    torch.manual_seed(0)
    for shape in ((2, 12, 12), (1, 8, 20), (3, 20, 8)):
        matrices = torch.randn(shape)
        values = torch.linalg.svdvals(training.orthogonalize(matrices))
        assert 0.3 < values.min() and values.max() < 1.3, shape
        assert values.median() > 0.6
        with torch.autocast("cpu", torch.bfloat16):  # as in a run in half precision
            half = training.orthogonalize(matrices)
        assert half.dtype == torch.float32
        torch.testing.assert_close(torch.linalg.svdvals(half), values, rtol=0, atol=0.15)


def test_muon_and_adamw_take_the_steps_of_torchs_own():
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("torch.optim.Muon came with torch 2.9")
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in ((16, 16), (48, 16), (16, 48), (5,), (3, 4, 2))]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    optimizer = stt.MuonAdamW(ours[:3], ours[3:], muon_rate=0.02, adamw_rate=0.003)
    muon = torch.optim.Muon(theirs[:3], 0.02, weight_decay=0.0, momentum=0.95, adjust_lr_fn="original")
    adamw = torch.optim.AdamW(theirs[3:], 0.003, betas=(0.9, 0.95), weight_decay=0.0)
    for _ in range(5):
        for p, q in zip(ours, theirs):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        for each in (optimizer, muon, adamw):
            each.step()
    for p, q in zip(ours[:3], theirs[:3]):  # torch iterates in bfloat16, a CPU's float32 is the better of the two
        assert (p - q).norm() < 0.01 * q.norm()
        moved = (p - q).abs().max()
        assert moved < 0.01, moved
    for p, q in zip(ours[3:], theirs[3:]):
        torch.testing.assert_close(p, q)


def test_the_optimizer_knows_all_weights_once_and_saves_its_state():
    net = stt.SpatialTemporalTransformer(stt.TransformerConfig(width=16, layers=2, heads=2))
    objective = stt.TransformerObjective(net, stt.load_tokenizer("moving-mnist-tiny"), stt.TrainingConfig())
    optimizer = objective.optimizer()
    params = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in params} == {id(p) for p in net.parameters()} and len(params) == len({id(p) for p in params})
    matrices = optimizer.param_groups[1]["params"]
    assert all(p.ndim == 2 for p in matrices) and not any(p is net.head.weight for p in matrices)
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer.step()
    again = objective.optimizer()
    again.load_state_dict(optimizer.state_dict())
    for p in params:
        for name, value in optimizer.state[p].items():
            assert torch.equal(again.state[p][name], value), name


def test_schedules():
    """Warm-up, then stable and 1 - sqrt at the end, or half a cosine."""
    for schedule in ("wsd", "cosine"):
        assert stt.learning_rate(0.0, schedule) == 0.0 and stt.learning_rate(0.02, schedule) == 1.0
        assert stt.learning_rate(0.01, schedule) == pytest.approx(0.5)
    assert stt.learning_rate(0.8) == stt.learning_rate(0.9, decay_share=0.1) == pytest.approx(1.0, abs=1e-6)
    assert stt.learning_rate(0.85) == pytest.approx(0.5) and stt.learning_rate(1.0) == pytest.approx(0.0, abs=1e-6)
    assert stt.learning_rate(0.51, "cosine") == pytest.approx(0.01 + 0.99 / 2)
    assert stt.learning_rate(1.0, "cosine") == pytest.approx(0.01)


# --- a wider model from a narrower one


@pytest.mark.parametrize("gaussian", ["latent", "off"])
def test_a_grown_transformer_computes_the_same_and_every_weight_can_learn(gaussian):
    torch.manual_seed(0)
    config = stt.TransformerConfig(width=16, layers=2, heads=2, grid=(3, 4), gaussian=gaussian)
    net = stt.SpatialTemporalTransformer(config)
    for p in net.parameters():  # nothing that is zero at first may hide a mistake
        p.data += 0.3 * torch.randn_like(p)
    wide = stt.grow(net, replace(config, width=40, heads=5))
    assert wide.training and wide.config.width == 40
    latents, noise = torch.randn(2, 5, 8, 3, 4), net.draw_noise(2, 5)
    for posterior in (True, False, 2):
        a, b = (model(latents, noise=noise, posterior=posterior) for model in (net, wide))
        assert torch.allclose(a.prediction, b.prediction, atol=1e-4) and torch.allclose(a.kl, b.kl, rtol=1e-3, atol=1e-4)
    before = [p.detach().clone() for p in wide.parameters()]
    optimizer = torch.optim.Adam(wide.parameters(), 1e-3)  # every weight that has a gradient takes a visible step
    for _ in range(3):  # weights behind those that are zero get their first gradient in the second step
        out = wide(latents, noise=noise)
        (out.prediction.square().mean() + out.kl.mean()).backward()
        optimizer.step()
    for (name, p), old in zip(wide.named_parameters(), before):
        assert (p != old).float().mean() > 0.99, name


def test_grow_refuses_what_it_can_not_keep():
    config = stt.TransformerConfig(width=32, heads=4)
    net = stt.SpatialTemporalTransformer(config)
    assert stt.grow(net, config) is net
    for other in (dict(width=16, heads=2), dict(width=64), dict(width=64, heads=8, layers=4), dict(heads=2)):
        with pytest.raises(ValueError, match="config must be that of net"):
            stt.grow(net, replace(config, **other))
    bottleneck = stt.TransformerConfig(width=32, heads=4, gaussian="bottleneck")
    with pytest.raises(ValueError, match="config must be that of net"):
        stt.grow(stt.SpatialTemporalTransformer(bottleneck), replace(bottleneck, width=64, heads=8))


def test_a_run_starts_from_narrower_weights(tmp_path):
    small = stt.train(tiny(tmp_path / "small", steps=1))
    start = str(small / "transformer.safetensors")
    large = stt.train(tiny(tmp_path / "large", steps=1, width=32, heads=4, start=start, muon_rate=1e-9, adamw_rate=1e-9))
    a, b = (stt.load_pretrained(folder) for folder in (small, large))
    clip = stt.moving_mnist(1, 8, 32, 1, split="test", seed=0)[0]
    frames = [model.generate(clip[:5], 3, temperature=0.0)[0, 0] for model in (a, b)]
    assert torch.allclose(*frames, atol=1e-3)
    assert b.transformer.config.width == 32 and b.record["started_from"]["training"]["width"] == 16


# --- what the model sees


def test_corrupt_replaces_the_share_it_is_told():
    tokenizer = stt.load_tokenizer("moving-mnist-tiny")
    torch.manual_seed(0)
    indices, random_codes = torch.randint(256, (2, 3, 50, 8, 8))[:, :, :20].unbind()
    latents = tokenizer.codes(indices.flatten(0, 1)).unflatten(0, indices.shape[:2])
    rate = torch.tensor([0.0, 0.3, 1.0])
    seen = stt.corrupt(latents, tokenizer, rate, torch.rand(indices.shape), random_codes)
    changed = (seen != latents).any(2).float().mean((1, 2, 3))
    assert changed[0] == 0
    assert abs(changed[1] - 0.3) < 0.05
    assert changed[2] > 0.97  # one in 256 is replaced by itself
    assert torch.equal(seen[2], tokenizer.codes(random_codes[2]).view_as(seen[2]))


@pytest.mark.parametrize("gaussian", ["off", "latent"])
def test_roll_out_keeps_the_prompt_and_goes_on_from_its_own_frames(gaussian):
    torch.manual_seed(0)
    tokenizer = stt.load_tokenizer("moving-mnist-tiny")
    net = stt.SpatialTemporalTransformer(stt.TransformerConfig(width=16, layers=2, heads=2, gaussian=gaussian)).eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    latents = tokenizer.codes(torch.randint(256, (10, 8, 8))).unflatten(0, (2, 5))
    noise = net.draw_noise(2, 5)
    rolled = stt.roll_out(net, tokenizer, latents, 3, noise)
    assert torch.equal(rolled[:, :3], latents[:, :3])
    other = latents.clone()
    other[:, 3:] = 0
    assert torch.equal(stt.roll_out(net, tokenizer, other, 3, noise), rolled)  # later frames are not looked at
    if gaussian == "off":  # frame by frame equals all at once on what was rolled out
        for t in (3, 4):
            prediction = net(rolled[:, : t + 1], noise=noise[:, : t + 1]).prediction[:, t]
            assert torch.equal(stt.snap(tokenizer, prediction, "regression"), rolled[:, t])


def prepared(folder, progress=0.0, step=0, **changes):
    """What a small transformer's objective prepares of eight clips at a step of its run, and the tokenizer."""
    config = tiny(folder, batch=8, frames=8, corruption=0.0, **changes)
    net = stt.SpatialTemporalTransformer(stt.TransformerConfig(width=16, layers=2, heads=2))
    objective = stt.TransformerObjective(net, stt.load_tokenizer("moving-mnist-tiny"), config).train()
    cpu, device = training.seed_everything(0, step, torch.device("cpu"))
    return objective.prepare(objective.sample(cpu, torch.device("cpu")), progress, device, lambda x: x), objective.tokenizer


def test_fade_dims_the_context_and_not_the_target(tmp_path):
    clean, tokenizer = prepared(tmp_path, fade=0.0)
    assert torch.equal(clean["context"], clean["target"])
    faded, _ = prepared(tmp_path, fade=0.9)
    assert torch.equal(faded["target"], clean["target"])
    ink = [tokenizer.decode(batch["context"].flatten(0, 1)).unflatten(0, (8, 8)).sum((2, 3, 4)) for batch in (clean, faded)]
    left = ink[1] / ink[0]  # (clips, frames)
    assert left.min() < 0.8 and left.max() < 1.1
    assert (left.mean(1) > 0.97).any()  # some clips hardly, since most draw a share near 0
    assert (left.std(1) > 0.02).any()  # each frame by its own share


def test_blur_is_scipys_with_black_around_and_a_width_for_each_frame():
    frames, width = torch.rand(2, 2, 1, 20, 28), torch.tensor([[1.5, 3.0], [5.0, 0.0]])
    blurred = stt.blur(frames, width)
    for frame, found, w in zip(frames.flatten(0, 1), blurred.flatten(0, 1), width.flatten().tolist()):
        expected = gaussian_filter(frame.double().numpy(), (0, w, w), mode="constant", truncate=8) if w else frame
        assert torch.allclose(found, torch.as_tensor(expected).float(), atol=1e-4)


def test_blur_grows_in_the_context_and_leaves_the_target(tmp_path):
    sharp, tokenizer = prepared(tmp_path, fade=0.0)
    spread, _ = prepared(tmp_path, fade=0.0, blur=6.0)
    assert torch.equal(spread["target"], sharp["target"]) and torch.equal(spread["clips"], sharp["clips"])

    def edges(batch):
        video = tokenizer.decode(batch["context"].flatten(0, 1)).unflatten(0, (8, 8))
        return video.square().sum((2, 3, 4)) / video.sum((2, 3, 4))  # (clips, frames): grey lowers it

    left = edges(spread) / edges(sharp)
    assert left.min() < 0.5 and (left.mean(1) > 0.9).any()  # a few clips are mere clouds, others hardly changed
    assert (left[:, 0] < 0.9).any()  # in some it began before the clip
    assert ((left[:, 0] > 0.97) & (left[:, -1] < 0.8)).any()  # in others it begins later


def test_hide_blackens_a_box_and_nothing_else():
    clips = torch.rand(3, 10, 2, 8, 12) + 0.1
    low = torch.tensor([[0.2, 0.0, 0.5], [-0.2, 0.5, -0.3], [0.3, 0.3, 0.3]])
    high = torch.tensor([[0.5, 1.0, 0.75], [0.1, 2.0, 0.25], [0.3, 0.6, 0.6]])
    expected = clips.clone()
    expected[0, 2:5, :, :, 6:9] = 0
    expected[1, :1, :, 4:, :3] = 0  # the third clip's box is empty
    assert torch.equal(stt.hide(clips, low, high), expected)


def test_a_share_of_the_contexts_is_hidden_and_no_target(tmp_path):
    kept = {0.5: [], 0.99: []}
    for step in range(12):
        whole, tokenizer = prepared(tmp_path, step=step, fade=0.0)
        for share in kept:
            covered, _ = prepared(tmp_path, step=step, fade=0.0, hide=share)
            assert torch.equal(covered["target"], whole["target"]) and torch.equal(covered["clips"], whole["clips"])
            ink = [tokenizer.decode(b["context"].flatten(0, 1)).unflatten(0, (8, 8)).sum((2, 3, 4)) for b in (covered, whole)]
            kept[share].append(ink[0] / ink[1])
    half, all_but_one = (torch.cat(k) for k in kept.values())  # (clips, frames)
    touched, most = (((k - 1).abs() > 0.02).any(1) for k in (half, all_but_one))
    assert touched.sum() >= 3 and not (touched & ~most).any() and 1.3 * touched.sum() < most.sum()
    assert all_but_one[most].min(1).values.min() < 0.1 and all_but_one[most].max(1).values.min() > 0.9  # for some frames only


def test_rollouts_replace_at_most_their_share_of_a_clip(tmp_path):
    for length, least in ((0.25, 6), (0.75, 2)):
        rolled = set()
        for step in range(8):
            batch, _ = prepared(tmp_path, 0.99, step, rollout_share=0.5, fade=0.0, rollout_length=length)
            own = (batch["context"] != batch["target"]).flatten(2).any(-1).any(0)  # (T)
            assert not own[:least].any() and not own[-1]  # no prediction sees the last frame
            rolled.add(own.nonzero().flatten().tolist()[0] if own.any() else 7)
        assert min(rolled) == least and len(rolled) > (1 if length == 0.25 else 2)


def test_a_forecast_knows_the_z_of_its_prompt_alone(tmp_path):
    config = tiny(tmp_path, frames=8, forecast_share=0.5)
    net = stt.SpatialTemporalTransformer(stt.TransformerConfig(width=16, layers=2, heads=2))
    torch.manual_seed(0)
    for p in net.parameters():  # at first z changes nothing
        torch.nn.init.normal_(p, std=0.3)
    objective = stt.TransformerObjective(net, stt.load_tokenizer("moving-mnist-tiny"), config).train()
    cpu, device = training.seed_everything(0, 0, torch.device("cpu"))
    batch = objective.prepare(objective.sample(cpu, torch.device("cpu")), 0.0, device, lambda x: x)
    for known in (True, 3):
        outputs = []
        hook = net.register_forward_hook(lambda *call: outputs.append(call[-1]))
        loss, _ = objective(**batch | {"known": known})
        objective(**batch | {"known": known, "target": torch.zeros_like(batch["target"])})
        hook.remove()
        changed = (outputs[0].prediction != outputs[1].prediction).flatten(2).any(-1).all(0)  # (T): by another truth
        assert changed[:3].all() and (outputs[0].kl[:, 3:] > 0).any() == (known is True)
        loss.backward()
        assert all(p.grad is not None for p in net.parameters())  # processes wait for each other's gradients
    drawn = [prepared(tmp_path, forecast_share=share)[0]["known"] for share in (0.0, 0.999)]
    assert drawn[0] is True and 2 <= drawn[1] <= 4
    for step in range(4):
        options = dict(rollout_share=0.5, fade=0.0, rollout_length=0.5, forecast_share=0.999)
        rolled, _ = prepared(tmp_path, 0.99, step, **options)
        same = (rolled["context"] == rolled["target"]).flatten(2).all(-1).all(0)  # frames that are all real
        assert same[: rolled["known"]].all() and same[rolled["known"]] == (rolled["known"] == 7)  # the last is not seen


def test_the_tokenizer_is_frozen(tmp_path):
    config = tiny(tmp_path)
    net = stt.SpatialTemporalTransformer(stt.TransformerConfig(width=16, layers=2, heads=2))
    objective = stt.TransformerObjective(net, stt.load_tokenizer("moving-mnist-tiny"), config).train()
    before = {name: value.clone() for name, value in objective.tokenizer.state_dict().items()}
    cpu, device = training.seed_everything(0, 0, torch.device("cpu"))
    loss, _ = objective(**objective.prepare(objective.sample(cpu, torch.device("cpu")), 0.0, device, lambda x: x))
    loss.backward()
    assert all(torch.equal(before[name], value) for name, value in objective.tokenizer.state_dict().items())
    assert all(p.grad is None for p in objective.tokenizer.parameters())
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize(
    "changes, share", [({}, 0.8), ({"gaussian": "bottleneck", "beta": 0.01}, 0.8), ({"gaussian": "off", "head": "token"}, 0.95)]
)
def test_training_learns(tmp_path, changes, share):
    changes = dict(steps=40, batch=4, rollout_share=0.0, beta_warmup=0.0, checkpoint_seconds=600.0) | changes
    folder = stt.train(tiny(tmp_path, **changes))
    history = torch.load(folder / "transformer.checkpoint", weights_only=True)["progress"]["history"]
    assert history[-1][2] < share * history[0][2], history
    record = json.loads((folder / "transformer.json").read_text())
    assert record["steps"] == 40 and record["clips_seen"] == 160 and record["tokenizer_sha256"]
    assert stt.load_transformer(folder / "transformer.safetensors").config.gaussian == changes.get("gaussian", "latent")


def test_tokenizer_and_transformer_from_nothing_on_a_time_budget(tmp_path):
    start = time.monotonic()
    folder = stt.train(tiny(tmp_path, tokenizer=None, steps=None, minutes=0.1, tokenizer_share=0.4))
    assert time.monotonic() - start < 30
    records = [json.loads((folder / f"{name}.json").read_text()) for name in ("tokenizer", "transformer")]
    assert 2 <= records[0]["seconds"] <= 4 and 3 <= records[1]["seconds"] <= 6
    assert stt.load_transformer(folder / "transformer.safetensors").config.codebook_size == 256


def test_the_callers_random_numbers_stay(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    stt.train(tiny(tmp_path, steps=2))
    assert torch.equal(torch.rand(3), expected)


# --- checkpoints


def test_tokens_stay_as_they_are_once_a_transformer_learns_them(tmp_path):
    config = tiny(tmp_path, tokenizer=None, codebook_size=16, steps=6, tokenizer_share=0.5)
    stt.train(config)
    files = [tmp_path / f"tokenizer{ending}" for ending in (".safetensors", ".json", ".checkpoint")]
    before, learned = [file.read_bytes() for file in files], weights(tmp_path)
    stt.train(replace(config, steps=12))
    assert [file.read_bytes() for file in files] == before
    assert json.loads((tmp_path / "transformer.json").read_text())["steps"] == 6
    assert any(not torch.equal(value, learned[name]) for name, value in weights(tmp_path).items())


def test_killed_at_random_moments_a_run_ends_with_the_same_weights(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    changes = dict(tokenizer="None", steps=40, rollout_share=0.3)
    arguments, environment = command(whole, **changes)
    subprocess.run(arguments, env=environment, check=True, capture_output=True)
    arguments, environment = command(killed, **changes)
    clock = random.Random(time.time_ns())
    for _ in range(2):
        written = newest(killed)
        with subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
            while newest(killed) == written and run.poll() is None:  # the start takes seconds
                time.sleep(0.01)
            time.sleep(clock.uniform(0, 0.5))
            run.send_signal(signal.SIGKILL)
        assert run.returncode == -signal.SIGKILL, "the run was over before it was killed"
    subprocess.run(arguments, env=environment, check=True, capture_output=True)
    for name in ("tokenizer", "transformer"):
        first, second = weights(whole, name), weights(killed, name)
        assert all(torch.equal(first[key], second[key]) for key in first), name


def newest(folder):
    """When the last checkpoint was written."""
    return max((path.stat().st_mtime_ns for path in folder.glob("*.checkpoint")), default=0)


RUNS = """
import sys, time
import stt_lite as stt
*folders, timed = sys.argv[1:]
for folder in folders:
    stt.train(stt.TrainingConfig(out=folder, tokenizer="moving-mnist-tiny", **{options!r}))
write = stt.training.save_checkpoint
stt.training.save_checkpoint = lambda *args, **parts: (time.sleep(0.2), write(*args, **parts))  # in one process only
options = {options!r} | dict(steps=None, minutes=0.05)
stt.train(stt.TrainingConfig(out=timed, tokenizer="moving-mnist-tiny", **options))
stt.training.torch.distributed.destroy_process_group()
"""


def test_two_processes_train_to_the_same_loss_and_continue_a_run_of_one(tmp_path):
    one, two, mixed, timed = (tmp_path / name for name in ("one", "two", "mixed", "timed"))
    options = TINY | dict(steps=10, batch=4, rollout_share=0.2, forecast_share=0.3)
    stt.train(tiny(one, **options))
    stop_after(5, tiny(mixed, **options))  # the first half on one process, the second on two
    script = tmp_path / "runs.py"
    script.write_text(RUNS.format(options=options))
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(  # a process that waits for another one forever fails here
        [sys.executable, *launcher, script, two, mixed, timed], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((two / "transformer.json").read_text())["processes"] == 2
    assert 2 <= json.loads((timed / "transformer.json").read_text())["seconds"] <= 6
    expected = weights(one)
    for folder in (two, mixed):
        state = torch.load(folder / "transformer.checkpoint", weights_only=True)["progress"]
        reference = torch.load(one / "transformer.checkpoint", weights_only=True)["progress"]
        assert state["step"] == 10 and len(state["history"]) == len(reference["history"])
        for (_, _, a), (_, _, b) in zip(reference["history"], state["history"]):
            assert abs(a - b) < 0.01 * a, (folder.name, a, b)
        for key, value in weights(folder).items():  # the same clips and noise: only sums are rounded in another order
            assert (value - expected[key]).norm() < 0.02 * expected[key].norm() + 1e-3, (folder.name, key)


class Stop(Exception):
    pass


def stop_after(step, config):
    """Train until the checkpoint of `step` is written, as a run that is interrupted there."""
    write = training.save_checkpoint

    def save_checkpoint(path, config, progress, **parts):
        write(path, config, progress, **parts)
        if progress.step == step:
            raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "save_checkpoint", save_checkpoint)
        with pytest.raises(Stop):
            training.train(config)


def test_a_run_stopped_halfway_ends_with_the_same_weights(tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    stt.train(tiny(whole))
    stop_after(4, tiny(stopped))
    stt.train(tiny(stopped))
    first, second = weights(whole), weights(stopped)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_what_is_random_follows_from_seed_and_step():
    def draws(seed, step):
        cpu, device = training.seed_everything(seed, step, torch.device("cpu"))
        return torch.cat([torch.rand(3), torch.rand(3, generator=cpu), torch.rand(3, generator=device)])

    assert torch.equal(draws(0, 5), draws(0, 5)) and draws(0, 5).unique().numel() == 9
    assert not torch.equal(draws(0, 5), draws(0, 6)) and not torch.equal(draws(0, 5), draws(1, 5))


def test_a_checkpoint_of_another_config_is_refused(tmp_path):
    stop_after(2, tiny(tmp_path))
    with pytest.raises(ValueError, match=r"another config: width = 16, now 32; choose another `out`"):
        stt.train(tiny(tmp_path, width=32))
    assert json.loads((tmp_path / "config.json").read_text())["width"] == 16
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"transformer.checkpoint is of another config: seed = 0, now 1"):
        stt.train(tiny(tmp_path, seed=1))
    (tmp_path / "config.json").unlink()
    stt.train(tiny(tmp_path, steps=4))  # another budget is fine


def test_a_longer_run_goes_on_from_where_it_was_stable(tmp_path):
    """Ten steps, given ten more, end with the weights of twenty: the decay of the first ten leaves no trace."""
    plain = dict(rollout_share=0.0, beta_warmup=0.0)  # nothing else that follows the budget
    stt.train(tiny(tmp_path / "pieces", steps=10, **plain))
    decayed = weights(tmp_path / "pieces")
    stable = torch.load(tmp_path / "pieces" / "transformer-stable.checkpoint", weights_only=True)["progress"]
    assert stable["step"] == 8 and not stable["decaying"] and stable["clips"] == 16
    stt.train(tiny(tmp_path / "pieces", steps=20, **plain))
    stt.train(tiny(tmp_path / "whole", steps=20, **plain))
    pieces, whole = weights(tmp_path / "pieces"), weights(tmp_path / "whole")
    assert all(torch.equal(pieces[name], whole[name]) for name in whole)
    assert not torch.equal(pieces["embed.weight"], decayed["embed.weight"])
    record = json.loads((tmp_path / "pieces" / "transformer.json").read_text())
    assert record["steps"] == 20 and record["clips_seen"] == 40


def test_a_run_killed_in_its_decay_goes_on_decaying(tmp_path):
    stop_after(9, tiny(tmp_path / "killed", steps=10))
    stt.train(tiny(tmp_path / "killed", steps=10))
    stt.train(tiny(tmp_path / "whole", steps=10))
    killed, whole = weights(tmp_path / "killed"), weights(tmp_path / "whole")
    assert all(torch.equal(killed[name], whole[name]) for name in whole)


def test_a_run_goes_on_with_another_batch_and_schedule_and_without_newer_fields(tmp_path):
    """What an older version wrote knows neither patches nor schedules, and its config a field that is gone."""
    stop_after(3, tiny(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    state = torch.load(tmp_path / "transformer.checkpoint", weights_only=True)
    for old in (config, state["config"]):
        old["source"] = "bundled"
        for name in ("patch", "schedule", "decay_share"):
            del old[name]
    for name in ("clips", "decaying"):
        del state["progress"][name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save(state, tmp_path / "transformer.checkpoint")
    stt.train(tiny(tmp_path, steps=6, batch=4, schedule="cosine"))
    record = json.loads((tmp_path / "transformer.json").read_text())
    assert record["steps"] == 6 and record["clips_seen"] == 3 * 2 + 3 * 4
    with pytest.raises(ValueError, match="patch = 1, now 2"):
        stt.train(tiny(tmp_path, patch=2))


def test_a_run_whose_tokenizer_has_group_norm_goes_on_with_it(tmp_path):
    """As runs of the first edition have; one that stopped while its tokenizer trained says that it does not fit."""
    run = dict(tokenizer=None, tokenizer_share=0.5)
    with pytest.MonkeyPatch.context() as patch:
        shaped = stt.TokenizerConfig(codebook_size=256, group_norm=True)
        patch.setattr(training, "new_tokenizer", lambda config: stt.Tokenizer(shaped))
        stt.train(tiny(tmp_path / "old", **run))
    before = weights(tmp_path / "old", "tokenizer")
    stt.train(tiny(tmp_path / "old", **run | {"steps": 12}))
    after = weights(tmp_path / "old", "tokenizer")
    assert stt.load_tokenizer(tmp_path / "old" / "tokenizer.safetensors").config.group_norm
    assert all(torch.equal(after[name], before[name]) for name in before)
    (tmp_path / "old" / "tokenizer.safetensors").unlink()
    (tmp_path / "old" / "transformer.checkpoint").unlink()
    with pytest.raises(ValueError, match=r"tokenizer.checkpoint does not fit: .*; choose another `out`"):
        stt.train(tiny(tmp_path / "old", **run | {"steps": 16}))


def test_a_patch_that_does_not_divide_the_grid_stops_the_run_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"patch must divide the latent grid \(h, w\) = \(8, 8\), got 3"):
        stt.train(tiny(tmp_path, patch=3))
    assert not list(tmp_path.glob("*.checkpoint"))


def test_a_run_in_full_precision_goes_on_with_a_scaler(tmp_path):
    config, net, path = tiny(tmp_path), torch.nn.Linear(2, 2), tmp_path / "part.checkpoint"
    training.save_checkpoint(path, config, training.Progress(step=3), model=net, scaler=None)
    parts = {"model": torch.nn.Linear(2, 2), "scaler": torch.amp.GradScaler("cpu", init_scale=8.0)}
    assert training.load_checkpoint(path, replace(config, precision="fp16"), **parts).step == 3
    assert torch.equal(parts["model"].weight, net.weight) and parts["scaler"].get_scale() == 8.0


def test_a_broken_checkpoint_is_named(tmp_path):
    stop_after(2, tiny(tmp_path))
    path = tmp_path / "transformer.checkpoint"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="transformer.checkpoint is not a whole checkpoint"):
        stt.train(tiny(tmp_path))


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path):
    stop_after(2, tiny(tmp_path))
    path = tmp_path / "transformer.checkpoint"
    good = path.read_bytes()
    write = training.write_file

    def full(target, content):  # the system's own error: /dev/full has no room
        part = target.with_name(target.name + ".part")
        if target.suffix == ".checkpoint":
            part.symlink_to("/dev/full")
        write(target, content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "write_file", full)
        with pytest.raises(OSError, match="could not write the checkpoint of step 3 .*one before it is still there"):
            stt.train(tiny(tmp_path))
    assert path.read_bytes() == good
    stt.train(tiny(tmp_path))


def test_a_folder_that_cannot_be_written_stops_the_run_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        stt.train(tiny(tmp_path / "file" / "run"))


def test_a_loss_that_is_not_finite_names_the_step_and_keeps_the_checkpoint(tmp_path):
    draw, calls = stt.SpatialTemporalTransformer.draw_noise, []

    def poisoned(*args):
        calls.append(None)
        return draw(*args) * (math.nan if len(calls) == 4 else 1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stt.SpatialTemporalTransformer, "draw_noise", poisoned)
        with pytest.raises(FloatingPointError, match=r"loss is nan .* at step 3 of the transformer; checkpoint: .* is the last good"):
            stt.train(tiny(tmp_path, rollout_share=0.0))
    state = torch.load(tmp_path / "transformer.checkpoint", weights_only=True)
    assert state["progress"]["step"] == 3
    assert all(value.isfinite().all() for value in state["model"].values())


# --- config and command


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"steps": 5, "minutes": 1.0}, "either steps or minutes"),
        ({"steps": None, "minutes": None}, "either steps or minutes"),
        ({"steps": 0}, "steps must be above 0, got 0"),
        ({"batch": 0}, "batch must be above 0, got 0"),
        ({"corruption": 1.0}, r"corruption must be in \[0, 1\), got 1.0"),
        ({"rollout_share": -0.1}, "rollout_share must be in"),
        ({"fade": 1.0}, r"fade must be in \[0, 1\), got 1.0"),
        ({"hide": 1.0}, r"hide must be in \[0, 1\), got 1.0"),
        ({"blur": -1.0}, "blur must be at least 0 pixels, got -1.0"),
        ({"blur": math.inf}, "blur must be at least 0 pixels, got inf"),
        ({"tokenizer_share": 0.0}, "tokenizer_share must be in"),
        ({"decay_share": 1.0}, r"decay_share must be in \(0, 1\), got 1.0"),
        ({"rollout_length": 1.0}, r"rollout_length must be in \(0, 1\), got 1.0"),
    ],
)
def test_bad_configs_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        tiny(tmp_path, **changes)


def test_a_second_run_in_a_process_has_its_own_precision_and_compiler(tmp_path):
    for precision, compiled in (("no", False), ("bf16", True), ("no", False)):
        accelerator = training.new_accelerator(tiny(tmp_path, precision=precision, compile=compiled))
        assert accelerator.mixed_precision == precision
        assert (accelerator.state.dynamo_plugin.backend.value == "INDUCTOR") == compiled


def test_an_unknown_schedule_is_refused(tmp_path, unchecked):
    with pytest.raises(ValueError, match='schedule must be "wsd" or "cosine", got \'linear\''):
        tiny(tmp_path, schedule="linear")


def test_a_part_of_a_run_is_a_share_of_its_budget(tmp_path):
    assert tiny(tmp_path, steps=8).part(0.3).steps == 2 and tiny(tmp_path, steps=8).part(0.01).steps == 1
    timed = tiny(tmp_path, steps=None, minutes=10.0)
    assert timed.part(0.3) == tiny(tmp_path, steps=None, minutes=3.0) and timed.minutes == 10.0


def test_a_tokenizer_for_frames_of_another_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match="size"):
        stt.train(tiny(tmp_path, size=30))


def test_tensorboard_is_optional(tmp_path):
    if training.find_spec("tensorboard") is not None:
        pytest.skip("tensorboard is installed")
    with pytest.raises(ImportError, match="pip install tensorboard"):
        stt.train(tiny(tmp_path, tensorboard=True))


def test_the_command_explains_itself():
    done = subprocess.run(
        [sys.executable, "-m", "stt_lite.training", "moving-mnist-tiny", "--help"], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0 and not done.stderr, done.stderr
    for word in ("--minutes", "time budget", "--checkpoint-seconds"):
        assert word in done.stdout


def test_live_view_draws_curves_and_a_strip(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda picture, display_id: shown.append(picture))
    stt.train(tiny(tmp_path, steps=2, checkpoint_seconds=600.0), watch=stt.live_view())
    assert [type(picture).__name__ for picture in shown] == ["Figure", "Image"]


def test_snap_finds_the_nearest_codeword_of_any_quantizer():
    torch.manual_seed(0)
    fsq = stt.TokenizerConfig(quantizer="fsq", levels=(5, 4, 3), latent_channels=3, codebook_size=60, width=16)
    for tokenizer in (stt.load_tokenizer("moving-mnist-tiny"), stt.Tokenizer(fsq)):
        K, D = tokenizer.quantizer.codebook_size, tokenizer.config.latent_channels
        indices = torch.randint(K, (2, 4, 4))
        words = tokenizer.codes(indices)
        assert torch.equal(stt.snap(tokenizer, words + 1e-4 * torch.randn_like(words), "regression"), words)
        guess = torch.randn(2, D, 4, 4)
        snapped = stt.snap(tokenizer, guess, "regression")
        book = tokenizer.codes(torch.arange(K)[:, None, None])[:, :, 0, 0]
        best = torch.cdist(guess.movedim(1, -1).reshape(-1, D), book).min(1).values
        torch.testing.assert_close((guess - snapped).movedim(1, -1).reshape(-1, D).norm(dim=1), best)
    logits = torch.randn(2, K, 4, 4)
    assert torch.equal(stt.snap(tokenizer, logits, "token"), tokenizer.codes(logits.argmax(1)))


def test_a_gradient_that_is_not_finite_stops_the_run_before_it_reaches_the_weights(tmp_path):
    error, calls = training.prediction_error, []

    def poisoned(prediction, target):
        calls.append(None)
        return error(prediction, target) + ((prediction.sum() * 0).abs().sqrt() if len(calls) == 3 else 0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "prediction_error", poisoned)
        with pytest.raises(FloatingPointError, match=r"gradient's norm nan at step 2 of the transformer"):
            stt.train(tiny(tmp_path, rollout_share=0.0))
    state = torch.load(tmp_path / "transformer.checkpoint", weights_only=True)
    assert state["progress"]["step"] == 2 and all(value.isfinite().all() for value in state["model"].values())
