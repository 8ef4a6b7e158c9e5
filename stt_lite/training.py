# Made from notebooks/09_training.ipynb by "make extract".
"""Training: one loop for tokenizers and transformers. Built in chapter 09."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from stt_lite.machines import random_state_kept
from stt_lite.moving_mnist import Batch, Source
from stt_lite.optim import MuonAdamW, learning_rate, moving_average
from stt_lite.runs import AtLeastZero, Positive, Run, RunConfig, Share, Step
from stt_lite.sampling import continued
from stt_lite.tokenizer import Tokenizer
from stt_lite.transformer import SpatialTemporalTransformer, prediction_error
from stt_lite.video import check_type

__all__ = [
    "Objective",
    "TeacherForcing",
    "TokenizerObjective",
    "TransformerObjective",
    "fit",
]


class Objective(nn.Module):
    """What `fit` minimizes: it draws its clips itself, and says what their loss is.

    A subclass has a `forward(**prepared)` that returns the loss and, by name, what else
    is worth showing.

    Args:
        model: what learns.
        config: of the run.
        source: of the clips.
    """

    averaged = 0.0  # decay of a moving average of the weights; 0: there is none

    def __init__(self, model: nn.Module, config: RunConfig, source: Source):
        super().__init__()
        self.model, self.config, self.source = model, config, source

    def optimizer(self) -> torch.optim.Optimizer:
        """A new one; each of its groups has its "peak" learning rate. AdamW for all."""
        rate = self.config.adamw_rate
        return MuonAdamW([], self.model.parameters(), adamw_rate=rate)

    def sample(self, step: Step, device: torch.device) -> Batch:
        """Clips of one step, of all processes together."""
        frames = self.source.frames
        return self.source.draw(self.config.batch, frames, step.on_cpu, device)

    def prepare(self, batch: Batch, step: Step) -> dict:
        """Arguments of `forward`, for this process's share of the clips."""
        return {"clips": step.share(batch.clips)}

    def held_out(self) -> Batch:
        """One clip to look at."""
        device = next(self.model.parameters()).device
        drawn = self.source.held_out(1, self.source.frames, 1, device)
        return drawn if isinstance(drawn, Batch) else Batch(drawn)

    def show(self, model: nn.Module) -> tuple[dict[str, Tensor], int | None]:
        """Clips to look at, and how many first frames of them are a prompt."""
        return {"truth": self.held_out().clips[0]}, None


@random_state_kept()
def fit(objective: Objective, run: Run, watch: Callable | None = None) -> nn.Module:
    """Train `objective.model` until the run's budget is used up.

    Goes on from the run's last checkpoint, if there is one.

    Args:
        watch: called every few seconds on the main process with name, progress, clips
            and prompt frames: see `live_view`.

    Returns:
        The model, averaged over the last steps where the objective says so.

    Raises:
        FloatingPointError: loss or gradient is not finite; the last checkpoint stays.
        TypeError: an objective or a run that is none.
        ValueError: the folder's checkpoint belongs to other settings.
        OSError: a folder that cannot be written, a full disk.
    """
    check_type(objective, nn.Module, "objective")
    check_type(run, Run, "run")
    config, accelerator = run.config, run.accelerator
    model = objective.to(run.device).train().model
    optimizer, average = objective.optimizer(), None
    if objective.averaged:
        average = AveragedModel(model, multi_avg_fn=moving_average(objective.averaged))
    run.resume(model=model, optimizer=optimizer, average=average)
    trained, stepper = accelerator.prepare(objective, optimizer)
    for step in run.steps():
        factor = learning_rate(step.done, config.schedule, config.decay_share)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        with accelerator.autocast():
            batch = objective.sample(step, run.device)
            prepared = objective.prepare(batch, step)
        loss, logs = trained(**prepared)
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(model.parameters(), 1.0)
        run.report(loss, norm, len(batch.clips), logs)
        with accelerator.autocast():  # for Muon's products
            stepper.step()
        stepper.zero_grad()
        if average is not None:
            average.update_parameters(model)
        if watch and run.due():
            with run.pause():
                best = model if average is None else average.module
                watch(run.name, run.progress, *objective.show(best.eval()))
                objective.train()
    return (model if average is None else average.module).eval()


class TokenizerObjective(Objective):
    """What a tokenizer minimizes on single frames (van den Oord et al., 2017, Eq. 3).

    Squared error per latent, that is, summed over a frame and divided by h·w, plus the
    weighted commitment loss.
    """

    def __init__(self, model: Tokenizer, config: RunConfig, source: Source):
        super().__init__(model, config, source)
        self.tokenizer = model  # what is kept, where `model` learns more than that

    def sample(self, step: Step, device: torch.device) -> Batch:
        """Single frames, four times as many as clips elsewhere: they are short."""
        return self.source.draw(4 * self.config.batch, 1, step.on_cpu, device)

    def prepare(self, batch: Batch, step: Step) -> dict:
        """Arguments of `forward`, for this process's share of the frames."""
        frames = step.share(batch.clips)[:, 0]
        return {"frames": frames.contiguous(memory_format=torch.channels_last)}

    def forward(self, frames: Float[Tensor, "B C H W"]) -> tuple[Tensor, dict]:
        """The loss, and the squared error per frame."""
        reconstruction, indices, commitment = self.tokenizer(frames)
        error = (reconstruction.float() - frames).square().flatten(1).sum(1).mean()
        weighted = self.tokenizer.config.commitment * commitment
        return error / indices[0].numel() + weighted, {"pixels": error.detach()}

    @torch.no_grad()
    def show(self, model: nn.Module) -> tuple[dict[str, Tensor], None]:
        """A held-out clip and its reconstruction."""
        clips, _ = super().show(model)
        again = self.tokenizer.reconstruct(clips["truth"])
        return clips | {"reconstruction": again}, None


@dataclass(frozen=True)
class TeacherForcing(RunConfig):
    """One training run of a transformer on true contexts.

    Args:
        tokenizer_share: share of the budget for a tokenizer trained first.
        width: channels E of the transformer's stream.
        layers: number of its layers L.
        heads: number of heads N of each attention; width / heads must be even.
        patch: edge P of a patch of latents: one vector of the stream for P x P.
        gaussian: "latent", "bottleneck" or "off", see `GaussianLayer`.
        head: "regression" (the next latents) or "token" (logits over codewords).
        muon_rate: peak learning rate of Muon.
        average: decay of the moving average of the transformer's weights.
        pixel_weight: weight of the squared error in pixels, through the frozen decoder,
            next to that in latents.
        moving: extra weight of a token that differs from the frame before's.
        beta: weight of the KL, in squared latent units per nat: what a nat of z must
            save; larger frames, whose summed errors are larger, want a larger one.

    Raises:
        TypeError, ValueError: as `RunConfig`.
    """

    tokenizer_share: Annotated[float, "in (0, 1)"] = 0.2
    width: Annotated[int, "above 0"] = 64
    layers: Annotated[int, "above 0"] = 3
    heads: Annotated[int, "above 0"] = 4
    patch: Annotated[int, "above 0"] = 1
    gaussian: Literal["latent", "bottleneck", "off"] = "latent"
    head: Literal["regression", "token"] = "regression"
    muon_rate: Positive = 0.02
    average: Share = 0.998
    pixel_weight: AtLeastZero = 10.0
    moving: AtLeastZero = 0.0
    beta: AtLeastZero = 20.0

    def objective(
        self, net: SpatialTemporalTransformer, tokenizer: Tokenizer, source: Source
    ) -> "TransformerObjective":
        """What such a run minimizes."""
        return TransformerObjective(net, tokenizer, self, source)


class TransformerObjective(Objective):
    """What a transformer minimizes: its error in latents and in pixels, and its KL.

    Args:
        model: what learns.
        tokenizer: stays as it is.
        config: weights of the terms, and how many clips a step has.
        source: of the clips.
    """

    def __init__(
        self,
        model: SpatialTemporalTransformer,
        tokenizer: Tokenizer,
        config: TeacherForcing,
        source: Source,
    ):
        super().__init__(model, config, source)
        self.tokenizer = tokenizer.requires_grad_(False).eval()
        self.averaged = config.average

    def train(self, mode: bool = True):
        """The tokenizer stays in eval mode: its codebook does not move either."""
        super().train(mode)
        self.tokenizer.eval()
        return self

    def optimizer(self) -> torch.optim.Optimizer:
        """Muon for the matrices inside the layers, AdamW for the rest."""
        linear = [m for m in self.model.layers.modules() if isinstance(m, nn.Linear)]
        inner = {id(m.weight) for m in linear}
        matrices = [p for p in self.model.parameters() if id(p) in inner]
        others = [p for p in self.model.parameters() if id(p) not in inner]
        c = self.config
        return MuonAdamW(matrices, others, c.muon_rate, c.adamw_rate)

    @torch.no_grad()
    def prepare(self, batch: Batch, step: Step) -> dict:
        """Tokens of this process's clips, and noise: what the model sees and says."""
        B, T = batch.clips.shape[:2]
        noise = step.share(self.model.draw_noise(B, T, step.on_device))
        clips = step.share(batch.clips)
        target, indices = self.tokens(clips)
        actions = None if batch.actions is None else step.share(batch.actions)
        drawn = dict(clips=clips, noise=noise, known=True, actions=actions)
        return drawn | dict(context=target, target=target, indices=indices)

    def condition(self, actions: Int[Tensor, "B T"] | None) -> Tensor | None:
        """What the transformer adds to its stream (B T E) for the actions of clips."""
        return None if actions is None else self.model.actions(actions)

    def tokens(self, clips: Float[Tensor, "B T C H W"]) -> tuple[Tensor, Tensor]:
        """Codewords (B T D h w) of clips and their indices (B T h w)."""
        frames = clips.flatten(0, 1)
        latents, indices = self.tokenizer.quantize(self.tokenizer.encode(frames))
        shape = clips.shape[:2]
        return latents.unflatten(0, shape), indices.unflatten(0, shape)

    def forward(
        self, clips, context, target, indices, noise, known, actions=None
    ) -> tuple[Tensor, dict]:
        """The loss per latent, and errors per frame."""
        c, per_frame = self.config, target[0, 0, 0].numel()
        condition = self.condition(actions)
        seen = dict(noise=noise, target=target, posterior=known, condition=condition)
        out = self.model(context, **seen)
        wanted = target if c.head == "regression" else indices
        weight = torch.ones_like(indices, dtype=torch.float32)
        weight[:, 1:] += c.moving * (indices[:, 1:] != indices[:, :-1])
        error = prediction_error(out.prediction, wanted, weight=weight).mean()
        nats = out.kl.sum(-1).mean()
        loss = error + c.beta * nats
        logs = {"latents": error.detach(), "nats": nats.detach()}
        if c.pixel_weight and c.head == "regression":
            decoded = self.tokenizer.decoder(out.prediction.flatten(0, 1)).float()
            difference = decoded - clips.flatten(0, 1)
            pixels = difference.square().sum((1, 2, 3)).mean()
            loss = loss + c.pixel_weight * pixels
            logs["pixels"] = pixels.detach()
        return loss / per_frame, logs

    @torch.no_grad()
    def show(self, model: nn.Module) -> tuple[dict[str, Tensor], int]:
        """A held-out clip, and what the model makes of its first three quarters."""
        batch = self.held_out()
        latents, condition = self.tokens(batch.clips)[0], self.condition(batch.actions)
        frames = latents.shape[1]
        prompt = max(1, 3 * frames // 4)
        noise = model.draw_noise(1, frames)
        rolled = continued(
            model, self.tokenizer, latents, prompt, noise, 0.0, condition
        )[0]
        shown = {"truth": batch.clips[0], "continued": self.tokenizer.decode(rolled)}
        return shown, prompt
