"""Chapter 03's tokenizer: shapes, training, its file, a quantizer of a reader's own."""

import copy
import json
import math

import pytest
import torch
from torch import nn

import stt_lite as stt
from stt_lite.files import read_record, weights_folder
from stt_lite.quantizers import (
    QUANTIZERS,
    Quantizer,
    VectorQuantizer,
    codebook_usage,
    perplexity,
)
from stt_lite.tokenizer import (
    Tokenizer,
    TokenizerConfig,
    load_tokenizer,
    save_tokenizer,
    token_colours,
)

SMALL = TokenizerConfig(width=16, codebook_size=32, latent_channels=4)


def frames(n=16, seed=0):
    return stt.moving_mnist(n, 1, 32, 1, seed=seed)[:, 0]


@pytest.fixture
def tokenizer():
    torch.manual_seed(0)
    return Tokenizer(SMALL)


def train(tokenizer, optimizer, steps):
    """The chapter's loop; the squared error per frame of the last step."""
    for _ in range(steps):
        batch = stt.moving_mnist(8, 1, 32, 1)[:, 0]
        reconstruction, indices, commitment = tokenizer(batch)
        error = (reconstruction - batch).square().sum() / len(batch)
        optimizer.zero_grad()
        (error / indices[0].numel() + 0.25 * commitment).backward()
        optimizer.step()
    return error.item()


def adam(tokenizer):
    return torch.optim.AdamW(tokenizer.parameters(), 3e-3)


# --- a quantizer of a reader's own, as in the chapter's exercise


class ResidualQuantizer(nn.Module):
    """A second codebook for what the first leaves over: an index has two digits."""

    def __init__(self, codebook_size, latent_channels):
        super().__init__()
        self.each = math.isqrt(codebook_size)
        self.codebook_size = self.each**2
        self.first = VectorQuantizer(self.each, latent_channels)
        self.second = VectorQuantizer(self.each, latent_channels)

    def bound(self, z):
        return z

    def nearest(self, z):
        first = self.first.nearest(z)
        second = self.second.nearest(z - self.first.codes(first))
        return self.each * first + second

    def codes(self, indices):
        first, second = indices // self.each, indices % self.each
        return self.first.codes(first) + self.second.codes(second)

    def forward(self, z):
        coarse, first, one = self.first(z)
        fine, second, two = self.second(z - coarse.detach())
        return coarse + fine.detach(), self.each * first + second, one + two


@pytest.fixture
def residual(monkeypatch):
    def build(config):
        return ResidualQuantizer(config.codebook_size, config.latent_channels)

    monkeypatch.setitem(QUANTIZERS, "residual", build)
    options = {"codebook_size": 256, "latent_channels": 4}
    return Tokenizer(TokenizerConfig(width=16, quantizer="residual", **options))


def test_a_residual_quantizer_works_everywhere(residual, tmp_path):
    assert isinstance(residual.quantizer, Quantizer)
    optimizer = adam(residual)
    first = train(residual, optimizer, 1)
    assert train(residual, optimizer, 60) < 0.7 * first
    for name, parameter in residual.encoder.named_parameters():
        assert parameter.grad.abs().sum() > 0, name

    loaded = load_tokenizer(save_tokenizer(residual, tmp_path / "r.safetensors"))
    residual.eval()
    x = frames()
    assert loaded.config == residual.config
    assert torch.equal(loaded.reconstruct(x), residual.reconstruct(x))
    latents, indices = loaded.quantize(loaded.encode(x))
    torch.testing.assert_close(loaded.codes(indices), latents)
    assert indices.max() > 16  # the first digit is used
    assert token_colours(loaded, x).shape == (16, 3, 32, 32)

    prediction = latents + 0.1 * torch.randn_like(latents)  # as a transformer's
    snapped, indices = loaded.quantize(prediction)
    torch.testing.assert_close(loaded.codes(indices), snapped)
    first = loaded.quantizer.first(prediction)[0]
    assert (snapped - prediction).square().sum() < (first - prediction).square().sum()


# --- training


def test_training_reduces_the_error(tokenizer):
    optimizer = adam(tokenizer)
    first = train(tokenizer, optimizer, 1)
    assert train(tokenizer, optimizer, 60) < 0.7 * first


@pytest.mark.parametrize("quantizer", ["vq", "fsq"])
def test_training_sees_what_encode_and_quantize_give(quantizer):
    options = {"codebook_size": 16, "latent_channels": 2, "levels": (4, 4)}
    net = Tokenizer(TokenizerConfig(width=16, quantizer=quantizer, **options)).eval()
    net.encoder[-1].weight.data *= 60  # latents that a bound moves
    latents = net.encode(frames())
    assert (latents.abs().max() <= 1) == (quantizer == "fsq")
    words, indices = net.quantize(latents)
    reconstruction, tokens, _ = net(frames())
    assert torch.equal(tokens, indices) and indices.unique().numel() > 3
    torch.testing.assert_close(net.decode(words), reconstruction.clamp(0, 1))


def test_every_parameter_gets_a_gradient(tokenizer):
    reconstruction, _, commitment = tokenizer(frames())
    (reconstruction.square().mean() + commitment).backward()
    assert all(p.grad.abs().sum() > 0 for p in tokenizer.parameters())


def test_resumed_training_is_bit_identical(tokenizer, tmp_path):
    optimizer = adam(tokenizer)
    train(tokenizer, optimizer, 4)
    save_tokenizer(tokenizer, tmp_path / "half.safetensors")
    state, generator = copy.deepcopy(optimizer.state_dict()), torch.get_rng_state()
    train(tokenizer, optimizer, 4)

    torch.manual_seed(99)
    resumed = load_tokenizer(tmp_path / "half.safetensors").train()
    optimizer = adam(resumed)
    optimizer.load_state_dict(state), torch.set_rng_state(generator)
    train(resumed, optimizer, 4)
    for name, value in tokenizer.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_evaluation_changes_nothing(tokenizer):
    tokenizer(frames())
    before = copy.deepcopy(tokenizer.state_dict())
    tokenizer.eval()
    tokenizer(frames(seed=1)), tokenizer.reconstruct(frames(seed=2))
    for name, value in tokenizer.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("quantizer", ["vq", "fsq"])
def test_quantizer_stays_in_float32_under_autocast(quantizer):
    levels = (2, 4, 2, 2)
    config = TokenizerConfig(
        width=16,
        quantizer=quantizer,
        codebook_size=32,
        latent_channels=4,
        levels=levels,
    )
    tokenizer = Tokenizer(config)
    seen = []
    tokenizer.decoder.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0])
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reconstruction, indices, commitment = tokenizer(frames())
    assert seen[0].dtype == commitment.dtype == torch.float32
    words = tokenizer.quantizer.codes(indices).movedim(-1, 1)
    if quantizer == "fsq":  # a learned codebook has moved on
        assert torch.equal(seen[0], words)
    assert reconstruction.isfinite().all()


# --- shapes and bad input


@pytest.mark.parametrize(
    "downsample, C, h, w", [(4, 1, 32, 32), (2, 3, 16, 24), (8, 3, 64, 32)]
)
def test_shapes(downsample, C, h, w):
    config = TokenizerConfig(C, downsample, 32, latent_channels=5, codebook_size=16)
    tokenizer = Tokenizer(config).eval()
    clips = torch.rand(2, 3, C, h, w)
    latents, indices = tokenizer.quantize(tokenizer.encode(clips[0]))
    assert latents.shape == (3, 5, h // downsample, w // downsample)
    assert indices.shape == latents[:, 0].shape
    assert torch.equal(tokenizer.codes(indices), latents)
    out = tokenizer.decode(latents)
    assert out.shape == clips[0].shape and out.min() >= 0 and out.max() <= 1
    torch.testing.assert_close(tokenizer.reconstruct(clips)[0], out)


def test_without_group_norm_a_token_depends_on_its_neighbourhood_alone():
    """Its layers see 26x26 pixels; with group normalization they see the frame."""
    torch.manual_seed(0)
    x = torch.rand(1, 1, 64, 64)
    other = x.clone()
    other[..., :8, :8] = 0
    for group_norm in (False, True):
        tokenizer = Tokenizer(TokenizerConfig(width=16, group_norm=group_norm)).eval()
        with torch.no_grad():
            moved = (tokenizer.encode(x) != tokenizer.encode(other))[0].any(0)  # (h w)
        assert moved[:2, :2].all() and moved[6:, 6:].any() == group_norm


def test_token_colours_are_those_of_the_tokens(tokenizer):
    x = frames(4)
    tokenizer(x)  # a codebook
    colours = token_colours(tokenizer.eval(), x)
    assert colours.shape == (4, 3, 32, 32) and colours.min() >= 0 and colours.max() <= 1
    indices = tokenizer.quantize(tokenizer.encode(x))[1]
    patches = colours[:, :, ::4, ::4].movedim(1, -1)  # (T h w 3)
    most = patches[indices == indices.flatten().mode().values]
    torch.testing.assert_close(most, torch.full_like(most, 0.1))  # is dark
    some = indices == indices[2, 3, 3]
    assert (patches[some] == patches[2, 3, 3]).all()


BAD_FRAMES = {
    "rank": (
        torch.zeros(1, 2, 1, 32, 32),
        ValueError,
        r"\(B C H W\).*got \(1, 2, 1, 32, 32\)",
    ),
    "channels": (torch.zeros(2, 3, 32, 32), ValueError, "must have 1 channels"),
    "size": (torch.zeros(2, 1, 30, 32), ValueError, "divisible by 4, got"),
    "range": (torch.full((2, 1, 32, 32), 2.0), ValueError, r"values in \[0, 1\], got"),
    "dtype": (torch.zeros(2, 1, 32, 32, dtype=torch.uint8), TypeError, "torch.uint8"),
}


@pytest.mark.parametrize("case", BAD_FRAMES)
def test_bad_frames_are_refused(case, tokenizer, unchecked):
    bad, error, message = BAD_FRAMES[case]
    with pytest.raises(error, match=message):
        tokenizer.encode(bad)


def test_bad_latents_and_indices_are_refused(tokenizer, unchecked):
    for call in (tokenizer.decode, tokenizer.quantize):
        with pytest.raises(
            ValueError, match=r"\(B D h w\), D = 4, none of it 0, got \(1, 5, 8, 8"
        ):
            call(torch.zeros(1, 5, 8, 8))
    for bad, got in ((32, "0 to 32"), (-1, "-1 to 0")):
        message = rf"indices must have values in \[0, 31\], got values from {got}"
        with pytest.raises(ValueError, match=message):
            tokenizer.codes(torch.tensor([[[0, bad]]]))
    with pytest.raises(ValueError, match=r"clips must have shape \(B T C H W\)"):
        tokenizer.reconstruct(torch.zeros(32, 32))
    with pytest.raises(TypeError, match="clips must be a floating-point .* got list"):
        tokenizer.reconstruct([1])


FSQ = {"quantizer": "fsq", "latent_channels": 2, "codebook_size": 16}


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"downsample": 3}, "downsample must be a power of two of at least 2, got 3"),
        ({"downsample": 1}, "downsample must be a power of two of at least 2, got 1"),
        ({"width": 40}, "width must be a multiple of 16, got 40"),
        ({"channels": 2}, "channels must be 1 or 3, got 2"),
        ({"quantizer": "pq"}, "quantizer must be of vq, fsq, got 'pq'"),
        ({"quantizer": "residual"}, "quantizer must be of vq, fsq, got 'residual'"),
        (FSQ, r"levels must be 2 \(latent_channels\) with product 16 .*, got \(\)"),
        (FSQ | {"levels": (4, 3)}, r"product 16 \(codebook_size\), got \(4, 3\)"),
        (FSQ | {"levels": (-4, -4)}, "levels must be a whole number of at least 2"),
    ],
)
def test_bad_configs_are_refused(bad, message, unchecked):
    with pytest.raises(ValueError, match=message):
        TokenizerConfig(**bad)


# --- files


def test_saved_and_loaded_are_equal(tokenizer, tmp_path):
    path = save_tokenizer(tokenizer, tmp_path / "mine.safetensors", {"seconds": 3})
    loaded = load_tokenizer(path)
    assert loaded.config == tokenizer.config and not loaded.training
    expected = tokenizer.eval().reconstruct(frames())
    assert torch.equal(loaded.reconstruct(frames()), expected)
    assert read_record(path)["seconds"] == 3


def test_fsq_tokenizer_saves_and_loads(tmp_path):
    config = TokenizerConfig(width=16, **FSQ, levels=(4, 4))
    path = save_tokenizer(Tokenizer(config), tmp_path / "f.safetensors")
    loaded = load_tokenizer(path)  # JSON makes a list of the levels
    assert loaded.config == config and isinstance(loaded.config.levels, tuple)


def test_weights_from_before_group_norm_was_a_choice_have_it(tmp_path):
    config = TokenizerConfig(width=16, codebook_size=32, group_norm=True)
    tokenizer = Tokenizer(config).eval()
    path = save_tokenizer(tokenizer, tmp_path / "old.safetensors")
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    fields = json.loads(header["__metadata__"]["config"])
    del fields["group_norm"]
    header["__metadata__"]["config"] = json.dumps(fields)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    path.with_suffix(".json").unlink()
    loaded, x = load_tokenizer(path), torch.rand(2, 1, 32, 32)
    assert loaded.config.group_norm
    assert torch.equal(loaded.reconstruct(x), tokenizer.reconstruct(x))


# --- what comes with the package

BUNDLES = {"moving-mnist-tiny": (32, 1, 8, 1.2), "moving-mnist": (64, 2, 16, 3.0)}


@pytest.mark.parametrize("name", BUNDLES)
def test_bundled_tokenizers_meet_their_target(name):
    """Held-out digits: squared error per frame as recorded, codebook in use."""
    size, digits, grid, target = BUNDLES[name]
    tokenizer = load_tokenizer(name)
    clips = stt.moving_mnist(40, 20, size, digits, split="test", seed=1)
    errors, indices = [], []
    with torch.no_grad():
        for x in clips.flatten(0, 1).split(256):
            latents, tokens = tokenizer.quantize(tokenizer.encode(x))
            errors.append((tokenizer.decode(latents) - x).square().sum((1, 2, 3)))
            indices.append(tokens)
    error, indices = torch.cat(errors).mean().item(), torch.cat(indices)
    metrics = read_record(weights_folder() / f"{name}-tokenizer.json")["metrics"]
    recorded = metrics["reconstruction_squared_error_per_frame"]
    assert error == pytest.approx(recorded, rel=0.02) and error <= target
    assert indices.shape[1:] == (grid, grid)
    assert codebook_usage(indices, tokenizer.config.codebook_size) >= 0.9
    assert perplexity(indices, tokenizer.config.codebook_size) > 50
    file = weights_folder() / f"{name}-tokenizer.safetensors"
    assert file.stat().st_size <= 20_000_000


@pytest.mark.parametrize("name", BUNDLES)
def test_the_readme_tells_the_record(name, root):
    metrics = read_record(weights_folder() / f"{name}-tokenizer.json")["metrics"]
    lines = (root / "README.md").read_text().splitlines()
    row = next(line for line in lines if line.startswith(f"| `{name}` "))
    assert f"| {metrics['reconstruction_squared_error_per_frame']:.2f} |" in row
    assert f"| {metrics['codebook_usage']:.0%} |" in row


def test_codewords_of_the_bundled_fsq_quantize_to_themselves():
    tokenizer = load_tokenizer("game")
    every = torch.arange(tokenizer.quantizer.codebook_size).view(-1, 16, 16)
    words = tokenizer.codes(every)
    quantized, indices = tokenizer.quantize(words)
    assert torch.equal(indices, every) and torch.equal(quantized, words)
