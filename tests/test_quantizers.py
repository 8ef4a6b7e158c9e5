"""Chapter 03's quantizers: as a library has them; a codeword quantizes to itself."""

import copy
import math

import pytest
import torch
import vector_quantize_pytorch as library

from processes import RUNS, train_quantizer, train_quantizers
from stt_lite.quantizers import (
    QUANTIZERS,
    FiniteScalarQuantizer,
    Quantizer,
    VectorQuantizer,
    codebook_usage,
    perplexity,
    straight_through,
)
from stt_lite.tokenizer import TokenizerConfig

LEVELS = [(8, 8, 4), (5, 4, 3), (2, 2), (2, 3), (7, 5, 5, 5), (4,) * 6]


def test_both_keep_the_protocol():
    for name in ("vq", "fsq"):
        config = TokenizerConfig(
            quantizer=name, codebook_size=64, latent_channels=2, levels=(8, 8)
        )
        quantizer = QUANTIZERS[name](config)
        assert isinstance(quantizer, Quantizer) and quantizer.codebook_size == 64
    assert not isinstance(torch.nn.Identity(), Quantizer)


def codewords_quantize_to_themselves(quantizer):
    everything = torch.arange(quantizer.codebook_size)
    words = quantizer.codes(everything)  # (K D)
    assert torch.equal(quantizer.nearest(words), everything)
    quantized, indices, _ = quantizer(words.T[None, :, None])  # (1 D 1 K)
    assert torch.equal(indices[0, 0], everything)
    assert torch.equal(quantized[0, :, 0].T, words)


@pytest.mark.parametrize("levels", LEVELS)
def test_a_codeword_of_fsq_quantizes_to_itself(levels):
    codewords_quantize_to_themselves(FiniteScalarQuantizer(levels))


def test_a_codeword_of_vq_quantizes_to_itself():
    quantizer = VectorQuantizer(512, 8).eval()
    quantizer.codebook.normal_()
    codewords_quantize_to_themselves(quantizer)


def test_straight_through_is_exact_forward_and_the_identity_backward():
    z = torch.randn(1000, requires_grad=True)
    codewords, weights = torch.randn(1000), torch.randn(1000)
    quantized = straight_through(z, codewords)
    assert torch.equal(quantized, codewords)  # z + (codewords - z) would miss some
    (quantized * weights).sum().backward()
    assert torch.equal(z.grad, weights)


# --- the learned codebook


def test_vector_quantizer_equals_the_library():
    torch.manual_seed(0)
    ours = VectorQuantizer(64, 8, decay=0.8, dead_below=0.0, kmeans_iterations=0)
    theirs = library.VectorQuantize(
        dim=8,
        codebook_size=64,
        decay=0.8,
        eps=1e-5,
        threshold_ema_dead_code=0,
        kmeans_init=False,
        commitment_weight=1.0,
    )
    inner, book = theirs._codebook, torch.randn(64, 8)
    ours.codebook.copy_(book), ours.total.copy_(book)
    inner.embed.data.copy_(book[None]), inner.embed_avg.data.copy_(book[None])
    ours.usage.fill_(1.0), inner.cluster_size.data.fill_(1.0)
    close = {"atol": 1e-6, "rtol": 1e-5}
    for _ in range(5):
        z = torch.randn(3, 8, 5, 5)
        quantized, indices, commitment = ours(z)
        expected, tokens, loss = theirs(z.permute(0, 2, 3, 1).reshape(3, 25, 8))
        assert torch.equal(indices.flatten(1), tokens)
        flat = quantized.flatten(2).transpose(1, 2)
        torch.testing.assert_close(flat, expected, **close)
        torch.testing.assert_close(commitment, loss.squeeze(), **close)
        torch.testing.assert_close(ours.codebook, inner.embed[0], **close)
        torch.testing.assert_close(ours.usage, inner.cluster_size[0], **close)
    assert (ours.codebook - book).abs().max() > 0.1  # it did move


@pytest.mark.parametrize("n", [200, 5000])  # 5000: two whole pieces and a part
def test_nearest_is_the_nearest(n):
    quantizer = VectorQuantizer(50, 6)
    quantizer.codebook.normal_()
    z = torch.randn(n, 6)
    distance = torch.cdist(z.double(), quantizer.codebook.double())
    chosen = distance.gather(1, quantizer.nearest(z)[:, None])[:, 0]
    nearest = distance.min(1).values
    torch.testing.assert_close(chosen, nearest, rtol=0, atol=1e-6)


def test_commitment_pulls_to_the_codeword():
    quantizer = VectorQuantizer(16, 4).eval()
    z = torch.randn(2, 4, 3, 3, requires_grad=True)
    quantized, _, commitment = quantizer(z)
    commitment.backward()
    expected = 2 * (z - quantized).detach() / z.numel()  # a mean over all channels
    torch.testing.assert_close(z.grad, expected)


def test_kmeans_starts_at_the_data():
    quantizer = VectorQuantizer(4, 2)
    centres = torch.tensor([[5.0, 5], [-5, 5], [5, -5], [-5, -5]])
    torch.manual_seed(1)
    flat = centres.repeat(100, 1) + 0.1 * torch.randn(400, 2)
    far = (flat - quantizer.codes(quantizer.nearest(flat))).square().mean()
    _, _, commitment = quantizer(flat.T.reshape(1, 2, 20, 20))
    assert quantizer.initialized and commitment < 0.5 * far


def test_evaluation_never_changes_the_codebook():
    quantizer = VectorQuantizer(16, 4)
    quantizer(torch.randn(2, 4, 8, 8))
    before = copy.deepcopy(quantizer.state_dict())
    quantizer.eval()(torch.randn(2, 4, 8, 8))
    for name, value in quantizer.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_dead_codewords_come_back_to_life():
    def usage(dead_below):
        torch.manual_seed(0)
        options = {"dead_below": dead_below, "kmeans_iterations": 0, "decay": 0.9}
        quantizer = VectorQuantizer(32, 4, **options)
        for _ in range(60):  # far from every random codeword
            quantizer(torch.randn(4, 4, 8, 8) + 10.0)
        indices = quantizer.eval()(torch.randn(4, 4, 8, 8) + 10.0)[1]
        return codebook_usage(indices, 32)

    assert usage(dead_below=0.0) < 0.2 and usage(dead_below=0.1) > 0.9


def test_processes_share_one_codebook(tmp_path):
    """Two processes with half of each batch: one codebook, that of the whole batch."""
    batches = torch.randn(6, 8, 4, 5, 5)
    batches = batches + torch.arange(8).view(8, 1, 1, 1)  # the halves differ
    torch.multiprocessing.spawn(train_quantizers, (str(tmp_path), batches), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for name in RUNS:
        for buffer, value in first[name].items():
            assert torch.equal(value, second[name][buffer]), (name, buffer)
    alone = train_quantizer(RUNS["follows"], batches, seed=1)
    for buffer, value in alone.items():
        shared = first["follows"][buffer]
        torch.testing.assert_close(shared, value, atol=1e-5, rtol=1e-5)
    half = train_quantizer(RUNS["follows"], batches[:, :4], seed=1)
    assert not torch.allclose(half["codebook"], alone["codebook"], atol=0.1)


# --- fixed levels


@pytest.mark.parametrize("levels", LEVELS)
def test_fsq_rounds_to_its_levels(levels):
    fsq = FiniteScalarQuantizer(levels)
    z = (torch.randn(3, len(levels), 9, 9) * 2).requires_grad_()
    quantized, indices, loss = fsq(fsq.bound(z))
    assert loss == 0 and fsq.codebook_size == math.prod(levels)
    assert 0 <= indices.min() and indices.max() < fsq.codebook_size
    assert torch.equal(fsq.codes(indices).movedim(-1, 1), quantized)
    for channel, count in enumerate(levels):
        assert quantized[:, channel].unique().numel() <= count
    everything = fsq.codes(torch.arange(fsq.codebook_size))
    assert everything.unique(dim=0).shape[0] == fsq.codebook_size
    assert everything.abs().max() <= 1
    quantized.sum().backward()  # through the bound, past the rounding
    torch.testing.assert_close(z.grad, 1 - z.detach().tanh() ** 2)


@pytest.mark.parametrize("levels", LEVELS)
def test_fsq_nearest_is_the_nearest_codeword(levels):
    """Also of vectors far outside, such as a transformer's predictions."""
    fsq = FiniteScalarQuantizer(levels)
    z = 1.5 * torch.randn(500, len(levels))
    distance = torch.cdist(z, fsq.codes(torch.arange(fsq.codebook_size)))
    chosen = distance.gather(1, fsq.nearest(z)[:, None])[:, 0]
    torch.testing.assert_close(chosen, distance.min(1).values)


def test_fsq_with_odd_levels_equals_the_library():
    """With odd levels both round tanh(z) to one grid; the library shifts even ones.

    It also squeezes by 1.001 before it rounds, so that a few values differ.
    """
    theirs = library.FSQ(levels=[5, 7, 5], preserve_symmetry=False)
    fsq, z = FiniteScalarQuantizer((5, 7, 5)), torch.randn(2, 3, 6, 6)
    difference = (fsq(fsq.bound(z))[0] - theirs(z)[0]).abs()
    assert difference.median() < 1e-3 and (difference < 1e-3).float().mean() > 0.98


@pytest.mark.parametrize("levels", [(-4, -4), (1, 8), (2.5, 2), (True, 4)])
def test_bad_levels_are_refused(levels, unchecked):
    with pytest.raises(ValueError, match="levels must be a whole number of at least 2"):
        FiniteScalarQuantizer(levels)


# --- two numbers


def test_usage_and_perplexity():
    assert codebook_usage(torch.tensor([[0, 1], [1, 1]]), 8) == 0.25
    assert perplexity(torch.arange(8), 8) == pytest.approx(8)
    assert perplexity(torch.zeros(5, dtype=torch.long), 8) == pytest.approx(1)
    p = torch.tensor([0.75, 0.25], dtype=torch.double)
    expected = torch.distributions.Categorical(p).entropy().exp().item()
    assert perplexity(torch.tensor([0, 0, 0, 1]), 2) == pytest.approx(expected)
