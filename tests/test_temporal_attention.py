"""Chapter 05: attention along time, and the key/value cache."""

import math

import pytest
import torch
from torch import nn

from stt_lite.temporal_attention import KeyValueCache, TemporalAttention, padding_mask, rotary


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def run_cached(layer, x, window):
    """`layer` on one frame after another."""
    cache, frames = layer.empty_cache(len(x), x.shape[2:4], window), []
    for x_t in x.unbind(1):
        y_t, cache = layer.step(x_t, cache)
        frames.append(y_t)
    return torch.stack(frames, 1)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_past_never_sees_the_future(window, dtype):
    layer = TemporalAttention(16, 2, window=window).to(dtype)
    x = torch.randn(2, 8, 3, 5, 16, dtype=dtype)
    for t in range(8):
        other = x.clone()
        other[:, t:] = torch.randn_like(other[:, t:])
        assert torch.equal(layer(x)[:, :t], layer(other)[:, :t])  # bit-identical
        assert (layer(x)[:, t] != layer(other)[:, t]).any(-1).all()


def test_no_pixel_and_no_clip_sees_another():
    layer = TemporalAttention(16, 2)
    x = torch.randn(2, 4, 3, 5, 16)
    other = x.clone()
    other[1, 0, 2, 3] += torch.randn(16)
    changed = (layer(x) != layer(other)).any(-1)  # B T h w
    expected = torch.zeros(2, 4, 3, 5, dtype=torch.bool)
    expected[1, :, 2, 3] = True  # the pixel itself, then and ever after
    assert torch.equal(changed, expected)


@pytest.mark.parametrize("window", [1, 2, 5, 8, 20])
def test_window_is_exact(window):
    layer = TemporalAttention(16, 2, window=window)
    x = torch.randn(1, 8, 1, 2, 16, requires_grad=True)
    y = layer(x)
    for t in range(8):
        (gradient,) = torch.autograd.grad(y[0, t].sum(), x, retain_graph=True)
        seen = gradient[0].abs().sum((1, 2, 3)) > 0
        assert seen.tolist() == [t - window < s <= t for s in range(8)]


def test_full_window_is_no_window():
    full, wide = TemporalAttention(16, 2), TemporalAttention(16, 2, window=8)
    wide.load_state_dict(full.state_dict())
    x = torch.randn(1, 8, 3, 5, 16)
    assert torch.equal(full(x), wide(x))


# Padding


def test_padding_mask():
    mask = padding_mask(torch.tensor([1, 3, 4]), 4)
    assert mask.tolist() == [[True, False, False, False], [True, True, True, False], [True] * 4]


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("garbage", [0.0, 1e4, float("nan"), float("inf")])
def test_padded_batch_gives_each_clip_what_it_gets_alone(window, garbage):
    layer = TemporalAttention(16, 2, window=window)
    lengths = torch.tensor([10, 20, 13, 1])
    x = torch.randn(4, 20, 3, 5, 16)
    padded = torch.where(padding_mask(lengths, 20)[:, :, None, None, None], x, garbage).requires_grad_()
    y = layer(padded, lengths)
    for b, length in enumerate(lengths):
        torch.testing.assert_close(y[b : b + 1, :length], layer(x[b : b + 1, :length]), rtol=0, atol=1e-6)
        assert y[b, length:].eq(0).all()
    y.square().sum().backward()
    for b, length in enumerate(lengths):
        assert padded.grad[b, length:].eq(0).all() and padded.grad[b, :length].isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


# Rotary positions


def test_rotary_is_a_rotation_in_the_plane():
    x = torch.zeros(1, 1, 3, 4)
    x[..., 0] = 1  # the fast pair is (0, 2), the slow one (1, 3)
    x[..., 3] = 2
    y = rotary(x, torch.tensor([0, 1, 5]), base=100.0)[0, 0]
    expected = [[math.cos(t), -2 * math.sin(t / 10), math.sin(t), 2 * math.cos(t / 10)] for t in (0, 1, 5)]
    torch.testing.assert_close(y, torch.tensor(expected))


def test_rotary_scores_depend_on_the_distance_only():
    q, k = torch.randn(2, 3, 2, 6, 8)
    t = torch.arange(6)
    scores = rotary(q, t) @ rotary(k, t).mT
    later = rotary(q, t + 100) @ rotary(k, t + 100).mT
    torch.testing.assert_close(scores, later, rtol=0, atol=1e-4)
    moved = rotary(q, t + 1) @ rotary(k, t).mT
    assert not torch.allclose(scores, moved, atol=1e-2)


def test_rotary_takes_positions_per_sequence():
    x = torch.randn(2, 3, 4, 8)
    positions = torch.tensor([[0, 1, 2, 3], [7, 8, 9, 20]])
    for n in range(2):
        assert torch.equal(rotary(x, positions)[n : n + 1], rotary(x[n : n + 1], positions[n]))


def test_order_of_the_past_matters():
    """Without positions, attention sees a set of frames; swapping two past frames would change nothing."""
    layer = TemporalAttention(16, 2)
    x = torch.randn(1, 6, 1, 1, 16)
    swapped = x[:, [1, 0, 2, 3, 4, 5]]
    assert not torch.allclose(layer(x)[:, -1], layer(swapped)[:, -1], atol=1e-3)


def test_only_distances_matter():
    """A window of frames gives the same wherever in the clip it stands."""
    layer = TemporalAttention(16, 2, window=3)
    x = torch.randn(1, 3, 1, 1, 16)
    alone = layer(x)[:, -1]
    at_the_end = layer(torch.cat([torch.randn(1, 30, 1, 1, 16), x], 1))[:, -1]
    torch.testing.assert_close(alone, at_the_end, rtol=0, atol=1e-5)


# The cache


@pytest.mark.parametrize("window, slots", [(None, 40), (None, 50), (7, None), (7, 40), (1, None)])
@pytest.mark.parametrize("qk_norm", [True, False])
def test_cached_equals_uncached(window, slots, qk_norm):
    layer = TemporalAttention(16, 2, window=window, qk_norm=qk_norm)
    x = torch.randn(2, 40, 3, 5, 16)
    torch.testing.assert_close(run_cached(layer, x, slots), layer(x), rtol=0, atol=1e-5)


def test_a_full_cache_slides():
    """More frames than slots: the oldest drop out, as under a window of that size."""
    full, window = TemporalAttention(16, 2), TemporalAttention(16, 2, window=5)
    window.load_state_dict(full.state_dict())
    x = torch.randn(2, 40, 3, 5, 16)
    torch.testing.assert_close(run_cached(full, x, 5), window(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("window", [None, 3])
def test_frames_read_together_are_those_read_one_by_one(window):
    layer = TemporalAttention(16, 2, window=window)
    x = torch.randn(2, 9, 3, 5, 16)
    cache, parts = layer.empty_cache(2, (3, 5), window=12), []
    for part in x.split([4, 1, 3, 1], dim=1):
        before = KeyValueCache(*(t.clone() for t in cache))
        y, new = layer.read(part, cache)
        assert all(torch.equal(a, b) for a, b in zip(before, cache))  # pure
        cache, parts = new, parts + [y]
    torch.testing.assert_close(torch.cat(parts, 1), layer(x), rtol=0, atol=1e-5)
    slow = layer.empty_cache(2, (3, 5), window=12)
    for x_t in x.unbind(1):
        _, slow = layer.step(x_t, slow)
    for a, b in zip(cache, slow):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    assert cache.frames == 9


def test_what_a_cache_lets_the_newest_frames_see():
    cache = TemporalAttention(8, 2).empty_cache(1, (1, 1), window=5)
    cache = cache.add(*torch.randn(2, 1, 2, 4, 4))  # slots 1 to 4
    marks = {None: ["01100", "01110", "01111"], 2: ["01100", "00110", "00011"], 1: ["00100", "00010", "00001"]}
    for window, rows in marks.items():
        seen = cache.visible(3, window)
        assert ["".join("01"[x] for x in row) for row in seen.int().tolist()] == rows


def test_a_step_is_pure():
    layer = TemporalAttention(16, 2)
    cache = layer.empty_cache(2, (3, 5), window=4)
    x_t = torch.randn(2, 3, 5, 16)
    for _ in range(6):
        before = KeyValueCache(*(t.clone() for t in cache))
        y_t, new = layer.step(x_t, cache)
        again, _ = layer.step(x_t, cache)
        assert all(torch.equal(a, b) for a, b in zip(before, cache)) and torch.equal(y_t, again)
        assert [t.shape for t in new] == [t.shape for t in cache] and [t.dtype for t in new] == [t.dtype for t in cache]
        cache = new
    assert cache.frames == 6


def test_a_step_is_one_graph():
    layer = TemporalAttention(16, 2, window=5)

    class Step(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x_t, keys, values, frames):
            y_t, cache = self.layer.step(x_t, KeyValueCache(keys, values, frames))
            return y_t, *cache

    x = torch.randn(1, 8, 3, 5, 16)
    cache = layer.empty_cache(1, (3, 5))
    step = torch.export.export(Step(), (x[:, 0], *cache)).module()
    for t in range(8):  # exported while the cache was empty; must hold when it is full
        y_t, *cache = step(x[:, t], *cache)
        torch.testing.assert_close(y_t, layer(x)[:, t], rtol=0, atol=1e-5)


def test_cache_under_autocast():
    layer = TemporalAttention(16, 2, window=5)
    x = torch.randn(2, 8, 3, 5, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y = run_cached(layer, x, None)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.05)


def test_half_precision_cache():
    layer = TemporalAttention(16, 2, window=5).eval()
    cache = layer.empty_cache(1, (3, 5), dtype=torch.bfloat16)
    y_t, cache = layer.step(torch.randn(1, 3, 5, 16), cache)
    assert y_t.dtype == torch.float32 and cache.keys.dtype == torch.bfloat16


# Shapes, dropout, gradients, errors


@pytest.mark.parametrize("shape", [(1, 1, 3, 5), (2, 1, 1, 1), (1, 5, 7, 2)])
def test_any_shape(shape):
    layer = TemporalAttention(8, 2)
    x = torch.randn(*shape, 8)
    assert layer(x).shape == x.shape and layer(x).isfinite().all()
    weights = layer.weights(x)
    assert weights.shape == (shape[0], *shape[2:], 2, shape[1], shape[1])
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    assert weights.triu(1).eq(0).all()


def test_one_frame_is_its_own_value():
    """T = 1: all weight lies on the frame itself."""
    layer = TemporalAttention(8, 2)
    x = torch.randn(2, 1, 3, 5, 8)
    v = layer.attend.split(layer.norm(x).view(-1, 1, 8))[2]
    torch.testing.assert_close(layer(x), layer.attend.merge(v).view(x.shape), rtol=0, atol=1e-6)


@pytest.mark.parametrize("window", [None, 3])
def test_weights_are_those_of_forward(window):
    layer = TemporalAttention(8, 2, window=window)
    x = torch.randn(2, 6, 3, 5, 8)
    sequences = layer.norm(x).permute(0, 2, 3, 1, 4).flatten(0, 2)  # (B h w) T E
    v = layer.attend.split(sequences)[2].view(2, 3, 5, 2, 6, 4)
    y = layer.attend.merge((layer.weights(x) @ v).flatten(0, 2)).view(2, 3, 5, 6, 8).permute(0, 3, 1, 2, 4)
    torch.testing.assert_close(y, layer(x), rtol=0, atol=1e-6)


def test_more_pixels_than_cuda_takes(monkeypatch):
    """B·h·w above 65,535, forward and step, against a stand-in for CUDA's limit."""
    import torch.nn.functional as F

    plain = F.scaled_dot_product_attention

    def limited(q, *args, **kwargs):
        if len(q) > 65_535:
            raise RuntimeError("CUDA error: invalid configuration argument")
        return plain(q, *args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", limited)
    layer = TemporalAttention(2, 1, window=2)
    with torch.no_grad():
        x = torch.randn(5, 2, 120, 120, 2)  # 72,000 pixels
        y = layer(x, torch.tensor([2, 1, 2, 2, 2]))
        torch.testing.assert_close(y[4:], layer(x[4:]), rtol=0, atol=1e-6)
        torch.testing.assert_close(run_cached(layer, x, None)[4:], y[4:], rtol=0, atol=1e-5)


def test_dropout_sleeps_in_evaluation_and_in_the_cache():
    layer = TemporalAttention(16, 2, dropout=0.5)
    x = torch.randn(1, 6, 3, 5, 16)
    assert not torch.equal(layer(x), layer(x))
    layer(x).square().mean().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    torch.testing.assert_close(run_cached(layer, x, 6), layer(x), rtol=0, atol=1e-5)


def test_gradients_reach_every_parameter():
    for run in (lambda layer, x: layer(x), lambda layer, x: run_cached(layer, x, 4)):
        layer = TemporalAttention(16, 2)
        run(layer, torch.randn(2, 4, 3, 5, 16)).square().mean().backward()
        for name, parameter in layer.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: TemporalAttention(6, 2), "width / heads must be even for rotary positions, got 6 / 2"),
        (lambda: TemporalAttention(16, 3), "heads must be at least 1 and divide width = 16, got 3"),
        (lambda: TemporalAttention(16, 2, window=0), "window must be at least 1 frame, or None, got 0"),
        (lambda: TemporalAttention(16, 2).empty_cache(1, (3, 5)), "window must be at least 1 .* got None"),
        (lambda: rotary(torch.zeros(1, 1, 2, 3), torch.arange(2)), "even number of channels to rotate in pairs, got 3"),
        (
            lambda: TemporalAttention(8, 2, window=4).step(
                torch.zeros(2, 3, 5, 8), TemporalAttention(8, 2, window=4).empty_cache(1, (3, 5))
            ),
            "cache must hold B·h·w = 30 pixels, got 15",
        ),
        (
            lambda: TemporalAttention(8, 2).read(torch.zeros(1, 4, 3, 5, 8), TemporalAttention(8, 2).empty_cache(1, (3, 5), 3)),
            "the cache must have a slot for each new frame, got 4 frames for 3 slots",
        ),
    ],
)
def test_errors_name_argument_got_and_expected(make, message):
    with pytest.raises(ValueError, match=message):
        make()
