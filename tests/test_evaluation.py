"""Chapter 11: metrics, baselines, the protocol, many futures, the records named."""

import json
import math
import re
from itertools import combinations
from unittest.mock import Mock

import numpy
import pytest
import skimage.metrics
import torch

import stt_lite as stt
from stt_lite import evaluation
from stt_lite.evaluation import (
    PROTOCOLS,
    Forecast,
    copy_last_frame,
    empty_frame,
    evaluate,
    evaluate_model,
    evaluation_table,
    expected_best,
    many_futures,
    mean_of,
    on_canonical,
    rollout_error,
    without_chance,
)
from stt_lite.files import records
from stt_lite.metrics import (
    METRICS,
    absolute_error,
    centroid,
    ink,
    psnr,
    squared_error,
    ssim,
)
from stt_lite.moving_mnist import moving_mnist


def random_frames(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def tiny():
    return stt.load_pretrained("moving-mnist-tiny")


# --- metrics


def test_errors_are_sums_over_a_frame():
    video, truth = random_frames(2, 3, 1, 8, 6), random_frames(2, 3, 1, 8, 6, seed=1)
    for ours, of in ((squared_error, torch.square), (absolute_error, torch.abs)):
        by_hand = [
            [of(video[b, t] - truth[b, t]).sum() for t in range(3)] for b in (0, 1)
        ]
        assert torch.allclose(ours(video, truth), torch.tensor(by_hand))
    assert torch.allclose(ink(video), video.sum((2, 3, 4)))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("data_range", [1.0, 2.0])
def test_ssim_is_scikit_images(channels, data_range):
    video = random_frames(3, channels, 16, 20)
    truth = random_frames(3, channels, 16, 20, seed=1)
    video[2] = truth[2] * 0.9 + 0.05  # also something alike
    ours = ssim(video, truth, data_range)
    for a, b, value in zip(video.numpy(), truth.numpy(), ours):
        options = {"channel_axis": 0, "data_range": data_range}
        theirs = skimage.metrics.structural_similarity(a, b, **options)
        assert value.item() == pytest.approx(theirs, abs=1e-5)
    assert torch.allclose(ssim(truth, truth), torch.ones(3))
    inflated = METRICS["ssim_inflated"](video, truth)
    assert torch.allclose(inflated, ssim(video, truth, 2.0))
    assert (inflated > ssim(video, truth)).all()


def test_psnr_is_scikit_images():
    video, truth = random_frames(4, 1, 16, 20), random_frames(4, 1, 16, 20, seed=1)
    of = skimage.metrics.peak_signal_noise_ratio
    theirs = [of(b, a, data_range=1) for a, b in zip(video.numpy(), truth.numpy())]
    assert psnr(video, truth).tolist() == pytest.approx(theirs, rel=1e-5)
    assert psnr(truth, truth).tolist() == pytest.approx([100.0] * 4)


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_metrics_work_on_one_frame_and_on_many(metric):
    video, truth = random_frames(2, 3, 1, 8, 8), random_frames(2, 3, 1, 8, 8, seed=1)
    whole = metric(video, truth)
    assert whole.shape == (2, 3) and whole.dtype == torch.float32
    one = metric(video[1, 2], truth[1, 2])
    assert one.item() == pytest.approx(whole[1, 2].item(), rel=1e-5)


@pytest.mark.parametrize("metric", [squared_error, absolute_error, psnr, ssim])
def test_metrics_refuse_two_shapes(metric, unchecked):
    shapes = r"one shape.*\(2, 3, 1, 8, 8\) on cpu and \(2, 3, 1, 8, 9\)"
    with pytest.raises(ValueError, match=shapes):
        metric(random_frames(2, 3, 1, 8, 8), random_frames(2, 3, 1, 8, 9))


@pytest.mark.parametrize("window", [1, 4, 9])
def test_ssim_refuses_a_window(window, unchecked):
    with pytest.raises(ValueError, match=f"window must be odd.*got {window}"):
        ssim(random_frames(1, 8, 8), random_frames(1, 8, 8), window=window)


# --- baselines and the protocol


def test_copy_repeats_the_last_frame():
    prompt = random_frames(2, 4, 1, 8, 8)
    video = copy_last_frame(prompt, 3)
    assert video.shape == (2, 3, 1, 8, 8) and isinstance(copy_last_frame, Forecast)
    assert all(torch.equal(video[:, t], prompt[:, 3]) for t in range(3))


def test_an_empty_frame_costs_the_truths_ink_and_no_more():
    clips = moving_mnist(3, 20, 32, 1, seed=0)
    assert torch.equal(empty_frame(clips[:, :15], 5), torch.zeros(3, 5, 1, 32, 32))
    error = evaluate(empty_frame, clips, ("15->5",))["15->5"]
    wanted = clips[:, 15:].square().sum((2, 3, 4)).mean(0).tolist()
    assert error["squared_error"] == pytest.approx(wanted, rel=1e-5)
    assert error["ink_ratio"] == [0.0] * 5


def test_evaluate_measures_the_generated_frames(tiny):
    clips = moving_mnist(23, 45, 32, 1, split="test", seed=1)  # more than go at once
    results = evaluate(copy_last_frame, clips)
    assert list(results) == list(PROTOCOLS)
    for name, (prompt, new) in PROTOCOLS.items():
        video, truth = copy_last_frame(clips[:, :prompt], new), clips[:, prompt:]
        wanted = squared_error(video, truth[:, :new]).mean(0).tolist()
        assert results[name]["squared_error"] == pytest.approx(wanted, rel=1e-5)
        assert all(len(results[name][metric]) == new for metric in METRICS)
    few = clips[:5, :20]
    ours = evaluate(without_chance(tiny), few, ("15->5",))["15->5"]["squared_error"]
    assert ours == pytest.approx(rollout_error(tiny, few, 15).tolist(), rel=1e-3)
    with pytest.raises(
        ValueError, match="clips must have 45 frames for 15->30, got 20"
    ):
        evaluate(copy_last_frame, clips[:, :20])


class Still:
    """Stands in for a model: repeats the prompt's last frame."""

    def generate(self, prompt, new_frames, samples, temperature, seed):
        return torch.cat([prompt, copy_last_frame(prompt, new_frames)], dim=1)[:, None]


def test_rollout_error_of_copying_is_the_difference_from_the_last_frame(unchecked):
    real = moving_mnist(3, 8, 32, 1, seed=0)
    wanted = (real[:, 3:4] - real[:, 4:]).square().sum((2, 3, 4)).mean(0)
    assert torch.allclose(rollout_error(None, real, 4), wanted)
    assert torch.allclose(rollout_error(Still(), real, 4), wanted)
    for prompt in (0, 8):
        with pytest.raises(
            ValueError, match=rf"prompt must be .*in \[1, 7\], got {prompt}"
        ):
            rollout_error(None, real, prompt)


def test_mean_and_spread_over_seeds():
    one, two = ({"15->5": {"psnr": values}} for values in ([1.0, 2.0], [3.0, 6.0]))
    mean, spread = mean_of([one, two])
    assert mean == {"15->5": {"psnr": [2.0, 4.0]}}
    assert spread["15->5"]["psnr"] == pytest.approx(numpy.std([1.5, 4.5], ddof=1))
    assert mean_of([one])[1] == {"15->5": {"psnr": None}}


def test_evaluate_model_takes_the_models_own_kind_of_clips(tiny, monkeypatch):
    drawn = []

    def held_out(model, n, frames, seed):
        drawn.append((n, frames, seed))
        return torch.full((n, frames, 1, 32, 32), 0.1 * seed)

    monkeypatch.setattr(evaluation, "held_out_clips", held_out)
    found = evaluate_model(tiny, 2, (1, 4))
    assert drawn == 3 * [(2, 45, 1), (2, 45, 4)]  # for the model and two baselines
    assert found["copy"]["15->30"]["squared_error"] == [0.0] * 30
    ink = 32 * 32 * (0.1**2 + 0.4**2) / 2
    assert found["empty"]["15->30"]["squared_error"] == pytest.approx([ink] * 30)
    assert found["seeds"] == [1, 4] and found["clips"] == 2


@pytest.mark.parametrize("options", [{"n": 0}, {"seeds": ()}])
def test_evaluate_model_refuses_nothing_to_do(tiny, options):
    with pytest.raises(ValueError, match="must be a whole number of at least 1, got 0"):
        evaluate_model(tiny, **options)


def test_the_table_holds_every_line(tiny):
    found = evaluate_model(tiny, 2, (1, 2))
    error = found["model"]["15->5"]["squared_error"]
    printed = evaluation_table(found, "tiny").splitlines()
    assert len(printed) == 1 + 3 * len(PROTOCOLS)
    assert f"{error[0]:.2f}" in printed[1] and f"{sum(error) / 5:.2f} ± " in printed[1]
    found["canonical"] = {"15->5": found["copy"]["15->5"]}
    last = evaluation_table(found, "tiny").splitlines()[-1]
    assert last.startswith("canonical") and "±" not in last
    alone = evaluation_table(evaluate_model(tiny, 1, (3,)), "tiny")
    assert "±" not in alone  # one seed has no deviation


def test_canonical_clips_are_left_out_with_a_line_or_evaluated(
    monkeypatch, capsys, tiny
):
    model = stt.load_pretrained("moving-mnist")
    offline = Mock(side_effect=ConnectionError("no network"))
    monkeypatch.setattr(evaluation, "canonical_test_set", offline)
    assert on_canonical(model, 2) == {}
    assert capsys.readouterr().out == "canonical test set left out: no network\n"
    clips = moving_mnist(2, 20, 64, 2, split="test", seed=3)
    found = (clips, "canonical")
    monkeypatch.setattr(evaluation, "canonical_test_set", lambda n, fallback: found)
    wanted = evaluate(without_chance(model), clips, ("15->5", "10->10"))
    assert on_canonical(model, 2) == wanted
    shapes = r"canonical needs frames \(1, 64, 64\), got \(1, 32, 32\)"
    with pytest.raises(ValueError, match=shapes):
        on_canonical(tiny, 2)


# --- many futures


def test_expected_best_counts_every_draw():
    scores = random_frames(3, 6)
    ours = expected_best(scores)
    for k in range(1, 7):
        draws = [combinations(row.tolist(), k) for row in scores]
        by_hand = [numpy.mean([max(draw) for draw in row]) for row in draws]
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
        again = prompt.expand(1, samples, *prompt.shape)
        return torch.cat([again, self.videos[None, :samples]], dim=2)


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
    single = (100 + 3 * -10 * math.log10(2 / 64)) / 4
    assert found["psnr"][0] == pytest.approx(single, rel=1e-4)
    assert found["inside"] == [1.0] and found["inside_expected"] == pytest.approx(3 / 5)
    deviation = torch.tensor([2.0, 3, 4, 5]).std().item()
    assert found["spread"] == pytest.approx([deviation])
    found = many_futures(Futures(dots([0, 1, 2, 3])), clip, prompt=1, samples=4)
    assert found["inside"] == [0.5]  # row 3 is in the range, column 4 is not
    none_or_all = [0.25] * 2 + [0.0] * 6 + [0.25] * 2  # of rows, of columns
    assert found["rank"] == pytest.approx(none_or_all)
    assert many_futures(Futures(dots([0])), clip, 1, samples=1)["spread"] == [0.0]
    with pytest.raises(ValueError, match=r"prompt must be .*\[1, 1\], got 2"):
        many_futures(Futures(dots([0])), clip, prompt=2, samples=1)


def test_each_clip_draws_futures_of_its_own(unchecked):
    model = Futures(dots([1, 2]))
    clips = torch.cat([dots([0, 1]), dots([4, 4])], dim=1)
    many_futures(model, clips, prompt=1, samples=2, temperature=0.5)
    assert model.asked == [(0.5, 0), (0.5, 1)]


# --- records


def test_every_record_that_a_chapter_names_is_there(root):
    """What `records` is called with in a notebook must match a file."""
    named = set()
    for path in (root / "notebooks").glob("*.ipynb"):
        for cell in json.loads(path.read_text())["cells"]:
            named |= set(re.findall(r'records\("([^"]+)"\)', "".join(cell["source"])))
    assert {"reference", "ideas-*", "futures-*-seed0"} <= named
    for pattern in named - {"never-ran"}:  # chapter 91 shows the error
        assert records(pattern), pattern


@pytest.mark.parametrize("name", ["moving-mnist-tiny", "moving-mnist"])
def test_bundles_carry_their_evaluation(name):
    record = records(f"{name}-transformer")[0]
    evaluated = record["evaluation"]
    assert len(evaluated["seeds"]) == 3
    for who in ("model", "copy"):
        for protocol, (_, new) in PROTOCOLS.items():
            of = evaluated[who][protocol]
            assert all(len(of[metric]) == new for metric in METRICS)
    for protocol in ("15->5", "10->10"):
        then = record["metrics"][protocol]["per_frame"]
        assert then == evaluated["model"][protocol]["squared_error"]
