# Made from notebooks/06_gaussian_parameterization.ipynb by "make extract".
"""The Gaussian layer: mean and log-variance from a convolution, a draw, and its KL."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stt_lite.spatial_attention import RMSNorm
from stt_lite.video import check_whole

__all__ = [
    "GaussianConvolution",
    "GaussianLayer",
    "kl_gaussians",
    "kl_standard",
    "reparameterize",
    "soft_bound",
]


def reparameterize(
    mean: Float[Tensor, "*n"],
    log_variance: Float[Tensor, "*n"],
    noise: Float[Tensor, "*n"],
    temperature: float = 1.0,
) -> Float[Tensor, "*n"]:
    """A draw from N(mean, variance) that gradients pass; `noise` is from N(0, 1).

    Kingma & Welling (2014), Section 2.4. Temperature 0 returns the mean.
    """
    return mean + temperature * torch.exp(0.5 * log_variance) * noise


def kl_standard(
    mean: Float[Tensor, "*n"], log_variance: Float[Tensor, "*n"]
) -> Float[Tensor, "*n"]:
    """KL(N(mean, variance) || N(0, 1)) per element in nats (Kingma & Welling, 2014)."""
    return 0.5 * (mean.square() + log_variance.exp() - log_variance - 1)


def kl_gaussians(
    mean_q: Float[Tensor, "*n"],
    log_variance_q: Float[Tensor, "*n"],
    mean_p: Float[Tensor, "*n"],
    log_variance_p: Float[Tensor, "*n"],
) -> Float[Tensor, "*n"]:
    """KL(q || p) per element in nats, for two normals q and p."""
    difference = log_variance_q - log_variance_p
    distance = (mean_q - mean_p).square() * torch.exp(-log_variance_p)
    return 0.5 * (distance + difference.exp() - difference - 1)


def soft_bound(x: Float[Tensor, "*n"], bound: float = 6.0) -> Float[Tensor, "*n"]:
    """Squash x smoothly into (-bound, bound): near 0 the identity, and never cut off.

    Log-variances within 6 are standard deviations from exp(-3) = 0.05 to exp(3) = 20.
    """
    return bound * torch.tanh(x / bound)


class GaussianConvolution(nn.Module):
    """A convolution to mean and log-variance of one normal per pixel and channel."""

    def __init__(self, channels_in: int, channels_out: int, kernel_size: int = 3):
        super().__init__()
        if check_whole(kernel_size, "kernel_size") % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        channels, edge = 2 * channels_out, kernel_size // 2
        self.convolution = nn.Conv2d(channels_in, channels, kernel_size, padding=edge)

    def forward(
        self, x: Float[Tensor, "B T h w C"]
    ) -> tuple[Float[Tensor, "B T h w Z"], Float[Tensor, "B T h w Z"]]:
        """Mean and log-variance, both float32 whatever the autocast type."""
        frames = x.flatten(0, 1).movedim(-1, 1)  # (B·T C h w): no frame sees another
        both = self.convolution(frames).movedim(1, -1).float()  # (B·T h w 2·Z)
        mean, log_variance = both.unflatten(0, x.shape[:2]).chunk(2, dim=-1)
        return mean, soft_bound(log_variance)  # each (B T h w Z)


class GaussianLayer(nn.Module):
    """The random part of a transformer layer.

    "bottleneck": the stream itself becomes a draw from N(mean, variance), at the price
    of its KL to N(0, 1). "latent": a small random z is added to the stream, in training
    from a posterior q(z_t | frames <= t) that has seen the frame to predict, in
    generation from a learned prior p(z_t | frames < t), at the price of the KL between
    the two (Denton & Fergus, 2018, Section 2.2, here once per layer and pixel).

    Args:
        width: channels E of the stream.
        kernel_size: odd edge of the convolutions in latent pixels.
        mode: "bottleneck" or "latent".
        noise_channels: channels Z of z in mode "latent"; in "bottleneck" it is E.

    Raises:
        ValueError: a number out of range, another mode.
    """

    def __init__(
        self,
        width: int,
        kernel_size: int = 3,
        mode: str = "latent",
        noise_channels: int = 4,
    ):
        super().__init__()
        if mode not in ("bottleneck", "latent"):
            raise ValueError(f'mode must be "bottleneck" or "latent", got {mode!r}')
        self.mode = mode
        for n, what in ((width, "width"), (noise_channels, "noise_channels")):
            check_whole(n, what)
        self.noise_channels = width if mode == "bottleneck" else noise_channels
        if mode == "bottleneck":
            self.normal = GaussianConvolution(width, width, kernel_size)
            weight, bias = self.normal.convolution.parameters()
            nn.init.dirac_(weight[:width])  # at first the mean is the stream itself ...
            nn.init.zeros_(bias[:width])
            nn.init.zeros_(weight[width:])  # ... and the log-variance -4, before the
            nn.init.constant_(bias[width:], -4.0)  # soft bound: a deviation of 0.17
        else:
            self.norm = RMSNorm(width)
            self.prior = GaussianConvolution(width, noise_channels, kernel_size)
            self.posterior = GaussianConvolution(2 * width, noise_channels, kernel_size)
            self.inject = nn.Linear(noise_channels, width)
            nn.init.zeros_(self.inject.weight)  # at first z changes nothing
            nn.init.zeros_(self.inject.bias)

    def forward(
        self,
        x: Float[Tensor, "B T h w E"],
        noise: Float[Tensor, "B T h w Z"],
        seen: Float[Tensor, "B known h w E"] | None = None,
        temperature: float = 1.0,
    ) -> tuple[Float[Tensor, "B T h w E"], Float[Tensor, "B T"]]:
        """The stream after the layer, and the KL of each frame in nats.

        `noise` is drawn from N(0, 1), `temperature` a factor on the standard deviation.
        `seen` is for "latent": frame t at place t, for the posterior. None: z is drawn
        from the prior. Only the first frames: later places take the prior's mean, as in
        a forecast at temperature 0. Both at KL 0.
        """
        if self.mode == "bottleneck":
            mean, log_variance = self.normal(x)  # each (B T h w E)
            y = reparameterize(mean, log_variance, noise, temperature)
            return y.to(x.dtype), kl_standard(mean, log_variance).sum((2, 3, 4))

        here = self.norm(x)
        prior = self.prior(here)  # mean and log-variance, each (B T h w Z)
        if seen is None:
            z = reparameterize(*prior, noise, temperature)
            kl = x.new_zeros(x.shape[:2], dtype=torch.float32)
        else:
            T, known = x.shape[1], seen.shape[1]
            posterior = self.posterior(torch.cat([here[:, :known], seen], dim=-1))
            z = reparameterize(*posterior, noise[:, :known], temperature)
            z = torch.cat([z, prior[0][:, known:]], dim=1)  # then the prior's mean
            kl = kl_gaussians(*posterior, *(p[:, :known] for p in prior))
            kl = F.pad(kl.sum((2, 3, 4)), (0, T - known))  # (B T)
        return x + self.inject(z.to(x.dtype)), kl
