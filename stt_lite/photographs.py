# Made from notebooks/13_vqgan.ipynb by "make extract".
"""Photographs as a source, and how much detail they hold. Built in chapter 13."""

import importlib.resources
from typing import Literal

import imageio.v3 as iio
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from stt_lite.moving_mnist import Batch
from stt_lite.video import check_whole, new_generator

__all__ = ["Photographs", "high_frequency_power", "power_spectrum"]


def photograph(name: str) -> list[UInt8[Tensor, "3 H W"]]:
    """One that lies in this package (.jpg) or in scikit-image; two of a stereo pair."""
    from skimage import data

    own = importlib.resources.files("stt_lite") / "data" / name
    found = iio.imread(own.read_bytes()) if "." in name else getattr(data, name)()
    pair = found[:2] if isinstance(found, tuple) else [found]
    return [torch.tensor(pixels).movedim(-1, 0) for pixels in pair]


class Photographs:
    """Random crops, which stand still, of photographs: a source (see `Source`).

    Args:
        size: height and width of a crop, at most 300 pixels: the smallest photograph's.
        split: of `draw` and `tiles`, "train" or "test"; `held_out` takes "test".

    Raises:
        ValueError: another size or split.
    """

    SPLITS = {
        "train": ("coffee", "rocket", "stereo_motorcycle", "china.jpg", "flower.jpg"),
        "test": ("chelsea", "astronaut"),
    }
    frames, channels = 1, 3

    def __init__(self, size: int = 128, split: Literal["train", "test"] = "train"):
        if not isinstance(split, str) or split not in self.SPLITS:
            raise ValueError(f'split must be "train" or "test", got {split!r}')
        self.size, self.split = check_whole(size, "size", most=300), split
        self.pictures = [p for name in self.SPLITS[split] for p in photograph(name)]
        self.data = {"content": "photographs", "size": size, "channels": 3, "frames": 1}

    def draw(self, n, frames=1, generator=None, device="cpu") -> Batch:
        """Crops, half of them mirrored: pictures and places in them equally likely."""
        check_whole(n, "n")
        check_whole(frames, "frames")
        chosen = torch.randint(len(self.pictures), (n,), generator=generator)
        places = torch.rand(n, 3, generator=generator)
        crops = []
        for i, (down, right, mirror) in zip(chosen.tolist(), places.tolist()):
            H, W = self.pictures[i].shape[1:]
            top, left = (
                int(down * (H - self.size + 1)),
                int(right * (W - self.size + 1)),
            )
            crop = self.pictures[i][:, top:, left:][:, : self.size, : self.size]
            crops.append(crop.flip(-1) if mirror < 0.5 else crop)
        crops = torch.stack(crops).to(device).float() / 255
        return Batch(crops[:, None].expand(-1, frames, -1, -1, -1))

    def held_out(self, n, frames=1, seed=0, device="cpu") -> Float[Tensor, "n T 3 H W"]:
        """Crops of whole photographs that are never trained on."""
        generator = new_generator(seed)
        return Photographs(self.size, "test").draw(n, frames, generator, device).clips

    def tiles(self, device="cpu") -> Float[Tensor, "n 3 size size"]:
        """Every photograph, cut from its centre into crops that do not overlap."""
        size, found = self.size, []
        for picture in self.pictures:
            top, left = (edge % size // 2 for edge in picture.shape[1:])
            tiles = picture[:, top:, left:].unfold(1, size, size).unfold(2, size, size)
            found.append(
                tiles.flatten(1, 2).movedim(1, 0)
            )  # (rows·columns 3 size size)
        return torch.cat(found).to(device).float() / 255


def power_spectrum(
    frames: Float[Tensor, "*n C H W"], bins: int | None = None
) -> Float[Tensor, "*n bins"]:
    """A frame's power at each of `bins` spatial frequencies, mean over directions.

    Bin i begins at i / (2 bins) cycles per pixel; None: a quarter as many bins as the
    shorter side has pixels. A Hann window fades the borders, which would look like
    edges. ValueError: more bins than half of the shorter side's pixels.
    """
    H, W = frames.shape[-2:]
    bins = min(H, W) // 4 if bins is None else bins
    check_whole(bins, "bins", most=min(H, W) // 2)
    grey = frames.float().mean(-3)  # (*n H W)
    window = torch.outer(torch.hann_window(H), torch.hann_window(W)).to(grey)
    grey = (grey - grey.mean((-2, -1), keepdim=True)) * window
    power = torch.fft.fft2(grey).abs().square() / (H * W)
    frequency = torch.hypot(torch.fft.fftfreq(H)[:, None], torch.fft.fftfreq(W))
    bin_of = (2 * bins * frequency).long().flatten().to(grey.device)
    bin_of = bin_of.clamp(max=bins)  # one more for what is beyond 1/2, on diagonals
    total = grey.new_zeros(*grey.shape[:-2], bins + 1)
    total.index_add_(-1, bin_of, power.flatten(-2))
    return (total / bin_of.bincount(minlength=bins + 1))[..., :bins]


def high_frequency_power(frames: Float[Tensor, "*n C H W"]) -> Float[Tensor, "*n"]:
    """Mean power from 1/3 to 1/2 cycle per pixel, in frames of at least 6x6 pixels."""
    bins = 3 * max(1, min(frames.shape[-2:]) // 12)
    return power_spectrum(frames, bins)[..., 2 * bins // 3 :].mean(-1)
