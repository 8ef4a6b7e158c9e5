"""Chapter 09: rollouts, bundled models, explorers, the command line."""

import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import ipywidgets
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import bundle
import stt_lite as stt
from stt_lite import generation
from stt_lite.generation import (
    VideoModel,
    explore,
    futures,
    held_out_clips,
    load_pretrained,
    main,
    pretrained,
    rollout_error,
    side_by_side,
)
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from stt_lite.moving_mnist import moving_mnist
from stt_lite.temporal_attention import rotary
from stt_lite.training import load_transformer, save_transformer, snap
from stt_lite.transformer import SpatialTemporalTransformer, TransformerConfig
from stt_lite.video import load_video, save_video
from stt_lite.vq_autoencoder import Tokenizer, TokenizerConfig, save_tokenizer

MODES, HEADS = ["latent", "bottleneck", "off"], ["regression", "token"]
every_kind = pytest.mark.parametrize("gaussian, head", list(itertools.product(MODES, HEADS)))


def small(grid=(2, 3), record=None, tokenizer=None, **options):
    """A random model on small frames, whose zero-initialized parts have moved, with codewords far apart."""
    torch.manual_seed(0)
    parts = TokenizerConfig(width=16, latent_channels=4, codebook_size=11, residual_blocks=0)
    tokenizer = Tokenizer(replace(parts, **tokenizer or {}))
    if tokenizer.config.quantizer == "vq":
        tokenizer.quantizer.codebook.normal_()
    defaults = dict(latent_channels=4, grid=grid, width=16, layers=2, heads=2, codebook_size=11, noise_channels=3)
    net = SpatialTemporalTransformer(TransformerConfig(**defaults | options))
    for parameter in net.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    for linear in (net.head, net.embed, *(m.inject for m in net.modules() if hasattr(m, "inject"))):
        linear.weight.data.mul_(5)  # so that frames, noise and predictions all make a difference
    return VideoModel(tokenizer, net, record).eval()


def clips(batch=2, frames=4, height=8, width=12):
    return torch.rand(batch, frames, 1, height, width, generator=torch.Generator().manual_seed(1))


def to_latents(model, frames):
    return model.tokenizer.quantize(model.tokenizer.encode(frames.flatten(0, 1)))[0].unflatten(0, frames.shape[:2])


def generators(seed, batch, samples):
    """The prompt's generator and the futures' of each clip, as `generate` makes them."""
    rows = []
    for clip in torch.randint(2**62, (batch,), generator=torch.Generator().manual_seed(seed)).tolist():
        seeds = torch.randint(2**62, (1 + samples,), generator=torch.Generator().manual_seed(clip)).tolist()
        rows.append([torch.Generator().manual_seed(s) for s in seeds])
    return rows


def shown(model, prediction, temperature):
    """The latents that become pixels: the mean of a regression head at temperature 0, else codewords."""
    head = model.transformer.config.head
    return prediction if head == "regression" and temperature == 0 else snap(model.tokenizer, prediction, head)


@torch.no_grad()
def everything_again(model, prompt, new_frames, read, roll, temperature=1.0):
    """One future of one prompt (1 T C H W) without a cache: the model runs over all frames again for each new one."""
    net, known = model.transformer, prompt.shape[1]
    latents, noise, new = to_latents(model, prompt), net.draw_noise(1, known, read), []
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
            draw = torch.empty(prediction.shape[1:]).exponential_(generator=roll)
            prediction = prediction / temperature - draw.log()
        new.append(shown(model, prediction, temperature))
        latents = torch.cat([latents, snap(model.tokenizer, prediction, net.config.head)[:, None]], dim=1)
    return model.tokenizer.decode(torch.cat(new))


# What comes back


@pytest.mark.parametrize("frames, new_frames, samples", [(1, 1, 1), (4, 3, 2), (7, 20, 3)])
def test_prompt_is_untouched_and_the_counts_are_right(frames, new_frames, samples):
    prompt = clips(2, frames)
    before = prompt.clone()
    video = small().generate(prompt, new_frames, samples, seed=0)
    assert video.shape == (2, samples, frames + new_frames, 1, 8, 12) and video.dtype == torch.float32
    assert torch.equal(video[:, :, :frames], before[:, None].expand(-1, samples, -1, -1, -1, -1))
    assert torch.equal(prompt, before)
    assert video.min() >= 0 and video.max() <= 1


def test_clip_without_batch_is_a_batch_of_one():
    model, prompt = small(), clips(1)
    assert torch.equal(model.generate(prompt[0], seed=0), model.generate(prompt, seed=0))


def test_gradients_and_modes_are_left_alone():
    model, prompt = small(), clips(1)
    codebook = model.tokenizer.quantizer.codebook.clone()
    assert not model.generate(prompt.requires_grad_(), seed=0).requires_grad
    for frame in model.stream(prompt, 2, seed=0):
        assert torch.is_grad_enabled() and not frame.requires_grad
    assert torch.equal(model.tokenizer.quantizer.codebook, codebook) and not model.training


# Against a run without a cache


@every_kind
@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_cached_equals_everything_again(gaussian, head, temperature):
    model, prompt = small(gaussian=gaussian, head=head), clips(2, 4)
    video = model.generate(prompt, 3, samples=2, temperature=temperature, seed=3)
    for b, (read, *rolls) in enumerate(generators(3, 2, 2)):
        state = read.get_state()
        for s, roll in enumerate(rolls):
            again = everything_again(model, prompt[b : b + 1], 3, read.set_state(state), roll, temperature)
            assert torch.allclose(video[b, s, 4:], again, atol=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_first_new_frame_comes_from_all_prompt_frames(head):
    model, prompt = small(gaussian="off", head=head), clips(1, 4)
    latents = to_latents(model, prompt)
    with torch.no_grad():
        with_room = F.pad(latents, (0, 0, 0, 0, 0, 0, 0, 1))
        prediction = model.transformer(with_room).prediction  # place 4 is about frame 4, from frames 0 to 3
        wanted, copy = (model.tokenizer.decode(shown(model, prediction[:, t], 0.0)) for t in (4, 3))
    got = model.generate(prompt, 1, temperature=0.0)[:, 0, 4]
    assert torch.allclose(got, wanted, atol=1e-6) and not torch.allclose(got, copy, atol=1e-3)
    for t in range(4):  # every frame of the prompt has its say in the prediction
        other = with_room.clone()
        other[:, t] += 1.0
        with torch.no_grad():
            assert not torch.equal(model.transformer(other).prediction[:, 4], prediction[:, 4])


def test_z_of_the_prompt_comes_from_the_posterior():
    model, prompt, seen, known = small(), clips(1, 4), [], []
    step, read = model.transformer.step, model.transformer.read

    def watched(latent, cache, noise, target, temperature):
        seen.append((None if target is None else target.clone(), temperature))
        return step(latent, cache, noise, target, temperature)

    def watched_read(latents, window, noise, temperature):
        known.append((latents.clone(), temperature))
        return read(latents, window, noise, temperature)

    model.transformer.step, model.transformer.read = watched, watched_read
    latents = to_latents(model, prompt)
    for at_once, window in ((4, None), (3, 3), (1, 1)):  # what a small cache has no place for comes one by one
        seen.clear(), known.clear()
        model.generate(prompt, 3, temperature=2.0, seed=0, window=window)
        ((first, cold),) = known  # a hot future, a prompt read as it is
        assert torch.equal(first, latents[:, :at_once]) and cold == 1.0
        assert [target is not None for target, _ in seen] == [True] * (4 - at_once) + [False] * 3
        assert all(torch.equal(target, latents[:, at_once + t]) for t, (target, _) in enumerate(seen[: 4 - at_once]))
        assert [temperature for _, temperature in seen] == [1.0] * (4 - at_once) + [2.0] * 3


@every_kind
@pytest.mark.parametrize("window", [None, 4, 1])
def test_a_prompt_read_at_once_is_one_read_frame_by_frame(gaussian, head, window):
    model, prompt = small(gaussian=gaussian, head=head), clips(2, 6)
    at_once = model.generate(prompt, 4, 2, temperature=0.5, seed=0, window=window)

    def one_by_one(latents, window, noise, temperature):
        cache, previous = model.transformer.empty_cache(len(latents), window), None
        for t, known in enumerate(latents.unbind(1)):
            _, cache = model.transformer.step(previous, cache, noise[:, t], known, temperature)
            previous = known
        return cache

    model.transformer.read = one_by_one
    slow = model.generate(prompt, 4, 2, temperature=0.5, seed=0, window=window)
    assert torch.allclose(slow, at_once, atol=1e-5)


def test_what_goes_back_in_is_codewords():
    for head in HEADS:
        model, seen = small(head=head), []
        step = model.transformer.step
        model.transformer.step = lambda latent, *rest: (seen.append(latent), step(latent, *rest))[1]
        model.generate(clips(1, 2), 6, seed=0)
        for latent in seen[1:]:
            distances = torch.cdist(latent.movedim(1, -1).flatten(0, 2), model.tokenizer.quantizer.codebook)
            assert distances.min(1).values.max() < 1e-3


# Chance


@every_kind
def test_seed_and_generator_and_global_generator_repeat(gaussian, head):
    model, prompt = small(gaussian=gaussian, head=head), clips(1)
    a, b, c = (model.generate(prompt, 6, 2, seed=s) for s in (0, 0, 1))
    assert torch.equal(a, b)
    random = gaussian != "off" or head == "token"
    assert torch.equal(a, c) != random and torch.equal(a[:, 0], a[:, 1]) != random
    assert torch.equal(a, model.generate(prompt, 6, 2, generator=torch.Generator().manual_seed(0)))
    torch.manual_seed(0)
    d = model.generate(prompt, 6, 2)
    torch.manual_seed(0)
    assert torch.equal(d, model.generate(prompt, 6, 2))
    state = torch.get_rng_state()
    model.generate(prompt, 2, seed=5)
    assert torch.equal(torch.get_rng_state(), state)  # a seed leaves the global generator alone


@every_kind
def test_temperature_zero_leaves_nothing_to_chance(gaussian, head):
    model, prompt = small(gaussian=gaussian, head=head), clips(1)
    a, b = (model.generate(prompt, 6, 2, temperature=0.0, seed=s) for s in (0, 1))
    assert torch.equal(a, b) and torch.equal(a[:, 0], a[:, 1])


def test_higher_temperature_spreads_more():
    for options in ({"gaussian": "latent"}, {"gaussian": "off", "head": "token"}):
        model, prompt = small(**options), clips(1)
        spread = [model.generate(prompt, 3, 64, a, seed=0)[:, :, 4:].var(1).sum() for a in (0.0, 0.5, 3.0)]
        assert spread[0] < 1e-6 < spread[1] < spread[2]


def test_token_head_draws_from_the_softmax():
    model, prompt = small(gaussian="off", head="token"), clips(1, 1)
    with torch.no_grad():
        logits = model.transformer(F.pad(to_latents(model, prompt), (0, 0, 0, 0, 0, 0, 0, 1))).prediction[0, 1]  # (K h w)
        for temperature in (0.5, 1.0):
            ((_, _, roll),) = model._groups(prompt, 2000, temperature, 0, None, 2, rows=2000)
            drawn = torch.cdist(next(roll).movedim(1, -1), model.tokenizer.quantizer.codebook[None]).argmin(-1)
            share = F.one_hot(drawn, 11).float().mean(0).movedim(-1, 0)
            assert (share - (logits / temperature).softmax(0)).abs().max() < 0.05


@pytest.mark.parametrize("head", HEADS)
def test_future_does_not_depend_on_its_neighbours(head, monkeypatch):
    model, prompt = small(head=head), clips(3)
    whole = model.generate(prompt, 4, 3, seed=0)
    assert torch.allclose(model.generate(prompt[:1], 4, 3, seed=0), whole[:1], atol=1e-6)
    assert torch.allclose(model.generate(prompt, 4, 2, seed=0), whole[:, :2], atol=1e-6)
    assert torch.allclose(model.generate(prompt, 2, 3, seed=0), whole[:, :, :6], atol=1e-6)
    row = 4 * 2 * 2 * 6 * 8 * 16  # bytes: float32, keys and values, layers, pixels, places, width
    for rows in (0, 2, 7):
        monkeypatch.setattr(generation, "CACHE_BYTES", rows * row)
        assert torch.allclose(model.generate(prompt, 4, 3, seed=0), whole, atol=1e-6)


def test_groups_hold_no_more_than_they_may():
    model, prompt = small(), clips(5)
    for rows in (1, 2, 7, 100):
        seen = torch.zeros(5, 3)
        for b, s, roll in model._groups(prompt, 3, 1.0, 0, None, 9, rows):
            seen[b, s] += 1
            assert len(next(roll)) == (b.stop - b.start) * (s.stop - s.start) <= rows
        assert (seen == 1).all()


@every_kind
def test_stream_equals_generate(gaussian, head):
    model, prompt = small(gaussian=gaussian, head=head), clips(2)
    frames = list(model.stream(prompt, 5, 3, seed=0))
    assert [tuple(frame.shape) for frame in frames] == [(2, 3, 1, 8, 12)] * 5
    assert torch.allclose(torch.stack(frames, 2), model.generate(prompt, 5, 3, seed=0)[:, :, 4:], atol=1e-6)


def test_stream_computes_a_frame_when_asked():
    model, calls = small(), []
    step, read = model.transformer.step, model.transformer.read
    model.transformer.step = lambda *a: (calls.append("step"), step(*a))[1]
    model.transformer.read = lambda *a: (calls.append("read"), read(*a))[1]
    frames = model.stream(clips(1, 4), 5, seed=0)
    assert not calls
    next(frames)
    assert calls == ["read", "step"]  # the prompt, and one new frame
    next(frames)
    assert calls == ["read", "step", "step"]


# The window


@pytest.mark.parametrize("patch", [1, 2])
def test_what_a_frame_costs_does_not_grow(patch):
    """One pass of the encoder and one reading for the prompt, one step for each new frame, each of the same operations."""
    model = small(grid=(2, 4), patch=patch, gaussian="latent")
    calls = {"encoder": 0, "read": 0, "step": 0}

    def counted(name, method):
        def call(*arguments, **options):
            calls[name] += 1
            return method(*arguments, **options)

        return call

    model.tokenizer.encoder.register_forward_pre_hook(lambda *_: calls.update(encoder=calls["encoder"] + 1))
    for name in ("read", "step"):
        setattr(model.transformer, name, counted(name, getattr(model.transformer, name)))
    flops, prompt = [], clips(1, 4, 8, 16)
    stream = model.stream(prompt, 40, samples=3, seed=0, window=6)
    for _ in range(40):
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            next(stream)
        flops.append(counter.get_total_flops())
    assert calls == {"encoder": 1, "read": 1, "step": 40}
    assert len(set(flops[1:])) == 1
    calls.update(encoder=0, read=0, step=0)
    model.generate(prompt, 5, samples=3, seed=0)
    assert calls == {"encoder": 1, "read": 1, "step": 5}  # the futures share what was read


def test_futures_of_a_model_on_patches_are_its_own():
    """Cached equals everything again, and neighbours don't matter, on patches too."""
    model = small(grid=(2, 4), patch=2)
    prompt = clips(2, 4, 8, 16)
    video = model.generate(prompt, 6, samples=3, seed=0)
    assert video.shape == (2, 3, 10, 1, 8, 16) and not torch.equal(video[:, 0, 4:], video[:, 1, 4:])
    torch.testing.assert_close(model.generate(prompt[:1], 6, samples=1, seed=0)[0, 0], video[0, 0], rtol=0, atol=1e-5)
    torch.testing.assert_close(model.generate(prompt, 6, samples=3, seed=0, window=10), video, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["moving-mnist-tiny", "game"])
def test_bundles_of_the_first_edition_generate_as_they_did(name):
    """Twelve frames after a drifting disc, as the first edition's code made them from the same files."""
    model = stt.load_pretrained(name)
    if model.transformer.config.patch != 1 or not model.tokenizer.config.group_norm:
        pytest.skip("another edition's bundle")
    C, H, W = model.frame_shape
    t, y, x = torch.arange(24)[:, None, None], torch.arange(H)[:, None], torch.arange(W)
    distance = (y - H * (0.3 + 0.01 * t)) ** 2 + (x - W * (0.2 + 0.02 * t)) ** 2
    disc = torch.exp(-distance / (2 * (H / 10) ** 2))  # (T H W)
    prompt = disc[:12, None].expand(-1, C, -1, -1).contiguous()
    video = model.generate(prompt, 12, seed=3)[0, 0, 12:, :1, :: H // 32, :: W // 32]
    with np.load(Path(__file__).parent / "data" / "first-edition.npz") as arrays:
        expected = torch.from_numpy(arrays[f"{name}-pixels"].astype(np.float32) / 65535)
    torch.testing.assert_close(video, expected, rtol=0, atol=1e-4)


def test_long_rollouts_keep_the_cache_small():
    model, places = small(record={"data": {"frames": 6}}), []
    step = model.transformer.step
    model.transformer.step = lambda latent, cache, *rest: (places.append(cache[0].keys.shape), step(latent, cache, *rest))[1]
    assert model.generate(clips(1, 4), 30, seed=0).shape[2] == 34
    assert set(places) == {(6, 2, 6, 8)} and len(places) == 30
    places.clear()
    model.generate(clips(1, 3), 2, seed=0)
    assert {shape[2] for shape in places} == {5}  # a short video needs less
    places.clear()
    model.generate(clips(1, 20), 3, window=4, seed=0)
    assert {shape[2] for shape in places} == {4}  # a prompt longer than the window


def test_window_that_nothing_leaves_changes_nothing():
    model, prompt = small(), clips(1)
    whole = model.generate(prompt, 5, seed=0)
    for window in (9, 12, 50):
        assert torch.allclose(model.generate(prompt, 5, seed=0, window=window), whole, atol=1e-6)
    assert not torch.equal(model.generate(prompt, 5, seed=0, window=3), whole)


def test_sliding_window_keeps_the_start_token():
    model, caches = small(), []
    step, read = model.transformer.step, model.transformer.read

    def watched(*arguments):
        prediction, cache = step(*arguments)
        caches.append(cache)
        return prediction, cache

    def watched_read(*arguments):
        caches.append(read(*arguments))
        return caches[-1]

    model.transformer.step, model.transformer.read = watched, watched_read
    for T in (3, 8):  # a prompt that the window holds, and one that it does not
        caches.clear()
        model.generate(clips(1, T), 12, window=5, seed=0)
        held = min(T, 5)  # after reading at once: start token and T - 1 frames
        assert len(caches) == 1 + (T - held) + 12
        for i in range(2):
            start, *newest = caches[0][i].keys[:, :, -held:].unbind(2)
            newest += [cache[i].keys[:, :, -1] for cache in caches[1:]]
            for t, cache in enumerate(caches):
                gone = max(0, held + t - 5)  # frames that dropped out: the start token came so far along
                turned = rotary(start[:, :, None], torch.full((1,), float(gone)))[:, :, 0]
                kept = [turned, *newest[: held - 1 + t][-4:]]  # start, and the four newest frames
                torch.testing.assert_close(cache[i].keys[:, :, -len(kept) :], torch.stack(kept, dim=2), rtol=0, atol=1e-5)
                assert cache[i].frames == held + t


@pytest.mark.parametrize("window", [1, 3, 5])
def test_model_with_a_window_of_its_own_slides_as_in_training(window):
    model, prompt = small(gaussian="bottleneck", window=window), clips(1, 4)
    video = model.generate(prompt, 12, seed=0)
    ((read, roll),) = generators(0, 1, 1)
    assert model.trained_frames == window
    assert torch.allclose(video[0, 0, 4:], everything_again(model, prompt, 12, read, roll), atol=1e-5)


def test_window_of_one_place():
    assert small().generate(clips(1, 3), 4, window=1, seed=0).shape[2] == 7


# Bad input


@pytest.mark.parametrize(
    "change, kind, words",
    [
        ({"prompt": [[0.0]]}, TypeError, "prompt must be a torch.Tensor of shape \\(B T C H W\\), got list"),
        ({"prompt": torch.rand(8, 12)}, ValueError, "prompt must have shape \\(B T C H W\\), got 2 dimensions"),
        ({"prompt": torch.rand(2, 4, 3, 8, 12)}, ValueError, "prompt must have 1 channels"),
        ({"prompt": torch.rand(2, 4, 1, 8, 8)}, ValueError, "prompt must have frames of 8x12 pixels, got 8x8"),
        ({"prompt": torch.rand(2, 0, 1, 8, 12)}, ValueError, "prompt must not be empty"),
        ({"prompt": torch.rand(2, 4, 1, 8, 12) + 1}, ValueError, "prompt must have values in \\[0, 1\\]"),
        ({"prompt": torch.full((1, 4, 1, 8, 12), torch.nan)}, ValueError, "prompt must have values in"),
        ({"prompt": torch.zeros(1, 4, 1, 8, 12, dtype=torch.uint8)}, TypeError, "prompt must be floating point"),
        ({"new_frames": 0}, ValueError, "new_frames must be a whole number of at least 1, got 0"),
        ({"new_frames": 2.5}, ValueError, "new_frames must be a whole number"),
        ({"samples": 0}, ValueError, "samples must be a whole number of at least 1, got 0"),
        ({"samples": -3}, ValueError, "samples .* got -3"),
        ({"temperature": -0.1}, ValueError, "temperature must be a number of at least 0, got -0.1"),
        ({"temperature": float("nan")}, ValueError, "temperature .* got nan"),
        ({"temperature": float("inf")}, ValueError, "temperature .* got inf"),
        ({"temperature": "1"}, ValueError, "temperature .* got '1'"),
        ({"window": 0}, ValueError, "window must be a whole number of at least 1, got 0"),
        ({"seed": 0, "generator": torch.Generator()}, ValueError, "seed or generator, not both"),
        ({"seed": 1.5}, ValueError, "seed must be a whole number of at most 64 bits, got 1.5"),
        ({"seed": 2**64}, ValueError, "seed must be a whole number of at most 64 bits"),
        ({"generator": 5}, TypeError, "generator must be a torch.Generator, got int"),
    ],
)
def test_bad_input_is_refused_before_anything_is_computed(unchecked, change, kind, words):
    model = small()
    for method in (model.generate, model.stream):  # a stream complains when it is called, not at its first frame
        with pytest.raises(kind, match=words):
            method(**{"prompt": clips(), **change})


def test_training_mode_is_refused():
    for part in ("tokenizer", "transformer"):
        model = small()
        getattr(model, part).train()
        with pytest.raises(ValueError, match="eval mode"):
            model.generate(clips())


def test_parts_that_do_not_fit_are_refused():
    good = small(record={"data": {"size": 8}}, grid=(2, 2))
    assert good.frame_shape == (1, 8, 8)
    for options, words in (
        ({"latent_channels": 5}, "latent_channels must be 4, got 5"),
        ({"codebook_size": 12}, "codebook_size must be 11, got 12"),
        ({"grid": (3, 3)}, "grid must be \\(2, 2\\), got \\(3, 3\\)"),
    ):
        with pytest.raises(ValueError, match=words):
            small(**{"grid": (2, 2), "record": {"data": {"size": 8}}, **options})


# Loading


@pytest.fixture
def folder(tmp_path):
    """A folder as training writes it, of a small random model for 32x32."""
    model = small(grid=(8, 8))
    save_tokenizer(model.tokenizer, tmp_path / "run" / "tokenizer.safetensors", {})
    sha = json.loads((tmp_path / "run" / "tokenizer.json").read_text())["sha256"]
    record = {"tokenizer_sha256": sha, "data": {"size": 32, "digits": 1, "frames": 20, "stochastic": False}}
    save_transformer(model.transformer, tmp_path / "run" / "transformer.safetensors", record)
    return tmp_path / "run"


def test_folder_of_a_training_run_loads(folder):
    model, again = load_pretrained(folder), load_pretrained(str(folder))
    prompt = moving_mnist(1, 3, 32, 1, seed=0)
    assert not model.training and model.record["data"]["size"] == 32 and model.frame_shape == (1, 32, 32)
    assert torch.equal(model.generate(prompt, 2, seed=0), again.generate(prompt, 2, seed=0))


def test_two_runs_from_one_start_mix(folder, tmp_path):
    other, started = tmp_path / "other", {"started_from": {"sha256": "s", "steps": 3}, "training": {"out": "here", "minutes": 2}}
    net = small(grid=(8, 8)).transformer
    for parameter in net.parameters():
        parameter.data.add_(torch.randn_like(parameter))
    save_transformer(net, other / "transformer.safetensors", started | {"note": "long"})
    record = json.loads((folder / "transformer.json").read_text())
    save_transformer(load_pretrained(folder).transformer, folder / "transformer.safetensors", record | started)
    mixed = load_pretrained(bundle.mixture(folder, other, 0.75, tmp_path / "mixed"))  # the tokenizer comes along
    a, b = (load_transformer(run / "transformer.safetensors").state_dict() for run in (folder, other))
    for name, value in mixed.transformer.state_dict().items():
        torch.testing.assert_close(value, 0.75 * a[name] + 0.25 * b[name])
    said = bundle.public(mixed.record)
    assert said["share"] == 0.75 and said["mixed_with"] == {"note": "long", "training": {"minutes": 2}}
    save_transformer(net, other / "transformer.safetensors", {})
    sha = json.loads((other / "transformer.json").read_text())["sha256"]
    with pytest.raises(ValueError, match="mix must have started from the same weights"):
        bundle.mixture(folder, other, 0.75, tmp_path / "mixed")
    save_transformer(load_pretrained(folder).transformer, folder / "transformer.safetensors", record | {"started_from": {"sha256": sha}})
    bundle.mixture(folder, other, 0.75, tmp_path / "mixed")  # a run and its own start


def test_weights_in_half_precision_load_as_float32_and_say_the_same(folder, tmp_path):
    model, half = load_pretrained(folder), load_pretrained(bundle.halved(folder, tmp_path / "half"))
    sizes = [(run / "transformer.safetensors").stat().st_size for run in (folder, tmp_path / "half")]
    assert sizes[1] < 0.6 * sizes[0] and half.record["stored_as"] == "float16"
    for (name, a), b in zip(model.transformer.state_dict().items(), half.transformer.state_dict().values(), strict=True):
        assert b.dtype == torch.float32, name
        torch.testing.assert_close(a, b, rtol=2**-11, atol=1e-7)
    assert bundle.public({"training": {"out": "a", "tokenizer": "/b/c.safetensors"}}) == {"training": {}}
    assert bundle.public({"training": {"tokenizer": "moving-mnist"}}) == {"training": {"tokenizer": "moving-mnist"}}


def test_what_does_not_load_says_why(folder, tmp_path):
    with pytest.raises(ValueError, match="no bundled model or folder 'moving-minst-tiny'"):
        load_pretrained("moving-minst-tiny")
    with pytest.raises(ValueError, match="no bundled model or folder"):
        load_pretrained(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="must hold tokenizer.safetensors and transformer.safetensors"):
        load_pretrained(tmp_path)
    other = small(grid=(8, 8), tokenizer={"residual_blocks": 1}).tokenizer
    save_tokenizer(other, folder / "tokenizer.safetensors", {})
    with pytest.raises(ValueError, match="was trained with a tokenizer of sha256"):
        load_pretrained(folder)
    (folder / "tokenizer.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="must hold tokenizer.safetensors"):
        load_pretrained(folder)


def test_unknown_name_gets_the_closest_one():
    if pretrained():
        with pytest.raises(ValueError, match="did you mean 'moving-mnist-tiny'"):
            load_pretrained("moving-minst-tiny")
        with pytest.raises(ValueError, match="no bundled model or folder 'runs/mine'. Bundled: .*moving-mnist-tiny"):
            load_pretrained("runs/mine")  # nothing like it: no guess


def test_numbers_of_numpy_are_numbers(unchecked):
    model, prompt = small(), clips()
    theirs = model.generate(prompt, np.int64(2), np.int32(2), np.float32(0.5), seed=np.int64(3))
    assert torch.equal(theirs, model.generate(prompt, 2, 2, 0.5, seed=3))


def test_window_is_no_longer_than_the_video():
    model = small()
    assert model._check(clips(), 3, 1, 1.0, 0, None, window=2000)[1] == clips().shape[1] + 3


def test_pretrained_lists_what_loads():
    state = torch.get_rng_state()
    table = pretrained()
    assert torch.equal(torch.get_rng_state(), state)
    assert "moving-mnist-tiny" in [bundle.name for bundle in table]
    lines = repr(table).splitlines()
    assert len(lines) == 1 + len(table) and lines[0].startswith("name") and max(map(len, lines)) <= 120
    for bundle, line in zip(table, lines[1:]):
        model = load_pretrained(bundle.name)
        assert bundle.parameters == sum(p.numel() for p in model.parameters()) and f"{bundle.parameters:,}" in line
        assert model.frame_shape[1:] == (bundle.size, bundle.size) and bundle.megabytes <= 40 and bundle.licence


# Errors over the horizon


def test_rollout_error_of_copying_is_the_difference_from_the_last_frame():
    real = clips(3, 6)
    wanted = (real[:, 4:] - real[:, 3:4]).square().sum((2, 3, 4)).mean(0)
    assert torch.allclose(rollout_error(None, real, 4), wanted)
    model = small()
    video = model.generate(real[:, :4], 2, temperature=0.0)[:, 0]
    wanted = (video - real).square().sum((2, 3, 4)).mean(0)[4:]
    assert torch.allclose(rollout_error(model, real, 4), wanted, atol=1e-4)
    for prompt in (0, 6):
        with pytest.raises(ValueError, match="prompt must be between 1 and T - 1 = 5"):
            rollout_error(model, real, prompt)


def test_held_out_clips_are_of_the_models_kind(folder):
    model = load_pretrained(folder)
    assert torch.equal(held_out_clips(model, 3, 20, seed=1), moving_mnist(3, 20, 32, 1, split="test", seed=1))
    with pytest.raises(ValueError, match="record must name size and digits of Moving MNIST clips"):
        held_out_clips(small(), 3, 20, seed=1)


def test_bundled_model_beats_copying_on_every_frame():
    model = load_pretrained("moving-mnist-tiny")
    known = held_out_clips(model, 32, 20, seed=1)
    for prompt in (15, 10):
        assert (rollout_error(model, known, prompt) < rollout_error(None, known, prompt)).all()


# To look at


def test_side_by_side_marks_what_is_generated():
    videos, truth = clips(2, 4), clips(1, 4)[0]
    row = side_by_side(videos, 3, truth)
    assert row.shape == (4, 3, 10, 3 * 16) and row.min() >= 0 and row.max() <= 1
    tiles = row.unflatten(-1, (3, 16))[..., 1:-1]  # T 3 H+2 S W+2
    assert torch.equal(tiles[:, :, 1:-1, 0, 1:-1], truth.expand(-1, 3, -1, -1))
    for s in range(2):
        assert torch.equal(tiles[:, :, 1:-1, s + 1, 1:-1], videos[s].expand(-1, 3, -1, -1))
    corner = tiles[:, :, 0, :, 0]  # T 3 S
    assert (corner[:3] == corner[:3, :, :1]).all() and torch.equal(corner[3, :, 0], corner[2, :, 0])
    assert (corner[3, :, 1] != corner[2, :, 1]).all()  # blue-grey before, orange after
    top = tiles[:, :, 0]  # T 3 S W+2: solid before, dashed after, so that it reads in grey
    assert (top[2] == top[2, :, :, :1]).all() and not (top[3, :, 1] == top[3, :, 1, :1]).all()


def test_futures_follow_their_links(monkeypatch):
    videos, truth = torch.rand(2, 3, 2, 5, 1, 8, 8), torch.rand(2, 5, 1, 8, 8)
    links = []
    monkeypatch.setattr(ipywidgets, "jslink", lambda a, b: links.append((a[0], b[0])))
    box = futures(videos, truth, 2, [0.0, 0.5, 1.0])
    bundle = box._repr_mimebundle_()
    assert {"image/png", "text/plain", "application/vnd.jupyter.widget-view+json"} <= set(bundle)
    clip, temperature, player, labels, outer = box.children
    assert (len(outer.children), len(outer.children[0].children), len(outer.children[0].children[0].children)) == (2, 3, 5)
    assert clip.options == ("1", "2") and temperature.options == ("0", "0.5", "1") and "future 2" in labels.value
    one, other = (outer.children[1].children[a].children for a in (0, 2))
    assert one[:2] == other[:2] and not set(one[2:]) & set(other[2:])  # the prompt's pictures are shared
    assert (clip, outer) in links and all((temperature, stack) in links for stack in outer.children)
    slider = player.children[1]
    assert all((slider, frames) in links for stack in outer.children for frames in stack.children)


def test_explore_generates_when_pressed(folder):
    model, real = load_pretrained(folder), moving_mnist(2, 8, 32, 1, seed=0)
    box = explore(model, real, prompt_frames=5)
    assert box.view.children == () and "image/png" in box._repr_mimebundle_()
    clip, samples, temperature, new_frames, seed = box.children[:5]
    clip.value, samples.value, temperature.value, new_frames.value = 2, 2, 0.5, 6
    box.button.click()
    assert not box.button.disabled
    (shown,) = box.view.children
    assert "stt-scrubber" in shown._dom_classes and len(shown.children[-1].children[0].children[0].children) == 11


# The command


def run(*arguments, **environment):
    """stt-lite in a new process: exit code, stdout, stderr, seconds of computing."""
    start = time_of_children()
    command = [sys.executable, "-c", "from stt_lite.generation import main; main()", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(os.path.dirname(os.path.dirname(generation.__file__))), **environment}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    return done.returncode, done.stdout, done.stderr, time_of_children() - start


def time_of_children() -> float:
    """Seconds that finished child processes have computed: what a free core would take, however busy this one is."""
    times = os.times()
    return times.children_user + times.children_system


def test_command_continues_a_held_out_clip(folder, tmp_path, capsys):
    out = tmp_path / "new" / "future.gif"
    arguments = ["generate", "--bundle", str(folder), "--samples", "3", "--prompt-frames", "4", "--new-frames", "2"]
    main([*arguments, "--out", str(out)])
    printed = capsys.readouterr().out
    assert str(out) in printed and re.search(r"in \d+\.\d s", printed) and "left" in printed
    video = load_video(out)
    assert video.shape == (6, 3, 4 * 34, 4 * 4 * 36)  # truth and three futures
    first = out.read_bytes()
    main([*arguments, "--out", str(out)])
    assert out.read_bytes() == first  # the default seed


@pytest.mark.parametrize("ending", [".gif", ".mp4"])
def test_command_continues_a_video_of_yours(folder, tmp_path, capsys, ending):
    clip = torch.rand(8, 3, 40, 64)
    save_video(tmp_path / f"in{ending}", clip)
    main(["generate", "--bundle", str(folder), "--prompt", str(tmp_path / f"in{ending}"), "--prompt-frames", "5",
          "--out", str(tmp_path / "out.mp4")])  # fmt: skip
    printed = capsys.readouterr().out
    assert "64x40" in printed and "32x32" in printed and "grey" in printed and "last 5 of 8 frames" in printed
    assert len(load_video(tmp_path / "out.mp4")) == 10
    save_video(tmp_path / "fits.gif", moving_mnist(1, 3, 32, 1, seed=0)[0])
    main(["generate", "--bundle", str(folder), "--prompt", str(tmp_path / "fits.gif"), "--out", str(tmp_path / "out.gif")])
    assert "fits.gif" not in capsys.readouterr().out  # nothing to note


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--out", "OUT/future.avi"], "out must end in .gif or .mp4"),
        (["--out", "OUT/file/future.gif"], "out can't be written"),
        (["--prompt", "OUT/nothing.mp4"], "no video file or folder of images at"),
        (["--prompt", "OUT/file"], "not a readable video"),
        (["--bundle", "moving-minst"], "no bundled model or folder 'moving-minst'"),
        (["--temperature", "-1"], "temperature must be a number of at least 0"),
        (["--new-frames", "0"], "new_frames must be a whole number of at least 1"),
        (["--samples", "0"], "samples must be a whole number of at least 1"),
        (["--prompt-frames", "0"], "prompt_frames must be a whole number of at least 1"),
        (["--window", "0"], "window must be a whole number of at least 1"),
        (["--device", "tpu9"], "tpu9"),
    ],
)
def test_command_says_in_one_line_what_is_wrong(folder, tmp_path, capsys, monkeypatch, arguments, words):
    (tmp_path / "file").write_text("not a folder, and no video")
    monkeypatch.chdir(tmp_path)
    arguments = ["generate", "--bundle", str(folder), *(a.replace("OUT", str(tmp_path)) for a in arguments)]
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    printed = capsys.readouterr()
    assert exit.value.code == 2 and printed.out == ""
    assert words in printed.err and printed.err.startswith("stt-lite: ") and printed.err.count("\n") == 1
    assert not list(tmp_path.glob("*.gif"))


def test_output_is_checked_before_the_work(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(generation, "load_pretrained", lambda *a: pytest.fail("loaded a model first"))
    with pytest.raises(SystemExit):
        main(["generate", "--bundle", str(folder), "--out", str(tmp_path / "file" / "out.gif")])


def test_command_lists_what_is_bundled(capsys):
    main(["pretrained"])
    assert capsys.readouterr().out.strip() == repr(pretrained())


@pytest.mark.parametrize("command, words", [
    ([], ["generate", "train", "pretrained"]),
    (["generate"], ["--prompt-frames", "default: 15", "--temperature", "frames per second"]),
    (["train"], ["moving-mnist-tiny", "moving-mnist"]),
    (["train", "moving-mnist-tiny"], ["--minutes", "--out", "--width"]),
])  # fmt: skip
def test_command_helps(capsys, command, words):
    with pytest.raises(SystemExit) as exit:
        main([*command, "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert exit.value.code == 0 and all(word in printed for word in words)


def test_command_hands_training_over(monkeypatch, tmp_path, capsys):
    seen = []
    monkeypatch.setattr(generation, "train", lambda config: (seen.append(config), tmp_path)[1])
    main(["train", "moving-mnist-tiny", "--minutes", "0.5", "--out", str(tmp_path)])
    (config,) = seen
    assert config.minutes == 0.5 and config.size == 32 and config.out == tmp_path
    assert str(tmp_path) in capsys.readouterr().out


def test_command_is_quick_from_a_cold_start(tmp_path):
    """15 frames in, 5 out, the digits not parsed yet, from the start of the process to the written file."""
    cold = {"STT_LITE_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    code, out, error, seconds = run("generate", "--out", tmp_path / "future.gif", **cold)
    assert code == 0 and (tmp_path / "future.gif").stat().st_size > 1000, error
    print(f"{seconds:.1f} s\n{out}")
    assert seconds < 10


def test_command_fails_without_traceback(tmp_path):
    code, out, error, _ = run("generate", "--bundle", "nothing", "--out", tmp_path / "future.gif")
    assert code == 2 and out == "" and error.startswith("stt-lite: ") and error.count("\n") == 1
    code, _, error, _ = run("generate", "--samples", "many")
    assert code == 2 and "Traceback" not in error


# --- what is bundled


MODELS = sorted(p.name.removesuffix("-transformer.json") for p in stt.weights_folder().glob("*-transformer.json"))


@pytest.mark.parametrize("name", MODELS)
def test_a_bundled_models_record_is_whole_and_the_books(name, root):
    path = stt.weights_folder() / f"{name}-transformer.json"
    record = json.loads(path.read_text())
    assert (root / "book" / "results" / path.name).read_text() == path.read_text()
    weights = path.with_suffix(".safetensors")
    assert weights.stat().st_size <= 20e6
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == record["sha256"]
    tokenizer = json.loads((stt.weights_folder() / f"{name}-tokenizer.json").read_text())
    assert record["tokenizer_sha256"] == tokenizer["sha256"]
    for key in ("config", "training", "commit", "hardware", "torch", "seed", "seconds", "clips_seen", "curve", "test_clips"):
        assert record.get(key) not in (None, "", []), key
    assert not {"out", "start"} & set(record["training"])  # no folder of the machine that trained it


@pytest.mark.parametrize("name", MODELS)
def test_readme_shows_the_recorded_errors(name, root):
    record = json.loads((stt.weights_folder() / f"{name}-transformer.json").read_text())
    lines = (root / "README.md").read_text().splitlines()
    header = next(line for line in lines if line.startswith("| squared error per frame |"))
    column = [cell.strip() for cell in header.split("|")].index(f"`{name}`")
    for start, protocol, key in (("15", "15->5", "first"), ("15", "15->5", "mean"), ("10", "10->10", "mean")):
        label = f"| {start} to {20 - int(start)}, {'first frame' if key == 'first' else 'mean'} |"
        row = next(line for line in lines if line.startswith(label))
        model, copy = record["metrics"][protocol][key], record["copy_last_frame"][protocol][key]
        assert row.split("|")[column].strip() == f"{model:.1f} (copying: {copy:.1f})"


def test_the_recorded_errors_are_those_of_the_bundled_weights():
    """The record's mean over 100 clips is repeated; its main figures, over 500, take a minute."""
    check = json.loads((stt.weights_folder() / "moving-mnist-tiny-transformer.json").read_text())["check"]
    model = load_pretrained("moving-mnist-tiny")
    known = held_out_clips(model, check["clips"], 20, seed=1)
    for prompt in (15, 10):
        assert rollout_error(model, known, prompt).mean().item() == pytest.approx(check[f"{prompt}->{20 - prompt}"], rel=0.02)
