"""Chapter 04: attention inside a frame."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stt_lite.spatial_attention import (
    MultiHeadAttention,
    RMSNorm,
    SpatialAttention,
    attention,
    attention_weights,
)


def without_convolution(width, heads, grid):
    layer = SpatialAttention(width, heads, grid)
    for parameter in layer.conv.parameters():
        nn.init.zeros_(parameter)
    return layer


def heads(n=3, N=2, Lq=5, Lk=5, d=4):
    return torch.randn(n, N, Lq, d), torch.randn(n, N, Lk, d), torch.randn(n, N, Lk, d)


def by_hand(q, k, v, may_look):
    """Four loops: for each query exp(q·k / sqrt(d)) over the keys it may look at."""
    y = torch.zeros_like(q)
    for n, N, i in itertools.product(*map(range, q.shape[:3])):
        keys = [j for j in range(k.shape[2]) if may_look(n, N, i, j)]
        scores = [q[n, N, i] @ k[n, N, j] / math.sqrt(q.shape[-1]) for j in keys]
        weight = torch.stack(scores).exp()
        y[n, N, i] = sum(w * v[n, N, j] for w, j in zip(weight, keys)) / weight.sum()
    return y


def test_attention_is_the_formula():
    q, k, v = heads(Lq=4, Lk=6)
    expected = by_hand(q, k, v, lambda n, N, i, j: True)
    torch.testing.assert_close(attention(q, k, v), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(attention_weights(q, k) @ v, expected, rtol=0, atol=1e-6)


def test_masks():
    q, k, v = heads()
    mask = torch.rand(3, 1, 5, 5) < 0.5
    mask |= torch.eye(5, dtype=torch.bool)
    cases = (
        ({"causal": True}, lambda n, N, i, j: j <= i),
        ({"mask": mask}, lambda n, N, i, j: mask[n, 0, i, j]),
        (
            {"mask": mask, "causal": True},
            lambda n, N, i, j: mask[n, 0, i, j] and j <= i,
        ),
        (
            {"mask": mask[:1], "causal": True},
            lambda n, N, i, j: mask[0, 0, i, j] and j <= i,
        ),
    )
    for arguments, may_look in cases:
        expected = by_hand(q, k, v, may_look)
        for y in (
            attention(q, k, v, **arguments),
            attention_weights(q, k, **arguments) @ v,
        ):
            torch.testing.assert_close(y, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("keys", [5, 128, 129])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_says_what_float32_says(keys, dtype, monkeypatch):
    """Written out on a CPU up to 128 keys, fused above: the same but for rounding."""
    fused = []
    sdpa = F.scaled_dot_product_attention

    def spied(*arguments, **options):
        fused.append(arguments)
        return sdpa(*arguments, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spied)
    tolerance = 0.03 if dtype == torch.bfloat16 else 0.004
    mask = (torch.rand(2, 1, keys, keys) < 0.5) | torch.eye(keys, dtype=torch.bool)
    for options in ({}, {"causal": True}, {"mask": mask, "causal": True}):
        exact = [torch.randn(2, 3, keys, 8, requires_grad=True) for _ in range(3)]
        half = [x.detach().to(dtype).requires_grad_() for x in exact]
        fused.clear()
        out = attention(*half, **options)
        assert out.dtype == dtype and len(fused) == (keys > 128)
        expected = attention_weights(*exact[:2], **options) @ exact[2]
        torch.testing.assert_close(out.float(), expected, rtol=0, atol=tolerance)
        direction = torch.randn_like(expected)
        expected.backward(direction)
        out.backward(direction.to(dtype))
        for x, y in zip(half, exact):
            torch.testing.assert_close(
                x.grad.float(), y.grad, rtol=0.05, atol=4 * tolerance
            )
    fused.clear()
    attention(*exact)
    assert len(fused) == 1  # float32 is left to the fused call


def test_causal_refuses_a_cache_shaped_call():
    """SDPA's triangle starts at the top left: one query would see the oldest key."""
    q, k, v = heads(Lq=1, Lk=5)
    with pytest.raises(ValueError, match="as many queries as keys, got 1 and 5"):
        attention(q, k, v, causal=True)
    with pytest.raises(ValueError, match="as many queries as keys, got 1 and 5"):
        attention_weights(q, k, causal=True)


@pytest.mark.parametrize("masks", [None, 1, 70_000])
def test_more_sequences_than_cuda_takes(monkeypatch, masks):
    """CUDA's kernels refuse 65,536 sequences; so does this stand-in for them."""
    plain, sizes = F.scaled_dot_product_attention, []

    def limited(q, *args, **kwargs):
        sizes.append(len(q))
        if len(q) > 65_535:
            raise RuntimeError("CUDA error: invalid configuration argument")
        return plain(q, *args, **kwargs)

    q, k, v = heads(n=70_000, N=1, Lq=2, Lk=2, d=2)
    mask = None
    if masks is not None:
        mask = (torch.rand(masks, 1, 2, 2) < 0.5) | torch.eye(2, dtype=torch.bool)
    expected = plain(q, k, v, attn_mask=mask)
    monkeypatch.setattr(F, "scaled_dot_product_attention", limited)
    torch.testing.assert_close(attention(q, k, v, mask), expected, rtol=0, atol=1e-6)
    assert sum(sizes) == 70_000 and len(sizes) == 2


@pytest.mark.parametrize("causal", [False, True])
def test_equals_torch_multihead_attention(causal):
    theirs = nn.MultiheadAttention(24, 3, batch_first=True)
    for bias in (theirs.in_proj_bias, theirs.out_proj.bias):
        nn.init.normal_(bias)  # zeros would hide a lost bias
    ours = MultiHeadAttention(24, 3)
    ours.norm_q = ours.norm_k = nn.Identity()
    ours.load_state_dict(
        {
            "qkv.weight": theirs.in_proj_weight,
            "qkv.bias": theirs.in_proj_bias,
            "out.weight": theirs.out_proj.weight,
            "out.bias": theirs.out_proj.bias,
        }
    )
    x = torch.randn(4, 7, 24)
    forbidden = torch.ones(7, 7, dtype=torch.bool).triu(1) if causal else None
    expected, _ = theirs(x, x, x, attn_mask=forbidden, need_weights=False)
    torch.testing.assert_close(ours(x, causal=causal), expected, rtol=0, atol=1e-6)


def test_rotate_turns_queries_and_keys():
    layer, x = MultiHeadAttention(16, 2), torch.randn(2, 5, 16)
    turn = torch.linalg.qr(torch.randn(8, 8)).Q
    both = layer(x, rotate=lambda q: q @ turn)  # by the same, which no score notices
    torch.testing.assert_close(both, layer(x), rtol=0, atol=1e-5)
    even = layer(x, rotate=lambda q: 0 * q)
    values = layer.split(x)[2].mean(2, keepdim=True).expand(-1, -1, 5, -1)  # not turned
    torch.testing.assert_close(even, layer.merge(values), rtol=0, atol=1e-6)


def test_qk_norm_bounds_the_scores():
    layer = MultiHeadAttention(32, 2)
    q, k, v = layer.split(1000 * torch.randn(2, 9, 32))
    assert (q @ k.mT / math.sqrt(16)).abs().max() <= math.sqrt(16) * 1.0001
    assert v.abs().max() > 100  # values stay as they are
    with torch.no_grad():
        layer.norm_q.weight.mul_(
            2
        )  # the gain is learned, so a head may sharpen its weights
    q, _, _ = layer.split(torch.ones(1, 1, 32))
    torch.testing.assert_close(q.square().mean(-1).sqrt(), torch.full((1, 2, 1), 2.0))


def test_rms_norm():
    x = 5 * torch.randn(3, 4, 8) + 2
    norm = RMSNorm(8)
    with torch.no_grad():
        norm.weight.copy_(torch.arange(8.0))
    expected = x / x.square().mean(-1, keepdim=True).sqrt() * torch.arange(8.0)
    torch.testing.assert_close(norm(x), expected)
    assert norm(torch.zeros(1, 8)).eq(0).all()
    assert norm(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("make", [SpatialAttention, without_convolution])
def test_no_frame_sees_another(make):
    layer = make(16, 2, (3, 5))
    x = torch.randn(2, 4, 3, 5, 16)
    other = x.clone()
    other[1, 2] += torch.randn(3, 5, 16)
    before, after = layer(x), layer(other)
    changed = (before != after).flatten(2).any(-1)
    assert changed.tolist() == [[False] * 4, [False, False, True, False]]  # bit for bit
    assert (
        (before[1, 2] != after[1, 2]).any(-1).all()
    )  # every pixel of the frame notices


@pytest.mark.parametrize("make", [SpatialAttention, without_convolution])
def test_every_pixel_sees_every_pixel(make):
    layer = make(16, 2, (3, 5))
    x = torch.randn(1, 1, 3, 5, 16, requires_grad=True)
    for i in range(3):
        for j in range(5):
            (gradient,) = torch.autograd.grad(layer(x)[0, 0, i, j].sum(), x)
            assert (gradient.abs().sum(-1) > 0).all()


def test_rows_and_columns_are_told_apart():
    """Without positions, transposing a frame transposes the output."""
    layer = without_convolution(16, 2, (4, 4))
    x = torch.randn(1, 1, 4, 4, 16)

    def transposed():
        return layer(x.transpose(2, 3)).transpose(2, 3)

    assert not torch.allclose(layer(x), transposed(), atol=1e-3)
    with torch.no_grad():
        layer.rows.zero_(), layer.columns.zero_()
    torch.testing.assert_close(layer(x), transposed(), rtol=0, atol=1e-6)


def test_convolution_shows_a_pixel_its_neighbours():
    layer = SpatialAttention(16, 2, (5, 5))
    x = torch.randn(1, 1, 5, 5, 16)
    other = x.clone()
    other[0, 0, 2, 3] += 1.0
    changed = (layer.pixels(x) != layer.pixels(other)).any(-1).view(5, 5)
    assert changed[1:4, 2:5].all() and changed.sum() == 9


def test_positions_belong_to_row_and_column():
    layer = without_convolution(16, 2, (3, 5))
    pixels = layer.pixels(torch.zeros(1, 1, 3, 5, 16)).view(3, 5, 16)
    for i in range(3):
        for j in range(5):
            torch.testing.assert_close(pixels[i, j], layer.rows[i] + layer.columns[j])


@pytest.mark.parametrize(
    "shape", [(1, 1, 3, 5), (2, 1, 5, 3), (1, 3, 1, 7), (2, 2, 1, 1)]
)
def test_any_shape(shape):
    layer = SpatialAttention(8, 2, shape[2:])
    x = torch.randn(*shape, 8)
    y, weights = layer(x), layer.weights(x)
    assert y.shape == x.shape and y.isfinite().all()
    assert weights.shape == (*shape[:2], 2, *shape[2:], *shape[2:])
    torch.testing.assert_close(weights.sum((-1, -2)), torch.ones(weights.shape[:-2]))


def test_weights_are_those_of_forward():
    layer = SpatialAttention(8, 2, (3, 5))
    x = torch.randn(2, 2, 3, 5, 8)
    weights = layer.weights(x).flatten(-2).flatten(3, 4)  # B T N h·w h·w
    v = layer.attend.split(layer.pixels(x))[2].view(2, 2, 2, 15, 4)
    y = layer.attend.merge((weights @ v).flatten(0, 1)).view(x.shape)
    torch.testing.assert_close(y, layer(x), rtol=0, atol=1e-6)


def test_branch_does_not_hold_the_residual():
    """The caller adds x itself: with an output projection of zero, nothing is added."""
    layer = SpatialAttention(8, 2, (3, 5))
    for parameter in layer.attend.out.parameters():
        nn.init.zeros_(parameter)
    assert layer(torch.randn(1, 2, 3, 5, 8)).eq(0).all()


def test_scale_of_the_input_does_not_matter():
    """Pre-norm: the branch sees directions, not sizes."""
    layer = SpatialAttention(8, 2, (3, 5))
    x = torch.randn(1, 2, 3, 5, 8)
    torch.testing.assert_close(layer(100 * x), layer(x), rtol=0, atol=1e-4)


def test_gradients_reach_every_parameter():
    layer = SpatialAttention(16, 2, (3, 5))
    layer(torch.randn(2, 2, 3, 5, 16)).square().mean().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_bfloat16_autocast():
    layer = SpatialAttention(16, 2, (3, 5))
    x = torch.randn(2, 2, 3, 5, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.05)
    y.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_one_graph():
    """No branch on data: the layer traces into one graph, to compile and export."""
    layer = SpatialAttention(16, 2, (3, 5)).eval()
    x = torch.randn(1, 1, 3, 5, 16)
    traced = torch.export.export(layer, (x,), strict=False).module()
    torch.testing.assert_close(traced(x), layer(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: SpatialAttention(16, 3, (4, 4)),
            "heads must divide width = 16, got 3",
        ),
        (
            lambda: SpatialAttention(16, 0, (4, 4)),
            "heads must be a whole number of at least 1, got 0",
        ),
        (
            lambda: SpatialAttention(16, 2, (4, 0)),
            "grid must be a whole number of at least 1, got 0",
        ),
        (
            lambda: SpatialAttention(16, 2, (3, 5))(torch.zeros(1, 1, 5, 3, 16)),
            r"x must have grid \(3, 5\), got shape \(1, 1, 5, 3, 16\)",
        ),
    ],
)
def test_errors_name_argument_got_and_expected(make, message):
    with pytest.raises(ValueError, match=message):
        make()
