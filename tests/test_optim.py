"""Chapter 09's optimizer against torch's own, its schedule, its moving average."""

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

from stt_lite.optim import MuonAdamW, learning_rate, moving_average, orthogonalize


def test_orthogonalize_brings_singular_values_close_to_one():
    for shape in ((2, 12, 12), (1, 8, 20), (3, 20, 8)):
        matrices = torch.randn(shape)
        values = torch.linalg.svdvals(orthogonalize(matrices))
        assert 0.3 < values.min() and values.max() < 1.3, shape
        assert values.median() > 0.6
        with torch.autocast("cpu", torch.bfloat16):  # as in a run in half precision
            half = orthogonalize(matrices)
        assert half.dtype == torch.float32
        near = torch.linalg.svdvals(half)
        torch.testing.assert_close(near, values, rtol=0, atol=0.15)


def test_orthogonalize_keeps_the_directions():
    matrix = torch.randn(1, 12, 20)
    u, _, vt = torch.linalg.svd(matrix[0], full_matrices=False)
    turned = u.T @ orthogonalize(matrix)[0] @ vt.T  # diagonal: the singular values
    assert (turned - turned.diag().diag()).abs().max() < 1e-4
    assert (turned.diag() > 0.3).all()


def test_what_the_iteration_does_to_singular_values():
    value = torch.logspace(-2.8239, 0, 400, dtype=torch.float64)  # from 0.0015 on
    for _ in range(5):
        value = 3.4445 * value - 4.7750 * value**3 + 2.0315 * value**5
    assert 0.67 < value.min() and value.max() < 1.22


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="came with torch 2.9")
def test_muon_and_adamw_take_the_steps_of_torchs_own():
    shapes = ((16, 16), (48, 16), (16, 48), (5,), (3, 4, 2))
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    optimizer = MuonAdamW(ours[:3], ours[3:], muon_rate=0.02, adamw_rate=0.003)
    options = dict(weight_decay=0.0, momentum=0.95, adjust_lr_fn="original")
    muon = torch.optim.Muon(theirs[:3], 0.02, **options)
    adamw = torch.optim.AdamW(theirs[3:], 0.003, betas=(0.9, 0.95), weight_decay=0.0)
    for _ in range(5):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        for each in (optimizer, muon, adamw):
            each.step()
    for p, q in zip(ours[:3], theirs[:3], strict=True):
        assert (p - q).norm() < 0.01 * q.norm()  # torch iterates in bfloat16
        assert (p - q).abs().max() < 0.01
    for p, q in zip(ours[3:], theirs[3:], strict=True):
        torch.testing.assert_close(p, q)


def test_a_parameter_without_a_gradient_stays():
    used, idle = torch.nn.Parameter(torch.ones(3, 3)), torch.nn.Parameter(torch.ones(3))
    optimizer = MuonAdamW([used], [idle])
    used.grad = torch.eye(3)
    optimizer.step()
    assert not torch.equal(used, torch.ones(3, 3)) and torch.equal(idle, torch.ones(3))


def test_schedules():
    """Warm-up, then stable and 1 - sqrt at the end, or half a cosine."""
    for schedule in ("wsd", "cosine"):
        assert learning_rate(0.0, schedule) == 0.0
        assert learning_rate(0.01, schedule) == pytest.approx(0.5)
        assert learning_rate(0.02, schedule) == 1.0
    assert learning_rate(0.8) == pytest.approx(1.0, abs=1e-6)
    assert learning_rate(0.9, decay_share=0.1) == pytest.approx(1.0, abs=1e-6)
    assert learning_rate(0.85) == pytest.approx(0.5)
    assert learning_rate(1.0) == pytest.approx(0.0, abs=1e-6)
    assert learning_rate(0.51, "cosine") == pytest.approx(0.01 + 0.99 / 2)
    assert learning_rate(1.0, "cosine") == pytest.approx(0.01)


def test_the_average_follows_closely_at_first_and_then_slowly():
    model = torch.nn.Linear(1, 1, bias=False)
    average = AveragedModel(model, multi_avg_fn=moving_average(0.99))
    weights, expected = [1.0, 2.0, 4.0, 3.0], None
    for count, weight in enumerate(weights):
        model.weight.data.fill_(weight)
        average.update_parameters(model)
        new = 1 - min(0.99, (1 + count) / (10 + count))
        expected = weight if count == 0 else expected + new * (weight - expected)
    assert average.module.weight.item() == pytest.approx(expected)
    average.n_averaged.fill_(10_000)
    model.weight.data.fill_(expected + 1)
    average.update_parameters(model)
    assert average.module.weight.item() == pytest.approx(expected + 0.01)
