"""Chapter 08: chance, the start token, and the one rollout."""

import numpy as np
import pytest
import torch

from models import HEADS, every_kind, random_clips, small_model, small_net
from stt_lite.sampling import (
    Sampling,
    continued,
    draw_tokens,
    keep_start,
    prefill,
    rollout,
    snap,
)
from stt_lite.temporal_attention import rotary


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


# Options


@pytest.mark.parametrize(
    "change, words",
    [
        ({"temperature": -0.1}, "temperature must be a number of at least 0, got -0.1"),
        ({"temperature": float("nan")}, "temperature .* got nan"),
        ({"temperature": float("inf")}, "temperature .* got inf"),
        ({"temperature": "1"}, "temperature .* got '1'"),
        ({"window": 0}, "window must be a whole number of at least 1, got 0"),
        ({"top_k": 0}, "top_k must be a whole number of at least 1, got 0"),
        ({"top_k": 2.0}, "top_k must be a whole number"),
        ({"seed": 1.5}, "seed must be a whole number .* got 1.5"),
        ({"seed": 2**64}, "seed must be a whole number in"),
    ],
)
def test_options_are_checked(change, words, unchecked):
    with pytest.raises(ValueError, match=words):
        Sampling(**change)


def test_options_may_be_numpys_numbers_and_the_ends_of_their_ranges(unchecked):
    Sampling(np.float32(0.5), np.int64(3), np.int64(-(2**63)), np.int32(1))
    Sampling(0, 1, 2**64 - 1, 1)


# Tokens


def drawn(logits, sampling, rows=4000):
    """How often each of K tokens is drawn, as shares (K h w)."""
    generators = [torch.Generator().manual_seed(i) for i in range(rows)]
    many = logits.expand(rows, -1, -1, -1)
    tokens = draw_tokens(many, sampling, generators).argmax(1)  # (rows h w)
    return torch.nn.functional.one_hot(tokens, logits.shape[1]).float().mean(0)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_from_the_softmax(temperature):
    logits = torch.randn(1, 7, 2, 3)
    shares = drawn(logits, Sampling(temperature)).movedim(-1, 0)
    assert (shares - (logits[0] / temperature).softmax(0)).abs().max() < 0.04


def test_top_k_draws_the_likeliest_only():
    logits = torch.randn(1, 7, 2, 3)
    for k in (1, 3, 7, 99):
        shares = drawn(logits, Sampling(top_k=k), 1000).movedim(-1, 0)
        kept = logits[0] >= logits[0].topk(min(k, 7), 0).values[-1:]
        assert ((shares > 0) <= kept).all()
        expected = logits[0].masked_fill(~kept, -torch.inf).softmax(0)
        assert (shares - expected).abs().max() < 0.08


def test_a_rows_draw_is_its_own():
    logits = torch.randn(3, 7, 2, 3)

    def scores(rows):
        generators = [torch.Generator().manual_seed(i) for i in rows]
        return draw_tokens(logits[rows], Sampling(), generators)

    assert torch.equal(scores([0, 1, 2])[1:], scores([1, 2]))


def test_snap_gives_codewords():
    tokenizer = small_model().tokenizer
    book = tokenizer.quantizer.codebook
    near = snap(tokenizer, torch.randn(2, 4, 2, 3), "regression")
    assert torch.cdist(near.movedim(1, -1), book[None, None]).amin(-1).max() < 1e-3
    logits = torch.randn(2, 11, 2, 3)
    likeliest = snap(tokenizer, logits, "token")
    assert torch.equal(likeliest.movedim(1, -1), book[logits.argmax(1)])


# The window


def test_the_start_token_moves_on_and_the_oldest_frame_goes():
    net = small_net().eval()
    cache = net.prefill(torch.randn(2, 5, 4, 3, 5), 5)
    for before, after in zip(cache, keep_start(cache), strict=True):
        turned = rotary(before.keys[:, :, :1], torch.ones(1))
        close(after.keys[:, :, 1:2], turned)
        assert torch.equal(after.values[:, :, 1], before.values[:, :, 0])
        assert torch.equal(after.keys[:, :, 2:], before.keys[:, :, 2:])
        assert torch.equal(after.values[:, :, 2:], before.values[:, :, 2:])
        assert after.frames == before.frames


@every_kind
@pytest.mark.parametrize("slots", [9, 6, 4, 2, 1])
def test_what_finds_no_slot_is_read_frame_by_frame(gaussian, head, slots):
    """All at once, then one by one, equals one by one from the start."""
    net = small_net(gaussian=gaussian, head=head).eval()
    latents, noise = torch.randn(2, 6, 4, 3, 5), net.draw_noise(2, 6)
    cache, previous = net.empty_cache(2, slots), None
    with torch.no_grad():
        for t, now in enumerate(latents.unbind(1)):
            if t >= slots > 1:
                cache = keep_start(cache)
            _, cache = net.step(previous, cache, noise[:, t], now, 0.5)
            previous = now
    read = prefill(net, latents, slots, iter(noise.unbind(1)), 0.5)
    for layer, expected in zip(read, cache, strict=True):
        for a, b in zip(layer, expected, strict=True):
            close(a, b)


# The rollout


@every_kind
def test_a_rollout_is_a_step_a_snap_and_the_next(gaussian, head):
    model = small_model(gaussian=gaussian, head=head)
    net, latents = model.transformer, model.tokens(random_clips())
    noise = net.draw_noise(2, 9)
    draws = iter(noise.unbind(1))
    cache = prefill(net, latents, 9, draws)
    start = latents[:, -1], cache
    frames = list(rollout(net, model.tokenizer, *start, draws))
    assert len(frames) == 5  # as many as there was noise for
    latent = latents[:, -1]
    with torch.no_grad():
        for t, (codewords, prediction) in enumerate(frames):
            expected, cache = net.step(latent, cache, noise[:, 4 + t])
            assert torch.equal(prediction, expected)
            latent = snap(model.tokenizer, prediction, head)
            assert torch.equal(codewords, latent)


def test_a_token_head_draws_only_with_generators_and_warmth():
    model = small_model(head="token")
    net, latents = model.transformer, model.tokens(random_clips())
    noise = [torch.zeros_like(net.draw_noise(2, 1)[:, 0])] * 4
    cache = prefill(net, latents, 8, iter(noise))

    def rolled(temperature, seeds=None):
        rows = seeds and [torch.Generator().manual_seed(s) for s in seeds]
        options = Sampling(temperature), rows
        frames = rollout(net, model.tokenizer, latents[:, -1], cache, noise, *options)
        return torch.stack([frame for frame, _ in frames])

    likeliest = rolled(1.0)
    assert torch.equal(rolled(0.0, (1, 2)), likeliest)
    assert not torch.equal(rolled(1.0, (1, 2)), likeliest)
    assert torch.equal(rolled(1.0, (1, 2)), rolled(1.0, (1, 2)))


@pytest.mark.parametrize("head", HEADS)
def test_continued_keeps_the_prompt_and_rolls_on(head):
    model = small_model(head=head)
    net, latents = model.transformer, model.tokens(random_clips(2, 7))
    noise = net.draw_noise(2, 7)
    video = continued(net, model.tokenizer, latents, 3, noise, 0.5)
    assert torch.equal(video[:, :3], latents[:, :3]) and video.shape == latents.shape
    draws = iter(noise.unbind(1))
    cache = prefill(net, latents[:, :3], 7, draws, 0.5)
    start = latents[:, 2], cache
    frames = rollout(net, model.tokenizer, *start, draws, Sampling(0.5))
    expected = torch.stack([frame for frame, _ in frames], 1)
    close(video[:, 3:], expected)
    other = latents.clone()
    other[:, 3:] = torch.randn_like(other[:, 3:])
    again = continued(net, model.tokenizer, other, 3, noise, 0.5)
    assert torch.equal(again, video)  # what really came later has no say


# Conditions


@pytest.mark.parametrize("slots", [9, 4, 2])
def test_a_condition_is_read_and_rolled_frame_by_frame(slots):
    model = small_model()
    net, latents = model.transformer, model.tokens(random_clips(2, 6))
    noise, condition = net.draw_noise(2, 9), 5 * torch.randn(2, 9, 16)
    draws, leads = iter(noise.unbind(1)), condition[:, 6:].unbind(1)
    read = prefill(net, latents, slots, draws, 1.0, condition[:, :6])
    start = latents[:, -1], read
    frames = list(rollout(net, model.tokenizer, *start, draws, conditions=leads))
    assert len(frames) == 3
    cache, previous = net.empty_cache(2, slots), None
    with torch.no_grad():
        for t in range(9):
            if t >= slots > 1:
                cache = keep_start(cache)
            now = latents[:, t] if t < 6 else None
            prediction, cache = net.step(
                previous, cache, noise[:, t], now, condition=condition[:, t]
            )
            if t >= 6:
                close(frames[t - 6][1], prediction, 1e-4)
                now = frames[t - 6][0]
            previous = now


def test_continued_rolls_on_under_its_condition():
    model = small_model()
    net, latents = model.transformer, model.tokens(random_clips(2, 7))
    noise, condition = net.draw_noise(2, 7), 5 * torch.randn(2, 7, 16)
    video = continued(net, model.tokenizer, latents, 3, noise, 0.5, condition)
    draws, leads = iter(noise.unbind(1)), condition[:, 3:].unbind(1)
    cache = prefill(net, latents[:, :3], 7, draws, 0.5, condition[:, :3])
    start = latents[:, 2], cache
    sampling = Sampling(0.5)
    frames = rollout(net, model.tokenizer, *start, draws, sampling, None, leads)
    close(video[:, 3:], torch.stack([frame for frame, _ in frames], 1))
    plain = continued(net, model.tokenizer, latents, 3, noise, 0.5)
    assert not torch.equal(video, plain)
