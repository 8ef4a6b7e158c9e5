"""Chapter 05: attention along time, and the key/value cache."""

import math

import pytest
import torch
from torch import nn

from stt_lite.temporal_attention import (
    KeyValueCache,
    TemporalAttention,
    padding_mask,
    rotary,
)


def run_cached(layer, x, slots):
    """`layer` on one frame after another."""
    cache, outputs = layer.empty_cache(len(x), x.shape[2:4], slots), []
    for frame in x.split(1, dim=1):
        y, cache = layer.prefill(frame, cache)
        outputs.append(y)
    return torch.cat(outputs, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_past_never_sees_the_future(dtype):
    layer = TemporalAttention(16, 2).to(dtype)
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


@pytest.mark.parametrize("slots", [1, 2, 5, 8, 20])
def test_a_frame_sees_as_many_as_there_are_slots(slots):
    layer = TemporalAttention(16, 2)
    x = torch.randn(1, 8, 1, 2, 16, requires_grad=True)
    y = run_cached(layer, x, slots)
    for t in range(8):
        (gradient,) = torch.autograd.grad(y[0, t].sum(), x, retain_graph=True)
        seen = gradient[0].abs().sum((1, 2, 3)) > 0
        assert seen.tolist() == [t - slots < s <= t for s in range(8)]


# Padding


def test_padding_mask():
    mask = padding_mask(torch.tensor([1, 3, 4]), 4)
    rows = ["".join("01"[real] for real in row) for row in mask.int().tolist()]
    assert rows == ["1000", "1110", "1111"]


@pytest.mark.parametrize("garbage", [0.0, 1e4, float("nan"), float("inf")])
def test_padded_batch_gives_each_clip_what_it_gets_alone(garbage):
    layer = TemporalAttention(16, 2)
    lengths = torch.tensor([10, 20, 13, 1])
    x = torch.randn(4, 20, 3, 5, 16)
    real = padding_mask(lengths, 20)[:, :, None, None, None]
    padded = torch.where(real, x, garbage).requires_grad_()
    y = layer(padded, lengths)
    for b, length in enumerate(lengths):
        alone = layer(x[b : b + 1, :length])
        torch.testing.assert_close(y[b : b + 1, :length], alone, rtol=0, atol=1e-6)
        assert y[b, length:].eq(0).all()
    y.square().sum().backward()
    for b, length in enumerate(lengths):
        assert padded.grad[b, length:].eq(0).all()
        assert padded.grad[b, :length].isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


# Rotary positions


def test_rotary_is_a_rotation_in_the_plane():
    x = torch.zeros(1, 1, 3, 4)
    x[..., 0] = 1  # the fast pair is (0, 2), the slow one (1, 3)
    x[..., 3] = 2
    y = rotary(x, torch.tensor([0, 1, 5]), base=100.0)[0, 0]
    for t, row in zip((0, 1, 5), y):
        slow = t / 10
        expected = [math.cos(t), -2 * math.sin(slow), math.sin(t), 2 * math.cos(slow)]
        torch.testing.assert_close(row, torch.tensor(expected))


def test_rotary_scores_depend_on_the_distance_only():
    q, k = torch.randn(2, 3, 2, 6, 8)
    t = torch.arange(6)
    scores = rotary(q, t) @ rotary(k, t).mT
    later = rotary(q, t + 100) @ rotary(k, t + 100).mT
    torch.testing.assert_close(scores, later, rtol=0, atol=1e-4)
    moved = rotary(q, t + 1) @ rotary(k, t).mT
    assert not torch.allclose(scores, moved, atol=1e-2)


def test_order_of_the_past_matters():
    """Without positions attention sees a set: two past frames could change places."""
    layer = TemporalAttention(16, 2)
    x = torch.randn(1, 6, 1, 1, 16)
    swapped = x[:, [1, 0, 2, 3, 4, 5]]
    assert not torch.allclose(layer(x)[:, -1], layer(swapped)[:, -1], atol=1e-3)


# The cache


@pytest.mark.parametrize("slots", [40, 50])
def test_cached_equals_uncached(slots):
    layer = TemporalAttention(16, 2)
    x = torch.randn(2, 40, 3, 5, 16)
    torch.testing.assert_close(run_cached(layer, x, slots), layer(x), rtol=0, atol=1e-5)


def test_a_full_cache_slides():
    """The oldest frames drop out, and the rest says the same wherever in time it is."""
    layer = TemporalAttention(16, 2)
    x = torch.randn(2, 40, 3, 5, 16)
    y = run_cached(layer, x, slots=5)
    for t in range(40):
        alone = layer(x[:, max(0, t - 4) : t + 1])[:, -1]
        torch.testing.assert_close(y[:, t], alone, rtol=0, atol=1e-5)


def test_frames_read_together_are_those_read_one_by_one():
    layer = TemporalAttention(16, 2)
    x = torch.randn(2, 9, 3, 5, 16)
    cache, parts = layer.empty_cache(2, (3, 5), slots=12), []
    for part in x.split([4, 1, 3, 1], dim=1):
        before = KeyValueCache(*(t.clone() for t in cache))
        y, new = layer.prefill(part, cache)
        assert all(torch.equal(a, b) for a, b in zip(before, cache))  # pure
        cache, parts = new, [*parts, y]
    torch.testing.assert_close(torch.cat(parts, 1), layer(x), rtol=0, atol=1e-5)
    slow = layer.empty_cache(2, (3, 5), slots=12)
    for frame in x.split(1, dim=1):
        _, slow = layer.prefill(frame, slow)
    for a, b in zip(cache, slow):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    assert cache.frames == 9


def test_what_a_cache_lets_the_newest_frames_see():
    cache = TemporalAttention(8, 2).empty_cache(1, (1, 1), slots=5)
    cache = cache.add(*torch.randn(2, 1, 2, 4, 4))  # slots 1 to 4
    seen = cache.visible(3).int().tolist()
    assert ["".join("01"[x] for x in row) for row in seen] == [
        "01100",
        "01110",
        "01111",
    ]


def test_a_step_is_pure():
    layer = TemporalAttention(16, 2)
    cache = layer.empty_cache(2, (3, 5), slots=4)
    x = torch.randn(2, 1, 3, 5, 16)
    for _ in range(6):
        before = KeyValueCache(*(t.clone() for t in cache))
        y, new = layer.prefill(x, cache)
        again, _ = layer.prefill(x, cache)
        assert torch.equal(y, again)
        assert all(torch.equal(a, b) for a, b in zip(before, cache))
        assert [(t.shape, t.dtype) for t in new] == [(t.shape, t.dtype) for t in cache]
        cache = new
    assert cache.frames == 6


def test_a_step_is_one_graph():
    layer = TemporalAttention(16, 2)

    class Step(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x, keys, values, frames):
            y, cache = self.layer.prefill(x, KeyValueCache(keys, values, frames))
            return y, *cache

    x = torch.randn(1, 8, 3, 5, 16)
    expected = run_cached(layer, x, slots=5)
    cache = layer.empty_cache(1, (3, 5), slots=5)
    step = torch.export.export(Step(), (x[:, :1], *cache), strict=False).module()
    for t in range(8):  # exported while the cache was empty; must hold when it is full
        y, *cache = step(x[:, t : t + 1], *cache)
        torch.testing.assert_close(y[:, 0], expected[:, t], rtol=0, atol=1e-5)


def test_cache_under_autocast():
    layer = TemporalAttention(16, 2)
    x = torch.randn(2, 8, 3, 5, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y = run_cached(layer, x, slots=8)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.05)


def test_half_precision_weights_make_a_half_precision_cache():
    layer = TemporalAttention(16, 2).bfloat16()
    x = torch.randn(2, 8, 3, 5, 16).bfloat16()
    y, cache = layer.prefill(x, layer.empty_cache(2, (3, 5), slots=8))
    assert y.dtype == cache.keys.dtype == torch.bfloat16
    torch.testing.assert_close(y, layer(x), rtol=0.05, atol=0.05)


# Shapes, gradients, errors


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
    torch.testing.assert_close(
        layer(x), layer.attend.merge(v).view(x.shape), rtol=0, atol=1e-6
    )


def test_weights_are_those_of_forward():
    layer = TemporalAttention(8, 2)
    x = torch.randn(2, 6, 3, 5, 8)
    v = layer.attend.split(layer.sequences(x))[2].view(2, 3, 5, 2, 6, 4)  # B h w N T d
    y = layer.attend.merge((layer.weights(x) @ v).flatten(0, 2)).view(2, 3, 5, 6, 8)
    torch.testing.assert_close(y.permute(0, 3, 1, 2, 4), layer(x), rtol=0, atol=1e-6)


def test_more_pixels_than_cuda_takes(monkeypatch):
    """B·h·w above 65,535, at once and cached, against a stand-in for CUDA's limit."""
    import torch.nn.functional as F

    plain = F.scaled_dot_product_attention

    def limited(q, *args, **kwargs):
        if len(q) > 65_535:
            raise RuntimeError("CUDA error: invalid configuration argument")
        return plain(q, *args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", limited)
    layer = TemporalAttention(2, 1)
    with torch.no_grad():
        x = torch.randn(5, 2, 120, 120, 2)  # 72,000 pixels
        y = layer(x, torch.tensor([2, 1, 2, 2, 2]))
        torch.testing.assert_close(y[4:], layer(x[4:]), rtol=0, atol=1e-6)
        cached = run_cached(layer, x, slots=2)
        torch.testing.assert_close(cached[4:], y[4:], rtol=0, atol=1e-5)


def test_gradients_reach_every_parameter():
    for run in (lambda layer, x: layer(x), lambda layer, x: run_cached(layer, x, 4)):
        layer = TemporalAttention(16, 2)
        run(layer, torch.randn(2, 4, 3, 5, 16)).square().mean().backward()
        for name, parameter in layer.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def prefill(batch=1, frames=1, slots=3):
    layer = TemporalAttention(8, 2)
    x = torch.zeros(batch, frames, 3, 5, 8)
    return layer.prefill(x, layer.empty_cache(1, (3, 5), slots))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: TemporalAttention(6, 2), "width / heads must be even, got 6 / 2"),
        (lambda: TemporalAttention(16, 3), "heads must divide width = 16, got 3"),
        (lambda: prefill(slots=0), "slots must be at least 1 frame, got 0"),
        (lambda: prefill(batch=2), "cache must hold 30 pixels, got 15"),
        (lambda: prefill(frames=4), "cache must have 4 slots or more, got 3"),
        (
            lambda: rotary(torch.zeros(1, 1, 2, 3), torch.arange(2)),
            "even number of channels to turn, got 3",
        ),
    ],
)
def test_errors_name_argument_got_and_expected(make, message):
    with pytest.raises(ValueError, match=message):
        make()
