"""Chapter 08: a model that continues videos."""

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models import HEADS, every_kind, random_clips, small_model
from stt_lite import generation
from stt_lite.bundles import load_pretrained
from stt_lite.generation import future_seeds, seeded
from stt_lite.sampling import Sampling, draw_tokens, snap
from stt_lite.temporal_attention import rotary

clips = random_clips


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def generators(seed, batch, samples):
    """The prompt's generator and the futures' of each clip, as in `generate`."""
    return [seeded(row) for row in future_seeds(batch, samples, seed)]


def shown(model, prediction, temperature):
    """What becomes pixels: codewords, but a regression head's mean at temperature 0."""
    head = model.transformer.config.head
    if head == "regression" and temperature == 0:
        return prediction
    return snap(model.tokenizer, prediction, head)


def watch(model, name, seen):
    """Note the arguments of a method of the transformer, by name, at every call."""
    method = getattr(model.transformer, name)
    signature = inspect.signature(method)

    def watched(*arguments, **options):
        result = method(*arguments, **options)
        call = signature.bind(*arguments, **options).arguments
        seen.append(call | {"result": result})
        return result

    setattr(model.transformer, name, watched)


@torch.no_grad()
def everything_again(model, prompt, new_frames, read, roll, temperature=1.0):
    """One future of one prompt (1 T C H W) without a cache: all over for each frame."""
    net, known = model.transformer, prompt.shape[1]
    latents, noise, new = model.tokens(prompt), net.draw_noise(1, known, read), []
    for _ in range(new_frames):
        noise = torch.cat([noise, net.draw_noise(1, 1, roll)], dim=1)
        frames = net.embed(latents.movedim(2, -1))
        seen = F.pad(frames, (0, 0, 0, 0, 0, 0, 0, 1))
        x = torch.cat([net.start.expand_as(frames[:, :1]), frames], dim=1)
        for i, layer in enumerate(net.layers):
            was, _, _ = layer(x, noise[:, :, i], seen, min(temperature, 1.0))
            will_be, _, _ = layer(x, noise[:, :, i], None, temperature)
            x = torch.cat([was[:, :known], will_be[:, known:]], dim=1)
        prediction = net.head(net.norm(x))[:, -1].movedim(-1, 1)
        if net.config.head == "token" and temperature > 0:
            prediction = draw_tokens(prediction, Sampling(temperature), [roll])
        new.append(shown(model, prediction, temperature))
        latent = snap(model.tokenizer, prediction, net.config.head)
        latents = torch.cat([latents, latent[:, None]], dim=1)
    return model.tokenizer.decode(torch.cat(new))


# What comes back


@pytest.mark.parametrize(
    "frames, new_frames, samples", [(1, 1, 1), (4, 3, 2), (7, 20, 3)]
)
def test_prompt_is_untouched_and_the_counts_are_right(frames, new_frames, samples):
    prompt = clips(2, frames)
    before = prompt.clone()
    video = small_model().generate(prompt, new_frames, samples, seed=0)
    assert video.shape == (2, samples, frames + new_frames, 1, 8, 12)
    assert video.dtype == torch.float32 and video.min() >= 0 and video.max() <= 1
    for s in range(samples):
        assert torch.equal(video[:, s, :frames], before)
    assert torch.equal(prompt, before)


def test_clip_without_batch_is_a_batch_of_one():
    model, prompt = small_model(), clips(1)
    one = model.generate(prompt[0], seed=0)
    assert torch.equal(one, model.generate(prompt, seed=0))


def test_gradients_and_modes_are_left_alone():
    model, prompt = small_model(), clips(1)
    codebook = model.tokenizer.quantizer.codebook.clone()
    assert not model.generate(prompt.requires_grad_(), seed=0).requires_grad
    for frame in model.stream(prompt, 2, seed=0):
        assert torch.is_grad_enabled() and not frame.requires_grad
    assert torch.equal(model.tokenizer.quantizer.codebook, codebook)
    assert not model.training


# Against a run without a cache


@every_kind
@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_cached_equals_everything_again(gaussian, head, temperature):
    model, prompt = small_model(gaussian=gaussian, head=head), clips(2, 4)
    video = model.generate(prompt, 3, samples=2, temperature=temperature, seed=3)
    for b, (read, *rolls) in enumerate(generators(3, 2, 2)):
        state = read.get_state()
        for s, roll in enumerate(rolls):
            noise = read.set_state(state), roll
            again = everything_again(model, prompt[b : b + 1], 3, *noise, temperature)
            close(video[b, s, 4:], again)


@pytest.mark.parametrize("head", HEADS)
def test_first_new_frame_comes_from_all_prompt_frames(head):
    model, prompt = small_model(gaussian="off", head=head), clips(1, 4)
    with_room = F.pad(model.tokens(prompt), (0, 0, 0, 0, 0, 0, 0, 1))
    with torch.no_grad():
        prediction = model.transformer(with_room).prediction
        wanted, copy = (  # place 4 is about frame 4, from frames 0 to 3
            model.tokenizer.decode(shown(model, prediction[:, t], 0.0)) for t in (4, 3)
        )
        got = model.generate(prompt, 1, temperature=0.0)[:, 0, 4]
        close(got, wanted, 1e-6)
        assert not torch.allclose(got, copy, atol=1e-3)
        for t in range(4):  # every frame of the prompt has its say in the prediction
            other = with_room.clone()
            other[:, t] += 1.0
            changed = model.transformer(other).prediction[:, 4]
            assert not torch.equal(changed, prediction[:, 4])


def test_z_of_the_prompt_comes_from_the_posterior():
    model, prompt, steps, reads = small_model(), clips(1, 4), [], []
    watch(model, "step", steps)
    watch(model, "prefill", reads)
    latents = model.tokens(prompt)
    # what a small cache has no place for comes one by one
    for at_once, window in ((4, None), (3, 3), (1, 1)):
        steps.clear(), reads.clear()
        model.generate(prompt, 3, temperature=2.0, seed=0, window=window)
        (read,) = reads  # a hot future, a prompt read as it is
        assert torch.equal(read["latents"], latents[:, :at_once])
        assert read["temperature"] == 1.0
        later, new = steps[: 4 - at_once], steps[4 - at_once :]
        for t, call in enumerate(later, start=at_once):
            assert torch.equal(call["target"], latents[:, t])
            assert call["temperature"] == 1.0
        assert [call.get("target") for call in new] == [None] * 3
        assert [call["temperature"] for call in new] == [2.0] * 3


@pytest.mark.parametrize("head", HEADS)
def test_what_goes_back_in_is_codewords(head):
    model, steps = small_model(head=head), []
    watch(model, "step", steps)
    model.generate(clips(1, 2), 6, temperature=0.0, seed=0)
    for call in steps:
        vectors = call["latent"].movedim(1, -1).flatten(0, 2)
        distances = torch.cdist(vectors, model.tokenizer.quantizer.codebook)
        assert distances.min(1).values.max() < 1e-3


# Chance


@every_kind
def test_seed_and_global_generator_repeat(gaussian, head):
    model, prompt = small_model(gaussian=gaussian, head=head), clips(1)
    a, b, c = (model.generate(prompt, 6, 2, seed=s) for s in (0, 0, 1))
    assert torch.equal(a, b)
    random = gaussian != "off" or head == "token"
    assert torch.equal(a, c) != random and torch.equal(a[:, 0], a[:, 1]) != random
    torch.manual_seed(0)
    d = model.generate(prompt, 6, 2)
    torch.manual_seed(0)
    assert torch.equal(d, model.generate(prompt, 6, 2))
    state = torch.get_rng_state()
    model.generate(prompt, 2, seed=5)  # a seed leaves the global generator alone
    assert torch.equal(torch.get_rng_state(), state)


@every_kind
def test_temperature_zero_leaves_nothing_to_chance(gaussian, head):
    model, prompt = small_model(gaussian=gaussian, head=head), clips(1)
    a, b = (model.generate(prompt, 6, 2, temperature=0.0, seed=s) for s in (0, 1))
    assert torch.equal(a, b) and torch.equal(a[:, 0], a[:, 1])


def test_higher_temperature_spreads_more():
    for options in ({"gaussian": "latent"}, {"gaussian": "off", "head": "token"}):
        model, prompt = small_model(**options), clips(1)
        videos = [model.generate(prompt, 3, 64, a, seed=0) for a in (0.0, 0.5, 3.0)]
        spread = [video[:, :, 4:].var(1).sum() for video in videos]
        assert spread[0] < 1e-6 < spread[1] < spread[2]


def test_top_k_of_one_is_the_likeliest():
    model, prompt = small_model(gaussian="off", head="token"), clips(1)
    one = model.generate(prompt, 6, 2, seed=0, top_k=1)
    cold = model.generate(prompt, 6, 2, temperature=0.0)
    assert torch.equal(one, cold)
    assert not torch.equal(model.generate(prompt, 6, 2, seed=0, top_k=2), cold)
    every = model.generate(prompt, 6, 2, seed=0, top_k=11)
    assert torch.equal(every, model.generate(prompt, 6, 2, seed=0))


@pytest.mark.parametrize("head", HEADS)
def test_future_does_not_depend_on_its_neighbours(head, monkeypatch):
    model, prompt = small_model(head=head), clips(3)
    whole = model.generate(prompt, 4, 3, seed=0)
    close(model.generate(prompt[:1], 4, 3, seed=0), whole[:1], 1e-6)
    close(model.generate(prompt, 4, 2, seed=0), whole[:, :2], 1e-6)
    close(model.generate(prompt, 2, 3, seed=0), whole[:, :, :6], 1e-6)
    row = 4 * 2 * 2 * 6 * 8 * 16  # float32, keys and values, layers, pixels, slots, E
    for rows in (0, 2, 7):
        monkeypatch.setattr(generation, "CACHE_BYTES", rows * row)
        close(model.generate(prompt, 4, 3, seed=0), whole, 1e-6)


def test_groups_hold_no_more_than_they_may():
    model, prompt = small_model(), clips(5)
    row = 4 * 2 * 2 * 6 * 9 * 16  # of nine slots
    for rows in (1, 2, 7, 100):
        seen = torch.zeros(5, 3)
        groups = model.rollouts(prompt, 5, 3, Sampling(seed=0), rows * row)
        for b, s, frames in groups:
            seen[b, s] += 1
            assert len(next(frames)) == len(range(5)[b]) * len(range(3)[s]) <= rows
        assert (seen == 1).all()


@every_kind
def test_stream_equals_generate(gaussian, head):
    model, prompt = small_model(gaussian=gaussian, head=head), clips(2)
    frames = list(model.stream(prompt, 5, 3, seed=0))
    assert [tuple(frame.shape) for frame in frames] == [(2, 3, 1, 8, 12)] * 5
    whole = model.generate(prompt, 5, 3, seed=0)
    close(torch.stack(frames, 2), whole[:, :, 4:], 1e-6)


def test_stream_computes_a_frame_when_asked():
    model, steps, reads = small_model(), [], []
    watch(model, "step", steps)
    watch(model, "prefill", reads)
    frames = model.stream(clips(1, 4), 5, seed=0)
    assert not steps and not reads
    for asked in (1, 2):
        next(frames)
        assert len(reads) == 1 and len(steps) == asked


# The window


@pytest.mark.parametrize("patch", [1, 2])
def test_what_a_frame_costs_does_not_grow(patch):
    """The prompt passes encoder and transformer once; each new frame is one step."""
    model, prompt = small_model(grid=(2, 4), patch=patch), clips(1, 4, 8, 16)
    encoded, steps, reads, flops = [], [], [], []
    model.tokenizer.encoder.register_forward_pre_hook(lambda *_: encoded.append(1))
    watch(model, "step", steps)
    watch(model, "prefill", reads)
    stream = model.stream(prompt, 40, samples=3, seed=0, window=6)
    for _ in range(40):
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            next(stream)
        flops.append(counter.get_total_flops())
    assert [len(calls) for calls in (encoded, reads, steps)] == [1, 1, 40]
    assert len(set(flops[1:])) == 1
    encoded.clear(), reads.clear(), steps.clear()
    model.generate(prompt, 5, samples=3, seed=0)  # the futures share what was read
    assert [len(calls) for calls in (encoded, reads, steps)] == [1, 1, 5]


def test_futures_of_a_model_on_patches_are_its_own():
    model, prompt = small_model(grid=(2, 4), patch=2), clips(2, 4, 8, 16)
    video = model.generate(prompt, 6, samples=3, seed=0)
    assert video.shape == (2, 3, 10, 1, 8, 16)
    assert not torch.equal(video[:, 0, 4:], video[:, 1, 4:])
    close(model.generate(prompt[:1], 6, samples=1, seed=0)[0, 0], video[0, 0])
    close(model.generate(prompt, 6, samples=3, seed=0, window=10), video)


def test_long_rollouts_keep_the_cache_small():
    model, steps = small_model(record={"data": {"frames": 6}}), []
    watch(model, "step", steps)

    def shapes():
        found = [tuple(call["cache"][0].keys.shape) for call in steps]
        steps.clear()
        return found

    assert model.generate(clips(1, 4), 30, seed=0).shape[2] == 34
    assert shapes() == [(6, 2, 6, 8)] * 30
    model.generate(clips(1, 3), 2, seed=0)
    assert shapes() == [(6, 2, 5, 8)] * 2  # a short video needs less
    model.generate(clips(1, 20), 3, window=4, seed=0)
    assert set(shapes()) == {(6, 2, 4, 8)}  # a prompt longer than the window


def test_window_that_nothing_leaves_changes_nothing():
    model, prompt = small_model(), clips(1)
    whole = model.generate(prompt, 5, seed=0)
    for window in (9, 12, 50):
        close(model.generate(prompt, 5, seed=0, window=window), whole, 1e-6)
    assert not torch.equal(model.generate(prompt, 5, seed=0, window=3), whole)


def test_sliding_window_keeps_the_start_token():
    model, steps, reads = small_model(), [], []
    watch(model, "step", steps)
    watch(model, "prefill", reads)
    for T in (3, 8):  # a prompt that the window holds, and one that it does not
        steps.clear(), reads.clear()
        model.generate(clips(1, T), 12, window=5, seed=0)
        held = min(T, 5)  # after prefill: start token and T - 1 frames
        caches = [reads[0]["result"], *(call["result"][1] for call in steps)]
        assert len(caches) == 1 + (T - held) + 12
        for i in range(2):
            start, *newest = caches[0][i].keys[:, :, -held:].unbind(2)
            newest += [cache[i].keys[:, :, -1] for cache in caches[1:]]
            for t, cache in enumerate(caches):
                gone = max(0, held + t - 5)  # frames that dropped out
                far = torch.full((1,), float(gone))  # so far came the start token along
                turned = rotary(start[:, :, None], far)[:, :, 0]
                kept = torch.stack([turned, *newest[: held - 1 + t][-4:]], dim=2)
                close(cache[i].keys[:, :, -kept.shape[2] :], kept)
                assert cache[i].frames == held + t


def test_window_of_one_place():
    assert small_model().generate(clips(1, 3), 4, window=1, seed=0).shape[2] == 7


def test_a_model_shows_itself_in_a_few_lines():
    lines = repr(load_pretrained("moving-mnist-tiny")).splitlines()
    assert lines[0] == "VideoModel moving-mnist-tiny" and len(lines) == 4
    assert "1x32x32" in lines[1] and "8x8 of 256" in lines[2]
    count = sum(p.numel() for p in load_pretrained("moving-mnist-tiny").parameters())
    assert f"{count:,}" in lines[3]
    assert repr(small_model()).startswith("VideoModel of your own\n")


# The first edition


@pytest.mark.parametrize("name", ["moving-mnist-tiny", "game"])
def test_bundles_of_the_first_edition_generate_as_they_did(name):
    """Twelve frames after a drifting disc, as the first edition's code (dbc6aa0) makes
    them of these weights, which are stored in half precision since."""
    model = load_pretrained(name)
    if model.transformer.config.patch != 1 or not model.tokenizer.config.group_norm:
        pytest.skip("another edition's bundle")
    C, H, W = model.frame_shape
    t, y, x = torch.arange(24)[:, None, None], torch.arange(H)[:, None], torch.arange(W)
    distance = (y - H * (0.3 + 0.01 * t)) ** 2 + (x - W * (0.2 + 0.02 * t)) ** 2
    disc = torch.exp(-distance / (2 * (H / 10) ** 2))  # (T H W)
    prompt = disc[:12, None].expand(-1, C, -1, -1).contiguous()
    video = model.generate(prompt, 12, seed=3)[0, 0, 12:, :1, :: H // 32, :: W // 32]
    with np.load(Path(__file__).parent / "data" / "first-edition.npz") as arrays:
        pixels = arrays[f"{name}-pixels"].astype(np.float32) / 65535
    close(video, torch.from_numpy(pixels), 1e-4)


# Bad input


@pytest.mark.parametrize(
    "change, kind, words",
    [
        (
            {"prompt": [[0.0]]},
            TypeError,
            "prompt must be a floating-point torch.Tensor",
        ),
        ({"prompt": torch.rand(8, 12)}, ValueError, r"prompt must have shape \(B T C"),
        (
            {"prompt": torch.rand(2, 4, 3, 8, 12)},
            ValueError,
            "prompt must have 1 chann",
        ),
        ({"prompt": torch.rand(2, 4, 1, 8, 8)}, ValueError, "of 8x12 pixels, got 8x8"),
        ({"prompt": torch.rand(2, 0, 1, 8, 12)}, ValueError, "prompt must have shape"),
        ({"prompt": torch.rand(2, 4, 1, 8, 12) + 1}, ValueError, r"values in \[0, 1\]"),
        ({"prompt": torch.full((1, 4, 1, 8, 12), torch.nan)}, ValueError, "values in"),
        ({"prompt": torch.zeros(1, 4, 1, 8, 12).byte()}, TypeError, "floating-point"),
        ({"new_frames": 0}, ValueError, "new_frames must be a whole number .* got 0"),
        ({"new_frames": 2.5}, ValueError, "new_frames must be a whole number"),
        ({"samples": 0}, ValueError, "samples must be a whole number of at least 1"),
        ({"samples": -3}, ValueError, "samples .* got -3"),
        ({"temperature": -0.1}, ValueError, "temperature must be a number"),
        ({"window": 0}, ValueError, "window must be a whole number of at least 1"),
        ({"seed": 2**64}, ValueError, "seed must be a whole number in"),
        ({"top_k": 0}, ValueError, "top_k must be a whole number of at least 1"),
    ],
)
def test_bad_input_is_refused_before_anything_is_computed(
    unchecked, change, kind, words
):
    model = small_model()
    for method in (model.generate, model.stream):  # a stream refuses when it is called
        with pytest.raises(kind, match=words):
            method(**{"prompt": clips(), **change})


def test_training_mode_is_refused():
    for part in ("tokenizer", "transformer"):
        model = small_model()
        getattr(model, part).train()
        with pytest.raises(ValueError, match="eval mode"):
            model.generate(clips())


@pytest.mark.parametrize("name, wrong", [("latent_channels", 5), ("codebook_size", 12)])
def test_parts_that_do_not_fit_are_refused(name, wrong):
    right = {"latent_channels": 4, "codebook_size": 11}[name]
    words = f"transformer must have the tokenizer's {name}, {right}, got {wrong}"
    with pytest.raises(ValueError, match=words):
        small_model(**{name: wrong})


def test_numbers_of_numpy_are_numbers(unchecked):
    model, prompt = small_model(), clips()
    numbers = np.int64(2), np.int32(2), np.float32(0.5)
    theirs = model.generate(prompt, *numbers, seed=np.int64(3))
    assert torch.equal(theirs, model.generate(prompt, 2, 2, 0.5, seed=3))


# Actions


def acting():
    model = small_model(actions=3)
    model.transformer.actions.weight.data.mul_(5)
    return model


def test_an_action_changes_its_frame_and_none_before():
    model = acting()
    prompt = torch.rand(2, 3, *model.frame_shape)
    actions = torch.randint(3, (2, 9))
    other = actions.clone()
    other[:, 6] = (other[:, 6] + 1) % 3
    options = dict(new_frames=6, temperature=0.0, seed=0)
    a, b = (model.generate(prompt, actions=x, **options) for x in (actions, other))
    assert torch.equal(a[:, :, :6], b[:, :, :6])
    assert not torch.equal(a[:, :, 6], b[:, :, 6])


def test_each_future_is_told_its_own_clips_actions():
    model, actions = acting(), torch.tensor([[0] * 9, [2] * 9])
    prompt = torch.rand(2, 3, *model.frame_shape)
    options = dict(new_frames=6, samples=2, temperature=0.0, seed=0)
    both = model.generate(prompt, actions=actions, **options)
    first = model.generate(prompt[:1], actions=actions[:1], **options)
    torch.testing.assert_close(both[:1], first)


def test_actions_streamed_or_asked_for_are_those_of_generate():
    model, actions = acting(), torch.randint(3, (2, 9))
    prompt = torch.rand(2, 3, *model.frame_shape)
    video = model.generate(prompt, 6, 2, seed=0, actions=actions)
    asked = []

    def ask(t):
        asked.append(t)
        return actions[:, t]

    for given in (actions, ask):
        frames = [*model.stream(prompt, 6, 2, actions=given, seed=0)]
        torch.testing.assert_close(torch.stack(frames, 2), video[:, :, 3:])
    assert asked == [*range(9)]


@pytest.mark.parametrize(
    "actions, message",
    [
        (None, "actions must be given, 2 x 9 numbers in \\[0, 3\\)"),
        (torch.zeros(2, 8, dtype=torch.long), "actions must have shape \\(2, 9\\)"),
        (torch.full((2, 9), 3), "actions must lie in \\[0, 3\\), got 3 to 3"),
        (torch.full((2, 9), -1), "actions must lie in \\[0, 3\\), got -1 to -1"),
        (torch.zeros(2, 9), "actions must be whole numbers, got torch.float32"),
        (torch.zeros(2, 9).bool(), "actions must be whole numbers, got torch.bool"),
    ],
)
def test_actions_that_do_not_fit_are_refused(actions, message, unchecked):
    model = acting()
    with pytest.raises(ValueError, match=message):
        model.generate(torch.rand(2, 3, *model.frame_shape), 6, actions=actions)


def test_a_model_without_actions_takes_none():
    model = small_model()
    prompt = torch.rand(1, 3, *model.frame_shape)
    with pytest.raises(ValueError, match="actions must be None"):
        model.generate(prompt, 2, actions=torch.zeros(1, 5, dtype=torch.long))
