"""book/experiments: rivals, ablations, variants and failures; records of chapter 12."""

import json
from dataclasses import asdict, replace

import pytest
import torch

import compare
import stt_lite as stt
from compare import VARIANTS, take_over, train_variant
from failures import bounces, explain, worst
from rivals import ConvLSTM, ConvLSTMCell, LatentVelocity
from stt_lite.contexts import TrainingConfig
from stt_lite.evaluation import PROTOCOLS, squared_error, without_chance
from stt_lite.files import results_folder
from stt_lite.moving_mnist import MovingDigits, moving_mnist
from stt_lite.transformer import SpatialTemporalTransformer

SHORT = MovingDigits(frames=6)
WITH_LAYERS = [name for name, variant in VARIANTS.items() if variant.layer]


def random_frames(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def of_layers(name, shape):
    """A transformer of a variant's layers."""
    net = SpatialTemporalTransformer(shape)
    layers = [VARIANTS[name].layer(shape) for _ in range(shape.layers)]
    net.layers = torch.nn.ModuleList(layers)
    return net


@pytest.fixture(scope="module")
def tiny():
    return stt.load_pretrained("moving-mnist-tiny")


# --- rivals


def test_latent_velocity_takes_the_same_step_again(tiny):
    prompt = moving_mnist(2, 5, 32, 1, seed=0)
    velocity = LatentVelocity(tiny.tokenizer)
    with torch.no_grad():
        z = tiny.tokenizer.encode(prompt.flatten(0, 1)).unflatten(0, (2, 5))
        wanted = tiny.tokenizer.decode(z[:, 4] + 3 * (z[:, 4] - z[:, 3]))
    assert torch.allclose(velocity(prompt, 3)[:, 2], wanted, atol=1e-5)
    with pytest.raises(ValueError, match="2 frames or more, got 1"):
        velocity(prompt[:, :1], 3)


def test_conv_lstm_cell_is_an_lstm_where_the_image_is_one_pixel():
    """On 1x1 images only a kernel's centre counts, and what is left is torch's LSTM."""
    cell, lstm = ConvLSTMCell(3, 5), torch.nn.LSTMCell(3, 5)
    weight = cell.gates.weight[:, :, 1, 1]  # rows: input, forget, output, new
    torchs = [
        *range(0, 10),
        *range(15, 20),
        *range(10, 15),
    ]  # input, forget, new, output
    with torch.no_grad():
        lstm.weight_ih.copy_(weight[torchs, :3])
        lstm.weight_hh.copy_(weight[torchs, 3:])
        lstm.bias_ih.copy_(cell.gates.bias[torchs])
        lstm.bias_ih[5:10] += 1  # the cell's forget gate starts open
        lstm.bias_hh.zero_()
        x, h, c = torch.randn(2, 3), torch.randn(2, 5), torch.randn(2, 5)
        wanted = lstm(x, (h, c))
        got = cell(x[..., None, None], (h[..., None, None], c[..., None, None]))
    for a, b in zip(got, wanted):
        assert torch.allclose(a[..., 0, 0], b, atol=1e-6)


def test_conv_lstm_predicts_from_real_frames_then_from_its_own():
    net, frames = ConvLSTM(hidden=8, layers=2), random_frames(2, 6, 1, 8, 8)
    with torch.no_grad():
        whole = net(frames, 4, 2)  # predictions of frames 1 to 5
        other = frames.clone()
        other[:, 4:] = 0  # not given
        assert whole.shape == (2, 5, 1, 8, 8) and torch.equal(net(other, 4, 2), whole)
        other[:, 3] = 0  # given: what follows changes, what came before does not
        changed = net(other, 4, 2)
        assert torch.equal(changed[:, :3], whole[:, :3])
        assert (changed[:, 3] - whole[:, 3]).abs().max() > 1e-4
        fed = frames.clone()
        fed[:, 4] = whole[:, 3].clamp(0, 1)  # its own frame 4 in place of the real one
        assert torch.allclose(net(fed, 5, 1)[:, -1], whole[:, 4], atol=1e-6)
        assert torch.equal(net.forecast(frames[:, :4], 2), whole[:, 3:].clamp(0, 1))


# --- layers


@pytest.mark.parametrize("gaussian", ["latent", "off"])
@pytest.mark.parametrize(
    "layer", ["joint", "spatial-only", "temporal-only", "no-residual"]
)
def test_a_layers_cache_agrees_with_its_forward_pass_and_is_causal(layer, gaussian):
    options = {"grid": (2, 3), "width": 16, "heads": 2, "layers": 2}
    net = of_layers(layer, stt.TransformerConfig(**options, gaussian=gaussian))
    for parameter in net.eval().parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    latents, noise = torch.randn(2, 5, 8, 2, 3), net.draw_noise(2, 5)
    with torch.no_grad():
        at_once, cache = net(latents, noise=noise).prediction, net.empty_cache(2, 5)
        for t in range(5):
            newest = latents[:, t - 1] if t else None
            one, cache = net.step(newest, cache, noise[:, t])
            assert torch.allclose(one, at_once[:, t], atol=1e-4)
        x, temporal = torch.randn(2, 5, 2, 3, 16), net.layers[0].temporal
        together, _ = temporal.prefill(x, temporal.empty_cache(2, (2, 3), 7))
        assert torch.allclose(together, temporal(x), atol=1e-4)
        later = latents.clone()
        later[:, 3] += 1
        changed = net(later, noise=noise).prediction
        assert torch.allclose(changed[:, :4], at_once[:, :4], atol=1e-5)
        assert (changed[:, 4] - at_once[:, 4]).abs().max() > 1e-4


def influence(name, frame, pixel):
    """Which inputs (T h w) a layer's output at one frame and pixel depends on."""
    shape = stt.TransformerConfig(grid=(3, 3), width=16, heads=2, gaussian="off")
    x = torch.randn(1, 4, 3, 3, 16, requires_grad=True)
    y = VARIANTS[name].layer(shape)(x, None)[0]
    y[0, frame, pixel[0], pixel[1]].sum().backward()
    return x.grad[0].abs().sum(-1) > 1e-9


def test_layers_see_what_they_should():
    seen = influence("joint", 2, (0, 0))
    assert seen[:3].all() and not seen[3].any()
    seen = influence("spatial-only", 2, (0, 0))
    assert seen[2].all() and not seen[[0, 1, 3]].any()
    seen = influence("temporal-only", 2, (0, 0))
    assert seen[:3, 0, 0].all() and seen.sum() == 3


@pytest.mark.parametrize("name, share", [("base", 1.0), ("no-residual", 0.0)])
def test_no_residual_has_no_way_around(name, share):
    """With silent branches the base hands its input on, and the variant nothing."""
    shape = stt.TransformerConfig(grid=(2, 2), width=16, heads=2, gaussian="off")
    x, layer = torch.randn(1, 3, 2, 2, 16), VARIANTS[name].layer(shape)
    outputs = (
        layer.spatial.attend.out,
        layer.temporal.attend.out,
        layer.feed_forward[-1],
    )
    for linear in outputs:
        torch.nn.init.zeros_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    assert torch.allclose(layer(x, None)[0], share * x)


# --- variants


@pytest.mark.parametrize("name", ["convlstm", "joint", "token-head", "fsq-8", "vq-16"])
def test_a_variant_trains_and_forecasts(name, tmp_path):
    config = TrainingConfig(steps=2, out=tmp_path / "one")
    source, options = SHORT, {"batch": 2, "tokenizer_minutes": 0.02}
    compare_short = replace(VARIANTS[name], frames=6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VARIANTS, name, compare_short)
        forecast, _, record = train_variant(name, config, source, **options)
        elsewhere = replace(config, out=tmp_path / "two")
        again = train_variant(name, elsewhere, source, **options)[0]
    prompt = moving_mnist(2, 4, 32, 1, seed=0)
    video = forecast(prompt, 2)
    assert video.shape == (2, 2, 1, 32, 32) and torch.equal(video, forecast(prompt, 2))
    assert record["variant"] == name and record["clips_seen"] == 4
    assert record["parameters"] > 10_000 and record["data"]["frames"] == 6
    assert ("tokenizer" in record) == (VARIANTS[name].tokenizer is not None)
    if VARIANTS[name].tokenizer is None:  # a tokenizer's steps depend on the clock here
        assert torch.equal(again(prompt, 2), video)


@pytest.mark.parametrize("stochastic", [True, False])
def test_no_variant_learns_from_rollouts_that_bounced_another_way(stochastic):
    source = MovingDigits(stochastic=stochastic)
    config, source = compare.settings("recipe", TrainingConfig(), source)
    assert (config.rollout_share == 0.0) == stochastic
    assert source.stochastic == stochastic


def test_a_variant_leaves_the_callers_generator_alone(tmp_path):
    before = torch.get_rng_state()
    train_variant("convlstm", TrainingConfig(steps=1, out=tmp_path), batch=1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["base", "bottleneck", "temporal-only"])
def test_variants_take_over_all_but_the_gaussian_layers(tiny, name):
    gaussian = "bottleneck" if name == "bottleneck" else "latent"
    trained = tiny.transformer.state_dict()
    net = of_layers(name, replace(tiny.transformer.config, gaussian=gaussian))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    count, after = take_over(net, tiny.transformer), net.state_dict()
    own = {key for key in before if ".gaussian." in key}
    taken = {k for k, v in after.items() if k in trained and torch.equal(v, trained[k])}
    kept = {key for key, value in after.items() if torch.equal(value, before[key])}
    assert set(before) - taken <= own <= kept
    assert count == sum(before[k].numel() for k in taken - own) > 50_000


def test_a_run_that_starts_from_weights_says_so(tmp_path, tiny):
    config = TrainingConfig(steps=1, out=tmp_path)
    options = {"start": "moving-mnist-tiny", "batch": 1, "beta": 2.0}
    _, model, record = train_variant("bottleneck", config, **options)
    assert record["started_from"]["sha256"] == tiny.record["sha256"]
    assert record["training"]["beta"] == 2.0  # above the variant's own
    assert model.transformer.config.width == tiny.transformer.config.width
    key = "layers.0.temporal.attend.out.weight"
    old, new = (m.transformer.state_dict()[key] for m in (tiny, model))
    assert (old - new).abs().max() < 0.1  # one step away
    assert record["data"]["digits"] == 1
    assert model.transformer.config.gaussian == "bottleneck"


def test_an_unknown_variant_is_named(tmp_path):
    with pytest.raises(ValueError, match="name must be one of base.*got 'lstm'"):
        train_variant("lstm", TrainingConfig(out=tmp_path))


def test_the_command_compares_and_skips_what_is_there(tmp_path, capsys):
    command = ["--variants", "convlstm", "--minutes", "0.01", "--clips", "3"]
    command += ["--out", str(tmp_path / "results"), "--runs", str(tmp_path / "runs")]
    compare.main(command)
    path = tmp_path / "results" / "compare-convlstm-seed0.json"
    run = json.loads(path.read_text())
    assert run["study"] == "compare" and run["variant"] == "convlstm"
    assert set(run["metrics"]) == set(PROTOCOLS) and "out" not in run["training"]
    assert "15->5 first" in capsys.readouterr().out
    compare.main(command)
    assert "there already" in capsys.readouterr().out


def test_the_command_checks_its_output_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(compare, "train_variant", lambda *a: pytest.fail("trained"))
    with pytest.raises(OSError, match="out can't be written"):
        compare.main(["--out", f"{tmp_path}/file/out"])


# --- failures


def flying(path):
    """A clip (T 1 16 16) of a 3x3 square whose upper left corner follows `path`."""
    clip = torch.zeros(len(path), 1, 16, 16)
    for frame, (row, column) in zip(clip, path):
        frame[0, row : row + 3, column : column + 3] = 1.0
    return clip


def test_bounces_are_found_with_their_border():
    clip = flying([(5, 10), (5, 12), (5, 13), (5, 11), (5, 9)])
    assert bounces(clip) == [(2, "right")]
    assert bounces(flying([(4, 3), (2, 3), (0, 3), (2, 3)])) == [(2, "top")]
    assert bounces(flying([(4, 3), (5, 3), (6, 3), (7, 3)])) == []


def test_explanations_follow_what_is_measured():
    straight = flying([(5, i) for i in range(6)])
    off = flying([(5, i) for i in range(5)] + [(5, 8)])
    assert "misjudged its path" in explain(straight, off, 4, 1.0)
    assert "3.0 pixels off" in explain(straight, off, 4, 1.0)
    assert "3.5 times the usual error" in explain(straight, off, 4, 3.5)
    turned = flying([(5, 1), (5, 2), (5, 3), (5, 4), (5, 3), (5, 2)])
    assert "bounces off the right border in frame 4;" in explain(turned, off, 4, 1.0)
    faded = straight * torch.tensor([1, 1, 1, 1, 1, 0.5])[:, None, None, None]
    assert "50% of its ink" in explain(straight, faded, 4, 1.0)


def test_worst_are_the_worst_in_order(tiny):
    clips = moving_mnist(12, 20, 32, 1, split="test", seed=5)
    new = without_chance(tiny)(clips[:, :15], 5)
    errors = squared_error(new, clips[:, 15:]).mean(1)
    found, order = worst(tiny, clips, n=3), errors.argsort(descending=True)[:3]
    assert [f.clip for f in found] == order.tolist()
    assert [f.error for f in found] == pytest.approx(errors[order].tolist(), rel=1e-3)
    first = found[0]
    assert torch.equal(first.truth, clips[first.clip])
    assert torch.equal(first.video[:15], first.truth[:15])


# --- records


MINUTES = {"compare": 3.0, "long": 20.0, "again3": 3.0, "again20": 20.0}
RECORDS = [p for s in MINUTES for p in sorted(results_folder().glob(f"{s}-*"))]


@pytest.mark.parametrize("path", RECORDS, ids=lambda p: p.stem)
def test_comparisons_are_whole(path):
    run = json.loads(path.read_text())
    assert path.stem == f"{run['study']}-{run['variant']}-seed{run['seed']}"
    assert run["variant"] in VARIANTS
    for key in ("commit", "hardware", "seconds", "clips_seen", "parameters", "curve"):
        assert run.get(key) not in (None, "", []), key
    assert run["test_clips"] and set(run["metrics"]) == set(PROTOCOLS)
    assert not {"out", "start"} & set(run["training"])


@pytest.mark.parametrize("path", RECORDS, ids=lambda p: p.stem)
def test_comparisons_were_trained_as_their_variants_say(path):
    """In all fields that configs still have, but for the schedule."""
    run = json.loads(path.read_text())
    then, variant = run["training"], VARIANTS[run["variant"]]
    config = TrainingConfig(minutes=MINUTES[run["study"]])
    config, source = compare.settings(run["variant"], config, MovingDigits())
    now = asdict(config) | source.data
    free = {"out", "seed", "checkpoint_seconds", "schedule", "decay_share", "compile"}
    compared = set(now) & set(then) - free
    if variant.layer is None:  # a ConvLSTM has none of a transformer's fields
        compared &= set(source.data) | {"minutes", "batch", "adamw_rate", "average"}
    assert len(compared) > 6
    assert {key: then[key] for key in compared} == {key: now[key] for key in compared}


def test_the_chapter_names_every_variant(root):
    chapter = (root / "notebooks" / "12_what_each_idea_is_worth.ipynb").read_text()
    for name, variant in VARIANTS.items():
        assert rf'\"{name}\": \"{variant.title}\"' in chapter
