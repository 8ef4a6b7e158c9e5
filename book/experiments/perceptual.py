"""Metrics of pretrained networks: LPIPS, and a Fréchet distance between sets of clips.

    python book/experiments/perceptual.py --bundle moving-mnist --clips 100

Their networks are downloaded once, with torchmetrics and torchvision, and were trained
on photographs and films. What can't be had is left out, and a line says why.
"""

import torch
import torch.nn.functional as F
import tyro
from jaxtyping import Float
from torch import Tensor, nn

import stt_lite as stt
from stt_lite.evaluation import PROTOCOLS, copy_last_frame, without_chance
from stt_lite.video import check_pair

Clips = Float[Tensor, "B T C H W"]


def frechet_distance(a: Float[Tensor, "n F"], b: Float[Tensor, "m F"]) -> float:
    """Squared Fréchet distance of normals fitted to two sets of features.

    Heusel et al. (2017), Equation 6. ValueError: fewer than two rows of one, or two
    numbers of features.
    """
    if min(len(a), len(b)) < 2 or a.shape[1] != b.shape[1]:
        got = f"{tuple(a.shape)} and {tuple(b.shape)}"
        raise ValueError(f"features must be (n F) and (m F) with n, m >= 2, got {got}")
    a, b = a.double(), b.double()
    product = torch.atleast_2d(a.T.cov()) @ torch.atleast_2d(b.T.cov())
    shared = torch.linalg.eigvals(product).sqrt().real.sum()
    shift = (a.mean(0) - b.mean(0)).square().sum()
    return (shift + a.var(0).sum() + b.var(0).sum() - 2 * shared).item()


def lpips(video: Clips, truth: Clips) -> float:
    """LPIPS with AlexNet (Zhang et al., 2018), frames brought to 64x64."""
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    network = LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True)
    colour = (x.expand(-1, -1, 3, -1, -1).flatten(0, 1) for x in (video, truth))
    return network(*(F.interpolate(x, size=(64, 64)) for x in colour)).item()


def frechet_r3d(video: Clips, truth: Clips) -> float:
    """Fréchet distance in features of R3D-18, trained on Kinetics.

    Published FVD takes another network: compare it with itself only.
    """
    from torchvision.models.video import R3D_18_Weights, r3d_18

    weights = R3D_18_Weights.KINETICS400_V1
    network = r3d_18(weights=weights).eval()
    network.fc = nn.Identity()
    colour = (x.expand(-1, -1, 3, -1, -1) for x in (video, truth))
    return frechet_distance(*(network(weights.transforms()(x)) for x in colour))


@torch.no_grad()
def perceptual(video: Clips, truth: Clips) -> dict[str, float]:
    """ "lpips" and "frechet_r3d" of clips with values in [0, 1]."""
    video, truth = check_pair(video, truth)
    found = {}
    for measure in (lpips, frechet_r3d):
        try:
            found[measure.__name__] = measure(video, truth)
        except (ImportError, OSError) as error:  # no package, no network
            print(f"{measure.__name__} left out: {error}")
    return found


def main(
    bundle: str = "moving-mnist-tiny", clips: int = 100, protocol: str = "10->10"
) -> None:
    """Compare a model and copying with the truth, on held-out clips.

    Args:
        bundle: a bundled model by name, or a folder that training wrote.
        clips: number of held-out clips.
        protocol: a key of `PROTOCOLS`.
    """
    prompt, new = PROTOCOLS[protocol]
    model = stt.load_pretrained(bundle)
    real = stt.held_out_clips(model, clips, prompt + new, seed=1)
    contenders = {bundle: without_chance(model), "copying": copy_last_frame}
    for name, forecast in contenders.items():
        video = forecast(real[:, :prompt], new)
        print(f"{name:20}", perceptual(video, real[:, prompt:]))


if __name__ == "__main__":
    tyro.cli(main)
