# Made from notebooks/12_what_each_idea_is_worth.ipynb by "make extract".
"""Rivals of the transformer: constant latent velocity and a ConvLSTM. Chapter 12."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stt_lite.moving_mnist import Batch, Source
from stt_lite.runs import Step
from stt_lite.tokenizer import Tokenizer
from stt_lite.training import Objective, TeacherForcing


class LatentVelocity:
    """The prompt's last step in latent space, again and again, then decoded."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer

    @torch.no_grad()
    def __call__(
        self, prompt: Float[Tensor, "B T C H W"], new_frames: int
    ) -> Float[Tensor, "B new C H W"]:
        if prompt.shape[1] < 2:
            raise ValueError(
                f"prompt must have 2 frames or more, got {prompt.shape[1]}"
            )
        latents = self.tokenizer.encode(prompt[:, -2:].flatten(0, 1))
        before, last = latents.unflatten(0, (-1, 2)).unbind(1)  # each (B D h w)
        steps = torch.arange(1, new_frames + 1, device=prompt.device)
        steps = steps[:, None, None, None]
        moved = last[:, None] + steps * (last - before)[:, None]  # (B new D h w)
        return self.tokenizer.decode(moved.flatten(0, 1)).unflatten(0, moved.shape[:2])


class ConvLSTMCell(nn.Module):
    """An LSTM of images (Shi et al., 2015, Equation 3, without peepholes)."""

    def __init__(self, channels: int, hidden: int, kernel_size: int = 3):
        super().__init__()
        edge = kernel_size // 2
        inputs = channels + hidden
        self.gates = nn.Conv2d(inputs, 4 * hidden, kernel_size, padding=edge)

    def forward(
        self, x: Float[Tensor, "B C h w"], state: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Hidden state and memory (each B hidden h w) after input `x`."""
        hidden, memory = state
        gates = self.gates(torch.cat([x, hidden], dim=1))
        i, f, o, g = gates.chunk(4, dim=1)
        memory = (f + 1).sigmoid() * memory + i.sigmoid() * g.tanh()
        return o.sigmoid() * memory.tanh(), memory


class ConvLSTM(nn.Module):
    """Predicts each frame from all before, in patches of pixels (ibid., Section 3.2).

    Args:
        channels: of a frame.
        patch: edge of the patches; each becomes one pixel of the states.
        hidden: channels of each layer's state.
        layers: number of layers.
    """

    def __init__(self, channels=1, patch=4, hidden=64, layers=3):
        super().__init__()
        self.patch, self.hidden = patch, hidden
        inputs = [channels * patch**2] + [hidden] * (layers - 1)
        self.cells = nn.ModuleList(ConvLSTMCell(n, hidden) for n in inputs)
        self.out = nn.Conv2d(layers * hidden, channels * patch**2, 1)

    def forward(
        self, frames: Float[Tensor, "B T C H W"], prompt: int, new_frames: int
    ) -> Float[Tensor, "B T2 C H W"]:
        """Predictions of frames 1 to prompt + new_frames - 1.

        The first `prompt` frames are given; later ones are not looked at.
        """
        B, _, _, H, W = frames.shape
        size = (2, B, self.hidden, H // self.patch, W // self.patch)
        states = [tuple(frames.new_zeros(size)) for _ in self.cells]
        predictions = []
        for t in range(prompt + new_frames - 1):
            frame = frames[:, t] if t < prompt else predictions[-1].clamp(0, 1)
            x, shown = F.pixel_unshuffle(frame, self.patch), []
            for i, cell in enumerate(self.cells):
                states[i] = cell(x, states[i])
                x = states[i][0]
                shown.append(x)
            patches = self.out(torch.cat(shown, dim=1))
            predictions.append(F.pixel_shuffle(patches, self.patch))
        return torch.stack(predictions, dim=1)

    @torch.no_grad()
    def forecast(
        self, prompt: Float[Tensor, "B T C H W"], new_frames: int
    ) -> Float[Tensor, "B new C H W"]:
        """The next frames."""
        return self(prompt, prompt.shape[1], new_frames)[:, -new_frames:].clamp(0, 1)


class ConvLSTMObjective(Objective):
    """Squared error of predictions, first from real frames, then from its own."""

    def __init__(self, model: ConvLSTM, config: TeacherForcing, source: Source):
        super().__init__(model, config, source)
        self.averaged = config.average

    def prepare(self, batch: Batch, step: Step) -> dict:
        """The prompt is a quarter of the clip or more: it learns to go on for long."""
        T, generator = batch.clips.shape[1], step.on_device
        device = generator.device
        low = max(1, T // 4)
        prompt = torch.randint(low, T, (), generator=generator, device=device)
        return {"clips": step.share(batch.clips), "prompt": prompt.item()}

    def forward(self, clips: Float[Tensor, "B T C H W"], prompt: int):
        predictions = self.model(clips, prompt, clips.shape[1] - prompt)
        off = predictions.float() - clips[:, 1:]  # not yet clamped
        error = off.square().sum((-3, -2, -1)).mean()
        return error / 64, {"pixels": error.detach()}

    @torch.no_grad()
    def show(self, model: ConvLSTM) -> tuple[dict[str, Tensor], int]:
        frames, device = self.source.frames, next(model.parameters()).device
        clip = self.source.held_out(1, frames, 1, device)
        prompt = max(1, 3 * frames // 4)
        new = model.forecast(clip[:, :prompt], frames - prompt)
        shown = torch.cat([clip[:, :prompt], new], dim=1)
        return {"held-out clip": clip[0], "continued": shown[0]}, prompt
