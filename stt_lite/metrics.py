# Made from notebooks/11_evaluation.ipynb by "make extract".
"""Metrics: one number for each frame. Built in chapter 11."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stt_lite.video import check_pair, check_whole, full_precision

__all__ = [
    "METRICS",
    "absolute_error",
    "centroid",
    "ink",
    "psnr",
    "squared_error",
    "ssim",
]

Frames = Float[Tensor, "*n C H W"]
PerFrame = Float[Tensor, "*n"]


def squared_error(video: Frames, truth: Frames) -> PerFrame:
    """Squared error of each frame, summed over its values, as published tables do."""
    video, truth = check_pair(video, truth)
    return (video - truth).square().sum((-3, -2, -1))


def absolute_error(video: Frames, truth: Frames) -> PerFrame:
    """Absolute error of each frame, summed over its values."""
    video, truth = check_pair(video, truth)
    return (video - truth).abs().sum((-3, -2, -1))


def psnr(video: Frames, truth: Frames) -> PerFrame:
    """Peak signal-to-noise ratio of each frame in decibels; 100 where two are equal.

    TypeError, ValueError: what `check_pair` refuses, as all metrics do.
    """
    video, truth = check_pair(video, truth)
    mean = (video - truth).square().mean((-3, -2, -1))
    return -10 * mean.clamp(min=1e-10).log10()


def ssim(video: Frames, truth: Frames, data_range=1.0, window: int = 7) -> PerFrame:
    """Structural similarity of each frame, at most 1 (Wang et al., 2004, Equation 13).

    As scikit-image's: square windows inside the frame, `window` pixels wide (odd),
    unbiased variances, mean over channels; values lie in [0, `data_range`].
    TypeError, ValueError: another window, and as in `psnr`.
    """
    video, truth = check_pair(video, truth, data_range)
    if check_whole(window, "window") not in range(3, min(video.shape[-2:]) + 1, 2):
        raise ValueError(f"window must be odd, 3 to a frame's edge, got {window}")
    place = "cpu" if video.device.type == "mps" else video.device  # has no float64
    flat = (t.reshape(-1, *t.shape[-3:]) for t in (video, truth))  # (n C H W)
    x, y = (t.to(place, torch.float64) for t in flat)
    mean = nn.AvgPool2d(window, stride=1)
    mean_x, mean_y = mean(x), mean(y)
    unbiased = window**2 / (window**2 - 1)
    variances = unbiased * (mean(x * x) - mean_x**2 + mean(y * y) - mean_y**2)
    covariance = unbiased * (mean(x * y) - mean_x * mean_y)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    brightness = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variances + c2)
    likeness = (brightness * structure).mean((1, 2, 3))
    return likeness.view(video.shape[:-3]).to(video)


def ink(video: Frames) -> PerFrame:
    """Sum of all pixels of each frame: what a digit that fades away loses."""
    return check_pair(video, video)[0].sum((-3, -2, -1))


METRICS = {
    "squared_error": squared_error,
    "absolute_error": absolute_error,
    "psnr": psnr,
    "ssim": ssim,
    "ssim_inflated": lambda video, truth: ssim(video, truth, data_range=2.0),
    "ink_ratio": lambda video, truth: ink(video) / ink(truth).clamp(min=1e-6),
}


def centroid(video: Frames) -> Float[Tensor, "*n 2"]:
    """Where the ink is: mean row and column of each frame's ink, in pixels."""
    total, weight = ink(video), full_precision(video).sum(-3)
    sums = weight.sum(-1), weight.sum(-2)  # of each row, of each column
    at = [(s * torch.arange(s.shape[-1], device=s.device)).sum(-1) for s in sums]
    return torch.stack(at, -1) / total.clamp(min=1e-6)[..., None]
