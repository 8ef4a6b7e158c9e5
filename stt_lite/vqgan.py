# Made from notebooks/13_vqgan.ipynb by "make extract".
"""VQGAN: a second network keeps fine detail in the tokenizer. Built in chapter 13."""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.func import functional_call

from stt_lite.moving_mnist import Batch, Source
from stt_lite.optim import MuonAdamW
from stt_lite.runs import RunConfig, Step
from stt_lite.tokenizer import Tokenizer, TokenizerConfig
from stt_lite.training import TokenizerObjective
from stt_lite.video import check_number

__all__ = [
    "VQGAN",
    "PatchDiscriminator",
    "VQGANConfig",
    "VQGANObjective",
    "adaptive_weight",
    "feature_matching",
    "hinge",
    "perceptual_network",
    "smooth_start",
]


class PatchDiscriminator(nn.Module):
    """Says of every patch of a frame how real it looks (PatchGAN: Isola et al., 2017).

    Args:
        channels: of a frame.
        width: channels of the first stage; each further stage has twice as many.
        stages: how often height and width are halved.
    """

    def __init__(self, channels: int = 3, width: int = 32, stages: int = 3):
        super().__init__()
        widths = [channels] + [width * 2**i for i in range(stages)]
        convolutions = [nn.Conv2d(a, b, 4, 2, padding=1) for a, b in pairwise(widths)]
        self.stages = nn.ModuleList(convolutions)
        self.score = nn.Conv2d(widths[-1], 1, 3, padding=1)

    def forward(
        self, frames: Float[Tensor, "B C H W"]
    ) -> tuple[Float[Tensor, "B 1 rows columns"], list[Tensor]]:
        """A score for every patch, above 0 for "real", and the features of each stage.

        Raises:
            ValueError: frames too small to be halved by every stage.
        """
        (H, W), least = frames.shape[-2:], 2 ** len(self.stages)
        if min(H, W) < least:
            wanted = f"at least {least}x{least} pixels"
            raise ValueError(f"frames must have {wanted}, got {H}x{W}")
        x, features = 2 * frames - 1, []
        for stage in self.stages:
            x = F.leaky_relu(stage(x), 0.2)
            features.append(x)
        return self.score(x), features


def hinge(real: Float[Tensor, "..."], fake: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """The discriminator's loss on its scores: no more to gain beyond 1 and -1.

    Lim & Ye (2017).
    """
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def feature_matching(real: list[Tensor], fake: list[Tensor]) -> Float[Tensor, ""]:
    """Mean absolute difference of features, mean over the discriminator's stages.

    Salimans et al. (2016). No gradient reaches the real ones.
    """
    differences = [(a.detach() - b).abs().mean() for a, b in zip(real, fake)]
    return torch.stack(differences).mean()


def perceptual_network() -> nn.Module:
    """LPIPS with VGG-16 (Zhang et al., 2018), frozen: a distance of two RGB batches.

    For values in [0, 1], called with `normalize=True`. Needs torchmetrics and
    torchvision, and downloads VGG's weights once.
    """
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    metric = LearnedPerceptualImagePatchSimilarity(net_type="vgg", normalize=True)
    return metric.net.requires_grad_(False).eval()


def adaptive_weight(wanted: Tensor, found: Tensor, at: Tensor) -> Float[Tensor, ""]:
    """What makes loss `found` pull as hard as loss `wanted`, at most 1e4; no gradient.

    The ratio of their gradients' norms (Esser et al., 2021, Equation 7) `at` some
    tensor: in the paper the decoder's last weights.
    """
    gradients = [
        torch.autograd.grad(loss, at, retain_graph=True)[0] for loss in (wanted, found)
    ]
    norms = [gradient.float().norm() for gradient in gradients]
    return (norms[0] / (norms[1] + 1e-6)).clamp(max=1e4).detach()


@dataclass(frozen=True)
class VQGANConfig:
    """A tokenizer, and what it minimizes besides the squared error.

    Args:
        shape: of the tokenizer.
        adversarial: how many times as hard as the squared error the discriminator pulls
            at the pixels; 0 trains without one: chapter 03's VQ-VAE.
        matching: weight of feature matching, next to the discriminator's scores.
        start: share of the budget after which the discriminator begins to learn.
        warmup: share of the budget in which its pull then grows from 0.
        width, stages, rate: of the discriminator; `rate` is its peak learning rate.
        moving: extra weight of a pixel that differs from the frame before.
        perceptual: weight of LPIPS, next to the squared error per latent.

    Raises:
        ValueError: a number out of range.
    """

    shape: TokenizerConfig = TokenizerConfig(
        channels=3, width=32, residual_blocks=2, codebook_size=1024, group_norm=True
    )
    adversarial: float = 1.5
    matching: float = 1.0
    start: float = 0.4
    warmup: float = 0.2
    width: int = 32
    stages: int = 3
    rate: float = 1e-3
    moving: float = 0.0
    perceptual: float = 0.0

    def __post_init__(self):
        for name in ("adversarial", "matching", "rate", "moving", "perceptual"):
            check_number(getattr(self, name), name)
        start = check_number(self.start, "start", most=1)
        if start + check_number(self.warmup, "warmup", most=1) > 1:
            got = f"{self.start!r} and {self.warmup!r}"
            raise ValueError(f"start and warmup must share one budget, got {got}")

    def objective(self, config: RunConfig, source: Source) -> "VQGANObjective":
        """Two new players and what they minimize: what `train_tokenizer` asks for."""
        tokenizer = Tokenizer(self.shape)
        smooth_start(tokenizer.decoder)
        judge = PatchDiscriminator(self.shape.channels, self.width, self.stages)
        players = VQGAN(tokenizer, judge).to(memory_format=torch.channels_last)
        return VQGANObjective(players, config, source, self)


class VQGAN(nn.Module):
    """Both players, so that a checkpoint holds both."""

    def __init__(self, tokenizer: Tokenizer, discriminator: PatchDiscriminator):
        super().__init__()
        self.tokenizer, self.discriminator = tokenizer, discriminator


class VQGANObjective(TokenizerObjective):
    """What tokenizer and discriminator minimize, as one loss (Esser et al., 2021).

    Each player's term reaches its own parameters only: the tokenizer's sees the
    discriminator with detached parameters, the discriminator's sees detached
    reconstructions. So one backward pass and one optimizer serve both.
    """

    def __init__(
        self, model: VQGAN, config: RunConfig, source: Source, settings: VQGANConfig
    ):
        super().__init__(model.tokenizer, config, source)
        self.model, self.settings = model, settings
        self.lpips = perceptual_network() if settings.perceptual else None

    def play(
        self, reconstruction: Tensor, frames: Tensor, error: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What fools the discriminator, that loss's weight, and the discriminator's."""
        s, judge = self.settings, self.model.discriminator
        with torch.autocast(frames.device.type, enabled=False):
            scores, features = judge(torch.cat([frames, reconstruction.detach()]))
            real, fake = scores.chunk(2)
            frozen = {name: p.detach() for name, p in judge.named_parameters()}
            fooled, seen = functional_call(judge, frozen, reconstruction)
            wanted = [feature.chunk(2)[0] for feature in features]
            fooling = -fooled.mean() + s.matching * feature_matching(wanted, seen)
            weight = s.adversarial * adaptive_weight(error, fooling, reconstruction)
            # Adam does not see the tenth; the clipping of all gradients together does.
            return fooling, weight, hinge(real, fake) / 10

    def forward(
        self,
        frames: Float[Tensor, "B C H W"],
        moved: Bool[Tensor, "B 1 H W"],
        judged: bool,
        pull: Float[Tensor, ""],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of both players, and its parts."""
        s, tokenizer = self.settings, self.tokenizer
        reconstruction, indices, commitment = tokenizer(frames)
        reconstruction = reconstruction.float()
        squared = (reconstruction - frames).square()
        error = ((1 + s.moving * moved) * squared).sum() / indices.numel()
        if self.lpips is not None:
            rgb = [
                x.clamp(0, 1).expand(-1, 3, -1, -1) for x in (reconstruction, frames)
            ]
            error = error + s.perceptual * self.lpips(*rgb, normalize=True).mean()
        if judged:
            fooling, weight, judge = self.play(reconstruction, frames, error)
        else:  # 0, but with gradients: several processes wait for those of all
            fooling = weight = frames.new_zeros(())
            judge = 0 * sum(p.sum() for p in self.model.discriminator.parameters())
        loss = error + tokenizer.config.commitment * commitment
        loss = loss + pull * weight * fooling + judge
        logs = {"pixels": squared.sum() / len(frames), "generator": fooling}
        logs |= {"weight": weight, "judge": judge}
        return loss, {name: value.detach() for name, value in logs.items()}

    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW for both; the discriminator's averages are short: its task changes."""
        parameters, rate = self.tokenizer.parameters(), self.settings.rate
        both = MuonAdamW([], parameters, adamw_rate=self.config.adamw_rate)
        judge = {"params": list(self.model.discriminator.parameters()), "muon": False}
        both.add_param_group(judge | {"lr": rate, "peak": rate, "betas": (0.5, 0.9)})
        return both

    def sample(self, step: Step, device: torch.device) -> Batch:
        """Single frames, or pairs where moving pixels weigh more."""
        n, frames = 4 * self.config.batch, 2 if self.settings.moving else 1
        return self.source.draw(n, frames, step.on_cpu, device)

    def prepare(self, batch: Batch, step: Step) -> dict:
        """This process's frames, what moved in them, and how far the play has come."""
        s, clips = self.settings, step.share(batch.clips)
        frames = clips[:, -1].contiguous(memory_format=torch.channels_last)
        moved = (frames - clips[:, 0]).abs().amax(1, keepdim=True) > 1 / 64
        judged = s.adversarial > 0 and step.done >= s.start
        pull = min(1.0, (step.done - s.start) / s.warmup) if s.warmup else 1.0
        pull = torch.tensor(pull if judged else 0.0, device=clips.device)
        return {"frames": frames, "moved": moved, "judged": judged, "pull": pull}


@torch.no_grad()
def smooth_start(decoder: nn.Sequential) -> None:
    """Give all pixels of a pixel shuffle equal weights: no checkerboard to unlearn.

    Aitken et al. (2017).
    """
    for convolution, after in pairwise(decoder):
        if isinstance(after, nn.PixelShuffle):
            n = after.upscale_factor**2  # channels that become the pixels of one
            for p in (convolution.weight, convolution.bias):
                p.copy_(p[::n].repeat_interleave(n, dim=0))
