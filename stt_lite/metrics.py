# Made from notebooks/11_evaluation.ipynb by "make extract".
"""Metrics: one number for each frame. Built in chapter 11."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

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


def check_pair(video: Tensor, truth: Tensor) -> None:
    """ValueError where two videos differ in shape, or have none of frames."""
    if video.ndim < 3 or video.shape != truth.shape:
        got = f"{tuple(video.shape)} and {tuple(truth.shape)}"
        raise ValueError(f"video and truth must have one shape, (... C H W), got {got}")


def squared_error(video: Frames, truth: Frames) -> PerFrame:
    """Squared error of each frame, summed over its values, as published tables do."""
    check_pair(video, truth)
    return (video - truth).square().sum((-3, -2, -1))


def absolute_error(video: Frames, truth: Frames) -> PerFrame:
    """Absolute error of each frame, summed over its values."""
    check_pair(video, truth)
    return (video - truth).abs().sum((-3, -2, -1))


def psnr(video: Frames, truth: Frames) -> PerFrame:
    """Peak signal-to-noise ratio of each frame in decibels; 100 where two are equal."""
    check_pair(video, truth)
    mean = (video - truth).square().mean((-3, -2, -1))
    return -10 * mean.clamp(min=1e-10).log10()


def ssim(video: Frames, truth: Frames, data_range=1.0, window: int = 7) -> PerFrame:
    """Structural similarity of each frame, at most 1 (Wang et al., 2004, Equation 13).

    As scikit-image's: square windows inside the frame, `window` pixels wide (odd),
    unbiased variances, mean over channels; a pixel can span `data_range`.
    """
    check_pair(video, truth)
    if window % 2 == 0 or not 1 < window <= min(video.shape[-2:]):
        raise ValueError(f"window must be odd, 3 to a frame's edge, got {window}")
    x, y = (t.reshape(-1, *t.shape[-3:]).double() for t in (video, truth))  # (n C H W)
    mean = nn.AvgPool2d(window, stride=1)
    mean_x, mean_y = mean(x), mean(y)
    unbiased = window**2 / (window**2 - 1)
    variances = unbiased * (mean(x * x) - mean_x**2 + mean(y * y) - mean_y**2)
    covariance = unbiased * (mean(x * y) - mean_x * mean_y)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    brightness = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variances + c2)
    likeness = (brightness * structure).mean((1, 2, 3))
    return likeness.view(video.shape[:-3]).to(video.dtype)


def ink(video: Frames) -> PerFrame:
    """Sum of all pixels of each frame: what a digit that fades away loses."""
    return video.sum((-3, -2, -1))


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
    weight = video.sum(-3)
    rows = torch.arange(weight.shape[-2], device=video.device)
    columns = torch.arange(weight.shape[-1], device=video.device)
    row = (weight.sum(-1) * rows).sum(-1)
    column = (weight.sum(-2) * columns).sum(-1)
    return torch.stack([row, column], -1) / ink(video).clamp(min=1e-6)[..., None]
