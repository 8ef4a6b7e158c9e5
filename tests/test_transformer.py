"""Chapter 07: one layer, and the whole model."""

import itertools
import json
from dataclasses import asdict, replace

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models import SHAPE, every_kind, small_net
from stt_lite.files import weights_folder
from stt_lite.layer import TransformerConfig, TransformerLayer, transformer_config
from stt_lite.transformer import (
    SpatialTemporalTransformer,
    count_flops,
    count_parameters,
    load_transformer,
    prediction_error,
    save_transformer,
)

some_kinds = pytest.mark.parametrize(
    "gaussian, head",
    [
        ("latent", "regression"),
        ("latent", "token"),
        ("bottleneck", "token"),
        ("off", "regression"),
    ],
)


def clips(batch=2, frames=6):
    return torch.randn(batch, frames, 4, 3, 5)


def targets(net, latents):
    """What the head predicts: latents, or some codeword index for each."""
    if net.config.head == "regression":
        return latents
    return (latents.sum(2).abs() * 10).long() % net.config.codebook_size


def silenced(layer):
    """The layer, none of whose branches says anything."""
    spatial, temporal = layer.spatial.attend.out, layer.temporal.attend.out
    for projection in (spatial, temporal, layer.feed_forward[-1]):
        nn.init.zeros_(projection.weight)
        nn.init.zeros_(projection.bias)
    return layer


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


# Causality


@every_kind
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("conditioned", [False, True])
def test_prediction_never_sees_its_own_frame_or_later_ones(
    gaussian, head, training, conditioned
):
    net = small_net(gaussian=gaussian, head=head).train(training)
    latents, noise = clips(), net.draw_noise(2, 6)
    condition = torch.randn(2, 6, 16) if conditioned else None
    # in training frame t's own posterior sees frame t, by design
    posterior = training and gaussian == "latent"
    before = net(latents, noise=noise, condition=condition).prediction
    for t in range(6):
        other = latents.clone()
        other[:, t:] = torch.randn_like(other[:, t:])
        after = net(other, noise=noise, condition=condition).prediction
        same = t if posterior else t + 1
        assert torch.equal(before[:, :same], after[:, :same])  # bit-identical
        if t < 5:  # the next one does see it
            assert (before[:, t + 1] != after[:, t + 1]).flatten(1).any(1).all()


@every_kind
def test_condition_changes_the_frame_it_leads_to_and_later_ones(gaussian, head):
    net = small_net(gaussian=gaussian, head=head).eval()
    latents, noise = clips(), net.draw_noise(2, 6)
    condition = torch.randn(2, 6, 16)
    before = net(latents, noise=noise, condition=condition).prediction
    for t in range(6):
        other = condition.clone()
        other[:, t] += torch.randn(2, 16)
        after = net(latents, noise=noise, condition=other).prediction
        assert torch.equal(before[:, :t], after[:, :t])
        assert (before[:, t:] != after[:, t:]).flatten(2).any(2).all()


def test_no_condition_is_one_of_zeros():
    net = small_net().eval()
    latents, noise, zeros = clips(), net.draw_noise(2, 6), torch.zeros(2, 6, 16)
    plain, with_zeros = (
        net(latents, noise=noise, condition=c).prediction for c in (None, zeros)
    )
    assert torch.equal(plain, with_zeros)
    cache = net.prefill(latents, 6, noise)
    again = net.prefill(latents, 6, noise, condition=zeros)
    assert all(torch.equal(a.keys, b.keys) for a, b in zip(cache, again))
    steps = [
        net.step(latents[:, 0], cache, noise[:, 0], condition=c)[0]
        for c in (None, zeros[:, 0])
    ]
    assert torch.equal(*steps)


def test_gradients_reach_the_condition():
    net, condition = small_net(), torch.randn(2, 6, 16, requires_grad=True)
    net(clips(), condition=condition).prediction[:, 3].sum().backward()
    assert (condition.grad[:, :4] != 0).any(-1).all() and (
        condition.grad[:, 4:] == 0
    ).all()


def test_posterior_sees_the_frame_and_prior_does_not():
    net = small_net().eval()
    latents, noise = clips(1, 3), net.draw_noise(1, 3)
    other = latents.clone()
    other[:, 2] += 1.0
    for posterior in (False, True):
        a, b = (net(x, noise=noise, posterior=posterior) for x in (latents, other))
        assert torch.equal(a.prediction[:, 2], b.prediction[:, 2]) != posterior
        assert torch.equal(a.kl[:, :2], b.kl[:, :2])
        assert torch.equal(a.kl[:, 2], b.kl[:, 2]) != posterior


def test_posterior_of_a_prompt_sees_its_frames_only():
    net = small_net().eval()
    latents, noise = clips(2, 4), net.draw_noise(2, 4)
    out = net(latents, noise=noise, posterior=2)
    cold = net(latents, noise=0 * noise, posterior=False, temperature=0.0)
    whole = net(latents, noise=noise, posterior=True)
    torch.testing.assert_close(out.prediction[:, :2], whole.prediction[:, :2])
    torch.testing.assert_close(out.kl[:, :2], whole.kl[:, :2])
    assert out.kl[:, 2:].eq(0).all()
    assert (out.prediction[:, 2:] != cold.prediction[:, 2:]).any()  # knows its z
    other = latents.clone()
    other[:, 3] += 1.0
    assert torch.equal(net(other, noise=noise, posterior=2).prediction, out.prediction)
    for none in (0, False):
        assert net(latents, noise=noise, posterior=none).kl.eq(0).all()


def test_posterior_sees_the_target_and_the_input_path_does_not():
    """`latents` corrupted, `target` true: neither's frame t reaches what is before."""
    net = small_net().train()
    latents, true, noise = clips(2, 4), clips(2, 4), net.draw_noise(2, 4)
    plain, own = (net(latents, noise=noise, target=x) for x in (None, latents))
    assert torch.equal(plain.prediction, own.prediction)
    assert torch.equal(plain.kl, own.kl)
    a = net(latents, noise=noise, target=true)
    other = true.clone()
    other[:, 2] += 1.0
    b = net(latents, noise=noise, target=other)
    assert torch.equal(a.kl[:, :2], b.kl[:, :2]) and (a.kl[:, 2] != b.kl[:, 2]).all()
    assert (a.prediction[:, 2] != b.prediction[:, 2]).flatten(1).any(1).all()
    corrupted = latents.clone()
    corrupted[:, 2] += 1.0
    c = net(corrupted, noise=noise, target=true)  # frame 3's input, nothing before
    assert torch.equal(a.prediction[:, :3], c.prediction[:, :3])
    assert torch.equal(a.kl[:, :3], c.kl[:, :3])
    assert (a.prediction[:, 3] != c.prediction[:, 3]).flatten(1).any(1).all()
    without = [
        net(latents, noise=noise, posterior=False, target=x).prediction
        for x in (None, true)
    ]
    assert torch.equal(*without)


def test_target_is_masked_and_detached_as_latents_are():
    net, lengths = small_net().train(), torch.tensor([4, 2])
    latents, noise = clips(2, 4), net.draw_noise(2, 4)
    true = clips(2, 4).requires_grad_()
    out = net(latents, lengths, noise, target=true)
    assert torch.autograd.grad(out.kl.sum(), true, allow_unused=True)[0] is None
    nan = true.detach().clone()
    nan[1, 2:] = float("nan")
    same = net(latents, lengths, noise, target=nan)
    assert torch.equal(out.prediction, same.prediction) and torch.equal(out.kl, same.kl)


def test_training_draws_from_the_posterior_and_evaluation_from_the_prior():
    net = small_net()
    latents, noise = clips(), net.draw_noise(2, 6)
    assert (net.train()(latents, noise=noise).kl > 0).all()
    assert net.eval()(latents, noise=noise).kl.eq(0).all()


# The start token, the residual stream, the tokenizer


def test_start_token_is_learned_and_not_noise():
    net = small_net(gaussian="off").eval()
    first = net(clips()).prediction[:, 0]
    close(first[0], first[1])  # no frame known: every clip gets the same prediction ...
    assert torch.equal(first, net(clips()).prediction[:, 0])  # ... always
    net(clips()).prediction.square().sum().backward()
    assert isinstance(net.start, nn.Parameter) and net.start.grad.abs().sum() > 0


def test_layer_without_branches_is_the_identity():
    """The residual is the stream itself, not its normalized copy."""
    layer = TransformerLayer(TransformerConfig(grid=(3, 5), width=16, heads=2))
    x = 5 * torch.randn(2, 4, 3, 5, 16)
    y, _, _ = silenced(layer)(x, torch.randn(2, 4, 3, 5, 4))
    assert torch.equal(x, y)


@every_kind
def test_no_gradient_reaches_the_tokenizer(gaussian, head):
    net = small_net(gaussian=gaussian, head=head)
    encoder = nn.Conv3d(1, 4, 1)
    latents = encoder(torch.randn(2, 1, 6, 3, 5)).transpose(1, 2)  # B T D h w
    out = net(latents)
    error = prediction_error(out.prediction, targets(net, latents))
    (error.sum() + out.kl.sum()).backward()
    assert all(parameter.grad is None for parameter in encoder.parameters())


# Padding


@every_kind
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("garbage", [0.0, 1e4, float("nan")])
def test_padded_batch_gives_each_clip_what_it_gets_alone(
    gaussian, head, training, garbage
):
    net = small_net(gaussian=gaussian, head=head).train(training)
    lengths = torch.tensor([3, 7, 1, 5])
    latents, noise = clips(4, 7), net.draw_noise(4, 7)
    for b, length in enumerate(lengths):
        latents[b, length:] = garbage
    out = net(latents, lengths, noise)
    target = targets(net, latents.nan_to_num())
    error = prediction_error(out.prediction, target, lengths)
    total = 0
    for b, length in enumerate(lengths):
        one = slice(b, b + 1)
        alone = net(latents[one, :length], noise=noise[one, :length])
        close(out.prediction[one, :length], alone.prediction)
        torch.testing.assert_close(out.kl[one, :length], alone.kl, rtol=1e-5, atol=1e-5)
        assert out.kl[b, length:].eq(0).all() and error[b, length:].eq(0).all()
        own = prediction_error(alone.prediction, targets(net, latents[one, :length]))
        total = total + own.sum() + alone.kl.sum()
    padded_total = error.sum() + out.kl.sum()
    torch.testing.assert_close(padded_total, total, rtol=1e-5, atol=1e-4)
    together = torch.autograd.grad(padded_total, net.parameters(), allow_unused=True)
    apart = torch.autograd.grad(total, net.parameters(), allow_unused=True)
    for a, b in zip(together, apart):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


# The cache


def run_cached(net, latents, noise, slots, known=False, condition=None):
    cache, predictions, previous = net.empty_cache(len(latents), slots), [], None
    for t in range(latents.shape[1]):
        target = latents[:, t] if known else None
        c = None if condition is None else condition[:, t]
        prediction, cache = net.step(previous, cache, noise[:, t], target, condition=c)
        predictions.append(prediction)
        previous = latents[:, t]
    return torch.stack(predictions, 1)


@some_kinds
@pytest.mark.parametrize("conditioned", [False, True])
@torch.no_grad()
def test_cached_equals_uncached_over_40_frames(gaussian, head, conditioned, unchecked):
    net = small_net(gaussian=gaussian, head=head).eval()
    latents, noise = clips(2, 40), net.draw_noise(2, 40)
    condition = torch.randn(2, 40, 16) if conditioned else None
    options = {"noise": noise, "condition": condition}
    whole = net(latents, **options).prediction
    close(run_cached(net, latents, noise, 40, condition=condition), whole)
    if gaussian == "latent":
        whole = net(latents, posterior=True, **options).prediction
        close(run_cached(net, latents, noise, 40, True, condition), whole)


@some_kinds
@pytest.mark.parametrize("slots", [9, 12])
@pytest.mark.parametrize("conditioned", [False, True])
@torch.no_grad()
def test_prefill_is_a_step_for_each_known_frame(gaussian, head, slots, conditioned):
    net = small_net(gaussian=gaussian, head=head).eval()
    latents, noise = clips(2, 9), net.draw_noise(2, 9)
    condition = torch.randn(2, 9, 16) if conditioned else None
    cache, previous = net.empty_cache(2, slots), None
    for t in range(9):
        c = condition[:, t] if conditioned else None
        _, cache = net.step(previous, cache, noise[:, t], latents[:, t], 0.7, c)
        previous = latents[:, t]
    at_once = net.prefill(latents, slots, noise, 0.7, condition)
    for layer, other in zip(at_once, cache, strict=True):
        for a, b in zip(layer, other, strict=True):
            close(a, b)
    with pytest.raises(ValueError, match="cache must have 9 slots or more, got 8"):
        net.prefill(latents, 8, noise)


@torch.no_grad()
def test_step_is_pure_and_keeps_shapes():
    net = small_net().eval()
    cache, noise = net.empty_cache(2, 4), net.draw_noise(2, 1)[:, 0]
    copies = [[t.clone() for t in layer] for layer in cache]
    first, after = net.step(None, cache, noise)
    for layer, copy, new in zip(cache, copies, after, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(layer, copy))
        assert [t.shape for t in new] == [t.shape for t in layer]
    again, _ = net.step(None, cache, noise)
    assert torch.equal(first, again)


def test_noise_is_drawn_once_per_frame_and_fresh_for_each():
    net = small_net()
    whole = net.draw_noise(2, 5, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    single = [net.draw_noise(2, 1, generator) for _ in range(5)]
    assert whole.shape == (2, 5, 2, 3, 5, 3)
    assert torch.equal(whole, torch.cat(single, 1))
    assert len(whole.unique()) > 0.99 * whole.numel()  # nobody shares its noise
    assert abs(net.draw_noise(20, 20).std().item() - 1) < 0.02


@pytest.mark.parametrize("gaussian", ["latent", "bottleneck"])
def test_every_frame_and_layer_uses_its_own_noise(gaussian):
    net = small_net(gaussian=gaussian).eval()
    latents, noise = clips(1, 4), net.draw_noise(1, 4)
    before = net(latents, noise=noise).prediction
    for t, layer in itertools.product(range(4), range(2)):
        other = noise.clone()
        other[:, t, layer] += 1.0
        after = net(latents, noise=other).prediction
        assert torch.equal(before[:, :t], after[:, :t])
        assert not torch.equal(before[:, t], after[:, t])


def test_the_same_seed_gives_the_same_output():
    net, latents = small_net().eval(), clips()
    outputs = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        outputs.append(net(latents).prediction)
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize("gaussian", ["latent", "bottleneck"])
def test_temperature_is_a_factor_on_the_noise(gaussian):
    net, latents = small_net(gaussian=gaussian).eval(), clips()
    noise = net.draw_noise(2, 6)
    for factor in (0.0, 0.5):
        scaled = net(latents, noise=factor * noise).prediction
        cooler = net(latents, noise=noise, temperature=factor).prediction
        torch.testing.assert_close(cooler, scaled)


# Training


@every_kind
def test_gradients_reach_every_parameter(gaussian, head):
    """After one step: at first the zero-initialized injection holds some back."""
    net = SpatialTemporalTransformer(replace(SHAPE, gaussian=gaussian, head=head))
    optimizer, latents = torch.optim.AdamW(net.parameters(), 1e-3), clips()
    for _ in range(2):
        out = net(latents)
        error = prediction_error(out.prediction, targets(net, latents))
        optimizer.zero_grad()
        (error.mean() + 0.1 * out.kl.mean()).backward()
        optimizer.step()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    "gaussian, head", [("latent", "regression"), ("bottleneck", "token")]
)
def test_bf16_autocast_trains_200_steps_without_nan(gaussian, head, unchecked):
    net = small_net(gaussian=gaussian, head=head, width=8, heads=1, layers=1).train()
    latents, lengths = clips(4, 5), torch.tensor([5, 3, 1, 5])
    target, losses = targets(net, latents), []
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3, fused=True)
    for _ in range(200):
        with torch.autocast("cpu", torch.bfloat16):
            out = net(latents, lengths)
            error = prediction_error(out.prediction, target, lengths)
        loss = error.mean() + 1e-3 * out.kl.sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    losses = torch.tensor(losses)
    assert losses.isfinite().all() and losses[-10:].mean() < 0.7 * losses[:10].mean()
    assert all(parameter.isfinite().all() for parameter in net.parameters())


def test_prediction_error():
    prediction, latents = torch.randn(2, 2, 3, 4, 5, 6)
    expected = ((prediction - latents) ** 2).sum((2, 3, 4))
    torch.testing.assert_close(prediction_error(prediction, latents), expected)
    indices = torch.randint(4, (2, 3, 5, 6))
    log_shares = prediction.log_softmax(2).gather(2, indices[:, :, None])
    expected = -log_shares.sum((2, 3, 4))
    torch.testing.assert_close(prediction_error(prediction, indices), expected)
    masked = prediction_error(prediction, indices, torch.tensor([1, 3]))
    real = torch.tensor([[1, 0, 0], [1, 1, 1]])
    torch.testing.assert_close(masked, expected * real)


def test_a_weight_is_of_each_latent():
    prediction, latents = torch.randn(2, 2, 3, 4, 5, 6)
    weight, indices = torch.rand(2, 3, 5, 6), torch.randint(4, (2, 3, 5, 6))
    weighted = weight[:, :, None]
    expected = (weighted * (prediction - latents) ** 2).sum((2, 3, 4))
    error = prediction_error(prediction, latents, weight=weight)
    torch.testing.assert_close(error, expected)
    log_shares = prediction.log_softmax(2).gather(2, indices[:, :, None])
    error = prediction_error(prediction, indices, weight=weight)
    torch.testing.assert_close(error, -(weighted * log_shares).sum((2, 3, 4)))


# Sizes, counts, patches


@every_kind
@pytest.mark.parametrize("grid, frames", [((3, 5), 1), ((1, 1), 3), ((4, 2), 2)])
def test_shapes(gaussian, head, grid, frames):
    net = small_net(gaussian=gaussian, head=head, grid=grid)
    out = net(torch.randn(2, frames, 4, *grid))
    assert out.prediction.shape == (2, frames, 4 if head == "regression" else 11, *grid)
    assert out.kl.shape == (2, frames, 2) and out.kl.dtype == torch.float32


@every_kind
@pytest.mark.parametrize(
    "options", [{}, dict(kernel_size=1, layers=3, heads=4), dict(grid=(4, 6), patch=2)]
)
def test_counts_are_those_of_a_model_at_work(gaussian, head, options):
    net = small_net(gaussian=gaussian, head=head, **options)
    state = torch.get_rng_state()
    expected = sum(parameter.numel() for parameter in net.parameters())
    assert count_parameters(net.config) == expected
    for frames, posterior in itertools.product((1, 7), (False, True)):
        flops = count_flops(net.config, frames, posterior)
        assert torch.equal(torch.get_rng_state(), state)
        latents, noise = torch.randn(2, frames, 4, *net.config.grid), None
        counter = FlopCounterMode(display=False)
        with counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            net(latents, noise=noise, posterior=posterior)
        assert counter.get_total_flops() == 2 * frames * flops
        torch.set_rng_state(state)


def patched(**options):
    """A small model on patches of 2x2 latents; neither grid is square."""
    return small_net(grid=(4, 6), patch=2, **options)


@every_kind
@torch.no_grad()
def test_a_model_on_patches_generates_as_it_trains(gaussian, head):
    """Cached equals uncached, and causal; noise and cache are on the coarse grid."""
    net = patched(gaussian=gaussian, head=head).eval()
    latents, noise = torch.randn(2, 12, 4, 4, 6), net.draw_noise(2, 12)
    assert net.config.stream_grid == (2, 3) and noise.shape[3:5] == (2, 3)
    whole = net(latents, noise=noise).prediction
    assert whole.shape == (2, 12, net.config.out_channels, 4, 6)
    close(run_cached(net, latents, noise, 12), whole)
    assert len(net.empty_cache(2, 5)[0].keys) == 2 * 2 * 3
    other = latents.clone()
    other[:, 5:] = torch.randn_like(other[:, 5:])
    after = net(other, noise=noise).prediction
    assert torch.equal(whole[:, :6], after[:, :6])
    assert not torch.equal(whole[:, 6], after[:, 6])


@torch.no_grad()
def test_a_patch_is_a_square_of_the_latent_grid():
    """Where no layer says anything, a prediction depends on the patch before alone."""
    net = patched(gaussian="off")
    for layer in net.layers:
        silenced(layer)
    latents = torch.randn(1, 2, 4, 4, 6)
    for row, column in ((0, 0), (1, 2), (3, 5)):
        other = latents.clone()
        other[:, 0, :, row, column] += 1
        difference = (net(other).prediction - net(latents).prediction)[0, 1]
        expected = torch.zeros(4, 6, dtype=torch.bool)
        top, left = row // 2 * 2, column // 2 * 2
        expected[top : top + 2, left : left + 2] = True
        assert torch.equal(difference.abs().sum(0) > 1e-6, expected)


@pytest.mark.parametrize(
    "patch, message",
    [
        (4, r"patch must divide the latent grid \(h, w\) = \(4, 6\), got 4"),
        (0, "patch must be a whole number of at least 1, got 0"),
        (1.5, "patch must be"),
        (8, "patch must divide"),
    ],
)
def test_a_patch_that_does_not_fit(patch, message, unchecked):
    with pytest.raises(ValueError, match=message):
        TransformerConfig(grid=(4, 6), patch=patch)


# Messages, files


def test_messages(unchecked):
    for options in (dict(gaussian="on"), dict(head="pixels")):
        (name,) = options
        with pytest.raises(ValueError, match=f"{name} must be .*got {options[name]!r}"):
            TransformerConfig(**options)
    net, shape = small_net(), r"\(B T D h w\), D = 4, h = 3, w = 5"
    sizes = (2, 6, 3, 3, 5), (2, 6, 4, 5, 3), (6, 4, 3, 5)
    for wrong in (torch.randn(size) for size in sizes):
        for method in (net, lambda latents: net.prefill(latents, 6)):
            with pytest.raises(ValueError, match=f"latents must have shape {shape}"):
                method(wrong)
        wanted = r"target must have latents' shape, \(2, 6, 4, 3, 5\), got"
        with pytest.raises(ValueError, match=wanted):
            net(clips(), target=wrong)
    with pytest.raises(ValueError, match="slots must be at least 1 frame, got 0"):
        net.empty_cache(2, 0)


def test_config_survives_json(unchecked):
    config = TransformerConfig(grid=(3, 5), patch=1, head="token")
    fields = json.loads(json.dumps(asdict(config)))
    assert transformer_config(fields) == config


OLD = {"mlp_ratio": 4, "conv": True, "window": None, "dropout": 0.0}


@pytest.mark.parametrize("name, value", [("window", 8), ("dropout", 0.1), ("new", 1)])
def test_fields_that_are_gone(name, value):
    fields = asdict(SHAPE)
    assert transformer_config(fields | OLD) == SHAPE
    with pytest.raises(TypeError, match=name):
        transformer_config(fields | OLD | {name: value})


@pytest.mark.parametrize(
    "path",
    sorted(weights_folder().glob("*-transformer.safetensors")),
    ids=lambda p: p.stem,
)
def test_bundles_load(path):
    net = load_transformer(path)
    assert not net.training
    assert count_parameters(net.config) == sum(p.numel() for p in net.parameters())


def test_what_is_saved_loads_and_another_patch_is_refused(tmp_path):
    net = small_net(grid=(4, 6)).eval()
    path = save_transformer(net, tmp_path / "plain.safetensors")
    again, latents = load_transformer(path), torch.randn(1, 3, 4, 4, 6)
    noise = net.draw_noise(1, 3)
    outputs = [n(latents, noise=noise).prediction for n in (net, again)]
    assert torch.equal(*outputs) and again.config == net.config
    with pytest.raises(RuntimeError, match="size mismatch for embed.weight"):
        patched().load_state_dict(again.state_dict())
