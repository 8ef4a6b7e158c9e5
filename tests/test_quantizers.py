"""Chapter 03: the quantizers agree with a library, training resumes exactly, weights load safely."""

import copy
import dataclasses
import json
import math
import os
import pickle
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
import vector_quantize_pytorch as library
from processes import RUNS, train_quantizer, train_quantizers

import stt_lite as stt

SMALL = stt.TokenizerConfig(width=16, codebook_size=32, latent_channels=4)


def frames(n=16, seed=0):
    return stt.moving_mnist(n, 1, 32, 1, seed=seed)[:, 0]


@pytest.fixture
def tokenizer():
    torch.manual_seed(0)
    return stt.Tokenizer(SMALL)


# --- the vector quantizer against vector-quantize-pytorch's Euclidean codebook


def test_vector_quantizer_equals_the_library():
    torch.manual_seed(0)
    ours = stt.VectorQuantizer(64, 8, decay=0.8, dead_below=0.0, kmeans_iterations=0)
    theirs = library.VectorQuantize(
        dim=8, codebook_size=64, decay=0.8, eps=1e-5, threshold_ema_dead_code=0, kmeans_init=False, commitment_weight=1.0
    )
    book = torch.randn(64, 8)
    ours.codebook.copy_(book), ours.total.copy_(book), ours.usage.fill_(1.0)
    inner = theirs._codebook
    inner.embed.data.copy_(book[None]), inner.embed_avg.data.copy_(book[None]), inner.cluster_size.data.fill_(1.0)
    for step in range(5):
        z = torch.randn(3, 8, 5, 5)
        quantized, indices, commitment = ours(z)
        expected, expected_indices, expected_loss = theirs(z.permute(0, 2, 3, 1).reshape(3, 25, 8))
        assert torch.equal(indices.flatten(1), expected_indices)
        torch.testing.assert_close(quantized.flatten(2).transpose(1, 2), expected, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(commitment, expected_loss.squeeze(), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(ours.codebook, inner.embed[0], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(ours.usage, inner.cluster_size[0], atol=1e-5, rtol=1e-5)
    assert (ours.codebook - book).abs().max() > 0.1  # it did move


def test_nearest_is_the_nearest():
    quantizer = stt.VectorQuantizer(50, 6)
    quantizer.codebook.normal_()
    z = torch.randn(200, 6)
    assert torch.equal(quantizer.nearest(z), torch.cdist(z.double(), quantizer.codebook.double()).argmin(1))


def test_gradient_passes_straight_through():
    quantizer = stt.VectorQuantizer(16, 4).eval()
    z = torch.randn(2, 4, 3, 3, requires_grad=True)
    weights = torch.randn(2, 4, 3, 3)
    quantized, _, commitment = quantizer(z)
    (quantized * weights).sum().backward()
    assert torch.equal(z.grad, weights)
    z.grad = None
    quantizer(z)[2].backward()
    torch.testing.assert_close(z.grad, 2 * (z - quantized).detach() / z.numel())  # pulls to the codeword, mean over all


@pytest.mark.parametrize("levels", [(8, 8, 4), (5, 5, 5, 5), (2, 3)])
def test_fsq_rounds_to_its_levels_and_back(levels):
    fsq = stt.FiniteScalarQuantizer(levels)
    z = torch.randn(3, len(levels), 9, 9) * 2
    z.requires_grad_()
    quantized, indices, loss = fsq(z)
    assert loss == 0 and fsq.codebook_size == math.prod(levels)
    assert 0 <= indices.min() and indices.max() < fsq.codebook_size
    torch.testing.assert_close(fsq.codes(indices).movedim(-1, 1), quantized)
    for channel, count in enumerate(levels):
        assert quantized[:, channel].unique().numel() <= count
    everything = fsq.codes(torch.arange(fsq.codebook_size))
    assert everything.unique(dim=0).shape[0] == fsq.codebook_size and everything.abs().max() <= 1
    quantized.sum().backward()
    torch.testing.assert_close(z.grad, 1 - z.detach().tanh() ** 2)  # of the squashing alone: rounding is skipped


@pytest.mark.parametrize("levels", [(8, 8, 4), (5, 4, 3), (2, 2), (7, 5, 5, 5), (4,) * 6])
def test_fsq_nearest_is_the_nearest_codeword(levels):
    """Also of itself, for every codeword, and of vectors far outside."""
    fsq = stt.FiniteScalarQuantizer(levels)
    everything = torch.arange(fsq.codebook_size)
    words = fsq.codes(everything)
    assert torch.equal(fsq.nearest(words), everything)
    z = 1.5 * torch.randn(500, len(levels))
    distance = torch.cdist(z, words)
    torch.testing.assert_close(distance.gather(1, fsq.nearest(z)[:, None])[:, 0], distance.min(1).values)


def test_nearest_in_pieces_is_nearest():
    quantizer = stt.VectorQuantizer(50, 8)
    quantizer.codebook.copy_(torch.randn(50, 8))
    z = torch.randn(5000, 8)  # two whole pieces and a part
    distance = torch.cdist(z.double(), quantizer.codebook.double())
    chosen = distance.gather(1, quantizer.nearest(z)[:, None])[:, 0]
    torch.testing.assert_close(chosen, distance.min(1).values, rtol=0, atol=1e-6)


def test_without_group_norm_a_token_depends_on_its_neighbourhood_alone():
    """Two convolutions and a residual block see 26x26 pixels; with group normalization every token sees the frame."""
    torch.manual_seed(0)
    frames = torch.rand(1, 1, 64, 64)
    other = frames.clone()
    other[..., :8, :8] = 0
    for group_norm in (False, True):
        tokenizer = stt.Tokenizer(stt.TokenizerConfig(width=16, group_norm=group_norm)).eval()
        with torch.no_grad():
            moved = (tokenizer.encode(frames) != tokenizer.encode(other))[0].any(0)  # (h w)
        assert moved[:2, :2].all() and moved[6:, 6:].any() == group_norm


def test_weights_from_before_group_norm_was_a_choice_have_it(tmp_path):
    tokenizer = stt.Tokenizer(stt.TokenizerConfig(width=16, codebook_size=32, group_norm=True)).eval()
    path = stt.save_tokenizer(tokenizer, tmp_path / "old.safetensors")
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    config = json.loads(header["__metadata__"]["config"])
    del config["group_norm"]
    header["__metadata__"]["config"] = json.dumps(config)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    path.with_suffix(".json").unlink()
    loaded, frames = stt.load_tokenizer(path), torch.rand(2, 1, 32, 32)
    assert loaded.config.group_norm and torch.equal(loaded.reconstruct(frames), tokenizer.reconstruct(frames))


def test_fsq_with_odd_levels_equals_the_library():
    """With odd numbers of levels both round tanh(z) onto the same grid (the library shifts even ones)."""
    theirs = library.FSQ(levels=[5, 7, 5], preserve_symmetry=False)
    z = torch.randn(2, 3, 6, 6)
    expected, _ = theirs(z)
    quantized, _, _ = stt.FiniteScalarQuantizer((5, 7, 5))(z)
    assert (quantized - expected).abs().median() < 1e-3
    assert ((quantized - expected).abs() < 1e-3).float().mean() > 0.98  # the library squeezes by 1.001 before rounding


# --- codebook life


def test_eval_mode_never_changes_the_codebook(tokenizer):
    tokenizer(frames())
    before = copy.deepcopy(tokenizer.state_dict())
    tokenizer.eval()
    tokenizer(frames(seed=1)), tokenizer.reconstruct(frames(seed=2))
    assert all(torch.equal(value, before[name]) for name, value in tokenizer.state_dict().items())


def test_kmeans_starts_at_the_data():
    quantizer = stt.VectorQuantizer(4, 2)
    centres = torch.tensor([[5.0, 5], [-5, 5], [5, -5], [-5, -5]])
    torch.manual_seed(1)
    z = (centres.repeat(100, 1) + 0.1 * torch.randn(400, 2)).T.reshape(1, 2, 20, 20)
    error_before = (z.movedim(1, -1).reshape(-1, 2) - quantizer.codes(quantizer.nearest(z.movedim(1, -1).reshape(-1, 2)))).square().mean()
    _, _, commitment = quantizer(z)
    assert quantizer.initialized and commitment < 0.5 * error_before


def test_dead_codewords_come_back_to_life():
    def usage(dead_below):
        torch.manual_seed(0)
        quantizer = stt.VectorQuantizer(32, 4, dead_below=dead_below, kmeans_iterations=0, decay=0.9)
        for _ in range(60):
            quantizer(torch.randn(4, 4, 8, 8) + 10.0)  # far from every random codeword
        return stt.codebook_usage(quantizer.eval()(torch.randn(4, 4, 8, 8) + 10.0)[1], 32)

    assert usage(dead_below=0.0) < 0.2 and usage(dead_below=0.1) > 0.9


def test_processes_share_one_codebook(tmp_path):
    """Two processes with half of each batch: one codebook in both, that of the whole batch."""
    batches = torch.randn(6, 8, 4, 5, 5) + torch.arange(8).view(8, 1, 1, 1)  # the halves differ
    torch.multiprocessing.spawn(train_quantizers, (str(tmp_path), batches), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name in RUNS:
        for buffer, value in first[name].items():
            assert torch.equal(value, second[name][buffer]), (name, buffer)
    alone = train_quantizer(RUNS["follows"], batches, seed=1)
    for buffer, value in alone.items():
        torch.testing.assert_close(first["follows"][buffer], value, atol=1e-5, rtol=1e-5)
    half = train_quantizer(RUNS["follows"], batches[:, :4], seed=1)
    assert not torch.allclose(half["codebook"], alone["codebook"], atol=0.1)


def test_usage_and_perplexity():
    assert stt.codebook_usage(torch.tensor([[0, 1], [1, 1]]), 8) == 0.25
    assert stt.perplexity(torch.arange(8), 8) == pytest.approx(8)
    assert stt.perplexity(torch.zeros(5, dtype=torch.long), 8) == pytest.approx(1)
    p = torch.tensor([0.75, 0.25], dtype=torch.double)
    assert stt.perplexity(torch.tensor([0, 0, 0, 1]), 2) == pytest.approx(torch.distributions.Categorical(p).entropy().exp().item())


# --- training


def run(tokenizer, optimizer, steps):
    for _ in range(steps):
        stt.training_step(tokenizer, optimizer, stt.moving_mnist(8, 1, 32, 1)[:, 0])


def test_training_reduces_the_error(tokenizer):
    optimizer = torch.optim.AdamW(tokenizer.parameters(), 3e-3)
    first = stt.training_step(tokenizer, optimizer, frames())
    run(tokenizer, optimizer, 60)
    last = stt.training_step(tokenizer, optimizer, frames())
    assert last["reconstruction"] < 0.7 * first["reconstruction"]


def test_every_parameter_gets_a_gradient(tokenizer):
    reconstruction, _, commitment = tokenizer(frames())
    (reconstruction.square().mean() + commitment).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in tokenizer.parameters())


def test_resumed_training_is_bit_identical(tokenizer, tmp_path):
    optimizer = torch.optim.AdamW(tokenizer.parameters(), 3e-3)
    run(tokenizer, optimizer, 4)
    stt.save_tokenizer(tokenizer, tmp_path / "half.safetensors")
    adam, rng = copy.deepcopy(optimizer.state_dict()), torch.get_rng_state()
    run(tokenizer, optimizer, 4)

    torch.manual_seed(99)
    resumed = stt.load_tokenizer(tmp_path / "half.safetensors").train()
    optimizer = torch.optim.AdamW(resumed.parameters(), 3e-3)
    optimizer.load_state_dict(adam), torch.set_rng_state(rng)
    run(resumed, optimizer, 4)
    for name, value in tokenizer.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_loss_is_what_the_chapter_says(tokenizer):
    x = frames(8)
    twin = copy.deepcopy(tokenizer)
    torch.manual_seed(1)
    logged = stt.training_step(tokenizer, torch.optim.SGD(tokenizer.parameters(), 0.0), x)
    torch.manual_seed(1)
    x_hat, indices, commitment = twin(x)
    error = (x - x_hat).square().sum() / 8
    assert logged["reconstruction"] == pytest.approx(error.item(), rel=1e-5)
    assert logged["loss"] == pytest.approx((error / 64 + 0.25 * commitment).item(), rel=1e-5)
    assert logged["perplexity"] == pytest.approx(stt.perplexity(indices, 32))


def test_nan_stops_training_with_its_reason(tokenizer):
    tokenizer(frames())
    weights = [p.clone() for p in tokenizer.parameters()]
    with pytest.raises(FloatingPointError, match="the loss is nan: lower the learning rate"):
        stt.training_step(tokenizer, torch.optim.AdamW(tokenizer.parameters()), torch.full((8, 1, 32, 32), float("nan")))
    assert all(torch.equal(a, b) for a, b in zip(weights, tokenizer.parameters()))


def test_quantizer_stays_in_float32_under_autocast(tokenizer):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reconstruction, _, commitment = tokenizer(frames())
    assert tokenizer.quantizer.codebook.dtype == commitment.dtype == torch.float32
    assert reconstruction.isfinite().all()


# --- shapes and bad input


@pytest.mark.parametrize("downsample, channels, h, w", [(4, 1, 32, 32), (2, 3, 16, 24), (8, 3, 64, 32), (16, 1, 32, 48)])
def test_shapes(downsample, channels, h, w):
    config = stt.TokenizerConfig(channels=channels, downsample=downsample, width=32, codebook_size=16, latent_channels=5)
    tokenizer = stt.Tokenizer(config).eval()
    clips = torch.rand(2, 3, channels, h, w)
    latents, indices = tokenizer.quantize(tokenizer.encode(clips[0]))
    assert latents.shape == (3, 5, h // downsample, w // downsample) and indices.shape == latents[:, 0].shape
    torch.testing.assert_close(tokenizer.codes(indices), latents)
    out = tokenizer.decode(latents)
    assert out.shape == clips[0].shape and out.min() >= 0 and out.max() <= 1
    torch.testing.assert_close(tokenizer.reconstruct(clips)[0], out)


BAD_FRAMES = {
    "rank": (torch.zeros(1, 2, 1, 32, 32), ValueError, r"frames must have shape \(B C H W\), got 5 dimensions"),
    "channels": (torch.zeros(2, 3, 32, 32), ValueError, r"frames must have 1 channels in \(B C H W\), got 3"),
    "size": (torch.zeros(2, 1, 30, 32), ValueError, "divisible by 4, got 30x32"),
    "range": (torch.full((2, 1, 32, 32), 2.0), ValueError, r"values in \[0, 1\], got values from 2 to 2"),
    "dtype": (torch.zeros(2, 1, 32, 32, dtype=torch.uint8), TypeError, "floating point.*got torch.uint8"),
}


@pytest.mark.parametrize("case", BAD_FRAMES)
def test_bad_frames_are_refused(case, tokenizer, unchecked):
    bad, error, message = BAD_FRAMES[case]
    with pytest.raises(error, match=message):
        tokenizer.encode(bad)


def test_bad_latents_and_indices_are_refused(tokenizer, unchecked):
    for call in (tokenizer.decode, tokenizer.quantize):
        with pytest.raises(ValueError, match=r"latents must have shape \(B D h w\) with D = 4, got \(1, 5, 8, 8\)"):
            call(torch.zeros(1, 5, 8, 8))
    with pytest.raises(ValueError, match=r"indices must lie in \[0, 32\), got 0 to 32"):
        tokenizer.codes(torch.tensor([[[0, 32]]]))
    with pytest.raises(ValueError, match=r"clips must have shape \(B T C H W\) or \(B C H W\), got \(32, 32\)"):
        tokenizer.reconstruct(torch.zeros(32, 32))


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"downsample": 3}, "downsample must be a power of two of at least 2, got 3"),
        ({"width": 40}, "width must be a multiple of 16, got 40"),
        ({"channels": 2}, "channels must be 1 or 3, got 2"),
        ({"quantizer": "pq"}, 'quantizer must be "vq" or "fsq", got \'pq\''),
        ({"quantizer": "fsq", "levels": (8, 8)}, "levels must hold latent_channels = 8 numbers whose product is codebook_size = 512"),
    ],
)
def test_bad_configs_are_refused(bad, message, unchecked):
    with pytest.raises(ValueError, match=message):
        stt.TokenizerConfig(**bad)
    assert stt.TokenizerConfig(levels=[8, 8]).levels == (8, 8)


# --- weights


def test_saved_and_loaded_are_equal(tokenizer, tmp_path):
    path = stt.save_tokenizer(tokenizer, tmp_path / "sub" / "mine.safetensors", {"seconds": 3})
    loaded = stt.load_tokenizer(path)
    assert loaded.config == tokenizer.config and not loaded.training
    tokenizer.eval()
    assert torch.equal(loaded.reconstruct(frames()), tokenizer.reconstruct(frames()))
    assert json.loads(path.with_suffix(".json").read_text())["seconds"] == 3


def test_fsq_tokenizer_saves_and_loads(tmp_path):
    config = stt.TokenizerConfig(width=16, quantizer="fsq", levels=(5, 5), latent_channels=2, codebook_size=25)
    loaded = stt.load_tokenizer(stt.save_tokenizer(stt.Tokenizer(config), tmp_path / "f.safetensors"))
    assert loaded.config == config and isinstance(loaded.config.levels, tuple)  # JSON makes a list of it


@pytest.mark.parametrize("damage", ["cut", "flip"])
@pytest.mark.parametrize("record", [True, False])
def test_damaged_weights_are_refused(tokenizer, tmp_path, damage, record):
    path = stt.save_tokenizer(tokenizer, tmp_path / "mine.safetensors")
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    else:
        content[20] ^= 255  # in the header
    path.write_bytes(content)
    if not record:
        path.with_suffix(".json").unlink()
    with pytest.raises(ValueError, match="is damaged: expected sha256 .*, got " if record else "is not a whole tokenizer file"):
        stt.load_tokenizer(path)


def test_tampered_numbers_are_refused(tokenizer, tmp_path):
    path = stt.save_tokenizer(tokenizer, tmp_path / "mine.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        stt.load_tokenizer(path)


def test_other_safetensors_and_pickles_are_refused(tmp_path):
    safetensors.torch.save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="other.safetensors is not a whole tokenizer file"):
        stt.load_tokenizer(tmp_path / "other.safetensors")

    class Bomb:
        def __reduce__(self):
            return (sys.exit, ("a pickle was opened",))

    (tmp_path / "weights.pt").write_bytes(pickle.dumps(Bomb()))
    (tmp_path / "weights.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="load from .safetensors files only"):
        stt.load_tokenizer(tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="weights.safetensors is not a whole tokenizer file"):
        stt.load_tokenizer(tmp_path / "weights.safetensors")


def test_unknown_names_get_the_closest_match(tmp_path):
    with pytest.raises(ValueError, match="no bundled tokenizer 'moving-mnist-tny'; did you mean 'moving-mnist-tiny'"):
        stt.load_tokenizer("moving-mnist-tny")
    with pytest.raises(FileNotFoundError):
        stt.load_tokenizer(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="path must end in .safetensors, got 'a.pt'"):
        stt.save_tokenizer(stt.Tokenizer(SMALL), tmp_path / "a.pt")


def test_a_failed_save_keeps_the_old_file(tokenizer, tmp_path, monkeypatch):
    path = stt.save_tokenizer(tokenizer, tmp_path / "mine.safetensors")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full_disk(descriptor):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with torch.no_grad():
        next(tokenizer.parameters()).add_(1)
    with pytest.raises(OSError, match="No space left"):
        stt.save_tokenizer(tokenizer, path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before  # and no .part is left


def test_write_file_replaces_in_one_step(tmp_path, monkeypatch):
    path = tmp_path / "new" / "folder" / "note.txt"
    stt.write_file(path, b"old")
    seen, replace = [], os.replace

    def watch(source, target):
        seen.append((Path(source).name, Path(source).read_bytes(), path.read_bytes()))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watch)
    stt.write_file(path, b"new")
    assert seen == [("note.txt.part", b"new", b"old")]
    assert path.read_bytes() == b"new" and [file.name for file in path.parent.iterdir()] == ["note.txt"]
    (tmp_path / "file").touch()
    with pytest.raises(OSError):  # no folder there, and none can be made
        stt.write_file(tmp_path / "file" / "note.txt", b"new")


@dataclasses.dataclass(frozen=True)
class LineConfig:
    sizes: tuple[int, int] = (2, 3)


class Line(torch.nn.Linear):
    def __init__(self, config):
        super().__init__(*config.sizes)
        self.config = config


def build_line(fields):
    return Line(LineConfig(**fields | {"sizes": tuple(fields["sizes"])}))


def test_weights_of_any_module_save_and_load(tmp_path, tokenizer):
    line = Line(LineConfig())
    path = stt.save_weights(line, tmp_path / "line.safetensors", {"note": "mine"})
    loaded = stt.load_weights(path, "line", build_line)
    assert loaded.config == line.config and torch.equal(loaded.weight, line.weight) and not loaded.training
    assert json.loads(path.with_suffix(".json").read_text())["config"] == {"sizes": [2, 3]}
    with pytest.raises(ValueError, match="t.safetensors is not a whole line file: KeyError: 'sizes'"):
        stt.load_weights(stt.save_tokenizer(tokenizer, tmp_path / "t.safetensors"), "line", build_line)
    with pytest.raises(ValueError, match="no bundled line 'moving-mnist'. Bundled: none"):
        stt.load_weights("moving-mnist", "line", build_line)


BUNDLES = {"moving-mnist-tiny": (32, 1, 8, 1.2), "moving-mnist": (64, 2, 16, 3.0)}


@pytest.mark.parametrize("name", BUNDLES)
def test_bundled_tokenizers_meet_their_target(name):
    """Held-out digits: squared error summed per frame, and at least 90% of the codebook in use."""
    size, digits, grid, target = BUNDLES[name]
    tokenizer = stt.load_tokenizer(name)
    clips = stt.moving_mnist(100, 20, size, digits, split="test", seed=1)
    errors, indices = [], []
    with torch.no_grad():
        for frames in clips.flatten(0, 1).split(256):
            latents, tokens = tokenizer.quantize(tokenizer.encode(frames))
            errors.append((tokenizer.decode(latents) - frames).square().sum((1, 2, 3)))
            indices.append(tokens)
    error, indices = torch.cat(errors).mean().item(), torch.cat(indices)
    record = json.loads((stt.weights_folder() / f"{name}-tokenizer.json").read_text())
    assert error == pytest.approx(record["metrics"]["reconstruction_squared_error_per_frame"], rel=0.02)
    assert error <= target
    assert indices.shape[1:] == (grid, grid)
    assert stt.codebook_usage(indices, tokenizer.config.codebook_size) >= 0.9
    file = stt.weights_folder() / f"{name}-tokenizer.safetensors"
    assert file.stat().st_size <= 20_000_000


@pytest.mark.parametrize("name", BUNDLES)
def test_the_books_record_is_that_of_the_bundled_weights(name, root):
    """book/results/ holds the record that came with the weights, and README's table the figures of that record."""
    record = (stt.weights_folder() / f"{name}-tokenizer.json").read_text()
    assert (root / "book" / "results" / f"{name}-tokenizer.json").read_text() == record
    metrics = json.loads(record)["metrics"]
    row = next(line for line in (root / "README.md").read_text().splitlines() if line.startswith(f"| `{name}` "))
    assert f"| {metrics['reconstruction_squared_error_per_frame']:.2f} |" in row
    assert f"| {metrics['codebook_usage']:.0%} |" in row
