"""Chapter 07: the whole model."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from stt_lite.training import load_transformer, save_transformer
from stt_lite.transformer import (
    SpatialTemporalTransformer,
    TransformerConfig,
    TransformerLayer,
    count_flops,
    count_parameters,
    prediction_error,
)

MODES, HEADS = ["latent", "bottleneck", "off"], ["regression", "token"]
every_kind = pytest.mark.parametrize("gaussian, head", list(itertools.product(MODES, HEADS)))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def small(**options):
    """A small model whose zero-initialized parts have moved, as after some training; the grid is not square."""
    defaults = dict(latent_channels=4, grid=(3, 5), width=16, layers=2, heads=2, codebook_size=11, noise_channels=3)
    net = SpatialTemporalTransformer(TransformerConfig(**defaults | options))
    for parameter in net.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return net


def clips(batch=2, frames=6):
    return torch.randn(batch, frames, 4, 3, 5)


def targets(net, latents):
    """What the head predicts: latents, or some codeword index for each."""
    if net.config.head == "regression":
        return latents
    return (latents.sum(2).abs() * 10).long() % net.config.codebook_size


# Causality


@every_kind
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("window", [None, 3])
def test_prediction_never_sees_its_own_frame_or_later_ones(gaussian, head, training, window):
    net = small(gaussian=gaussian, head=head, window=window).train(training)
    latents, noise = clips(), net.draw_noise(2, 6)
    posterior = training and gaussian == "latent"  # in training frame t's own posterior sees frame t, by design
    before = net(latents, noise=noise).prediction
    for t in range(6):
        other = latents.clone()
        other[:, t:] = torch.randn_like(other[:, t:])
        after = net(other, noise=noise).prediction
        same = t if posterior else t + 1
        assert torch.equal(before[:, :same], after[:, :same])  # bit-identical
        if t < 5:
            assert (before[:, t + 1] != after[:, t + 1]).flatten(1).any(1).all()  # the next one does see it


def test_posterior_sees_the_frame_and_prior_does_not():
    net = small().eval()
    latents, noise = clips(1, 3), net.draw_noise(1, 3)
    other = latents.clone()
    other[:, 2] += 1.0
    for posterior, changed in ((False, False), (True, True)):
        a, b = (net(x, noise=noise, posterior=posterior) for x in (latents, other))
        assert torch.equal(a.prediction[:, 2], b.prediction[:, 2]) != changed
        assert torch.equal(a.kl[:, :2], b.kl[:, :2])
        assert torch.equal(a.kl[:, 2], b.kl[:, 2]) != changed


def test_posterior_of_a_prompt_sees_its_frames_only():
    net = small().eval()
    latents, noise = clips(2, 4), net.draw_noise(2, 4)
    out = net(latents, noise=noise, posterior=2)
    cold = net(latents, noise=0 * noise, posterior=False, temperature=0.0)
    whole = net(latents, noise=noise, posterior=True)
    torch.testing.assert_close(out.prediction[:, :2], whole.prediction[:, :2])
    torch.testing.assert_close(out.kl[:, :2], whole.kl[:, :2])
    assert out.kl[:, 2:].eq(0).all() and (out.prediction[:, 2:] != cold.prediction[:, 2:]).any()  # it knows the prompt's z
    other = latents.clone()
    other[:, 3] += 1.0
    assert torch.equal(net(other, noise=noise, posterior=2).prediction, out.prediction)
    for again in (0, False):
        torch.testing.assert_close(net(latents, noise=noise, posterior=again).kl, torch.zeros(2, 4, net.config.layers))


def test_posterior_sees_the_target_and_the_input_path_does_not():
    """`latents` corrupted, `target` true: predictions before frame t and the prior's know nothing of either's frame t."""
    net = small().train()
    latents, true, noise = clips(2, 4), clips(2, 4), net.draw_noise(2, 4)
    plain, own = net(latents, noise=noise), net(latents, noise=noise, target=latents)
    assert torch.equal(plain.prediction, own.prediction) and torch.equal(plain.kl, own.kl)  # None: `latents` itself
    a = net(latents, noise=noise, target=true)
    other = true.clone()
    other[:, 2] += 1.0
    b = net(latents, noise=noise, target=other)
    assert torch.equal(a.kl[:, :2], b.kl[:, :2]) and (a.kl[:, 2] != b.kl[:, 2]).all()
    assert (a.prediction[:, 2] != b.prediction[:, 2]).flatten(1).any(1).all()
    corrupted = latents.clone()
    corrupted[:, 2] += 1.0
    c = net(corrupted, noise=noise, target=true)  # reaches frame 3 as its input, and nothing before
    assert torch.equal(a.prediction[:, :3], c.prediction[:, :3]) and torch.equal(a.kl[:, :3], c.kl[:, :3])
    assert (a.prediction[:, 3] != c.prediction[:, 3]).flatten(1).any(1).all()
    without = [net(latents, noise=noise, posterior=False, target=x).prediction for x in (None, true)]
    assert torch.equal(*without)


def test_target_is_masked_and_detached_as_latents_are():
    net = small().train()
    latents, true, noise, lengths = clips(2, 4), clips(2, 4).requires_grad_(), net.draw_noise(2, 4), torch.tensor([4, 2])
    out = net(latents, lengths, noise, target=true)
    assert torch.autograd.grad(out.kl.sum(), true, allow_unused=True)[0] is None
    nan = true.detach().clone()
    nan[1, 2:] = float("nan")
    same = net(latents, lengths, noise, target=nan)
    assert torch.equal(out.prediction, same.prediction) and torch.equal(out.kl, same.kl)


def test_training_draws_from_the_posterior_and_evaluation_from_the_prior():
    net = small()
    latents, noise = clips(), net.draw_noise(2, 6)
    assert (net.train()(latents, noise=noise).kl > 0).all()
    assert net.eval()(latents, noise=noise).kl.eq(0).all()


# The start token, the residual stream, the tokenizer


def test_start_token_is_learned_and_not_noise():
    net = small(gaussian="off").eval()
    first = net(clips()).prediction[:, 0]
    torch.testing.assert_close(first[0], first[1])  # no frame known: every clip gets the same prediction ...
    assert torch.equal(first, net(clips()).prediction[:, 0])  # ... always
    net(clips()).prediction.square().sum().backward()
    assert isinstance(net.start, nn.Parameter) and net.start.grad.abs().sum() > 0


def test_layer_without_branches_is_the_identity():
    """The residual is the stream itself, not its normalized copy."""
    layer = TransformerLayer(TransformerConfig(grid=(3, 5), width=16, heads=2))
    for projection in (layer.spatial.attend.out, layer.temporal.attend.out, layer.feed_forward[-1]):
        nn.init.zeros_(projection.weight), nn.init.zeros_(projection.bias)
    x = 5 * torch.randn(2, 4, 3, 5, 16)
    y, _, _ = layer(x, torch.randn(2, 4, 3, 5, 4))
    assert torch.equal(x, y)


@every_kind
def test_no_gradient_reaches_the_tokenizer(gaussian, head):
    net = small(gaussian=gaussian, head=head)
    encoder = nn.Conv3d(1, 4, 1)
    latents = encoder(torch.randn(2, 1, 6, 3, 5)).transpose(1, 2)  # B T D h w, with a gradient
    out = net(latents)
    (prediction_error(out.prediction, targets(net, latents)).sum() + out.kl.sum()).backward()
    assert all(parameter.grad is None for parameter in encoder.parameters())


# Padding


@every_kind
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("garbage", [0.0, 1e4, float("nan")])
def test_padded_batch_gives_each_clip_what_it_gets_alone(gaussian, head, training, garbage):
    net = small(gaussian=gaussian, head=head).train(training)
    lengths = torch.tensor([3, 7, 1, 5])
    latents, noise = clips(4, 7), net.draw_noise(4, 7)
    for b, length in enumerate(lengths):
        latents[b, length:] = garbage
    out = net(latents, lengths, noise)
    error = prediction_error(out.prediction, targets(net, latents.nan_to_num()), lengths)
    total = 0
    for b, length in enumerate(lengths):
        alone = net(latents[b : b + 1, :length], noise=noise[b : b + 1, :length])
        torch.testing.assert_close(out.prediction[b : b + 1, :length], alone.prediction, rtol=0, atol=1e-5)
        torch.testing.assert_close(out.kl[b : b + 1, :length], alone.kl, rtol=1e-5, atol=1e-5)
        assert out.kl[b, length:].eq(0).all() and error[b, length:].eq(0).all()
        alone_error = prediction_error(alone.prediction, targets(net, latents[b : b + 1, :length]))
        total = total + alone_error.sum() + alone.kl.sum()
    padded_total = error.sum() + out.kl.sum()
    torch.testing.assert_close(padded_total, total, rtol=1e-5, atol=1e-4)
    together = torch.autograd.grad(padded_total, net.parameters(), allow_unused=True)
    apart = torch.autograd.grad(total, net.parameters(), allow_unused=True)
    for a, b in zip(together, apart):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


# The cache


def run_cached(net, latents, noise, slots=None, known=False):
    cache, predictions, previous = net.empty_cache(len(latents), slots), [], None
    for t in range(latents.shape[1]):
        target = latents[:, t] if known else None
        prediction, cache = net.step(previous, cache, noise[:, t], target)
        predictions.append(prediction)
        previous = latents[:, t]
    return torch.stack(predictions, 1)


@pytest.mark.parametrize("gaussian, head", [("latent", "regression"), ("latent", "token"), ("bottleneck", "token"), ("off", "regression")])
@pytest.mark.parametrize("window, slots", [(None, 40), (7, None), (7, 12)])
@torch.no_grad()
def test_cached_equals_uncached_over_40_frames(gaussian, head, window, slots, unchecked):
    net = small(gaussian=gaussian, head=head, window=window).eval()
    latents, noise = clips(2, 40), net.draw_noise(2, 40)
    whole = net(latents, noise=noise).prediction
    torch.testing.assert_close(run_cached(net, latents, noise, slots), whole, rtol=0, atol=1e-5)
    if gaussian == "latent":
        whole = net(latents, noise=noise, posterior=True).prediction
        torch.testing.assert_close(run_cached(net, latents, noise, slots, known=True), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("gaussian, head", [("latent", "regression"), ("latent", "token"), ("bottleneck", "token"), ("off", "regression")])
@pytest.mark.parametrize("window, slots", [(None, 12), (3, 12), (None, 9)])
@torch.no_grad()
def test_read_is_a_step_for_each_known_frame(gaussian, head, window, slots):
    net = small(gaussian=gaussian, head=head, window=window).eval()
    latents, noise = clips(2, 9), net.draw_noise(2, 9)
    cache, previous = net.empty_cache(2, slots), None
    for t in range(9):
        _, cache = net.step(previous, cache, noise[:, t], latents[:, t], 0.7)
        previous = latents[:, t]
    for layer, other in zip(net.read(latents, slots, noise, 0.7), cache, strict=True):
        for a, b in zip(layer, other, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="a slot for each new frame, got 9 frames for 8 slots"):
        net.read(latents, 8, noise)


@torch.no_grad()
def test_step_is_pure_and_keeps_shapes():
    net = small().eval()
    cache, noise = net.empty_cache(2, 4), net.draw_noise(2, 1)[:, 0]
    copies = [tuple(t.clone() for t in layer) for layer in cache]
    first, after = net.step(None, cache, noise)
    assert all(torch.equal(a, b) for layer, copy in zip(cache, copies) for a, b in zip(layer, copy))
    assert [t.shape for layer in after for t in layer] == [t.shape for layer in cache for t in layer]
    again, _ = net.step(None, cache, noise)
    assert torch.equal(first, again)


def test_noise_is_drawn_once_per_frame_and_fresh_for_each():
    net = small()
    whole = net.draw_noise(2, 5, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    single = [net.draw_noise(2, 1, generator) for _ in range(5)]
    assert whole.shape == (2, 5, 2, 3, 5, 3)
    assert torch.equal(whole, torch.cat(single, 1))
    assert len(whole.unique()) > 0.99 * whole.numel()  # no clip, frame, layer or pixel shares its noise
    assert abs(net.draw_noise(20, 20).std().item() - 1) < 0.02


@pytest.mark.parametrize("gaussian", ["latent", "bottleneck"])
def test_every_frame_and_layer_uses_its_own_noise(gaussian):
    net = small(gaussian=gaussian).eval()
    latents, noise = clips(1, 4), net.draw_noise(1, 4)
    before = net(latents, noise=noise).prediction
    for t, layer in itertools.product(range(4), range(2)):
        other = noise.clone()
        other[:, t, layer] += 1.0
        after = net(latents, noise=other).prediction
        assert torch.equal(before[:, :t], after[:, :t]) and not torch.equal(before[:, t], after[:, t])


def test_the_same_seed_gives_the_same_output():
    net, latents = small().eval(), clips()
    outputs = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        outputs.append(net(latents).prediction)
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize("gaussian", ["latent", "bottleneck"])
def test_temperature_is_a_factor_on_the_noise(gaussian):
    net, latents = small(gaussian=gaussian).eval(), clips()
    noise = net.draw_noise(2, 6)
    for factor in (0.0, 0.5):
        scaled = net(latents, noise=factor * noise).prediction
        torch.testing.assert_close(net(latents, noise=noise, temperature=factor).prediction, scaled)


# Training


@every_kind
def test_gradients_reach_every_parameter(gaussian, head):
    """After one optimizer step: at first the zero-initialized injection holds the posterior's gradient back."""
    net = SpatialTemporalTransformer(small(gaussian=gaussian, head=head).config)
    optimizer, latents = torch.optim.AdamW(net.parameters(), 1e-3), clips()
    for _ in range(2):
        out = net(latents)
        optimizer.zero_grad()
        (prediction_error(out.prediction, targets(net, latents)).mean() + 0.1 * out.kl.mean()).backward()
        optimizer.step()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def train(net, steps, autocast=False):
    latents = clips(4, 5)
    target, losses = targets(net, latents), []
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3, fused=True)
    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = net(latents, lengths=torch.tensor([5, 3, 1, 5]))
            error = prediction_error(out.prediction, target, torch.tensor([5, 3, 1, 5]))
        loss = error.mean() + 1e-3 * out.kl.sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses)


@every_kind
def test_dropout_trains(gaussian, head, unchecked):
    losses = train(small(gaussian=gaussian, head=head, dropout=0.1).train(), 30)
    assert losses.isfinite().all() and losses[-5:].mean() < 0.9 * losses[:5].mean()


def test_dropout_drops_in_training_only():
    net, latents = small(gaussian="off", dropout=0.5), clips()
    assert torch.equal(net.eval()(latents).prediction, net(latents).prediction)
    assert not torch.equal(net.train()(latents).prediction, net(latents).prediction)


@pytest.mark.parametrize("gaussian, head", [("latent", "regression"), ("bottleneck", "token")])
def test_bf16_autocast_trains_200_steps_without_nan(gaussian, head, unchecked):
    net = small(gaussian=gaussian, head=head, width=8, heads=1, layers=1).train()
    losses = train(net, 200, autocast=True)
    assert losses.isfinite().all() and losses[-10:].mean() < 0.7 * losses[:10].mean()
    assert all(parameter.isfinite().all() for parameter in net.parameters())


# Sizes, counts, messages


@every_kind
@pytest.mark.parametrize("grid, frames", [((3, 5), 1), ((1, 1), 3), ((4, 2), 2)])
def test_shapes(gaussian, head, grid, frames):
    net = small(gaussian=gaussian, head=head, grid=grid)
    out = net(torch.randn(2, frames, 4, *grid))
    assert out.prediction.shape == (2, frames, 4 if head == "regression" else 11, *grid)
    assert out.kl.shape == (2, frames, 2) and out.kl.dtype == torch.float32


CONFIGS = [
    dict(gaussian=gaussian, head=head, **options)
    for gaussian, head in itertools.product(MODES, HEADS)
    for options in ({}, dict(conv=False, kernel_size=1, mlp_ratio=2, layers=3, heads=4))
]


@pytest.mark.parametrize("options", CONFIGS)
def test_parameter_count(options):
    net = small(**options)
    assert count_parameters(net.config) == sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize("options", CONFIGS)
@pytest.mark.parametrize("frames", [1, 7])
def test_flop_count(options, frames):
    net, latents = small(**options), clips(2, frames)
    for posterior in (False, True):
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            net(latents, posterior=posterior)
        assert counter.get_total_flops() == 2 * frames * count_flops(net.config, frames, posterior)


# Patches


def patched(**options):
    """A small model on patches of 2x2 latents; neither grid is square."""
    return small(grid=(4, 6), patch=2, **options)


@every_kind
def test_counts_of_a_model_on_patches(gaussian, head):
    net, latents = patched(gaussian=gaussian, head=head), torch.randn(2, 7, 4, 4, 6)
    assert count_parameters(net.config) == sum(parameter.numel() for parameter in net.parameters())
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        out = net(latents, posterior=True)
    assert counter.get_total_flops() == 2 * 7 * count_flops(net.config, 7, posterior=True)
    assert out.prediction.shape == (2, 7, net.config.out_channels, 4, 6)


@every_kind
@torch.no_grad()
def test_a_model_on_patches_generates_as_it_trains(gaussian, head):
    """Frame by frame equals all at once, no prediction sees its own frame, and cache and noise lie on the coarse grid."""
    net = patched(gaussian=gaussian, head=head).eval()
    latents, noise = torch.randn(2, 12, 4, 4, 6), net.draw_noise(2, 12)
    assert net.config.stream_grid == (2, 3) and noise.shape[3:5] == (2, 3)
    whole = net(latents, noise=noise).prediction
    torch.testing.assert_close(run_cached(net, latents, noise, 12), whole, rtol=0, atol=1e-5)
    assert len(net.empty_cache(2, 5)[0].keys) == 2 * 2 * 3
    other = latents.clone()
    other[:, 5:] = torch.randn_like(other[:, 5:])
    after = net(other, noise=noise).prediction
    assert torch.equal(whole[:, :6], after[:, :6]) and not torch.equal(whole[:, 6], after[:, 6])


@torch.no_grad()
def test_a_patch_is_a_square_of_the_latent_grid():
    """Where no layer says anything, a prediction is a linear map of the patch before it, and of nothing else."""
    net = patched(gaussian="off")
    for layer in net.layers:
        for projection in (layer.spatial.attend.out, layer.temporal.attend.out, layer.feed_forward[-1]):
            nn.init.zeros_(projection.weight), nn.init.zeros_(projection.bias)
    latents = torch.randn(1, 2, 4, 4, 6)
    for row, column in ((0, 0), (1, 2), (3, 5)):
        other = latents.clone()
        other[:, 0, :, row, column] += 1
        changed = (net(other).prediction - net(latents).prediction)[0, 1].abs().sum(0) > 1e-6  # (h w)
        expected = torch.zeros(4, 6, dtype=torch.bool)
        top, left = row // 2 * 2, column // 2 * 2
        expected[top : top + 2, left : left + 2] = True
        assert torch.equal(changed, expected)


@pytest.mark.parametrize("patch, message", [
    (4, r"patch must divide the latent grid \(h, w\) = \(4, 6\), got 4"), (0, "patch must be a whole number of at least 1, got 0"),
    (1.5, "patch must be"), (8, "patch must divide"),
])  # fmt: skip
def test_a_patch_that_does_not_fit(patch, message, unchecked):
    with pytest.raises(ValueError, match=message):
        TransformerConfig(grid=(4, 6), patch=patch)


def test_weights_of_another_patch_are_refused(tmp_path):
    path = save_transformer(small(grid=(4, 6)), tmp_path / "plain.safetensors")
    assert load_transformer(path).config.patch == 1
    with pytest.raises(RuntimeError, match="size mismatch for embed.weight"):
        patched().load_state_dict(load_transformer(path).state_dict())


def test_prediction_error():
    prediction, latents = torch.randn(2, 2, 3, 4, 5, 6)
    expected = ((prediction - latents) ** 2).sum((2, 3, 4))
    torch.testing.assert_close(prediction_error(prediction, latents), expected)
    indices = torch.randint(4, (2, 3, 5, 6))
    expected = -prediction.log_softmax(2).gather(2, indices[:, :, None]).sum((2, 3, 4))
    torch.testing.assert_close(prediction_error(prediction, indices), expected)
    masked = prediction_error(prediction, indices, torch.tensor([1, 3]))
    torch.testing.assert_close(masked, expected * torch.tensor([[1, 0, 0], [1, 1, 1]]))


def test_messages(unchecked):
    for options in (dict(gaussian="on"), dict(head="pixels")):
        (name,) = options
        with pytest.raises(ValueError, match=f"{name} must be .*got {options[name]!r}"):
            TransformerConfig(**options)
    net = small()
    for wrong in (torch.randn(2, 6, 3, 3, 5), torch.randn(2, 6, 4, 5, 3), torch.randn(6, 4, 3, 5)):
        for method in (net, lambda latents: net.read(latents, 6)):
            with pytest.raises(ValueError, match=r"latents must have shape \(B T D h w\), \(D h w\) = \(4, 3, 5\)"):
                method(wrong)
        with pytest.raises(ValueError, match=r"target must have latents' shape, \(2, 6, 4, 3, 5\), got \([0-9, ]+\)$"):
            net(clips(), target=wrong)
    with pytest.raises(ValueError, match="window"):
        net.empty_cache(2)


def test_config_survives_json(unchecked):
    import json
    from dataclasses import asdict

    config = TransformerConfig(grid=(3, 5), window=4)
    assert TransformerConfig(**json.loads(json.dumps(asdict(config)))) == config
