"""Appendix 92: checked configs, budget and clock, checkpoints, seeds, processes."""

import gzip
import math
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro
from torch.multiprocessing import spawn
from tqdm import tqdm

import stt_lite.checkpoints as checkpoints
import stt_lite.runs as runs
from conftest import ROOT
from processes import report_clocks
from stt_lite.checkpoints import (
    Progress,
    as_json,
    check_fields,
    check_same,
    load_checkpoint,
    save_checkpoint,
)
from stt_lite.machines import commit, hardware, new_accelerator, seed_everything
from stt_lite.moving_mnist import MovingDigits
from stt_lite.runs import Run, RunConfig, Share
from stt_lite.tokenizer import TokenizerConfig
from stt_lite.training import TeacherForcing

# --- configs


@pytest.mark.parametrize(
    "field, values, message",
    [
        ("layers", (-1, 0, 1.5, True, "2"), "layers must be a whole number above 0"),
        ("steps", (0, 1.5, math.inf), "steps must be a whole number above 0"),
        ("batch", (0, -2, 2.0), "batch must be a whole number above 0"),
        ("seed", (1.5, -1, "0"), "seed must be a whole number at least 0"),
        ("minutes", (0, -1.0, math.inf, math.nan), "minutes must be above 0"),
        ("beta", (-1, math.nan, math.inf, "8"), "beta must be at least 0"),
        ("adamw_rate", (0.0, math.nan), "adamw_rate must be above 0"),
        ("average", (1.0, -0.1, math.nan), r"average must be in \[0, 1\)"),
        ("decay_share", (0.0, 1.0), r"decay_share must be in \(0, 1\)"),
        ("tokenizer_share", (0, 1), r"tokenizer_share must be in \(0, 1\)"),
        ("checkpoint_seconds", (-1, math.nan), "checkpoint_seconds must be at least 0"),
        ("schedule", ("linear", None), 'schedule must be "wsd" or "cosine"'),
        ("gaussian", ("on",), 'gaussian must be "latent" or "bottleneck" or "off"'),
        ("compile", (1, "no"), "compile must be of type bool"),
    ],
)
def test_a_config_refuses_what_its_annotations_do_not_allow(
    unchecked, field, values, message
):
    for value in values:
        with pytest.raises(ValueError, match=message) as error:
            TeacherForcing(**{field: value})
        assert str(error.value).endswith(f"got {value!r}")


def test_numpys_numbers_become_pythons_own(unchecked):
    config = TeacherForcing(
        steps=np.int64(5), seed=np.uint8(3), beta=np.float32(2), layers=np.int32(2)
    )
    assert as_json(config)["beta"] == 2.0
    kinds = [type(value) for value in (config.steps, config.seed, config.beta)]
    assert kinds == [int, int, float]
    assert config == TeacherForcing(steps=5, seed=3, beta=2.0, layers=2)


def test_where_steps_are_given_minutes_do_not_matter():
    with pytest.raises(ValueError, match="give steps or minutes, got neither"):
        RunConfig(minutes=None)
    timed = TeacherForcing(minutes=60.0)
    for config in (
        RunConfig(minutes=60.0, steps=5),
        replace(timed, steps=5),
        tyro.cli(TeacherForcing, default=timed, args=["--steps", "5"]),
    ):
        assert config.steps == 5 and config.minutes is None
    assert tyro.cli(TeacherForcing, default=timed, args=["--beta", "3"]).beta == 3.0


def test_any_frozen_dataclass_can_be_checked():
    @dataclass(frozen=True)
    class Settings:
        shape: TokenizerConfig = TokenizerConfig()
        weight: Share = 0.5

        def __post_init__(self):
            check_fields(self)

    Settings(weight=0)
    with pytest.raises(ValueError, match=r"weight must be in \[0, 1\), got 2"):
        Settings(weight=2)
    with pytest.raises(ValueError, match="shape must be of type TokenizerConfig"):
        Settings(shape=None)


def test_a_home_folder_is_found(unchecked):
    assert RunConfig(out="~/runs").out == Path.home() / "runs"


def test_as_json_is_what_json_gives_back():
    settings = {"tokenizer": TokenizerConfig(levels=(2, 3)), "path": Path("a/b")}
    got = as_json(settings)
    assert got["path"] == "a/b" and got["tokenizer"]["levels"] == [2, 3]
    assert as_json(got) == got and as_json(RunConfig())["out"] == "runs/model"


# --- budget and clock


def short(folder, **changes):
    return Run(RunConfig(out=folder, **{"steps": 4} | changes), "thing")


def advance(run, steps=math.inf, loss=1.0):
    """Steps of a run that learns nothing; how much of the budget each had used up."""
    done = []
    for step in run.steps():
        run.report(torch.tensor(loss), torch.tensor(1.0), 2, {"a": torch.tensor(3.0)})
        done.append(step.done)
        if len(done) == steps:
            break
    return done


def test_a_budget_in_steps(tmp_path):
    run = short(tmp_path)
    assert advance(run) == [0.0, 0.25, 0.5, 0.75] and run.done == 1.0
    assert run.progress.step == 4 and run.progress.clips == 8
    assert run.logs == {"loss": 1.0, "a": 3.0}
    half = Run(run.config, "part", 0.5)
    assert advance(half) == [0.0, 0.5]
    least = Run(run.config, "least", 0.01)
    assert advance(least) == [0.0]  # one step at least


class Clock:
    """Stands where a module has `time`; it goes on by what is slept alone."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("stt_lite.runs.time", clock)
    return clock


def test_a_budget_in_minutes_counts_training_alone(tmp_path, clock):
    run = Run(RunConfig(out=tmp_path, minutes=0.02), "thing", share=0.5)
    for step in run.steps():
        with run.pause():
            clock.sleep(0.2)
        clock.sleep(0.1)
        run.report(torch.tensor(1.0), torch.tensor(1.0), 1, {})
    assert run.progress.step in (6, 7)  # six tenths, as floats may have it
    assert run.progress.seconds == pytest.approx(0.1 * run.progress.step)
    assert clock.now == pytest.approx(100 + 0.3 * run.progress.step)


def test_saving_does_not_count(tmp_path, monkeypatch, clock):
    write, written = checkpoints.write_file, []

    def slow(*args):
        clock.sleep(0.3)
        written.append(args[0].name)
        write(*args)

    monkeypatch.setattr(checkpoints, "write_file", slow)
    run = short(tmp_path, checkpoint_seconds=0.0)
    for _ in run.steps():
        clock.sleep(0.1)
        run.report(torch.tensor(1.0), torch.tensor(1.0), 1, {})
    assert len(written) == 4 and run.progress.seconds == pytest.approx(0.4)


def test_the_curve_has_a_point_every_five_steps_and_at_the_end(tmp_path):
    run = short(tmp_path, steps=12)
    for step in run.steps():
        loss = torch.tensor(float(run.progress.step))
        run.report(loss, torch.tensor(1.0), 1, {})
    steps, _, losses = zip(*run.progress.history, strict=True)
    assert steps == (5, 10, 12) and losses == (2.0, 7.0, 10.5)


def test_something_is_shown_now_and_then_and_at_the_end(tmp_path):
    run = short(tmp_path, steps=12)
    due = []
    for step in run.steps():
        run.report(torch.tensor(1.0), torch.tensor(1.0), 1, {})
        due.append(run.due(interval=3600.0))
    assert due == [False] * 4 + [True] + [False] * 6 + [True]  # once there is a curve
    run.main = False
    assert not run.due()


def step_of(path):
    return torch.load(path, weights_only=True)["progress"]["step"]


def test_checkpoints_come_when_it_is_time_and_at_the_end(tmp_path):
    often = short(tmp_path, checkpoint_seconds=0.0)
    advance(often, steps=3)
    assert step_of(often.path) == 2  # the third step's loss was good
    advance(short(tmp_path))
    assert step_of(often.path) == 4


def test_they_come_often_at_first(tmp_path, clock):
    """Who is killed before the first minute has lost half of the time at most."""
    run, kept = short(tmp_path, steps=40), []
    run.save = lambda path: path == run.next and kept.append(run.progress.seconds)
    for _ in run.steps():
        clock.sleep(0.01)
        run.report(torch.tensor(1.0), torch.tensor(1.0), 1, {})
    assert kept == pytest.approx([0.01, 0.02, 0.04, 0.08, 0.16, 0.32])


def test_a_checkpoint_waits_until_its_loss_is_known_to_be_in_range(tmp_path):
    run = short(tmp_path, steps=20, checkpoint_seconds=0.0)
    losses = [8.0, 7.0, 9.0, 500.0, 1e4, 1e9, 12.0, 6.0]
    steps = run.steps()
    written = []
    for loss in losses:
        next(steps)
        run.report(torch.tensor(loss), torch.tensor(1.0), 2, {})
        written.append(step_of(run.path) if run.path.exists() else 0)
    # 500 is not usual: what led there, step 3, is kept when a usual loss comes again
    assert written == [0, 1, 2, 2, 2, 2, 3, 7]
    assert run.progress.kept == [8.0, 7.0, 9.0, 12.0]


def test_what_was_not_known_to_be_good_is_not_gone_on_from(tmp_path):
    run = short(tmp_path, steps=20, checkpoint_seconds=0.0)
    steps = run.steps()
    for _ in range(3):
        next(steps)
        run.report(torch.tensor(1.0), torch.tensor(1.0), 2, {})
    next(steps)
    assert step_of(run.next) == 3
    again = short(tmp_path, steps=20)
    again.resume()
    assert again.progress.step == 2 and not again.next.exists()


def test_a_run_goes_on_with_another_rate(tmp_path):
    def optimizer(rate):
        made = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 0.1, momentum=0.5)
        made.param_groups[0]["peak"] = rate
        return made

    old, new = optimizer(1e4), optimizer(0.5)
    save_checkpoint(tmp_path / "a", Progress(), {}, {"optimizer": old})
    load_checkpoint(tmp_path / "a", {}, {"optimizer": new})
    assert new.param_groups[0]["peak"] == 0.5
    assert new.param_groups[0]["momentum"] == 0.5
    advance(short(tmp_path, adamw_rate=1.0))
    short(tmp_path, steps=9, adamw_rate=0.5).resume()


def test_a_run_that_goes_on_says_from_where(tmp_path, capsys, monkeypatch):
    advance(short(tmp_path))
    again = short(tmp_path, steps=9)
    again.resume()
    bars = []
    monkeypatch.setattr(runs, "tqdm", lambda **of: bars.append(tqdm(**of)) or bars[-1])
    advance(again)
    assert "thing, on from step 4: " in capsys.readouterr().err  # before the fall
    assert bars[0].initial == 4 and bars[0].n == 9  # its rate is of the other five


# --- one at a time, and stopped gently


def test_a_folder_is_one_runs_alone(tmp_path):
    first, second = short(tmp_path), short(tmp_path)
    with first.held():
        with pytest.raises(OSError, match=f"another training is at work in {tmp_path}"):
            with second.held():
                pass
    with second.held(), Run(RunConfig(out=tmp_path / "other"), "thing").held():
        pass


def test_a_lock_does_not_outlive_its_process(tmp_path):
    code = "import sys, time; from stt_lite.runs import *\n"
    code += "with Run(RunConfig(out=sys.argv[1]), 'a').held(): print(1, flush=True); "
    code += "time.sleep(60)"
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(OSError, match="another training is at work in"):
            with short(tmp_path).held():
                pass
        other.kill()
    with short(tmp_path).held():
        pass


def test_a_folder_that_can_not_be_held(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="out can't be written: .*"):
        with short(tmp_path / "file" / "run").held():
            pass


@pytest.mark.parametrize(
    "kind, ending", [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_a_signal_is_a_wish_at_first(tmp_path, capsys, kind, ending):
    handlers = [signal.getsignal(k) for k in (signal.SIGINT, signal.SIGTERM)]
    run = short(tmp_path, steps=20)
    with pytest.raises(ending) as stop, run.held():
        for step in run.steps():
            run.report(torch.tensor(1.0), torch.tensor(1.0), 2, {})
            if run.progress.step == 7:
                signal.raise_signal(kind)
    assert step_of(run.path) == run.progress.step == 8  # the step it came in, and one
    told = f"stopped at step 8 of the thing; called again, it goes on from {run.path}"
    if ending is SystemExit:
        assert stop.value.code == 143 and told in capsys.readouterr().err
    else:
        assert str(stop.value) == told
    assert handlers == [signal.getsignal(k) for k in (signal.SIGINT, signal.SIGTERM)]
    run = short(tmp_path, steps=20)
    run.resume()
    assert run.progress.step == 8


def test_the_second_time_it_stops_at_once(tmp_path):
    run = short(tmp_path)
    with pytest.raises(KeyboardInterrupt), run.held():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("it went on")


def test_a_wish_after_the_last_step_counts(tmp_path):
    run = short(tmp_path)
    with pytest.raises(KeyboardInterrupt, match="stopped at step 4 .* goes on from"):
        with run.held():
            advance(run)
            signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="at step 0 .* it begins anew"):
        with (nothing := short(tmp_path / "new")).held():
            nothing.note(signal.SIGINT, None)


def test_threads_get_no_signals(tmp_path):
    def train():
        with (run := short(tmp_path)).held():
            return advance(run)

    with ThreadPoolExecutor(1) as pool:
        assert len(pool.submit(train).result()) == 4


def test_a_longer_budget_goes_on_from_before_the_fall(tmp_path):
    run = short(tmp_path, steps=10)
    advance(run)
    assert run.progress.decaying
    again = short(tmp_path, steps=10)
    again.resume()
    assert again.done == 1.0 and advance(again) == []
    longer = short(tmp_path, steps=20)
    longer.resume()
    assert longer.progress.step == 8 and not longer.progress.decaying
    assert advance(longer)[0] == 0.4


def test_a_stable_checkpoint_of_a_smaller_budget_does_not_outlive_it(tmp_path):
    """Even where the loss is out of range just when the rate begins to fall."""
    advance(short(tmp_path, steps=10))  # its stable one is of step 8
    run = short(tmp_path, steps=20, checkpoint_seconds=0.0)
    run.resume()
    advance(run, steps=8)  # to step 16, where the rate begins to fall
    run.logs = {"loss": 1e3}
    advance(run, steps=3)
    assert run.progress.decaying
    again = short(tmp_path, steps=20)
    again.resume()
    assert again.progress.step > 15


@pytest.mark.parametrize(
    "loss, norm", [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan)]
)
def test_a_loss_or_gradient_that_is_not_finite_stops_the_run(tmp_path, loss, norm):
    run = short(tmp_path, checkpoint_seconds=0.0)
    with pytest.raises(
        FloatingPointError, match="step 0 of the thing; with lower .* begins anew"
    ):
        for _ in run.steps():
            run.report(torch.tensor(loss), torch.tensor(norm), 1, {})
    advance(run, steps=2)
    with pytest.raises(
        FloatingPointError, match="the same run goes on from .*thing.checkpoint"
    ):
        run.report(torch.tensor(loss), torch.tensor(norm), 1, {})
    assert run.progress.step == 2


# --- checkpoints


class Part:
    """Something with a state."""

    def __init__(self, value=0.0):
        self.value = value

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


def test_a_checkpoint_brings_everything_back(tmp_path):
    net, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    progress = Progress(3, 12, 1.5, True, [[3, 1.5, 0.1]])
    path = tmp_path / "a" / "thing.checkpoint"
    save_checkpoint(path, progress, {"seed": 0}, {"model": net, "part": Part(7.0)})
    part = Part()
    got = load_checkpoint(path, {"seed": 0}, {"model": other, "part": part})
    assert got == progress and part.value == 7.0
    assert torch.equal(net.weight, other.weight)


def test_a_run_in_full_precision_goes_on_with_a_scaler(tmp_path):
    net, path = torch.nn.Linear(2, 2), tmp_path / "thing.checkpoint"
    save_checkpoint(path, Progress(step=3), {}, {"model": net, "scaler": None})
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    parts = {"model": torch.nn.Linear(2, 2), "scaler": scaler}
    assert load_checkpoint(path, {}, parts).step == 3
    assert torch.equal(parts["model"].weight, net.weight)
    assert scaler.get_scale() == 8.0


def test_a_cut_or_foreign_checkpoint_is_named(tmp_path):
    path = tmp_path / "thing.checkpoint"
    save_checkpoint(path, Progress(), {}, {"model": torch.nn.Linear(9, 9)})
    whole = path.read_bytes()
    foreign = [whole[:100], whole[: len(whole) // 2], whole[:-10], b"", b"pickle"]
    for content in foreign:
        path.write_bytes(content)
        with pytest.raises(ValueError, match="thing.checkpoint is not a whole checkpo"):
            load_checkpoint(path, {}, {})
    for state in ({}, [1], {"config": None, "progress": {}}, {"config": {}}, None):
        torch.save(state, path)
        with pytest.raises(ValueError, match="thing.checkpoint is not a whole checkpo"):
            load_checkpoint(path, {}, {})


def test_weights_of_another_shape_do_not_fit(tmp_path):
    path = tmp_path / "thing.checkpoint"
    save_checkpoint(path, Progress(), {}, {"model": torch.nn.Linear(2, 2)})
    for part in {"model": torch.nn.Linear(3, 2)}, {"other": torch.nn.Linear(2, 2)}:
        with pytest.raises(ValueError, match="does not fit: .*; choose another `out`"):
            load_checkpoint(path, {}, part)
    for content in (b".", b"\x80\x02.", b"PK", b"text"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is not a whole checkpoint"):
            load_checkpoint(path, {}, {})


class Evil:
    def __reduce__(self):
        return os.mkdir, (f"{os.environ['EVIL']}/was-run",)


def test_a_checkpoint_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.setenv("EVIL", str(tmp_path))
    path = tmp_path / "thing.checkpoint"
    torch.save({"config": {}, "progress": {}, "model": Evil()}, path)
    with pytest.raises(ValueError, match="is not a whole checkpoint"):
        load_checkpoint(path, {}, {})
    assert not (tmp_path / "was-run").exists()


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    words = "the checkpoint of step .: No space left"
    for steps in (0, 3):
        advance(short(tmp_path, checkpoint_seconds=0.0), steps=steps) if steps else None
        run = short(tmp_path, checkpoint_seconds=0.0)
        run.resume()
        before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(OSError, match=words):
                advance(run)
        assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_folder_that_was_removed_is_made_again(tmp_path):
    run = short(tmp_path / "out", checkpoint_seconds=0.0)
    with run.held():
        advance(run, steps=2)
        shutil.rmtree(tmp_path / "out")
        advance(run)
    assert step_of(run.path) == 4


# --- what must stay as it is


def test_settings_that_must_not_change(tmp_path):
    advance(short(tmp_path))
    run = Run(RunConfig(out=tmp_path, steps=8, seed=1), "thing", settings={"size": 32})
    expected = "thing.checkpoint is of another config: seed = 0, now 1; choose another"
    with pytest.raises(ValueError, match=expected):  # it knows nothing of a size
        run.resume()
    short(tmp_path, steps=9, batch=8, schedule="cosine", precision="bf16").resume()


def test_what_an_older_run_did_not_write_had_its_default(tmp_path):
    run = Run(TeacherForcing(out=tmp_path, steps=4), "thing")
    run.save(run.path)
    state = torch.load(run.path, weights_only=True)
    del state["config"]["patch"], state["config"]["schedule"]
    del state["progress"]["clips"], state["progress"]["decaying"]
    state["progress"]["step"] = 3
    torch.save(state, run.path)
    run.resume()
    assert run.progress.clips == 12  # 3 steps of a batch of 4
    with pytest.raises(ValueError, match="patch = 1, now 2"):
        Run(TeacherForcing(out=tmp_path, steps=4, patch=2), "thing").resume()


def first_edition(folder):
    """A checkpoint that the first edition's own code wrote at step 6 of 10."""
    packed = ROOT / "tests" / "data" / "first_edition.checkpoint.gz"
    path = folder / "transformer.checkpoint"
    path.write_bytes(gzip.decompress(packed.read_bytes()))
    return path


def test_settings_of_the_first_edition(tmp_path):
    path = first_edition(tmp_path)
    then = torch.load(path, weights_only=True)["config"]
    source = MovingDigits(size=32, digits=1, frames=6)
    config = TeacherForcing(out=tmp_path, steps=10, width=4, layers=1, heads=1, patch=2)
    now = as_json(asdict(config) | source.data | {"tokenizer": "moving-mnist-tiny"})
    check_same(then, now, path)
    changes = {"clip": 0.5, "blur": 2.0, "hide": 0.1, "beta_warmup": 0.3}
    for name, value in (changes | {"start": "moving-mnist-tiny"}).items():
        with pytest.raises(
            ValueError, match=f"another config: {name} = {value!r}, now"
        ):
            check_same(then | {name: value}, now, path)
    for name, value in {"digits": 2, "tokenizer": "other", "width": 8}.items():
        with pytest.raises(
            ValueError, match=f"another config: {name} = .*, now {value!r}"
        ):
            check_same(then, now | {name: value}, path)
    trained = as_json({"tokenizer": TokenizerConfig()})  # how, it did not write
    check_same(then | {"tokenizer": None}, now | trained, path)
    with pytest.raises(ValueError, match="tokenizer = None, now 'moving-mnist-tiny'"):
        check_same(then | {"tokenizer": None}, now, path)
    with pytest.raises(ValueError, match="tokenizer = 'moving-mnist-tiny', now {'chan"):
        check_same(then, now | trained, path)


# --- machines


def test_what_is_random_follows_from_seed_and_step():
    def draws(seed, step):
        generators = (None, *seed_everything(seed, step, "cpu"))
        return torch.cat([torch.rand(3, generator=g) for g in generators])

    assert torch.equal(draws(0, 5), draws(0, 5))
    assert draws(0, 5).unique().numel() == 9
    assert not torch.equal(draws(0, 5), draws(0, 6))
    assert not torch.equal(draws(0, 5), draws(1, 5))


def test_a_second_run_in_a_process_has_its_own_precision_and_compiler():
    for precision, compiled in (("no", None), ("bf16", True), ("no", False)):
        accelerator = new_accelerator(precision, compiled)
        assert accelerator.mixed_precision == precision
        backend = accelerator.state.dynamo_plugin.backend.value
        assert (backend == "INDUCTOR") == bool(compiled)


def test_float16_on_a_cpu_is_refused():
    with pytest.raises(ValueError, match='precision "fp16" needs a GPU'):
        new_accelerator("fp16")


def test_hardware_is_named():
    assert hardware(torch.device("cpu")).startswith(
        f"CPU, {torch.get_num_threads()} threads, "
    )


def test_the_commit_is_the_checkouts_or_none(monkeypatch, tmp_path):
    got = commit()
    assert got is None or len(got) == 40
    monkeypatch.setenv("PATH", str(tmp_path))  # no git
    assert commit() is None
    monkeypatch.undo()
    package = tmp_path / "site-packages" / "stt_lite" / "weights"
    monkeypatch.setattr("stt_lite.machines.weights_folder", lambda: package)
    assert commit() is None  # an installed package


def test_processes_share_the_main_ones_clock(tmp_path):
    """Each has a clock of its own; only the main one's counts, for all."""
    spawn(report_clocks, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first == second and first["seconds"] >= 0.3
    assert first["mean"] == 0.5 and first["step"] == 3
    assert "batch must be a multiple of the 2 processes, got 3" in first["refused"]
