"""book/experiments: rivals, ablations, variants and failures; records of chapter 12."""

import json
import sys
from dataclasses import asdict, replace

import pytest
import torch
from scipy.ndimage import gaussian_filter

import compare
import game_scores
import gpu_run
import keep_ball
import masked_tokens
import photographs
import stt_lite as stt
from compare import VARIANTS, take_over, train_variant
from failures import bounces, explain, worst
from grow import grow, train_grown
from masked_tokens import Draw
from perceptual import frechet_distance, perceptual
from rivals import ConvLSTM, ConvLSTMCell, LatentVelocity
from spoil import SpoilConfig, blur, hide
from stt_lite.contexts import TrainingConfig
from stt_lite.evaluation import PROTOCOLS, rollout_error, without_chance
from stt_lite.files import read_record, results_folder
from stt_lite.game_clips import GAME_TOKENIZER, find_ball
from stt_lite.generation import VideoModel
from stt_lite.machines import seed_everything
from stt_lite.metrics import ink, squared_error
from stt_lite.moving_mnist import MovingDigits, moving_mnist
from stt_lite.runs import Step
from stt_lite.transformer import SpatialTemporalTransformer

SHORT = MovingDigits(frames=6)


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


def test_no_residual_has_no_way_around():
    shape = stt.TransformerConfig(grid=(2, 2), width=16, heads=2, gaussian="off")
    x, layer = torch.randn(1, 3, 2, 2, 16), VARIANTS["no-residual"].layer(shape)
    for parameter in layer.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    wanted = layer.feed_forward(layer.temporal(layer.spatial(x)))
    assert torch.allclose(layer(x, None)[0], wanted, atol=1e-5)


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
    rests = flying([(5, 2), (5, 1), (5, 0), (5, 0), (5, 1)])
    assert bounces(rests) == [(3, "left")]
    slow = flying([(10, 3), (10, 4), (11, 4), (11, 5), (12, 5), (12, 6)])
    assert bounces(0.99 * slow + 1e-3 * torch.rand(6, 1, 16, 16)) == []


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


MINUTES = {
    "compare": 3.0,
    "long": 20.0,
    "again3": 3.0,
    "again12": 12.0,
    "again20": 20.0,
    "ideas": 3.0,
}
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
    then, variant = run["data"] | run["training"], VARIANTS[run["variant"]]
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
    """But those with tokenizers of their own, which stand in the log alone."""
    chapter = (root / "notebooks" / "12_what_each_idea_is_worth.ipynb").read_text()
    log = (root / "book" / "what_did_not_work.md").read_text()
    for name, variant in VARIANTS.items():
        titled = rf"\"{name}\": \"{variant.title}\"" in chapter
        assert titled or (variant.tokenizer and f"compare-{name}-seed0" in log)


# --- a wider transformer from a narrower one


@pytest.mark.parametrize("gaussian", ["latent", "off"])
def test_a_grown_transformer_computes_the_same_and_every_weight_can_learn(gaussian):
    sizes = {"width": 16, "layers": 2, "heads": 2, "grid": (3, 4)}
    config = stt.TransformerConfig(**sizes, gaussian=gaussian)
    net = SpatialTemporalTransformer(config)
    for p in net.parameters():  # nothing that is zero at first may hide a mistake
        p.data += 0.3 * torch.randn_like(p)
    wide = grow(net, replace(config, width=40, heads=5))
    assert wide.training and wide.config.width == 40
    latents, noise = torch.randn(2, 5, 8, 3, 4), net.draw_noise(2, 5)
    for posterior in (True, False, 2):
        a, b = (m(latents, noise=noise, posterior=posterior) for m in (net, wide))
        assert torch.allclose(a.prediction, b.prediction, atol=1e-4)
        assert torch.allclose(a.kl, b.kl, rtol=1e-3, atol=1e-4)
    before = [p.detach().clone() for p in wide.parameters()]
    optimizer = torch.optim.Adam(wide.parameters(), 1e-3)  # takes visible steps
    for _ in range(3):  # weights behind those that are zero learn from the second on
        out = wide(latents, noise=noise)
        (out.prediction.square().mean() + out.kl.mean()).backward()
        optimizer.step()
    for (name, p), old in zip(wide.named_parameters(), before):
        assert (p != old).float().mean() > 0.99, name


def test_grow_refuses_what_it_can_not_keep():
    config = stt.TransformerConfig(width=32, heads=4)
    net = SpatialTemporalTransformer(config)
    assert grow(net, config) is net
    wider = {"width": 64, "heads": 8}
    for other in ({"width": 16, "heads": 2}, {"width": 64}, wider | {"layers": 4}):
        with pytest.raises(ValueError, match="config must be that of net"):
            grow(net, replace(config, **other))
    bottleneck = replace(config, gaussian="bottleneck")
    with pytest.raises(ValueError, match="config must be that of net"):
        grow(SpatialTemporalTransformer(bottleneck), replace(bottleneck, **wider))


def test_a_bundle_goes_on_with_more_channels(tmp_path, tiny):
    width = 2 * tiny.transformer.config.width
    slow = {"muon_rate": 1e-9, "adamw_rate": 1e-9}
    config = TrainingConfig(out=tmp_path, steps=1, batch=1, width=width, **slow)
    model = stt.load_pretrained(train_grown(config, "moving-mnist-tiny"))
    assert model.transformer.config.width == width
    assert model.record["started_from"]["sha256"] == tiny.record["sha256"]
    prompt = moving_mnist(1, 5, 32, 1, seed=0)
    videos = [m.generate(prompt, 1, temperature=0.0) for m in (tiny, model)]
    assert torch.allclose(*videos, atol=1e-3)  # steps were too small to lead elsewhere


# --- contexts blurred and partly hidden


def test_blur_is_scipys_with_black_around_and_a_width_for_each_frame():
    frames, width = torch.rand(2, 20, 28), [1.5, 0.0]
    blurred = blur(frames[:, None], torch.tensor(width))
    for frame, found, w in zip(frames.double().numpy(), blurred, width):
        options = {"mode": "constant", "truncate": 8}
        expected = gaussian_filter(frame, w, **options) if w else frame
        assert torch.allclose(found[0], torch.as_tensor(expected).float(), atol=1e-4)


def test_hide_blackens_a_box_and_nothing_else():
    clips = torch.rand(3, 10, 2, 8, 12) + 0.1
    low = torch.tensor([[0.2, 0.0, 0.5], [-0.2, 0.5, -0.3], [0.3, 0.3, 0.3]])
    high = torch.tensor([[0.5, 1.0, 0.75], [0.1, 2.0, 0.25], [0.3, 0.6, 0.6]])
    expected = clips.clone()
    expected[0, 2:5, :, :, 6:9] = 0
    expected[1, :1, :, 4:, :3] = 0  # the third clip's box is empty
    assert torch.equal(hide(clips, low, high), expected)


def ink_of_contexts(step=0, **changes):
    """Of what a small transformer is given of 8 clips, and of its square: (8, 8)."""
    config = SpoilConfig(
        batch=8, fade=0.0, corruption=0.0, rollout_share=0.0, **changes
    )
    shape = stt.TransformerConfig(width=16, layers=1, heads=2)
    tokenizer, source = stt.load_tokenizer("moving-mnist-tiny"), MovingDigits(frames=8)
    net = SpatialTemporalTransformer(shape)
    objective = config.objective(net, tokenizer, source)
    drawn = Step(0.0, *seed_everything(0, step, "cpu"), 0, 1)
    batch = objective.sample(drawn, torch.device("cpu"))
    seen = objective.prepare(batch, drawn)
    assert torch.equal(seen["clips"], batch.clips)
    assert torch.equal(seen["target"], objective.tokens(batch.clips)[0])
    video = tokenizer.decode(seen["context"].flatten(0, 1)).unflatten(0, (8, 8))
    return ink(video), ink(video.square())


def test_blur_grows_in_the_context_and_leaves_the_target():
    sharp, spread = (ink_of_contexts(blur=most) for most in (0.0, 6.0))
    left = (spread[1] / spread[0]) / (sharp[1] / sharp[0])  # grey lowers it
    assert left.min() < 0.5 and (left.mean(1) > 0.9).any()  # clouds, and hardly any
    assert (left[:, 0] < 0.9).any()  # in some it began before the clip
    assert ((left[:, 0] > 0.97) & (left[:, -1] < 0.8)).any()  # in others it comes later


def test_a_share_of_the_contexts_is_hidden_and_no_target():
    kept = {0.5: [], 0.99: []}
    for step in range(12):
        whole, _ = ink_of_contexts(step)
        for share in kept:
            kept[share].append(ink_of_contexts(step, hide=share)[0] / whole)
    half, all_but_one = (torch.cat(k) for k in kept.values())  # (clips, frames)
    touched, most = (((k - 1).abs() > 0.02).any(1) for k in (half, all_but_one))
    assert touched.sum() >= 3 and 1.3 * touched.sum() < most.sum()
    assert all_but_one[most].min(1).values.min() < 0.1
    assert all_but_one[most].max(1).values.min() > 0.9  # for some frames only


# --- metrics of pretrained networks


def test_frechet_distance_in_closed_form(unchecked):
    a = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)).double()
    mix = torch.tensor([[1.0, 0.5, 0.0], [0.0, 2.0, 0.3], [0.1, 0.0, 0.5]])
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-5)
    shifted = a + torch.tensor([3.0, 0.0, 4.0])
    assert frechet_distance(a, shifted) == pytest.approx(25, rel=1e-6)
    doubled = a.mean(0).square().sum() + a.var(0).sum()
    assert frechet_distance(a, 2 * a) == pytest.approx(doubled.item(), rel=1e-6)
    b = a @ mix.double()
    values, vectors = torch.linalg.eigh(a.T.cov())
    root = vectors @ values.sqrt().diag() @ vectors.T
    inner = torch.linalg.eigvalsh(root @ b.T.cov() @ root).clamp(min=0).sqrt().sum()
    wanted = (a.mean(0) - b.mean(0)).square().sum() - 2 * inner
    wanted += a.T.cov().trace() + b.T.cov().trace()
    assert frechet_distance(a, b) == pytest.approx(wanted.item(), rel=1e-6)
    assert frechet_distance(a[:, :1], 2 * a[:, :1]) == pytest.approx(
        (a[:, 0].mean() ** 2 + a[:, 0].var()).item(), rel=1e-6
    )
    for bad in (a[:1], a[:, :2]):
        with pytest.raises(ValueError, match="features must be"):
            frechet_distance(a, bad)


def test_perceptual_says_what_it_leaves_out(monkeypatch, capsys, unchecked):
    """Without the packages there is a line for each, and no failure."""
    for name in ("torchmetrics.image.lpip", "torchvision.models.video"):
        monkeypatch.setitem(sys.modules, name, None)
    clips = random_frames(2, 3, 1, 8, 8)
    assert perceptual(clips, clips) == {}
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2 and all("left out" in line for line in printed)
    with pytest.raises(ValueError, match="must have one shape"):
        perceptual(clips, clips[:1])


# --- photographs and games


def test_photographs_are_trained_and_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(photographs, "results_folder", lambda: tmp_path)
    photographs.bf16(steps=2)
    record = json.loads((tmp_path / "vqgan-bf16.json").read_text())
    assert record["finite"] and record["steps"] == 2 and record["precision"] == "bf16"
    assert record["frames_seen"] == 8 and "out" not in record["training"]
    assert record["vqgan"]["start"] == 0.1 and "shape" not in record["vqgan"]
    found = photographs.measure(stt.load_tokenizer("photographs-vqgan"))["128"]
    then = read_record(results_folder() / "photographs-vqgan-tokenizer.json")
    for key in ("tiles", "psnr", "ssim"):
        assert found[key] == pytest.approx(then["metrics"]["128"][key], rel=1e-3)


@pytest.fixture(scope="module")
def games(tmp_path_factory):
    pytest.importorskip("ale_py")
    options = {"train": 1, "test": 1, "frames": 60}
    folder = stt.play_games(tmp_path_factory.mktemp("games"), **options)
    return stt.GameClips(folder, frames=2)


def test_game_scores_have_every_game_and_both_rivals(games):
    model, names = stt.load_pretrained("game"), games.options["games"]
    kept = game_scores.reconstruction_scores(model.tokenizer, games, 2)
    assert set(kept) == set(names)
    assert all(m["frames"] == 40 and m["ball_kept"] > 0.9 for m in kept.values())
    scores = game_scores.forecast_scores(model, games, 1)
    assert set(scores) == {*names, "all"}
    real = games.with_ball(1, 20, game="pong")[0]
    wanted = rollout_error(None, real, 15).tolist()
    got = scores["pong"]["copy"]["15->5"]["squared_error"]
    assert got == pytest.approx(wanted, rel=1e-4)
    errors = [scores[n]["model"]["10->10"]["squared_error"] for n in names]
    mean = torch.tensor(errors).mean(0).tolist()
    all_games = scores["all"]["model"]["10->10"]["squared_error"]
    assert all_games == pytest.approx(mean, rel=1e-5)
    shares = game_scores.ball_over_time(model, games, 1, new_frames=3)
    truth = games.with_ball(1, 18, game="breakout")[0][:, 15:]
    missing = find_ball(truth, "breakout")[0, :, 0].isnan()
    assert shares["breakout"]["real"] == (~missing).float().tolist()
    curves = [c for who in shares.values() for c in who.values()]
    assert all(len(c) == 3 and 0 <= min(c) <= max(c) <= 1 for c in curves)


def test_the_comparison_of_weights_changes_nothing_else(games, tmp_path):
    small = replace(GAME_TOKENIZER.shape, width=16, residual_blocks=0)
    settings = replace(GAME_TOKENIZER, shape=small, adversarial=0.0)
    config = TrainingConfig(out=tmp_path / "runs", batch=1)
    paths = game_scores.compare_moving(
        games, tmp_path, (0.0, 4.0), steps=2, n=1, settings=settings, config=config
    )
    names = [f"game-ablation-moving-{weight}.json" for weight in (0, 4)]
    assert [path.name for path in paths] == names
    a, b = (json.loads(path.read_text()) for path in paths)
    assert a["vqgan"].pop("moving") == 0 and b["vqgan"].pop("moving") == 4
    assert a["vqgan"] == b["vqgan"] and a["training"] == b["training"]
    assert a["steps"] == b["steps"] == 2 and "out" not in a["training"]
    assert set(a["metrics"]) == set(games.options["games"])


# --- what keeps a ball alive


@pytest.fixture(scope="module")
def pong():
    return stt.load_pretrained("pong")


def test_one_pass_at_temperature_0_is_what_generate_makes(pong):
    """Also when the cache, here a short one, is full."""
    parts = pong.tokenizer, pong.transformer
    model = VideoModel(*parts, {"data": {"frames": 3}}).eval()
    clips, keys = stt.held_out_clips(pong, 2, 14, seed=0)
    new = masked_tokens.rolled(model, clips[:, :2], keys, Draw())
    options = dict(actions=keys, temperature=0.0, seed=0)
    wanted = model.generate(clips[:, :2], 12, **options)[:, 0, 2:]
    torch.testing.assert_close(new, wanted, atol=1e-5, rtol=0)


def test_each_pass_keeps_the_surest_and_shows_them(pong):
    """Two places of four are likelier than the others: they are kept and shown."""
    logits = torch.zeros(1, 1, 512, 2, 2)
    logits[0, 0, 7] = torch.tensor([[5.0, 1.0], [2.0, 6.0]])
    seen = []

    def predict():
        seen.append(pong.transformer.revealed)
        second = torch.zeros_like(logits)
        second[0, 0, 9] = 9.0
        return (logits if len(seen) == 1 else second), len(seen)

    codewords, rest = masked_tokens.in_passes(pong, predict, Draw(passes=3), None)
    assert [*map(type, seen)] == [type(None), torch.Tensor, torch.Tensor]
    known = [parts[0, 0, -1].bool().flatten().tolist() for parts in seen[1:]]
    assert known[0] == [False, False, False, True]
    assert sum(known[1]) == 2 and known[1][3]
    tokens = pong.tokenizer.quantize(codewords[:, 0])[1][0].flatten().tolist()
    assert tokens == [9, 9, 9, 7] and rest == 3
    assert pong.transformer.revealed is None


def test_hidden_tokens_are_not_seen_and_shown_ones_are(pong):
    config = replace(pong.transformer.config, gaussian="off")
    net = masked_tokens.MaskedTransformer(config).eval()
    latents = pong.tokens(stt.held_out_clips(pong, 1, 3, seed=0).clips)
    noise = net.draw_noise(1, 3)
    known = torch.zeros(1, 3, 10, 10, dtype=torch.bool)
    made = []
    for shown in (latents, -latents):
        for at in (0, 1):
            known[0, 1, 0, 0] = bool(at)
            net.revealed = masked_tokens.reveal(shown, known)
            made.append(net(latents, noise=noise).prediction)
    hidden, kept, other_hidden, other_kept = made
    assert torch.equal(hidden, other_hidden)
    for a, b in ((hidden, kept), (kept, other_kept)):
        differs = (a - b).abs().amax((0, 2, 3, 4)) > 1e-6
        assert differs.tolist() == [False, True, True]


def test_a_variant_learns_from_hidden_tokens(tmp_path):
    """Its matrix for shown tokens is new, and moves; the first step has rate 0."""
    options = dict(steps=2, minutes=None, batch=1, out=tmp_path, average=0)
    config = replace(stt.PRESETS["pong"].config, **options, compile=False)
    model, record = keep_ball.train_variant("masks", config)
    assert isinstance(model.transformer, masked_tokens.MaskedTransformer)
    assert record["steps"] == record["clips_seen"] == 2
    seed_everything(config.seed, -2, "cpu")
    fresh = masked_tokens.MaskedTransformer(model.transformer.config).now.weight
    assert not torch.equal(model.transformer.now.weight.cpu(), fresh)


@pytest.mark.parametrize(
    "option", ["resume", "tokenizer", "tokenizer-seconds", "layers"]
)
def test_a_run_that_starts_from_weights_takes_their_shape(monkeypatch, capsys, option):
    start = ["gpu_run.py", "moving-mnist-tiny", "--start", "moving-mnist-tiny"]
    monkeypatch.setattr(sys, "argv", [*start, f"--{option}", "3"])
    with pytest.raises(SystemExit) as ended:
        gpu_run.arguments()
    assert ended.value.code == 2 and f"no --{option}" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [*start, "--width", "64"])
    assert gpu_run.arguments().width == 64
