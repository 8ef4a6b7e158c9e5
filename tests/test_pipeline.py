"""Chapter 09: one way to train, whatever the clips and the tokenizer are."""

import gzip
import hashlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch.multiprocessing import spawn

import stt_lite.pipeline as pipeline
from conftest import ROOT
from processes import TINY, TOKENS, FakeClips, train_digits, train_in_two
from stt_lite.checkpoints import as_json
from stt_lite.files import read_record, save_weights
from stt_lite.moving_mnist import MovingDigits
from stt_lite.pipeline import choose, shape_of, train, train_tokenizer
from stt_lite.runs import Run
from stt_lite.tokenizer import Tokenizer, TokenizerConfig, load_tokenizer
from stt_lite.training import TeacherForcing, TokenizerObjective, fit
from stt_lite.transformer import load_transformer

SOURCES = {
    "digits": MovingDigits(size=16, frames=4),
    "game": FakeClips({"game": "fake", "seed": 1}, channels=3, actions=2),
    "folder": FakeClips({"files": ["a.mp4", "b.mp4"], "path": Path("clips")}),
}
PHOTOGRAPHS = FakeClips({"photographs": ["cat"]}, channels=3, frames=1)


@dataclass(frozen=True)
class Settings:
    """How a tokenizer of another kind is trained, as `VQGANConfig` says it."""

    shape: TokenizerConfig
    weight: float = 1.0

    def objective(self, config, source):
        assert config.adamw_rate == 0.005 and config.compile is None  # all of it
        return TokenizerObjective(Tokenizer(self.shape), config, source)


def described(how, source, folder):
    """A tokenizer for a source: by name, by its config, or by settings."""
    shape = TokenizerConfig(channels=source.channels, **TOKENS)
    if how == "named":
        path = folder / "given" / "tokenizer.safetensors"
        return save_weights(Tokenizer(shape), path) if not path.exists() else path
    return shape if how == "config" else Settings(shape)


def tiny(folder, **changes):
    return TeacherForcing(out=folder, **TINY | changes)


def weights(folder, name="transformer"):
    return safetensors.torch.load_file(folder / f"{name}.safetensors")


def digest(folder, name="transformer"):
    return hashlib.sha256((folder / f"{name}.safetensors").read_bytes()).hexdigest()


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.*")}


TABLE = [(kind, how) for kind in SOURCES for how in ("named", "config", "settings")]


@pytest.mark.parametrize("kind, how", TABLE)
def test_one_way_to_train(tmp_path, kind, how):
    source, out = SOURCES[kind], tmp_path / "out"
    tokenizer = described(how, source, tmp_path)
    config = tiny(out, adamw_rate=0.005)
    assert train(config, source, tokenizer) == out
    record, other = (
        read_record(out / f"{n}.json") for n in ("transformer", "tokenizer")
    )
    assert record["data"] == as_json(source.data)
    assert record["training"] == as_json(config) and record["clips_seen"] > 0
    assert record["tokenizer_sha256"] == digest(out, "tokenizer")
    if how == "named":
        assert other["copied_from"] == str(tokenizer) and record["steps"] == 5
    else:  # every field of the config reached the tokenizer's training
        assert other["training"] == as_json(config) and other["steps"] == 2
        assert record["steps"] == 3
    net = load_transformer(out / "transformer.safetensors")
    kept = load_tokenizer(out / "tokenizer.safetensors")
    assert kept.config == choose(tmp_path, tokenizer)[0]
    assert net.config == shape_of(config, source, kept.config)
    before = contents(out)
    train(config, source, tokenizer)  # nothing is left to do
    after = contents(out)
    assert all(after[n] == before[n] for n in before if n.endswith("tensors"))
    train(replace(config, steps=7), source, tokenizer)
    assert (
        digest(out, "tokenizer")
        == hashlib.sha256(before["tokenizer.safetensors"]).hexdigest()
    )
    assert contents(out)["tokenizer.json"] == before["tokenizer.json"]
    assert contents(out)["transformer.safetensors"] != before["transformer.safetensors"]


@pytest.mark.parametrize("how", ["named", "config", "settings"])
def test_a_tokenizer_alone(tmp_path, how):
    """Photographs have one frame: there is a tokenizer to train, and no transformer."""
    tokenizer = described(how, PHOTOGRAPHS, tmp_path)
    config = tiny(tmp_path / "out", adamw_rate=0.005)
    got = train_tokenizer(config, PHOTOGRAPHS, tokenizer)
    assert not got.training and got.config.channels == 3
    record = read_record(tmp_path / "out" / "tokenizer.json")
    assert record.get("steps", 5) == 5  # the whole budget
    with pytest.raises(
        ValueError, match="source.frames must be a whole number of at le"
    ):
        train(config, PHOTOGRAPHS, tokenizer)


@pytest.mark.parametrize("kind, how", [*TABLE, ("photographs", "config")])
def test_a_batch_is_checked_against_the_processes(tmp_path, monkeypatch, kind, how):
    from accelerate import Accelerator

    monkeypatch.setattr(Accelerator, "num_processes", property(lambda self: 2))
    source = (SOURCES | {"photographs": PHOTOGRAPHS})[kind]
    tokenizer = described(how, source, tmp_path)
    call = train_tokenizer if kind == "photographs" else train
    config = tiny(tmp_path / "out", batch=3, adamw_rate=0.005)
    with pytest.raises(ValueError, match="batch must be a multiple of the 2 processes"):
        call(config, source, tokenizer)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind, how", TABLE)
def test_compile_and_precision_mean_the_same_everywhere(
    tmp_path, monkeypatch, kind, how
):
    asked, make = [], pipeline.Run

    def spy(config, name, *arguments):
        asked.append((name, config.precision, config.compile))
        return make(config, name, *arguments)

    monkeypatch.setattr(pipeline, "Run", spy)
    source = SOURCES[kind]
    tokenizer = described(how, source, tmp_path)
    config = tiny(tmp_path / "out", steps=2, adamw_rate=0.005, precision="bf16")
    train(config, source, tokenizer)
    assert asked == [(n, "bf16", None) for n in ("tokenizer", "transformer")]
    for name in ("transformer",) if how == "named" else ("transformer", "tokenizer"):
        assert read_record(tmp_path / "out" / f"{name}.json")["precision"] == "bf16"


def test_full_precision_and_then_half_in_one_process(tmp_path):
    digests = []
    for i, precision in enumerate(("no", "bf16", "no")):
        config = tiny(tmp_path / str(i), precision=precision)
        train(config, SOURCES["digits"], TokenizerConfig(**TOKENS))
        record = read_record(config.out / "transformer.json")
        assert record["precision"] == precision
        digests.append(digest(config.out))
    assert digests[0] == digests[2] != digests[1]


def test_digits_and_a_tokenizer_of_their_own_are_the_default(tmp_path):
    train(tiny(tmp_path, steps=1))
    record = read_record(tmp_path / "transformer.json")
    assert record["data"] == MovingDigits().data
    assert (
        load_tokenizer(tmp_path / "tokenizer.safetensors").config == TokenizerConfig()
    )
    train(tiny(tmp_path, steps=1), tokenizer=TokenizerConfig())  # the same run


def test_the_callers_random_numbers_stay(tmp_path):
    shape, source = TokenizerConfig(**TOKENS), SOURCES["digits"]
    config = tiny(tmp_path, steps=2)
    alone = TokenizerObjective(Tokenizer(shape), config, source)
    for work in (
        lambda: fit(alone, Run(config, "alone")),
        lambda: train_tokenizer(config, source, shape),
        lambda: train(config, source, shape),
    ):
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        work()
        assert torch.equal(torch.rand(3), expected)


def test_a_budget_in_minutes_is_shared(tmp_path):
    start = time.monotonic()
    config = tiny(tmp_path, steps=None, minutes=0.05, tokenizer_share=0.4)
    train(config, SOURCES["digits"], TokenizerConfig(**TOKENS))
    assert time.monotonic() - start < 30
    records = [
        read_record(tmp_path / f"{n}.json") for n in ("tokenizer", "transformer")
    ]
    assert 1 <= records[0]["seconds"] <= 3 and 2 <= records[1]["seconds"] <= 4


# --- before anything is written


BAD = {
    "patch": (dict(patch=3), {}, r"patch must divide the latent grid .* got 3"),
    "heads": (dict(heads=3), {}, "heads must divide width = 8, got 3"),
    "size": ({}, dict(size=18), "size must be a multiple of the tokenizer's 4 pixels"),
    "frames": (
        {},
        dict(frames=1),
        "source.frames must be a whole number of at least 2",
    ),
}


@pytest.mark.parametrize("how", ["named", "config", "settings"])
@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_stops_before_anything_is_written(tmp_path, case, how):
    changes, other, message = BAD[case]
    source = replace(SOURCES["digits"], **other)
    tokenizer = described(how, source, tmp_path)
    with pytest.raises(ValueError, match=message):
        train(tiny(tmp_path / "out", **changes), source, tokenizer)
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_of_other_channels_is_refused(tmp_path):
    for how in ("named", "config", "settings"):
        tokenizer = described(how, SOURCES["folder"], tmp_path)
        with pytest.raises(
            ValueError, match="must have the source's 3 channels, got 1"
        ):
            train(tiny(tmp_path / "out"), SOURCES["game"], tokenizer)
    with pytest.raises(ValueError, match="no bundled tokenizer 'nothing'"):
        train(tiny(tmp_path / "out"), SOURCES["game"], "nothing")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_stops_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    for how in ("named", "config"):
        tokenizer = described(how, SOURCES["digits"], tmp_path)
        with pytest.raises(OSError, match="out can't be written"):
            train(tiny(tmp_path / "file" / "run"), SOURCES["digits"], tokenizer)


# --- runs that go on


class Stop(Exception):
    pass


def stop_after(step, config, source, tokenizer, name="transformer"):
    """Train until the checkpoint of `step` is the last one, and stop there."""
    config, report = replace(config, checkpoint_seconds=0.0), Run.report

    def stopped(run, *arguments):
        report(run, *arguments)
        if run.name == name and run.progress.step > step:
            raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "report", stopped)
        with pytest.raises(Stop):
            train(config, source, tokenizer)


@pytest.mark.parametrize("kind, how", TABLE)
def test_a_run_that_stopped_goes_on_bit_for_bit(tmp_path, kind, how):
    source = SOURCES[kind]
    tokenizer = described(how, source, tmp_path)
    whole, stopped = (tiny(tmp_path / n, adamw_rate=0.005) for n in ("a", "b"))
    train(whole, source, tokenizer)
    if how != "named":
        stop_after(1, stopped, source, tokenizer, "tokenizer")
    stop_after(2, stopped, source, tokenizer)
    train(stopped, source, tokenizer)
    for name in ("tokenizer", "transformer"):
        assert digest(whole.out, name) == digest(stopped.out, name)


def begin(folder, function="train_digits", **options):
    """`train_digits` in a process of its own."""
    script = f"import sys, processes; processes.{function}(sys.argv[1])"
    command = [sys.executable, "-c", script, str(folder)]
    return subprocess.Popen(command, cwd=ROOT / "tests", text=True, **options)


def test_killed_at_random_moments_it_ends_with_the_same_weights(tmp_path):
    """Twice; KILLS=100 in the environment: so often."""
    train_digits(str(tmp_path / "whole"))
    clock, left = random.Random(time.time_ns()), int(os.environ.get("KILLS", 2))
    killed = tmp_path / "killed"
    while left:
        before = newest(killed)
        with begin(killed, stderr=subprocess.DEVNULL) as run:
            while newest(killed) == before and run.poll() is None:
                time.sleep(0.002)  # the start takes seconds
            time.sleep(clock.uniform(0, 0.3))
            run.kill()
        if run.returncode == -signal.SIGKILL:
            left -= 1
            for path in killed.glob("*.checkpoint"):
                torch.load(path, weights_only=True)  # none is a half
        else:  # it was over before: once more from the beginning
            assert run.returncode == 0
            same_weights(tmp_path / "whole", killed)
            shutil.rmtree(killed)
    train_digits(str(killed))
    same_weights(tmp_path / "whole", killed)


def same_weights(one, other):
    for name in ("tokenizer", "transformer"):
        assert digest(one, name) == digest(other, name)


@pytest.mark.parametrize("kind, code", [(signal.SIGINT, 1), (signal.SIGTERM, 143)])
def test_stopped_gently_it_goes_on_bit_for_bit(tmp_path, kind, code):
    """An exception ends `python -c` with 1; the command makes 130 of it."""
    train_digits(str(tmp_path / "whole"))
    with begin(tmp_path / "stopped", "halt", stderr=subprocess.PIPE) as run:
        assert os.WIFSTOPPED(os.waitpid(run.pid, os.WUNTRACED)[1])
        with pytest.raises(OSError, match="another training is at work in "):
            train_digits(str(tmp_path / "stopped"))
        run.send_signal(kind)
        run.send_signal(signal.SIGCONT)
        told = run.communicate()[1]
    assert run.returncode == code and "called again, it goes on from " in told
    train_digits(str(tmp_path / "stopped"))
    same_weights(tmp_path / "whole", tmp_path / "stopped")


def newest(folder):
    """When the last checkpoint was written."""
    paths = Path(folder).glob("*.checkpoint")
    return max((path.stat().st_mtime_ns for path in paths), default=0)


@pytest.mark.parametrize("longer", [20, 11])
def test_a_longer_run_goes_on_from_where_it_was_stable(tmp_path, longer):
    """Ten steps, then more, end as all at once: the first fall leaves no trace."""
    source, tokenizer = (
        SOURCES["digits"],
        described("named", SOURCES["digits"], tmp_path),
    )
    pieces, whole = (
        tiny(tmp_path / "pieces", steps=10),
        tiny(tmp_path / "whole", steps=longer),
    )
    train(pieces, source, tokenizer)
    first = digest(pieces.out)
    stable = torch.load(pieces.out / "transformer-stable.checkpoint", weights_only=True)
    assert stable["progress"]["step"] == 8 and not stable["progress"]["decaying"]
    train(replace(pieces, steps=longer), source, tokenizer)
    train(whole, source, tokenizer)
    assert digest(pieces.out) == digest(whole.out) != first
    record = read_record(pieces.out / "transformer.json")
    assert record["steps"] == longer and record["clips_seen"] == 2 * longer


def test_a_run_stopped_in_its_fall_goes_on_falling(tmp_path):
    source, tokenizer = (
        SOURCES["digits"],
        described("named", SOURCES["digits"], tmp_path),
    )
    stopped, whole = (tiny(tmp_path / name, steps=10) for name in ("a", "b"))
    stop_after(9, stopped, source, tokenizer)
    train(stopped, source, tokenizer)
    train(whole, source, tokenizer)
    assert digest(stopped.out) == digest(whole.out)


def test_a_run_goes_on_with_another_batch_and_schedule(tmp_path):
    source, tokenizer = (
        SOURCES["digits"],
        described("named", SOURCES["digits"], tmp_path),
    )
    stop_after(3, tiny(tmp_path), source, tokenizer)
    train(tiny(tmp_path, steps=6, batch=4, schedule="cosine"), source, tokenizer)
    record = read_record(tmp_path / "transformer.json")
    assert record["steps"] == 6 and record["clips_seen"] == 3 * 2 + 3 * 4


def test_what_another_run_left_is_refused_and_stays(tmp_path):
    source, shape = SOURCES["digits"], TokenizerConfig(**TOKENS)
    train(tiny(tmp_path), source, shape)
    before = contents(tmp_path)
    other = replace(shape, codebook_size=32)
    named = described("named", source, tmp_path / "other")
    run = tiny(tmp_path)
    changed = "another config: tokenizer = {.*}, now "
    for config, clips, tokenizer, message in (
        (tiny(tmp_path, width=16), source, shape, "another config: width = 8, now 16"),
        (tiny(tmp_path, seed=1), source, shape, "another config: seed = 0, now 1"),
        (run, replace(source, digits=2), shape, "another config: digits = 1, now 2"),
        (run, source, other, "holds a run with the tokenizer .*; choose another `out`"),
        (run, source, named, f"{changed}'"),
        (run, source, Settings(shape), f"{changed}{{'shape'"),
    ):
        with pytest.raises(ValueError, match=message):
            train(config, clips, tokenizer)
        now = contents(tmp_path)
        assert {name: now[name] for name in before} == before


def test_tokens_stay_where_the_named_tokenizer_is_gone_or_changed(tmp_path):
    source = SOURCES["digits"]
    tokenizer = described("named", source, tmp_path)
    train(tiny(tmp_path / "out"), source, tokenizer)
    kept = digest(tmp_path / "out", "tokenizer")
    for path in (tokenizer, tokenizer.with_suffix(".json")):
        path.unlink()
    train(tiny(tmp_path / "out", steps=6), source, tokenizer)
    torch.manual_seed(1)
    save_weights(Tokenizer(TokenizerConfig(**TOKENS)), tokenizer)
    train(tiny(tmp_path / "out", steps=7), source, tokenizer)
    assert digest(tmp_path / "out", "tokenizer") == kept
    assert read_record(tmp_path / "out" / "transformer.json")["steps"] == 7


def test_a_broken_checkpoint_is_named(tmp_path):
    source, tokenizer = SOURCES["digits"], TokenizerConfig(**TOKENS)
    stop_after(2, tiny(tmp_path), source, tokenizer)
    path = tmp_path / "transformer.checkpoint"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="transformer.checkpoint is not a whole check"):
        train(tiny(tmp_path), source, tokenizer)


def test_a_loss_that_is_not_finite_keeps_the_checkpoint(tmp_path, monkeypatch):
    source, tokenizer = SOURCES["digits"], TokenizerConfig(**TOKENS)
    kind, calls = pipeline.SpatialTemporalTransformer, []
    draw = kind.draw_noise

    def poisoned(*arguments):
        calls.append(None)
        return draw(*arguments) * (math.nan if len(calls) == 3 else 1)

    monkeypatch.setattr(kind, "draw_noise", poisoned)
    with pytest.raises(
        FloatingPointError, match="loss is nan .* at step 2 of the transfo"
    ):
        train(tiny(tmp_path, checkpoint_seconds=0.0), source, tokenizer)
    state = torch.load(tmp_path / "transformer.checkpoint", weights_only=True)
    assert state["progress"]["step"] == 1  # that its loss was good, the second one said
    assert all(value.isfinite().all() for value in state["model"].values())


def test_a_rate_that_wrecks_a_run_is_no_dead_end(tmp_path):
    source, tokenizer = (
        SOURCES["digits"],
        described("named", SOURCES["digits"], tmp_path),
    )
    run = tiny(tmp_path / "out", steps=40, checkpoint_seconds=0.0)
    high = replace(run, adamw_rate=1e8, muon_rate=1e8)
    with pytest.raises(FloatingPointError, match="with lower .* goes on from"):
        train(high, source, tokenizer)
    state = torch.load(run.out / "transformer.checkpoint", weights_only=True)
    assert state["progress"]["step"] > 0
    train(run, source, tokenizer)
    record = read_record(run.out / "transformer.json")
    losses = [loss for _, loss in record["curve"]]
    assert record["steps"] == 40 and losses[-1] < losses[0]
    assert record["training"]["muon_rate"] == run.muon_rate


def test_a_run_of_the_first_edition_goes_on(tmp_path):
    """Its code wrote this checkpoint at step 6 of 10, one head on 4 channels."""
    packed = ROOT / "tests" / "data" / "first_edition.checkpoint.gz"
    path = tmp_path / "transformer.checkpoint"
    path.write_bytes(gzip.decompress(packed.read_bytes()))
    old = torch.load(path, weights_only=True)
    for name in ("tokenizer.json", "tokenizer.safetensors"):
        bundled = ROOT / "stt_lite" / "weights" / f"moving-mnist-tiny-{name}"
        (tmp_path / name).write_bytes(bundled.read_bytes())
    shape = dict(width=4, layers=1, heads=1, patch=2)
    config = TeacherForcing(out=tmp_path, steps=10, batch=2, **shape)
    source = MovingDigits(size=32, digits=1, frames=6)
    with pytest.raises(ValueError, match="another config: layers = 1, now 2"):
        train(replace(config, layers=2), source, "moving-mnist-tiny")
    with pytest.raises(ValueError, match="another config: blur = 2.0, now 0.0"):
        old["config"]["blur"] = 2.0
        torch.save(old, path)
        train(config, source, "moving-mnist-tiny")
    path.write_bytes(gzip.decompress(packed.read_bytes()))
    train(config, source, "moving-mnist-tiny")
    record = read_record(tmp_path / "transformer.json")
    assert record["steps"] == 10 and record["clips_seen"] == 12 + 4 * 2
    assert record["seconds"] >= 1  # the first edition's are counted, too
    new = weights(tmp_path)
    for name, value in new.items():  # a few steps away, not begun anew
        before = old["average"][f"module.{name}"]
        assert (value - before).norm() < 0.5 * before.norm() + 0.5, name


# --- several processes


def test_two_processes_train_to_the_same_weights_and_one_of_them_writes(tmp_path):
    tokenizer = str(described("named", SOURCES["digits"], tmp_path))
    config = TINY | dict(steps=6, batch=4)
    train_digits(str(tmp_path / "one"), tokenizer, **config)
    mixed = TeacherForcing(out=tmp_path / "mixed", **config)  # then, in two processes
    stop_after(2, mixed, SOURCES["digits"], tokenizer)
    spawn(train_in_two, (str(tmp_path), tokenizer, config), nprocs=2)
    expected = weights(tmp_path / "one")
    for folder in ("two", "mixed"):  # the same clips: only sums are rounded otherwise
        for name, value in weights(tmp_path / folder).items():
            close = 0.02 * expected[name].norm() + 1e-3
            assert (value - expected[name]).norm() < close, (folder, name)
    assert read_record(tmp_path / "two" / "transformer.json")["processes"] == 2
    assert read_record(tmp_path / "rank0" / "transformer.json")["steps"] == 9
    assert not (tmp_path / "rank1").exists()  # the other process writes nothing
    assert 1 <= read_record(tmp_path / "timed" / "transformer.json")["seconds"] <= 6


def test_records_hold_what_the_book_shows(tmp_path):
    train(tiny(tmp_path), SOURCES["digits"], TokenizerConfig(**TOKENS))
    record = json.loads((tmp_path / "transformer.json").read_text())
    for name in ("hardware", "torch", "seed", "processes", "commit"):
        assert name in record, name
    assert "licence" not in record  # of models of users' own videos we claim none
    seconds, losses = zip(*record["curve"], strict=True)
    assert list(seconds) == sorted(seconds) and all(loss > 0 for loss in losses)
