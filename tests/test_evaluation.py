"""Chapter 10: metrics, baselines, variants, many futures, failures, records, the command line."""

import json
import math
import re
from dataclasses import replace
from functools import partial
from itertools import combinations
from unittest.mock import Mock

import numpy
import pytest
import skimage.metrics
import torch

import stt_lite as stt
from stt_lite import evaluation
from stt_lite.evaluation import (
    METRICS,
    PROTOCOLS,
    VARIANTS,
    ConvLSTM,
    ConvLSTMCell,
    LatentVelocity,
    absolute_error,
    bounces,
    centroid,
    copy_last_frame,
    evaluate,
    evaluate_model,
    expected_best,
    explain,
    frechet_distance,
    ink,
    main,
    many_futures,
    mean_of,
    on_canonical,
    perceptual,
    psnr,
    records,
    squared_error,
    ssim,
    take_over,
    train_variant,
    without_chance,
    worst,
)
from stt_lite.moving_mnist import moving_mnist
from stt_lite.training import PRESETS, TrainingConfig, plain
from stt_lite.transformer import SpatialTemporalTransformer, TransformerConfig

ONE_STEP = replace(PRESETS["moving-mnist-tiny"], minutes=None, steps=1, batch=1, frames=4)


def random_frames(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def tiny():
    return stt.load_pretrained("moving-mnist-tiny")


# --- metrics


def test_errors_are_sums_over_a_frame():
    video, truth = random_frames(2, 3, 1, 8, 6), random_frames(2, 3, 1, 8, 6, seed=1)
    by_hand = [[(video[b, t] - truth[b, t]).pow(2).sum() for t in range(3)] for b in range(2)]
    assert torch.allclose(squared_error(video, truth), torch.tensor(by_hand))
    by_hand = [[(video[b, t] - truth[b, t]).abs().sum() for t in range(3)] for b in range(2)]
    assert torch.allclose(absolute_error(video, truth), torch.tensor(by_hand))
    assert torch.allclose(ink(video), video.sum((2, 3, 4)))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("data_range", [1.0, 2.0])
def test_ssim_is_scikit_images(channels, data_range):
    video, truth = random_frames(3, channels, 16, 20), random_frames(3, channels, 16, 20, seed=1)
    video[2] = truth[2] * 0.9 + 0.05  # also something alike
    ours = ssim(video, truth, data_range)
    for a, b, value in zip(video.numpy(), truth.numpy(), ours):
        theirs = skimage.metrics.structural_similarity(a, b, channel_axis=0, data_range=data_range)
        assert value.item() == pytest.approx(theirs, abs=1e-5)
    assert torch.allclose(ssim(truth, truth), torch.ones(3))
    inflated = METRICS["ssim_inflated"](video, truth)
    assert torch.allclose(inflated, ssim(video, truth, 2.0)) and (inflated > ssim(video, truth)).all()


def test_psnr_is_scikit_images():
    video, truth = random_frames(4, 1, 16, 20), random_frames(4, 1, 16, 20, seed=1)
    theirs = [skimage.metrics.peak_signal_noise_ratio(b, a, data_range=1) for a, b in zip(video.numpy(), truth.numpy())]
    assert psnr(video, truth).tolist() == pytest.approx(theirs, rel=1e-5)
    assert psnr(truth, truth).tolist() == pytest.approx([100.0] * 4)


@pytest.mark.parametrize("metric", METRICS.values())
def test_metrics_work_on_one_frame_and_on_many(metric):
    video, truth = random_frames(2, 3, 1, 8, 8), random_frames(2, 3, 1, 8, 8, seed=1)
    whole = metric(video, truth)
    assert whole.shape == (2, 3) and whole.dtype == torch.float32
    assert metric(video[1, 2], truth[1, 2]).item() == pytest.approx(whole[1, 2].item(), rel=1e-5)


@pytest.mark.parametrize("metric", [squared_error, absolute_error, psnr, ssim, perceptual])
def test_metrics_refuse_two_shapes(metric, unchecked):
    with pytest.raises(ValueError, match=r"one shape.*\(2, 3, 1, 8, 8\) and \(2, 3, 1, 8, 9\)"):
        metric(random_frames(2, 3, 1, 8, 8), random_frames(2, 3, 1, 8, 9))


@pytest.mark.parametrize("window", [1, 4, 9])
def test_ssim_refuses_a_window(window, unchecked):
    with pytest.raises(ValueError, match=f"window must be odd.*got {window}"):
        ssim(random_frames(1, 8, 8), random_frames(1, 8, 8), window=window)


def test_frechet_distance_in_closed_form(unchecked):
    a = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)).double()
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-5)
    assert frechet_distance(a, a + torch.tensor([3.0, 0.0, 4.0])) == pytest.approx(25, rel=1e-6)
    scaled = frechet_distance(a, 2 * a)  # ||mean||² + the sum over axes of (2s - s)²
    deviations = torch.linalg.eigvalsh(a.T.cov())
    assert scaled == pytest.approx((a.mean(0).square().sum() + deviations.sum()).item(), rel=1e-6)
    b = a @ torch.tensor([[1.0, 0.5, 0.0], [0.0, 2.0, 0.3], [0.1, 0.0, 0.5]], dtype=torch.double)
    values, vectors = torch.linalg.eigh(a.T.cov())
    root = vectors @ values.sqrt().diag() @ vectors.T
    inner = torch.linalg.eigvalsh(root @ b.T.cov() @ root).clamp(min=0).sqrt().sum()
    wanted = (a.mean(0) - b.mean(0)).square().sum() + a.T.cov().trace() + b.T.cov().trace() - 2 * inner
    assert frechet_distance(a, b) == pytest.approx(wanted.item(), rel=1e-6)
    for bad in (a[:1], a[:, :2]):
        with pytest.raises(ValueError, match="features must be"):
            frechet_distance(a, bad)


def test_perceptual_says_what_it_leaves_out(monkeypatch, capsys):
    """Without the packages there is a line for each, and no failure; offline likewise."""
    monkeypatch.setitem(__import__("sys").modules, "torchvision", None)
    monkeypatch.setitem(__import__("sys").modules, "torchmetrics.image.lpip", None)
    monkeypatch.setitem(__import__("sys").modules, "torchvision.models.video", None)
    clips = random_frames(2, 3, 1, 8, 8)
    assert perceptual(clips, clips) == {}
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2 and all("left out" in line for line in printed)


# --- baselines


def test_copy_repeats_the_last_frame():
    prompt = random_frames(2, 4, 1, 8, 8)
    video = copy_last_frame(prompt, 3)
    assert video.shape == (2, 3, 1, 8, 8) and all(torch.equal(video[:, t], prompt[:, 3]) for t in range(3))


def test_latent_velocity_takes_the_same_step_again(tiny):
    prompt = moving_mnist(2, 5, 32, 1, seed=0)
    with torch.no_grad():
        z = tiny.tokenizer.encode(prompt.flatten(0, 1)).unflatten(0, (2, 5))
        wanted = tiny.tokenizer.decode(z[:, 4] + 3 * (z[:, 4] - z[:, 3]))
    assert torch.allclose(LatentVelocity(tiny.tokenizer)(prompt, 3)[:, 2], wanted, atol=1e-5)
    with pytest.raises(ValueError, match="at least 2 frames"):
        LatentVelocity(tiny.tokenizer)(prompt[:, :1], 3)


def test_conv_lstm_cell_is_an_lstm_where_the_image_is_one_pixel():
    """On 1x1 images only a kernel's centre counts, and what is left is torch's LSTM."""
    torch.manual_seed(0)
    cell, lstm = ConvLSTMCell(3, 5), torch.nn.LSTMCell(3, 5)
    weight = cell.gates.weight[:, :, 1, 1]  # (4·hidden, channels + hidden): input, forget, output, new
    order = torch.cat([torch.arange(0, 10), torch.arange(15, 20), torch.arange(10, 15)])  # torch: i, f, g, o
    with torch.no_grad():
        lstm.weight_ih.copy_(weight[order, :3])
        lstm.weight_hh.copy_(weight[order, 3:])
        lstm.bias_ih.copy_(cell.gates.bias[order])
        lstm.bias_ih[5:10] += 1  # the cell's forget gate starts open
        lstm.bias_hh.zero_()
        x, h, c = torch.randn(2, 3), torch.randn(2, 5), torch.randn(2, 5)
        wanted = lstm(x, (h, c))
        got = cell(x[..., None, None], (h[..., None, None], c[..., None, None]))
    for a, b in zip(got, wanted):
        assert torch.allclose(a[..., 0, 0], b, atol=1e-6)


def test_conv_lstm_predicts_from_real_frames_then_from_its_own():
    torch.manual_seed(0)
    net, frames = ConvLSTM(hidden=8, layers=2), random_frames(2, 6, 1, 8, 8)
    with torch.no_grad():
        whole = net(frames, 4, 2)  # predictions of frames 1 to 5
        other = frames.clone()
        other[:, 4:] = 0  # not given
        assert whole.shape == (2, 5, 1, 8, 8) and torch.equal(net(other, 4, 2), whole)
        other[:, 3] = 0  # given: what follows changes, what came before does not
        changed = net(other, 4, 2)
        assert torch.equal(changed[:, :3], whole[:, :3]) and (changed[:, 3] - whole[:, 3]).abs().max() > 1e-4
        fed = frames.clone()
        fed[:, 4] = whole[:, 3].clamp(0, 1)  # its own frame 4 in place of the real one
        assert torch.allclose(net(fed, 5, 1)[:, -1], whole[:, 4], atol=1e-6)
        assert torch.equal(net.forecast(frames[:, :4], 2), whole[:, 3:].clamp(0, 1))


# --- variants


@pytest.mark.parametrize("name", [name for name, variant in VARIANTS.items() if variant.layer])
@pytest.mark.parametrize("gaussian", ["latent", "off"])
def test_a_variants_cache_agrees_with_its_forward_pass_and_is_causal(name, gaussian):
    torch.manual_seed(0)
    shape = TransformerConfig(grid=(2, 3), width=16, heads=2, layers=2, gaussian=gaussian)
    net = SpatialTemporalTransformer(shape)
    net.layers = torch.nn.ModuleList(VARIANTS[name].layer(shape) for _ in range(2))
    for parameter in net.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    net.eval()
    latents, noise = torch.randn(2, 5, 8, 2, 3), net.draw_noise(2, 5)
    with torch.no_grad():
        at_once, cache = net(latents, noise=noise).prediction, net.empty_cache(2, 5)
        for t in range(5):
            one, cache = net.step(latents[:, t - 1] if t else None, cache, noise[:, t])
            assert torch.allclose(one, at_once[:, t], atol=1e-4)
        x, temporal = torch.randn(2, 5, 2, 3, 16), net.layers[0].temporal
        together, _ = temporal.read(x, temporal.empty_cache(2, (2, 3), 7))
        assert torch.allclose(together, temporal(x), atol=1e-4)
        later = latents.clone()
        later[:, 3] += 1
        assert torch.allclose(net(later, noise=noise).prediction[:, :4], at_once[:, :4], atol=1e-5)
        assert (net(later, noise=noise).prediction[:, 4] - at_once[:, 4]).abs().max() > 1e-4


def influence(layer, frame, pixel):
    """Which inputs (T h w) a layer's output at one frame and pixel depends on; Gaussian off."""
    shape = TransformerConfig(grid=(3, 3), width=16, heads=2, gaussian="off")
    torch.manual_seed(0)
    x = torch.randn(1, 4, 3, 3, 16, requires_grad=True)
    y = layer(shape)(x, None)[0]
    y[0, frame, pixel[0], pixel[1]].sum().backward()
    return x.grad[0].abs().sum(-1) > 1e-9


def test_variants_see_what_they_should():
    seen = influence(VARIANTS["joint"].layer, 2, (0, 0))
    assert seen[:3].all() and not seen[3].any()
    seen = influence(VARIANTS["spatial-only"].layer, 2, (0, 0))
    assert seen[2].all() and not seen[[0, 1, 3]].any()
    seen = influence(VARIANTS["temporal-only"].layer, 2, (0, 0))
    assert seen[:3, 0, 0].all() and seen.sum() == 3


def test_no_residual_has_no_way_around():
    """With silent branches the base hands its input on, and the variant nothing."""
    shape = TransformerConfig(grid=(2, 2), width=16, heads=2, gaussian="off")
    x = torch.randn(1, 3, 2, 2, 16)
    for name, wanted in (("base", x), ("no-residual", torch.zeros_like(x))):
        layer = VARIANTS[name].layer(shape)
        for linear in (layer.spatial.attend.out, layer.temporal.attend.out, layer.feed_forward[-1]):
            torch.nn.init.zeros_(linear.weight), torch.nn.init.zeros_(linear.bias)
        assert torch.allclose(layer(x, None)[0], wanted)


@pytest.mark.parametrize("name", ["convlstm", "joint", "token-head", "fsq-8", "vq-16"])
def test_a_variant_trains_and_forecasts(name, tmp_path):
    config = replace(PRESETS["moving-mnist-tiny"], minutes=None, steps=2, batch=2, frames=6, out=tmp_path)
    forecast, model, record = train_variant(name, config, tokenizer_minutes=0.02)
    clips = moving_mnist(2, 6, 32, 1, seed=0)
    video = forecast(clips[:, :4], 2)
    assert video.shape == (2, 2, 1, 32, 32) and torch.equal(video, forecast(clips[:, :4], 2))
    assert record["variant"] == name and record["clips_seen"] == 4 and record["parameters"] > 10_000
    assert ("tokenizer" in record) == (VARIANTS[name].tokenizer is not None)
    again = train_variant(name, replace(config, out=tmp_path / "again"), tokenizer_minutes=0.02)[0](clips[:, :4], 2)
    if VARIANTS[name].tokenizer is None:  # a tokenizer's steps depend on the clock here
        assert torch.equal(again, video)


def test_no_variant_learns_from_rollouts_that_bounced_another_way(tmp_path):
    for stochastic in (True, False):
        config = replace(ONE_STEP, stochastic=stochastic, out=tmp_path / str(stochastic))
        assert (train_variant("recipe", config)[2]["training"]["rollout_share"] == 0.0) == stochastic


def test_an_empty_frame_costs_the_truths_ink_and_no_more():
    clips = moving_mnist(3, 20, 32, 1, seed=0)
    assert torch.equal(evaluation.empty_frame(clips[:, :15], 5), torch.zeros(3, 5, 1, 32, 32))
    error = evaluate(evaluation.empty_frame, clips, ("15->5",))["15->5"]
    assert error["squared_error"] == pytest.approx(clips[:, 15:].square().sum((2, 3, 4)).mean(0).tolist(), rel=1e-5)
    assert error["ink_ratio"] == [0.0] * 5


def test_a_variant_leaves_the_callers_generator_alone(tmp_path):
    before = torch.get_rng_state()
    train_variant("convlstm", replace(ONE_STEP, out=tmp_path))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["base", "bottleneck", "temporal-only"])
def test_variants_take_over_all_but_the_gaussian_layers(tiny, name):
    gaussian = "bottleneck" if name == "bottleneck" else "latent"
    trained, shape = tiny.transformer.state_dict(), replace(tiny.transformer.config, gaussian=gaussian)
    net = SpatialTemporalTransformer(shape)
    net.layers = torch.nn.ModuleList(VARIANTS[name].layer(shape) for _ in range(shape.layers))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    count = take_over(net, tiny.transformer)
    taken = {key for key, value in net.state_dict().items() if key in trained and torch.equal(value, trained[key])}
    kept = {key for key, value in net.state_dict().items() if torch.equal(value, before[key])}
    own = {key for key in before if ".gaussian." in key}
    assert set(before) - taken <= own <= kept
    assert count == sum(before[key].numel() for key in taken if ".gaussian." not in key) > 50_000


def test_a_run_that_starts_from_weights_says_so(tmp_path):
    _, model, record = train_variant("bottleneck", replace(ONE_STEP, start="moving-mnist-tiny", out=tmp_path))
    trained = stt.load_pretrained("moving-mnist-tiny")
    assert record["started_from"]["sha256"] == trained.record["sha256"]
    assert model.transformer.config.width == trained.transformer.config.width
    old, new = (m.transformer.state_dict()["layers.0.temporal.attend.out.weight"] for m in (trained, model))
    assert (old - new).abs().max() < 0.1  # one step away
    assert record["data"]["digits"] == 1 and model.transformer.config.gaussian == "bottleneck"


def test_an_unknown_variant_is_named(tmp_path):
    with pytest.raises(ValueError, match="name must be one of base.*got 'lstm'"):
        train_variant("lstm", replace(PRESETS["moving-mnist-tiny"], out=tmp_path))


# --- the protocol


def test_evaluate_measures_the_generated_frames(tiny):
    clips = moving_mnist(5, 45, 32, 1, split="test", seed=1)
    results = evaluate(copy_last_frame, clips, batch=2)
    assert list(results) == list(PROTOCOLS)
    for name, (prompt, new) in PROTOCOLS.items():
        wanted = squared_error(copy_last_frame(clips[:, :prompt], new), clips[:, prompt : prompt + new]).mean(0)
        assert results[name]["squared_error"] == pytest.approx(wanted.tolist(), rel=1e-5)
        assert all(len(results[name][metric]) == new for metric in METRICS)
    ours = evaluate(without_chance(tiny), clips[:, :20], ("15->5",))["15->5"]["squared_error"]
    assert ours == pytest.approx(stt.rollout_error(tiny, clips[:, :20], 15).tolist(), rel=1e-3)
    with pytest.raises(ValueError, match="clips must have 45 frames for 15->30, got 20"):
        evaluate(copy_last_frame, clips[:, :20])


def test_mean_and_spread_over_seeds():
    one, two = ({"15->5": {"psnr": values}} for values in ([1.0, 2.0], [3.0, 6.0]))
    mean, spread = mean_of([one, two])
    assert mean == {"15->5": {"psnr": [2.0, 4.0]}}
    assert spread["15->5"]["psnr"] == pytest.approx(numpy.std([1.5, 4.5], ddof=1))
    assert mean_of([one])[1] == {"15->5": {"psnr": None}}


def test_evaluate_model_takes_clips_of_another_kind(tiny):
    drawn = []

    def draw(n, frames, seed):
        drawn.append((n, frames, seed))
        return torch.full((n, frames, 1, 32, 32), 0.1 * seed)

    table = evaluate_model(tiny, 2, (1, 4), draw)
    assert drawn == [(2, 45, 1), (2, 45, 4)] and table["copy"]["15->30"]["squared_error"] == [0.0] * 30
    assert table["seeds"] == [1, 4] and table["clips"] == 2


def test_evaluate_model_refuses_nothing_to_do(tiny):
    for options in ({"n": 0}, {"seeds": ()}):
        with pytest.raises(ValueError, match="at least 1 clip and 1 seed"):
            evaluate_model(tiny, **options)


# --- many futures


def test_expected_best_counts_every_draw():
    scores = random_frames(3, 6)
    ours = expected_best(scores)
    for k in range(1, 7):
        by_hand = [numpy.mean([max(draw) for draw in combinations(row.tolist(), k)]) for row in scores]
        assert ours[:, k - 1].tolist() == pytest.approx(by_hand, rel=1e-5)
    many = expected_best(random_frames(100))
    assert torch.isfinite(many).all() and (many.diff() > 0).all()


def test_centroid_follows_the_ink():
    frames = torch.zeros(2, 1, 8, 8)
    frames[0, 0, 2:4, 5] = 1.0
    frames[1, 0, 7, 0] = 0.5
    assert torch.allclose(centroid(frames), torch.tensor([[2.5, 5.0], [7.0, 0.0]]))


class Futures:
    """Stands in for a model: hands out prepared futures."""

    def __init__(self, videos):
        self.videos, self.asked = videos, []

    def generate(self, prompt, new_frames, samples, temperature, seed):
        self.asked.append((temperature, seed))
        return torch.cat([prompt.expand(1, samples, *prompt.shape), self.videos[None, :samples]], dim=2)


def dots(columns):
    """Futures of one frame (S 1 1 8 8), each a dot in another column of row 3."""
    videos = torch.zeros(len(columns), 1, 1, 8, 8)
    for video, column in zip(videos, columns):
        video[0, 0, 3, column] = 1.0
    return videos


def test_many_futures_of_known_ones(unchecked):
    clip = torch.cat([dots([0]), dots([4])], dim=1)  # prompt: column 0; truth: column 4
    found = many_futures(Futures(dots([2, 3, 4, 5])), clip, prompt=1, samples=4)
    assert found["psnr"][3] == pytest.approx(100.0)  # one of them is the truth
    assert found["psnr"][0] == pytest.approx((100 + 3 * -10 * math.log10(2 / 64)) / 4, rel=1e-4)
    assert found["inside"] == [1.0] and found["inside_expected"] == pytest.approx(3 / 5)
    assert found["spread"] == pytest.approx([torch.tensor([2.0, 3, 4, 5]).std().item()])
    found = many_futures(Futures(dots([0, 1, 2, 3])), clip, prompt=1, samples=4)
    assert found["inside"] == [0.5]  # row 3 is in the range, column 4 is not
    assert found["rank"] == pytest.approx([0.25] * 2 + [0.0] * 6 + [0.25] * 2)  # none above, all four left of the truth
    with pytest.raises(ValueError, match="prompt must be between 1 and T - 1 = 1 frames, got 2"):
        many_futures(Futures(dots([0])), clip, prompt=2, samples=1)


def test_each_clip_draws_futures_of_its_own(unchecked):
    model = Futures(dots([1, 2]))
    many_futures(model, torch.cat([dots([0, 1]), dots([4, 4])], dim=1), prompt=1, samples=2, temperature=0.5, seed=7)
    assert model.asked == [(0.5, 7), (0.5, 8)]


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
    assert "misjudged" in explain(straight, off, 4, 1.0) and "3.0 pixels off" in explain(straight, off, 4, 1.0)
    assert "3.5 times the usual error" in explain(straight, off, 4, 3.5)
    turned = flying([(5, 1), (5, 2), (5, 3), (5, 4), (5, 3), (5, 2)])
    assert "bounces off the right border in frame 4;" in explain(turned, off, 4, 1.0)
    faded = straight * torch.tensor([1, 1, 1, 1, 1, 0.5])[:, None, None, None]
    assert "50% of its ink" in explain(straight, faded, 4, 1.0)


def test_worst_are_the_worst_in_order(tiny):
    clips = moving_mnist(12, 20, 32, 1, split="test", seed=5)
    errors = squared_error(without_chance(tiny)(clips[:, :15], 5), clips[:, 15:]).mean(1)
    found = worst(tiny, clips, n=3)
    assert [f.clip for f in found] == errors.argsort(descending=True)[:3].tolist()
    assert [f.error for f in found] == pytest.approx(errors.sort(descending=True).values[:3].tolist(), rel=1e-3)
    assert torch.equal(found[0].truth, clips[found[0].clip]) and torch.equal(found[0].video[:15], found[0].truth[:15])


# --- records


def test_records_come_from_the_folder_and_must_exist(root):
    assert records("reference")[0] == json.loads((root / "book" / "results" / "reference.json").read_text())
    with pytest.raises(FileNotFoundError, match="no record 'nothing-\\*'"):
        records("nothing-*")


def test_every_record_that_a_chapter_names_is_there(root):
    """What `stt.records` is called with in a notebook must match a file; weights must have their record's hash."""
    named = set()
    for path in (root / "notebooks").glob("*.ipynb"):
        for cell in json.loads(path.read_text())["cells"]:
            named |= set(re.findall(r'records\("([^"]+)"\)', "".join(cell["source"])))
    assert {"reference", "compare-*", "futures-*-seed0"} <= named
    for pattern in named:
        assert records(pattern), pattern


@pytest.mark.parametrize("name", ["moving-mnist-tiny", "moving-mnist"])
def test_bundles_carry_their_evaluation(name):
    record = records(f"{name}-transformer")[0]
    evaluated, frames = record["evaluation"], {key: new for key, (_, new) in PROTOCOLS.items()}
    assert len(evaluated["seeds"]) == 3
    for who in ("model", "copy"):
        for protocol, new in frames.items():
            assert all(len(evaluated[who][protocol][metric]) == new for metric in METRICS)
    for protocol in ("15->5", "10->10"):
        assert record["metrics"][protocol]["per_frame"] == evaluated["model"][protocol]["squared_error"]


MINUTES = {"compare": 3.0, "long": 20.0, "again3": 3.0, "again20": 20.0}
COMPARISONS = [path for study in MINUTES for path in sorted(evaluation.results_folder().glob(f"{study}-*"))]


@pytest.mark.parametrize("path", COMPARISONS, ids=lambda p: p.stem)
def test_comparisons_are_whole(path):
    run = json.loads(path.read_text())
    assert path.stem == f"{run['study']}-{run['variant']}-seed{run['seed']}" and run["variant"] in VARIANTS
    for key in ("commit", "hardware", "seconds", "clips_seen", "parameters", "test_clips", "curve"):
        assert run.get(key) not in (None, "", []), key
    assert set(run["metrics"]) == set(PROTOCOLS) and not {"out", "start"} & set(run["training"])


@pytest.mark.parametrize("path", COMPARISONS, ids=lambda p: p.stem)
def test_comparisons_were_trained_as_their_variants_say(path):
    run = json.loads(path.read_text())
    variant, minutes = VARIANTS[run["variant"]], MINUTES[run["study"]]
    config = plain(replace(TrainingConfig(tokenizer="moving-mnist-tiny", minutes=minutes), **variant.training))
    concerns_all = {"size", "digits", "frames", "stochastic", "tokenizer", "minutes", "batch", "adamw_rate", "clip", "average"}
    compared = set(config) - {"out", "start", "seed", "checkpoint_seconds"} if variant.layer else concerns_all
    first_edition = {"patch": 1, "schedule": "cosine", "decay_share": config["decay_share"]}  # what its runs had, before these were fields
    if "schedule" not in run["training"]:
        config |= first_edition
    then = first_edition | run["training"]
    assert {key: then.get(key, 0.0) for key in compared} == {key: config[key] for key in compared}


# --- the command line


def test_command_evaluates_and_writes_json(tmp_path, capsys):
    out = tmp_path / "errors.json"
    main(["evaluate", "--clips", "3", "--seeds", "1", "2", "--out", str(out)])
    printed, table = capsys.readouterr().out, json.loads(out.read_text())
    assert table["clips"] == 3 and table["seeds"] == [1, 2] and "copy the last frame" in printed
    error = table["model"]["15->5"]["squared_error"]
    assert f"{error[0]:.2f}" in printed and f"{sum(error) / 5:.2f} ± " in printed


def test_canonical_clips_are_left_out_with_a_line_or_evaluated(monkeypatch, capsys, tiny):
    model = stt.load_pretrained("moving-mnist")
    monkeypatch.setattr(evaluation, "canonical_test_set", Mock(side_effect=ConnectionError("no network")))
    assert on_canonical(model, 2) == {} and capsys.readouterr().out == "canonical test set left out: no network\n"
    clips = moving_mnist(2, 20, 64, 2, split="test", seed=3)
    monkeypatch.setattr(evaluation, "canonical_test_set", lambda n, fallback: (clips[:n], "canonical"))
    assert on_canonical(model, 2) == evaluate(without_chance(model), clips, ("15->5", "10->10"))
    with pytest.raises(ValueError, match=r"canonical needs a model of frames \(1, 64, 64\), got \(1, 32, 32\)"):
        on_canonical(tiny, 2)


def test_command_checks_its_output_before_the_work(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(evaluation, "load_pretrained", lambda *a: pytest.fail("loaded a model first"))
    monkeypatch.setattr(evaluation, "train_variant", lambda *a: pytest.fail("trained first"))
    for command in (["evaluate", "--out", f"{tmp_path}/file/out.json"], ["compare", "--out", f"{tmp_path}/file/out"]):
        with pytest.raises(SystemExit):
            main(command)
        assert "out can't be written" in capsys.readouterr().err


def test_command_compares_and_skips_what_is_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluation, "TrainingConfig", partial(TrainingConfig, batch=2, frames=6))
    command = ["compare", "--variants", "convlstm", "--minutes", "0.01", "--clips", "3"]
    command += ["--out", str(tmp_path / "results"), "--runs", str(tmp_path / "runs")]
    main(command)
    run = json.loads((tmp_path / "results" / "compare-convlstm-seed0.json").read_text())
    assert run["study"] == "compare" and run["variant"] == "convlstm" and set(run["metrics"]) == set(PROTOCOLS)
    assert "15->5 first" in capsys.readouterr().out
    main(command)
    assert "there already" in capsys.readouterr().out


@pytest.mark.parametrize("command, words", [
    ([], ["generate", "train", "evaluate", "compare", "pretrained"]),
    (["evaluate"], ["--clips", "default: 500", "--seeds"]),
    (["compare"], ["--variants", "spatial-only", "--minutes", "--stochastic"]),
])  # fmt: skip
def test_command_helps(capsys, command, words):
    with pytest.raises(SystemExit) as exit:
        main([*command, "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert exit.value.code == 0 and all(word in printed for word in words)
