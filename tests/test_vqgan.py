"""Chapter 13: losses against closed forms, two players in one, what weights keep."""

import hashlib
import json
import math
import sys
import types
from dataclasses import replace

import pytest
import torch
from torch import nn

import stt_lite as stt
from stt_lite.files import weights_folder
from stt_lite.moving_mnist import Batch
from stt_lite.photographs import Photographs, high_frequency_power, power_spectrum
from stt_lite.pipeline import train_tokenizer
from stt_lite.quantizers import VectorQuantizer, codebook_usage
from stt_lite.runs import Step
from stt_lite.tokenizer import Tokenizer, TokenizerConfig, load_tokenizer
from stt_lite.training import TokenizerObjective
from stt_lite.vqgan import (
    PatchDiscriminator,
    VQGANConfig,
    VQGANObjective,
    adaptive_weight,
    feature_matching,
    hinge,
    smooth_start,
)

SMALL = TokenizerConfig(channels=3, width=16, codebook_size=32, group_norm=True)
LOSSES = VQGANConfig(SMALL, start=0.0, warmup=0.0, width=8, stages=2)


@pytest.fixture(scope="module")
def photographs():
    return Photographs(32)


def objective(source, settings: VQGANConfig = LOSSES) -> VQGANObjective:
    torch.manual_seed(0)
    return settings.objective(stt.TrainingConfig(batch=1), source).train()


def batch(objective: VQGANObjective, done: float = 1.0, seed: int = 0) -> dict:
    step = Step(done, torch.Generator().manual_seed(seed), torch.Generator(), 0, 1)
    return objective.prepare(objective.sample(step, torch.device("cpu")), step)


def train(source, out, settings: VQGANConfig = LOSSES, steps: int = 3, **options):
    config = stt.TrainingConfig(out=out, steps=steps, batch=1, **options)
    return train_tokenizer(config, source, settings)


def gradient(module: nn.Module) -> torch.Tensor:
    return torch.cat(
        [
            torch.zeros(p.numel()) if p.grad is None else p.grad.flatten()
            for p in module.parameters()
        ]
    )


# --- photographs


def test_crops_are_pieces_of_the_training_photographs(photographs):
    crops = photographs.draw(6, 3, torch.Generator().manual_seed(0)).clips
    assert crops.shape == (6, 3, 3, 32, 32) and crops.dtype == torch.float32
    assert torch.equal(crops[:, 0], crops[:, 2])  # they stand still

    def holds(picture, crop):
        whole = picture.unfold(1, 32, 1).unfold(2, 32, 1)  # (3 rows columns 32 32)
        near = (whole[:, :, :, 0, 0] == crop[:, None, None, 0, 0]).all(0)
        return any(
            torch.equal(whole[:, y, x], crop) for y, x in near.nonzero().tolist()
        )

    mirrored = 0
    for crop in (crops[:, 0] * 255).round().byte():
        as_it_is, turned = (
            any(holds(picture, c) for picture in photographs.pictures)
            for c in (crop, crop.flip(-1))
        )
        assert as_it_is or turned
        mirrored += turned and not as_it_is
    assert 0 < mirrored < 6


def test_crops_follow_from_the_generator(photographs):
    generators = (torch.Generator().manual_seed(seed) for seed in (0, 0, 1))
    a, b, c = (photographs.draw(4, 1, generator).clips for generator in generators)
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_held_out_crops_are_of_other_photographs(photographs):
    train, test = Photographs(64, "train"), Photographs(64, "test")
    hashes = [
        {hashlib.sha256(p.numpy().tobytes()).digest() for p in source.pictures}
        for source in (train, test)
    ]
    assert not hashes[0] & hashes[1] and len(hashes[1]) >= 2
    held_out = train.held_out(3, 2, seed=5)
    assert held_out.shape == (3, 2, 3, 64, 64)
    assert torch.equal(held_out, train.held_out(3, 2, seed=5))
    assert torch.equal(held_out, test.held_out(3, 2, seed=5))
    assert not torch.equal(held_out, train.held_out(3, 2, seed=6))
    generator = torch.Generator().manual_seed(5)
    assert torch.equal(held_out, test.draw(3, 2, generator).clips)


def test_photographs_say_what_they_are(photographs):
    data = {"content": "photographs", "size": 32, "channels": 3, "frames": 1}
    assert photographs.data == data == json.loads(json.dumps(photographs.data))
    assert (photographs.size, photographs.channels, photographs.frames) == (32, 3, 1)


def test_tiles_do_not_overlap_and_lie_in_the_middle():
    source = Photographs(128, "test")
    (first, *_), tiles = source.pictures, source.tiles()
    rows, columns = first.shape[1] // 128, first.shape[2] // 128
    top, left = (
        (first.shape[1] - 128 * rows) // 2,
        (first.shape[2] - 128 * columns) // 2,
    )
    middle = first[:, top : top + 128 * rows, left : left + 128 * columns].float() / 255
    tiled = (
        tiles[: rows * columns]
        .unflatten(0, (rows, columns))
        .permute(2, 0, 3, 1, 4)
        .reshape(middle.shape)
    )
    assert torch.equal(tiled, middle)


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: Photographs(64, "all"),
            'split must be "train" or "test", got \'all\'',
        ),
        (
            lambda: Photographs(301),
            r"size must be a whole number in \[1, 300\], got 301",
        ),
        (lambda: Photographs(32).draw(0), "n must be a whole number of at least 1"),
        (
            lambda: VQGANConfig(adversarial=-1),
            "adversarial must be a number of at least 0, .*got -1",
        ),
        (
            lambda: VQGANConfig(rate=float("nan")),
            "rate must be a number of at least 0, .*got nan",
        ),
        (lambda: VQGANConfig(start=0.9, warmup=0.2), "start and warmup .*0.9 and 0.2"),
        (
            lambda: VQGANConfig(start=-0.1),
            r"start must be a number in \[0, 1\], got -0.1",
        ),
        (
            lambda: PatchDiscriminator()(torch.rand(1, 3, 4, 4)),
            "frames must have at least 8x8 pixels, got 4x4",
        ),
        (
            lambda: power_spectrum(torch.rand(1, 16, 16), bins=16),
            r"bins must be a whole number in \[1, 8\], got 16",
        ),
    ],
)
def test_wrong_arguments_are_named(make, message, unchecked):
    with pytest.raises(ValueError, match=message):
        make()


# --- spectra


@pytest.mark.parametrize("f", [1 / 16, 1 / 8, 1 / 4, 3 / 8, 7 / 16])
def test_a_wave_is_found_at_its_frequency(f):
    x = torch.arange(64)
    for wave in (
        torch.sin(2 * math.pi * f * x).expand(64, 64),
        torch.sin(2 * math.pi * f * x)[:, None].expand(64, 64),
    ):
        spectrum = power_spectrum(0.5 + 0.4 * wave[None], bins=16)
        assert abs(spectrum.argmax().item() - int(32 * f)) <= (f == 7 / 16)
        assert spectrum[int(32 * f) - 1 : int(32 * f) + 2].sum() > 0.9 * spectrum.sum()


def test_the_spectrum_of_noise_is_flat_and_sums_to_its_variance():
    noise = (
        torch.randn(256, 1, 64, 64, generator=torch.Generator().manual_seed(0)) * 0.1
    )
    spectrum, window = (
        power_spectrum(noise).mean(0),
        torch.hann_window(64).square().mean() ** 2,
    )
    assert spectrum.shape == (16,)
    assert torch.allclose(
        spectrum[1:], 0.01 * window.expand(15), rtol=0.1
    )  # Parseval, per frequency


def test_power_scales_with_the_square_and_ignores_brightness():
    x = torch.rand(2, 5, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    assert power_spectrum(x).shape == (2, 5, 12) and high_frequency_power(x).shape == (
        2,
        5,
    )
    assert torch.allclose(
        high_frequency_power(0.5 * x + 0.3), 0.25 * high_frequency_power(x), rtol=1e-3
    )


def test_the_top_third_holds_high_frequencies_only():
    x = torch.arange(96)

    def power(f):
        return high_frequency_power(
            0.5 + 0.5 * torch.sin(2 * math.pi * f * x).expand(1, 96, 96)
        ).item()

    assert power(0.30) < 1e-4 * power(0.37) and power(0.45) == pytest.approx(
        power(0.40), rel=0.2
    )


# --- discriminator and losses


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_a_score_sees_its_patch_only(stages):
    torch.manual_seed(0)
    judge, frame = (
        PatchDiscriminator(1, 4, stages).double(),
        torch.rand(1, 1, 96, 96, dtype=torch.double, requires_grad=True),
    )
    scores, features = judge(frame)
    assert len(features) == stages and scores.shape == (
        1,
        1,
        96 // 2**stages,
        96 // 2**stages,
    )
    middle = scores.shape[-1] // 2
    seen = (
        torch.autograd.grad(scores[0, 0, middle, middle], frame)[0][0, 0]
        .abs()
        .sum(0)
        .nonzero()
    )
    assert seen.max() - seen.min() + 1 == 5 * 2**stages - 2


def test_hinge_is_the_formula():
    real, fake = (
        torch.tensor([2.0, 1.0, 0.0, -3.0]),
        torch.tensor([-2.0, -1.0, 0.0, 3.0]),
    )
    assert hinge(real, fake).item() == (0 + 0 + 1 + 4) / 4 + (0 + 0 + 1 + 4) / 4


def test_features_match_the_real_ones():
    real = [
        torch.tensor([1.0, 2.0], requires_grad=True),
        torch.tensor([0.0], requires_grad=True),
    ]
    fake = [
        torch.tensor([2.0, 4.0], requires_grad=True),
        torch.tensor([-5.0], requires_grad=True),
    ]
    loss = feature_matching(real, fake)
    assert loss.item() == (1.5 + 5) / 2
    loss.backward()
    assert all(f.grad is not None for f in fake) and all(r.grad is None for r in real)


def test_the_adaptive_weight_equalizes_the_pull():
    x = torch.randn(3, 8, 8, requires_grad=True)
    wanted, found = (x - 1).square().sum(), (0.01 * x).sin().sum()
    weight = adaptive_weight(wanted, found, x)
    a, b = (
        torch.autograd.grad(wanted, x, retain_graph=True)[0],
        torch.autograd.grad(weight * found, x, retain_graph=True)[0],
    )
    assert b.norm().item() == pytest.approx(a.norm().item(), rel=1e-3)
    assert not weight.requires_grad and weight.dtype == torch.float32
    assert adaptive_weight(wanted, 0 * found, x) == 1e4  # nothing to pull with
    assert adaptive_weight(0 * wanted, found, x) == 0


# --- the objective


def test_each_term_reaches_its_own_player(photographs):
    learner = objective(photographs)
    given = batch(learner)
    reconstruction = learner.tokenizer(given["frames"])[0]
    error = (reconstruction - given["frames"]).square().sum()
    generator_loss, weight, judge_loss = learner.play(
        reconstruction, given["frames"], error
    )
    generator_loss.backward(retain_graph=True)
    assert (
        gradient(learner.tokenizer).norm() > 0
        and gradient(learner.model.discriminator).norm() == 0
    )
    learner.zero_grad()
    judge_loss.backward()
    assert (
        gradient(learner.tokenizer).norm() == 0
        and gradient(learner.model.discriminator).norm() > 0
    )


def test_one_backward_pass_gives_both_players_their_gradients(photographs):
    """Against two separate passes, each with plain autograd."""
    fsq = {
        "quantizer": "fsq",
        "levels": (4, 4, 2),
        "latent_channels": 3,
    }  # no codebook that moves
    shape = TokenizerConfig(channels=3, width=16, codebook_size=32, **fsq)
    learner = objective(photographs, replace(LOSSES, shape=shape))
    judge, tokenizer = learner.model.discriminator, learner.tokenizer
    given = batch(learner)
    learner(**given)[0].backward()
    together = gradient(tokenizer), gradient(judge)
    learner.zero_grad()
    frames = given["frames"]
    reconstruction, indices, _ = tokenizer(frames)
    hinge(judge(frames)[0], judge(reconstruction.detach())[0]).backward()
    assert torch.allclose(10 * together[1], gradient(judge), rtol=1e-3, atol=1e-6)
    error = (reconstruction - frames).square().sum() / indices.numel()
    fooled, seen = judge(reconstruction)
    loss = -fooled.mean() + learner.settings.matching * feature_matching(
        judge(frames)[1], seen
    )
    pull, push = (
        torch.autograd.grad(x, reconstruction, retain_graph=True)[0]
        for x in (error, loss)
    )
    tokenizer.zero_grad()
    reconstruction.backward(
        pull + learner.settings.adversarial * pull.norm() / (push.norm() + 1e-6) * push
    )
    assert torch.allclose(together[0], gradient(tokenizer), rtol=1e-3, atol=1e-5)


def test_the_discriminator_starts_late_and_pulls_slowly(photographs):
    learner = objective(photographs, replace(LOSSES, start=0.5, warmup=0.2))
    moments = (0.0, 0.49, 0.5, 0.6, 0.7, 1.0)
    pulls = {done: batch(learner, done)["pull"].item() for done in moments}
    assert pulls == pytest.approx({0.0: 0, 0.49: 0, 0.5: 0, 0.6: 0.5, 0.7: 1, 1.0: 1})
    # At 0.5 it learns, but the tokenizer does not listen yet.
    for done, learns in ((0.49, False), (0.5, True)):
        learner.zero_grad()
        loss, logs = learner(**batch(learner, done))
        loss.backward()
        assert (gradient(learner.model.discriminator).norm() > 0) == learns
        assert all(
            p.grad is not None for p in learner.parameters()
        )  # several processes wait for all gradients
        assert (logs["judge"] > 0) == learns


def test_without_a_discriminator_it_is_the_plain_objective(photographs):
    learner = objective(photographs, replace(LOSSES, adversarial=0.0))
    given = batch(learner)
    plain = TokenizerObjective(Tokenizer(SMALL), learner.config, photographs)
    plain.model.load_state_dict(learner.tokenizer.state_dict())
    torch.manual_seed(0)
    loss, _ = learner(**given)
    torch.manual_seed(0)
    assert torch.isclose(loss, plain.train()(given["frames"])[0])
    loss.backward()
    assert gradient(learner.model.discriminator).norm() == 0


class Blinking:
    """A source whose clips are black but for one white pixel, in the last frame."""

    size, frames, channels = 8, 2, 3
    data = {"content": "a pixel"}

    def held_out(self, n, frames=2, seed=0, device="cpu"):
        return self.draw(n, frames, None, device).clips

    def draw(self, n, frames=1, generator=None, device="cpu"):
        clips = torch.zeros(n, frames, 3, 8, 8, device=device)
        clips[:, -1, :, 2, 5] = 1.0
        return Batch(clips)


def test_moving_pixels_weigh_more():
    settings = replace(LOSSES, adversarial=0.0, moving=9.0)
    learner = objective(Blinking(), settings)
    given = batch(learner)
    assert given["frames"][:, :, 2, 5].eq(1).all()
    expected = torch.zeros(4, 1, 8, 8, dtype=torch.bool)
    expected[:, :, 2, 5] = True
    assert torch.equal(given["moved"], expected)
    still = objective(Blinking(), replace(settings, moving=0.0))
    assert not batch(still)["moved"].any()
    loss, logs = learner.eval()(**given)
    reconstruction, _, commitment = learner.tokenizer(given["frames"])
    squared = (reconstruction - given["frames"]).square()
    weighted = squared.sum() + 9 * squared[:, :, 2, 5].sum()
    assert torch.isclose(loss, weighted / 16 + 0.25 * commitment, rtol=1e-4)
    assert torch.isclose(logs["pixels"], squared.sum() / 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_discriminator_stays_in_float32(photographs, dtype):
    learner, seen = objective(photographs), []
    for layer in [
        *learner.model.discriminator.stages,
        learner.model.discriminator.score,
    ]:
        layer.register_forward_hook(
            lambda layer, inputs, output: seen.append(output.dtype)
        )
    exact, logs = learner.eval()(**batch(learner))
    with torch.autocast("cpu", dtype):
        loss, rounded = learner(**batch(learner))
    assert set(seen) == {torch.float32} and loss.dtype == torch.float32
    assert rounded["weight"].item() == pytest.approx(logs["weight"].item(), rel=0.05)
    assert loss.item() == pytest.approx(exact.item(), rel=0.05)
    loss.backward()
    assert gradient(learner).isfinite().all()


def test_clipping_hardly_sees_the_discriminator(photographs):
    """Adam makes the same step from a tenth of a gradient."""
    steps = []
    for scale in (1.0, 0.1):
        learner = objective(photographs)
        before = torch.cat(
            [
                p.detach().flatten().clone()
                for p in learner.model.discriminator.parameters()
            ]
        )
        optimizer = learner.optimizer()
        for seed in range(3):
            frames = batch(learner, seed=seed)["frames"]
            judge_loss = hinge(
                learner.model.discriminator(frames)[0],
                learner.model.discriminator(0.5 * frames)[0],
            )
            optimizer.zero_grad()
            (scale * judge_loss).backward()
            optimizer.step()
        steps.append(
            torch.cat(
                [p.detach().flatten() for p in learner.model.discriminator.parameters()]
            )
            - before
        )
    assert (steps[0] - steps[1]).norm() < 0.01 * steps[0].norm() > 0


# --- starting, training, resuming


def test_a_smooth_start_is_flat_within_every_block():
    torch.manual_seed(0)
    tokenizer = Tokenizer(TokenizerConfig(channels=3, downsample=8, width=32))
    latents = torch.randn(2, 8, 4, 4)

    def variance_within(edge: int) -> float:
        with torch.no_grad():
            frames = tokenizer.decoder(latents)
        blocks = frames.unfold(2, edge, edge).unfold(3, edge, edge)
        return blocks.var((-2, -1)).max().item()

    assert variance_within(2) > 1e-4
    smooth_start(tokenizer.decoder)
    assert variance_within(2) < 1e-10


def test_an_objective_begins_with_a_smooth_start(photographs):
    last = objective(photographs).tokenizer.decoder[-2]
    first, *others = last.weight.unflatten(0, (-1, 4)).unbind(1)
    assert len(others) == 3 and all(torch.equal(first, other) for other in others)


def test_training_writes_a_tokenizer_and_its_record(photographs, tmp_path):
    tokenizer = train(photographs, tmp_path)
    assert isinstance(tokenizer, Tokenizer) and not tokenizer.training
    again = load_tokenizer(tmp_path / "tokenizer.safetensors")
    for name, weights in again.state_dict().items():
        assert torch.equal(weights, tokenizer.state_dict()[name]), name
    record = json.loads((tmp_path / "tokenizer.json").read_text())
    assert record["steps"] == 3 and record["clips_seen"] == 12
    assert record["data"] == photographs.data
    checkpoint = torch.load(tmp_path / "tokenizer.checkpoint", weights_only=True)
    assert any("discriminator" in name for name in checkpoint["model"])


def test_a_run_stopped_halfway_ends_the_same(photographs, tmp_path):
    whole = train(photographs, tmp_path / "whole", steps=4)

    class Stopped(Exception):
        pass

    class Stopping(Photographs):
        left = 2

        def draw(self, *arguments):
            self.left -= 1
            if self.left < 0:
                raise Stopped
            return super().draw(*arguments)

    parts = dict(out=tmp_path / "parts", steps=4, checkpoint_seconds=0)
    with pytest.raises(Stopped):
        train(Stopping(32), **parts)
    resumed = train(photographs, **parts)
    for name, weights in whole.state_dict().items():
        assert torch.equal(weights, resumed.state_dict()[name]), name


def test_a_run_with_other_settings_is_refused(photographs, tmp_path):
    train(photographs, tmp_path, steps=1)
    with pytest.raises(ValueError, match="'start': 0.5"):
        train(photographs, tmp_path, replace(LOSSES, start=0.5), steps=2)


def test_clips_must_fit_the_tokenizer(photographs, tmp_path):
    grey = replace(LOSSES, shape=replace(SMALL, channels=1))
    with pytest.raises(ValueError, match="3 channels, got 1"):
        train(photographs, tmp_path, grey)
    coarse = replace(LOSSES, shape=replace(SMALL, downsample=64))
    with pytest.raises(ValueError, match="multiple of the tokenizer's 64 pixels"):
        train(photographs, tmp_path, coarse)


@pytest.mark.parametrize("adversarial", [0.0, 1.5])
def test_the_loss_falls_with_and_without_a_discriminator(tmp_path, adversarial):
    tiles = Photographs(32, "test").tiles()[::8]
    settings = replace(LOSSES, adversarial=adversarial, start=0.3, warmup=0.2, stages=3)
    first = train(Photographs(32), tmp_path / "first", settings, steps=1)
    last = train(Photographs(32), tmp_path / "last", settings, steps=60)
    errors = [(t.reconstruct(tiles) - tiles).square().mean() for t in (first, last)]
    assert errors[1] < 0.5 * errors[0]


# --- LPIPS


def test_lpips_joins_the_squared_error(monkeypatch, photographs):
    class Metric(nn.Module):
        """Like torchmetrics': its `net` gives one number per frame."""

        def __init__(self, net_type, normalize):
            super().__init__()
            self.net = Distance()

    class Distance(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))

        def forward(self, a, b, normalize=False):
            assert normalize and 0 <= a.min() and a.max() <= 1
            return self.scale * (a - b).abs().mean((1, 2, 3), keepdim=True)

    found = types.ModuleType("torchmetrics.image.lpip")
    found.LearnedPerceptualImagePatchSimilarity = Metric
    for name in ("torchmetrics", "torchmetrics.image"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "torchmetrics.image.lpip", found)
    plain = replace(LOSSES, adversarial=0.0)
    without = objective(photographs, plain)
    learner = objective(photographs, replace(plain, perceptual=5.0))
    given = batch(learner)
    difference = learner.eval()(**given)[0] - without.eval()(**given)[0]
    again = learner.tokenizer(given["frames"])[0].clamp(0, 1)
    assert torch.isclose(
        difference, 10 * (again - given["frames"]).abs().mean(), rtol=1e-3
    )
    assert not any(p.requires_grad for p in learner.lpips.parameters())
    assert "lpips" not in "".join(
        learner.model.state_dict()
    )  # no checkpoint carries it


# --- high resolution, and the bundled weights


@pytest.mark.parametrize("size", [64, 256])
def test_the_tokenizer_is_convolutional(size):
    tokenizer = load_tokenizer("photographs-vqgan")
    assert not [m for m in tokenizer.modules() if "Attention" in type(m).__name__]
    factor = tokenizer.config.downsample
    frames = torch.rand(1, 3, size, size)
    largest = 0
    biggest_map = (
        frames.numel() * 8
    )  # activations grow with the pixels, never with their square

    def watch(module, inputs, output):
        nonlocal largest
        largest = max(largest, output.numel())

    for module in tokenizer.modules():
        if not list(module.children()) and not isinstance(module, VectorQuantizer):
            module.register_forward_hook(watch)
    latents = tokenizer.encode(frames)
    assert latents.shape[-2:] == (size // factor, size // factor)
    assert tokenizer.decode(tokenizer.quantize(latents)[0]).shape == frames.shape
    assert 0 < largest <= biggest_map


NAMES = {"vqvae": "photographs-vqvae", "vqgan": "photographs-vqgan"}


@pytest.mark.parametrize("name", NAMES.values())
def test_bundled_weights_and_their_record(name, root):
    path = weights_folder() / f"{name}-tokenizer.json"
    record, weights = (
        json.loads(path.read_text()),
        path.with_suffix(".safetensors").read_bytes(),
    )
    assert (
        len(weights) <= 2e6 and hashlib.sha256(weights).hexdigest() == record["sha256"]
    )
    assert (root / "book" / "results" / path.name).read_text() == path.read_text()
    for key in (
        "config",
        "commit",
        "seed",
        "hardware",
        "seconds",
        "cpu_seconds",
        "steps",
        "frames_seen",
        "metrics",
        "vqgan",
    ):
        assert record[key] not in (None, ""), key
    assert str(root) not in path.read_text()


def test_the_recorded_figures_are_those_of_the_weights():
    for name in NAMES.values():
        tokenizer, tiles = load_tokenizer(name), Photographs(128, "test").tiles()
        record = stt.records(f"{name}-tokenizer")[0]["metrics"]["128"]
        again = tokenizer.reconstruct(tiles)
        assert stt.psnr(again, tiles).mean().item() == pytest.approx(
            record["psnr"], abs=0.02
        )
        power = {"input": tiles, "reconstruction": again}
        for key, frames in power.items():
            assert high_frequency_power(frames).mean().item() == pytest.approx(
                record["high_frequency_power"][key], rel=0.01
            )
        with torch.no_grad():
            indices = tokenizer.quantize(tokenizer.encode(tiles))[1]
        usage = codebook_usage(indices, tokenizer.quantizer.codebook_size)
        assert usage == pytest.approx(record["codebook_usage"], abs=0.005)


def test_the_vqgan_keeps_detail_at_equal_codes_and_time():
    plain, adversarial = (
        stt.records(f"{name}-tokenizer")[0] for name in NAMES.values()
    )
    assert (
        plain["config"] == adversarial["config"]
        and plain["parameters"] == adversarial["parameters"]
    )
    (late,) = stt.records(
        "vqgan-late"
    )  # trained beside the VQ-VAE: so many steps take equal time
    assert (
        late["cpu_seconds"] == pytest.approx(plain["cpu_seconds"], rel=0.01)
        and adversarial["steps"] <= late["steps"]
    )
    assert adversarial["cpu_seconds"] == pytest.approx(
        plain["cpu_seconds"], rel=0.1
    )  # other runs share the machine
    assert plain["hardware"] == adversarial["hardware"]
    assert plain["data"] == adversarial["data"] and plain["seed"] == adversarial["seed"]
    assert plain["vqgan"]["adversarial"] == 0 < adversarial["vqgan"]["adversarial"]
    for size in ("128", "256"):
        a, b = (run["metrics"][size] for run in (plain, adversarial))
        power = [
            m["high_frequency_power"]["reconstruction"]
            / m["high_frequency_power"]["input"]
            for m in (a, b)
        ]
        assert power[1] >= 1.5 * power[0] and abs(power[1] - 1) < abs(power[0] - 1)
        assert b["psnr"] >= a["psnr"] - 1.5
        assert b["codebook_usage"] >= 0.8


def test_a_late_discriminator_brings_more_detail_than_an_early_one():
    (late,), (early,) = stt.records("vqgan-late"), stt.records("vqgan-early")
    assert (
        late["cpu_seconds"] == pytest.approx(early["cpu_seconds"], rel=0.05)
        and late["config"] == early["config"]
    )
    assert {
        k: v for k, v in late["vqgan"].items() if k not in ("start", "warmup")
    }.items() <= early["vqgan"].items()
    power = [
        run["metrics"]["128"]["high_frequency_power"]["reconstruction"]
        for run in (late, early)
    ]
    assert (
        early["vqgan"]["start"] == 0 < late["vqgan"]["start"]
        and power[0] > 2 * power[1]
    )


def test_five_thousand_steps_in_bf16():
    (record,) = stt.records("vqgan-bf16")
    assert (
        record["steps"] >= 5000 and record["precision"] == "bf16" and record["finite"]
    )
    assert all(math.isfinite(loss) for _, loss in record["curve"])
    assert record["vqgan"]["start"] <= 0.2  # most of them with the discriminator
    early, late = (
        sum(loss for _, loss in part)
        for part in (record["curve"][:5], record["curve"][5:10])
    )
    assert late < early


def test_time_and_memory_follow_the_pixels():
    (record,) = stt.records("vqgan-resolution")
    for what in ("reconstruct", "train"):
        points = {int(size): point for size, point in record[what].items()}
        assert min(points) <= 64 and max(points) >= 512
        assert 8 < points[512]["seconds"] / points[128]["seconds"] < 32
        assert (
            points[512]["megabytes"] < 32 * points[128]["megabytes"]
            or points[128]["megabytes"] < 2
        )
