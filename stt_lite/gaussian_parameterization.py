# Extracted from notebooks/06_gaussian_parameterization.ipynb by "make extract": edit the notebook, not this file.
"""The Gaussian layer: mean and log-variance from a convolution, a sample, its KL. Built in chapter 06."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stt_lite.spatial_attention import RMSNorm

__all__ = [
    "GaussianConvolution",
    "GaussianLayer",
    "beta_warmup",
    "free_bits",
    "kl_gaussians",
    "kl_standard",
    "sample",
    "soft_bound",
]


def sample(
    mean: Float[Tensor, "*shape"],
    log_variance: Float[Tensor, "*shape"],
    noise: Float[Tensor, "*shape"],
    temperature: float = 1.0,
) -> Float[Tensor, "*shape"]:
    """A draw from N(mean, variance), reparameterised: gradients reach both (Kingma & Welling, 2014, Section 2.4).

    Args:
        mean, log_variance: the normal's parameters.
        noise: draws from N(0, 1).
        temperature: factor on the standard deviation; 0 returns the mean.
    """
    return mean + temperature * torch.exp(0.5 * log_variance) * noise


def kl_standard(mean: Float[Tensor, "*shape"], log_variance: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """KL(N(mean, variance) || N(0, 1)) of each element in nats (Kingma & Welling, 2014, Appendix B)."""
    return 0.5 * (mean.square() + log_variance.exp() - log_variance - 1)


def kl_gaussians(
    mean_q: Float[Tensor, "*shape"],
    log_variance_q: Float[Tensor, "*shape"],
    mean_p: Float[Tensor, "*shape"],
    log_variance_p: Float[Tensor, "*shape"],
) -> Float[Tensor, "*shape"]:
    """KL(q || p) of each element in nats, for two normals q and p."""
    difference = log_variance_q - log_variance_p
    distance = (mean_q - mean_p).square() * torch.exp(-log_variance_p)
    return 0.5 * (distance + difference.exp() - difference - 1)


def soft_bound(x: Float[Tensor, "*shape"], bound: float = 6.0) -> Float[Tensor, "*shape"]:
    """Squash x smoothly into (-bound, bound): near 0 the identity, beyond the bound a gradient that fades gradually.

    For a log-variance the default keeps standard deviations between exp(-3) = 0.05 and exp(3) = 20.
    """
    return bound * torch.tanh(x / bound)


class GaussianConvolution(nn.Module):
    """A convolution that emits the mean and the log-variance of one normal per pixel and channel.

    Args:
        channels_in: channels of the input.
        channels_out: channels of the normal.
        kernel_size: odd edge of the kernel in latent pixels.

    Raises:
        ValueError: an even kernel size.
    """

    def __init__(self, channels_in: int, channels_out: int, kernel_size: int = 3):
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, so that the grid keeps its size, got {kernel_size}")
        self.convolution = nn.Conv2d(channels_in, 2 * channels_out, kernel_size, padding=kernel_size // 2)

    def forward(self, x: Float[Tensor, "B T h w C"]) -> tuple[Float[Tensor, "B T h w Z"], Float[Tensor, "B T h w Z"]]:
        """Mean and softly bounded log-variance, both float32 whatever the autocast type."""
        images = x.flatten(0, 1).movedim(-1, 1)  # (B·T C h w): no frame sees another
        parameters = self.convolution(images).movedim(1, -1).unflatten(0, x.shape[:2]).float()  # (B T h w 2Z)
        mean, log_variance = parameters.chunk(2, dim=-1)
        return mean, soft_bound(log_variance)


class GaussianLayer(nn.Module):
    """The random part of a transformer layer.

    `mode="bottleneck"`: the stream itself becomes a sample from N(mean, variance), at the price of its KL to N(0, 1).
    The noise is no one's choice: nothing tells the layer which future happened.

    `mode="latent"`: a small random variable z is added to the stream. In training it is drawn from a posterior
    q(z_t | frames <= t) that has seen the frame to predict, in generation from a learned prior p(z_t | frames < t),
    and the price is the KL between the two (Denton & Fergus, 2018, Section 2.2, here once per layer and pixel).

    Args:
        width: channels E of the stream.
        kernel_size: odd edge of the convolution in latent pixels.
        mode: "bottleneck" or "latent".
        latent_channels: channels Z of z; only for mode "latent".

    Raises:
        ValueError: an unknown mode or an even kernel size.
    """

    def __init__(self, width: int, kernel_size: int = 3, mode: str = "latent", latent_channels: int = 4):
        super().__init__()
        if mode not in ("bottleneck", "latent"):
            raise ValueError(f'mode must be "bottleneck" or "latent", got {mode!r}')
        self.mode, self.noise_channels = mode, width if mode == "bottleneck" else latent_channels
        if mode == "bottleneck":
            self.normal = GaussianConvolution(width, width, kernel_size)
            nn.init.dirac_(self.normal.convolution.weight[:width])  # at first the mean is the stream itself ...
            nn.init.zeros_(self.normal.convolution.bias[:width])
            nn.init.zeros_(self.normal.convolution.weight[width:])
            nn.init.constant_(self.normal.convolution.bias[width:], -4.0)  # ... and sigma, after the soft bound, 0.17
        else:
            self.norm = RMSNorm(width)
            self.prior = GaussianConvolution(width, latent_channels, kernel_size)
            self.posterior = GaussianConvolution(2 * width, latent_channels, kernel_size)
            self.inject = nn.Linear(latent_channels, width)
            nn.init.zeros_(self.inject.weight)  # at first z changes nothing
            nn.init.zeros_(self.inject.bias)

    def forward(
        self,
        x: Float[Tensor, "B T h w E"],
        noise: Float[Tensor, "B T h w Z"],
        posterior_input: Float[Tensor, "B known h w E"] | None = None,
        temperature: float = 1.0,
    ) -> tuple[Float[Tensor, "B T h w E"], Float[Tensor, "B T"]]:
        """The stream after the layer, and the KL of each frame in nats, summed over pixels and channels.

        Args:
            x: the stream; x[:, t] may depend on frames before t only.
            noise: draws from N(0, 1), with Z = E channels for "bottleneck" and Z = latent_channels for "latent".
            posterior_input: for "latent": an embedding of frame t at place t. None draws from the prior, KL 0. If it holds only
                the first frames, their places draw from the posterior, and later ones take the prior's mean, KL 0: a
                forecast at temperature 0, to train on (chapter 08).
            temperature: factor on the standard deviation.
        """
        if self.mode == "bottleneck":
            mean, log_variance = self.normal(x)
            kl = kl_standard(mean, log_variance)
            return sample(mean, log_variance, noise, temperature).to(x.dtype), kl.sum((2, 3, 4))
        here = self.norm(x)
        prior = self.prior(here)  # mean and log-variance, each (B T h w Z)
        if posterior_input is None:
            z, kl = sample(*prior, noise, temperature), x.new_zeros(x.shape[:2], dtype=torch.float32)
        else:
            known, T = posterior_input.shape[1], x.shape[1]
            posterior = self.posterior(torch.cat([here[:, :known], posterior_input], dim=-1))
            z = torch.cat([sample(*posterior, noise[:, :known], temperature), prior[0][:, known:]], dim=1)
            kl = kl_gaussians(*posterior, *(p[:, :known] for p in prior)).sum((2, 3, 4))
            kl = F.pad(kl, (0, T - known))
        return x + self.inject(z.to(x.dtype)), kl


def beta_warmup(step: int, steps: int, beta: float = 1.0) -> float:
    """The KL's weight at a training step: from 0 in a straight line to `beta` at `steps`, then constant.

    After Bowman et al. (2016, Section 3.1). `steps` = 0 means no warm-up.
    """
    return beta * min(1.0, step / steps) if steps > 0 else beta


def free_bits(kl: Float[Tensor, "*shape"], nats: float) -> Float[Tensor, "*shape"]:
    """The part of each KL above `nats`: what lies below costs nothing (Kingma et al., 2016, Appendix C.8).

    Same gradient as max(kl, nats), but a padded frame's 0 stays 0. Feed it the KL of a layer and a frame (B T L).
    """
    return F.relu(kl - nats)
