"""Chapter 06: the Gaussian layer, its sample, and its KL."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from stt_lite.gaussian import (
    GaussianConvolution,
    GaussianLayer,
    kl_gaussians,
    kl_standard,
    reparameterize,
    soft_bound,
)


def awake(width=8, mode="latent", noise_channels=3, **options):
    """A layer whose zero-initialized parts have moved, as after some training."""
    layer = GaussianLayer(width, mode=mode, noise_channels=noise_channels, **options)
    for parameter in layer.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return layer


# The formulas


def test_kl_equals_torch_distributions():
    mean_q, mean_p = torch.randn(2, 4, 5)
    log_variance_q, log_variance_p = 2 * torch.randn(2, 4, 5)
    q, p = (
        Normal(mean_q, (log_variance_q / 2).exp()),
        Normal(mean_p, (log_variance_p / 2).exp()),
    )
    kl = kl_gaussians(mean_q, log_variance_q, mean_p, log_variance_p)
    torch.testing.assert_close(kl, kl_divergence(q, p))
    standard = Normal(torch.zeros(4, 5), torch.ones(4, 5))
    kl = kl_standard(mean_q, log_variance_q)
    torch.testing.assert_close(kl, kl_divergence(q, standard))


def test_kl_is_zero_for_equal_normals_and_never_negative():
    mean, log_variance = torch.randn(2, 1000)
    assert kl_gaussians(mean, log_variance, mean, log_variance).eq(0).all()
    kl = kl_gaussians(mean, log_variance, mean.flip(0), log_variance.flip(0))
    assert kl.min() >= -1e-6


def test_draws_have_the_mean_and_the_variance():
    mean, log_variance = torch.tensor([[-2.0, 0.0, 3.0], [-3.0, 0.0, 1.5]])
    n = 200_000
    draws = reparameterize(
        mean.expand(n, 3), log_variance.expand(n, 3), torch.randn(n, 3)
    )
    deviation = (log_variance / 2).exp()
    assert ((draws.mean(0) - mean).abs() < 5 * deviation / n**0.5).all()
    torch.testing.assert_close(draws.var(0), log_variance.exp(), rtol=0.02, atol=0)


def test_temperature_scales_the_deviation():
    mean, log_variance, noise = torch.randn(3, 100_000)
    assert torch.equal(reparameterize(mean, log_variance, noise, temperature=0.0), mean)
    cool = reparameterize(mean, log_variance, noise, temperature=0.5) - mean
    warm = reparameterize(mean, log_variance, noise) - mean
    torch.testing.assert_close(2 * cool, warm, rtol=1e-4, atol=1e-5)


def test_gradients_pass_a_draw_to_mean_and_variance():
    mean, log_variance, noise = torch.randn(3, 50)
    mean.requires_grad_(), log_variance.requires_grad_()
    reparameterize(mean, log_variance, noise).sum().backward()
    torch.testing.assert_close(mean.grad, torch.ones(50))
    expected = 0.5 * (log_variance.detach() / 2).exp() * noise
    torch.testing.assert_close(log_variance.grad, expected)


def test_soft_bound_holds_and_keeps_its_gradient():
    x = torch.linspace(-30, 30, 301, requires_grad=True)
    y = soft_bound(x)
    assert y.abs().max() <= 6 and (y[1:] >= y[:-1]).all()
    y.sum().backward()
    assert (x.grad > 0).all()  # a hard clip has gradient 0 beyond the bound
    assert abs(soft_bound(torch.tensor(0.5)).item() - 0.5) < 0.01


# The layer


def test_convolution_sees_its_neighbourhood_in_its_own_frame_only():
    convolution = GaussianConvolution(8, 3, kernel_size=3)
    x = torch.randn(2, 3, 5, 7, 8)
    other = x.clone()
    other[1, 2, 2, 3] += 1.0
    for a, b in zip(convolution(x), convolution(other)):
        changed = (a != b).any(-1)  # B T h w
        expected = torch.zeros_like(changed)
        expected[1, 2, 1:4, 2:5] = True
        assert torch.equal(changed, expected)


@pytest.mark.parametrize("mode", ["bottleneck", "latent"])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_no_frame_sees_another(mode, kernel_size):
    layer = awake(mode=mode, kernel_size=kernel_size)
    x, seen = torch.randn(2, 1, 4, 3, 5, 8)
    noise = torch.randn(1, 4, 3, 5, layer.noise_channels)
    y, kl = layer(x, noise, seen)
    x2, noise2, seen2 = x.clone(), noise.clone(), seen.clone()
    for tensor in (x2, noise2, seen2):
        tensor[:, 2] += 1.0
    y2, kl2 = layer(x2, noise2, seen2)
    assert (y != y2).flatten(2).any(-1).tolist() == [[False, False, True, False]]
    assert (kl != kl2).tolist() == [[False, False, True, False]]


def test_bottleneck_hands_on_the_draw():
    layer = awake(mode="bottleneck")
    x, noise = torch.randn(2, 2, 3, 4, 5, 8)
    mean, log_variance = layer.normal(x)
    y, kl = layer(x, noise)
    torch.testing.assert_close(y, mean + (log_variance / 2).exp() * noise)
    expected = kl_standard(mean, log_variance).sum((2, 3, 4))
    torch.testing.assert_close(kl, expected)
    assert torch.equal(layer(x, noise, temperature=0.0)[0], mean)


def test_bottleneck_starts_as_the_stream_with_little_noise():
    layer = GaussianLayer(8, mode="bottleneck")
    x = torch.randn(1, 2, 4, 5, 8)
    mean, log_variance = layer.normal(x)
    torch.testing.assert_close(mean, x)
    assert (log_variance < -3).all()


def test_latent_draws_from_the_posterior_or_from_the_prior():
    layer = awake()
    x, seen = torch.randn(2, 2, 3, 4, 5, 8)
    noise = torch.randn(2, 3, 4, 5, 3)
    here = layer.norm(x)
    prior, posterior = layer.prior(here), layer.posterior(torch.cat([here, seen], -1))
    y, kl = layer(x, noise)
    torch.testing.assert_close(y, x + layer.inject(reparameterize(*prior, noise)))
    assert kl.eq(0).all()
    y, kl = layer(x, noise, seen)
    drawn = reparameterize(*posterior, noise)
    torch.testing.assert_close(y, x + layer.inject(drawn))
    torch.testing.assert_close(kl, kl_gaussians(*posterior, *prior).sum((2, 3, 4)))


def test_latent_takes_the_priors_mean_where_no_frame_is_seen():
    layer = awake()
    x, seen = torch.randn(2, 2, 3, 4, 5, 8)
    noise = torch.randn(2, 3, 4, 5, 3)
    whole, kl = layer(x, noise, seen)
    y, some = layer(x, noise, seen[:, :2])
    torch.testing.assert_close(y[:, :2], whole[:, :2])
    prior_mean, _ = layer(x, noise, temperature=0.0)
    torch.testing.assert_close(y[:, 2:], prior_mean[:, 2:])
    torch.testing.assert_close(some[:, :2], kl[:, :2])
    assert some.shape == (2, 3) and some[:, 2].eq(0).all()


def test_latent_layer_starts_as_the_identity():
    layer = GaussianLayer(8)
    x, seen = torch.randn(2, 2, 3, 4, 5, 8)
    y, _ = layer(x, torch.randn(2, 3, 4, 5, 4), seen)
    assert torch.equal(y, x)


@pytest.mark.parametrize("mode", ["bottleneck", "latent"])
def test_gradients_reach_every_parameter(mode):
    layer = awake(mode=mode)  # at the very start `inject` is 0 and passes no gradient
    x, seen = torch.randn(2, 2, 3, 4, 5, 8)
    y, kl = layer(x, torch.randn(2, 3, 4, 5, layer.noise_channels), seen)
    (y.square().sum() + kl.sum()).backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("mode", ["bottleneck", "latent"])
def test_autocast_keeps_the_kl_in_float32(mode):
    layer = awake(mode=mode)
    x, seen = torch.randn(2, 2, 3, 4, 5, 8)
    noise = torch.randn(2, 3, 4, 5, layer.noise_channels)
    with torch.autocast("cpu", torch.bfloat16):
        y, kl = layer(x, noise, seen)
    exact, kl_exact = layer(x, noise, seen)
    assert kl.dtype == torch.float32 and y.dtype == x.dtype
    torch.testing.assert_close(kl, kl_exact, rtol=0.05, atol=0.5)
    torch.testing.assert_close(y, exact, rtol=0.1, atol=0.2)


def test_messages(unchecked):
    with pytest.raises(ValueError, match="mode must be .*got 'prior'"):
        GaussianLayer(8, mode="prior")
    with pytest.raises(ValueError, match="kernel_size must be odd.*got 2"):
        GaussianLayer(8, kernel_size=2)
