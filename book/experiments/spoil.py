"""Two more ways to spoil a context: blur, and a black box in part of the frame.

    python book/experiments/spoil.py --blur 6 --hide 0.3 --minutes 10

An average has no sharp edges, and a digit that a stain covers should come out whole on
the other side. Of the runs behind the bundle `moving-mnist` some had both, as its
record tells, the last of them `--blur 5 --hide 0.5`.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import tyro
from jaxtyping import Float
from torch import Tensor

from stt_lite.contexts import ContextObjective, TrainingConfig
from stt_lite.moving_mnist import Batch
from stt_lite.pipeline import train
from stt_lite.runs import Step


def blur(
    frames: Float[Tensor, "*n C H W"], width: Float[Tensor, "*n"]
) -> Float[Tensor, "*n C H W"]:
    """Gaussian blur, each frame by a standard deviation of its own, in pixels.

    What lies outside a frame is black.
    """
    H, W = frames.shape[-2:]
    padded = F.pad(frames.float(), (0, W, 0, H))  # or what leaves comes in again
    down = torch.fft.fftfreq(2 * H, device=frames.device)
    across = torch.fft.rfftfreq(2 * W, device=frames.device)
    squared = down[:, None] ** 2 + across**2  # of the frequency: (2H W+1)
    variance = width[..., None, None, None] ** 2
    kept = torch.exp(-2 * math.pi**2 * variance * squared)
    blurred = torch.fft.irfft2(torch.fft.rfft2(padded) * kept, s=(2 * H, 2 * W))
    return blurred[..., :H, :W].clamp(0, 1)


def hide(
    clips: Float[Tensor, "B T C H W"],
    low: Float[Tensor, "B 3"],
    high: Float[Tensor, "B 3"],
) -> Float[Tensor, "B T C H W"]:
    """Black inside a box of each clip, from `low` to `high` in time, height and width.

    Both are shares of the clip's; where `high` is not above `low` nothing is hidden.
    """
    T, _, H, W = clips.shape[1:]
    middles = [(torch.arange(n, device=clips.device) + 0.5) / n for n in (T, H, W)]
    t, y, x = (
        (m >= low[:, i, None]) & (m < high[:, i, None]) for i, m in enumerate(middles)
    )  # (B T), (B H), (B W)
    box = t[:, :, None, None] & y[:, None, :, None] & x[:, None, None, :]  # (B T H W)
    return clips.masked_fill(box[:, :, None], 0.0)


@dataclass(frozen=True)
class SpoilConfig(TrainingConfig):
    """A `TrainingConfig` with two more ways to spoil a context.

    Args:
        blur: each clip draws a width up to this in pixels, mostly near 0, and blurs its
            context by it, from some frame on.
        hide: share of the clips whose context is black in a random box.
    """

    out: Path = Path("runs/spoiled")
    blur: Annotated[float, "at least 0"] = 0.0
    hide: Annotated[float, "in [0, 1)"] = 0.0

    def objective(self, net, tokenizer, source) -> "SpoiledObjective":
        """What such a run minimizes."""
        return SpoiledObjective(net, tokenizer, self, source)


class SpoiledObjective(ContextObjective):
    """Contexts are made of spoiled clips; what the model should say is not."""

    @torch.no_grad()
    def prepare(self, batch: Batch, step: Step) -> dict:
        """Arguments of `forward`, for this process's share of the clips."""
        spoiled = self.spoil(batch.clips, step.on_device)
        seen = super().prepare(batch._replace(clips=spoiled), step)
        clips = step.share(batch.clips)
        target, indices = self.tokens(clips)
        return seen | {"clips": clips, "target": target, "indices": indices}

    def spoil(self, clips: Tensor, generator: torch.Generator) -> Tensor:
        """Clips of all processes, blurred and partly hidden as the config says."""
        c, (B, T) = self.config, clips.shape[:2]

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator, device=generator.device)

        if c.blur:
            start = T * (2 * uniform(B, 1) - 1)  # in half of the clips before frame 0
            after = torch.arange(T, device=clips.device) - start
            grown = (after / 3).clamp(0, 1)  # (B T): over three frames
            clips = blur(clips, c.blur * uniform(B, 1) ** 3 * grown)
        if c.hide:
            corner, size, chosen = uniform(3, B, 3)  # time, height, width
            sizes = [[0.05, 0.25, 0.25], [0.4, 0.75, 0.75]]
            least, most = torch.tensor(sizes, device=clips.device)
            low = 1.25 * corner - 0.25
            size = torch.lerp(least, most, size) * (chosen[:, :1] < c.hide)  # (B 3)
            clips = hide(clips, low, low + size)
        return clips


if __name__ == "__main__":
    print(train(tyro.cli(SpoilConfig), tokenizer="moving-mnist-tiny"))
