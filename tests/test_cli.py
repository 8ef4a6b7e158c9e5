"""Appendix 94: each command, what it refuses, and how it ends."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, fields

import pytest
import torch
import yaml

from models import small_model
from stt_lite import cli, commands
from stt_lite.bundles import load_pretrained, pretrained
from stt_lite.cli import main
from stt_lite.contexts import PRESETS
from stt_lite.files import read_record, save_weights
from stt_lite.media import WRITERS
from stt_lite.moving_mnist import moving_mnist
from stt_lite.sampling import Sampling
from stt_lite.video import bouncing_square, load_video, save_video

TINY = "--width 16 --layers 1 --heads 2 --batch 2 --checkpoint-seconds 600".split()


def write_model(folder, data, channels=1):
    """A folder as training writes it, of a small random model for 32x32."""
    model = small_model(grid=(8, 8), tokenizer={"channels": channels})
    save_weights(model.tokenizer, folder / "tokenizer.safetensors")
    sha = read_record(folder / "tokenizer.json")["sha256"]
    record = {"tokenizer_sha256": sha, "data": data}
    save_weights(model.transformer, folder / "transformer.safetensors", record)
    return folder


@pytest.fixture
def folder(tmp_path):
    data = {"size": 32, "digits": 1, "frames": 20, "stochastic": False}
    return write_model(tmp_path / "run", data)


@pytest.fixture
def call(folder, tmp_path, capsys, monkeypatch):
    """Call a command with words; returns its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(words: str):
        words = [word.replace("RUN", str(folder)) for word in words.split()]
        code = 0
        try:
            main(words)
        except SystemExit as stop:
            code = stop.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


# --- generate


def test_a_held_out_clip_is_continued(call, tmp_path):
    words = "generate --bundle RUN --samples 3 --prompt-frames 4 --new-frames 2 --out "
    code, out, _ = call(words + "new/future.gif")
    assert code == 0 and out.startswith("new/future.gif\n")
    assert "left" in out and re.search(r"in \d+\.\d s on cpu", out)
    video = load_video(tmp_path / "new/future.gif")
    assert video.shape == (6, 3, 4 * 34, 4 * 4 * 36)  # the truth and three futures
    call(words + "again.gif")  # the default seed
    first = (tmp_path / "new/future.gif").read_bytes()
    assert (tmp_path / "again.gif").read_bytes() == first


@pytest.mark.parametrize("ending", [".gif", ".mp4", ""])
def test_a_video_of_yours_is_continued(call, tmp_path, ending):
    save_video(tmp_path / f"in{ending}", torch.rand(8, 3, 40, 64))
    words = f"generate --bundle RUN --prompt in{ending} --prompt-frames 5 --out out.mp4"
    code, out, _ = call(words)
    notes = "centre square of 64x40 pixels resized to 32x32, colour turned to grey, "
    assert code == 0 and f"in{ending}: {notes}the last 5 of 8 frames taken\n" in out
    assert len(load_video(tmp_path / "out.mp4")) == 10
    clip = moving_mnist(1, 15, 32, 1, seed=0)[0]
    save_video(tmp_path / "fits.gif", clip)
    assert "fits.gif" not in call("generate --bundle RUN --prompt fits.gif")[1]
    out = call("generate --bundle RUN --prompt fits.gif --prompt-frames 90")[1]
    assert "fits.gif: 15 frames, not 90\n" in out and "prompt of 15 frames" in out


def test_the_last_frames_are_the_prompt(folder, tmp_path):
    path = save_video(tmp_path / "in", torch.rand(8, 1, 32, 32))
    prompt = commands.read_prompt(load_pretrained(folder), path, 5)
    assert torch.equal(prompt, load_video(path, gray=True)[-5:])


def test_a_prompt_is_taken_at_the_rate_of_training(call, tmp_path):
    own = write_model(tmp_path / "own", {"size": 32, "fps": 10.0, "frames": 20}, 3)
    save_video(tmp_path / "in.mp4", bouncing_square(60, 32, 8), fps=30)
    out = call(f"generate --bundle {own} --prompt in.mp4 --prompt-frames 8")[1]
    assert "10 frames taken per second, the last 8 of 20 frames taken" in out
    code, _, error = call(f"generate --bundle {own}")
    assert code == 2 and "continue a prompt of your own" in error


def test_a_new_writer_and_a_new_option_are_known_at_once(call, tmp_path, monkeypatch):
    monkeypatch.setitem(WRITERS, ".webm", (1000, "-c:v libvpx-vp9 -crf 5 -b:v 0"))
    assert call("generate --bundle RUN --prompt-frames 3 --out a.webm")[0] == 0
    assert len(load_video(tmp_path / "a.webm")) == 8
    assert "out must end in .gif or .mp4 or .webm" in call("generate --out a.avi")[2]
    told = call("generate --help")[1]
    for field in fields(Sampling):
        assert f"--{field.name.replace('_', '-')} " in told
    words = "generate --bundle RUN --prompt-frames 3 --temperature 2 --seed 3 --out "
    assert call(words + "b.gif")[0] == call(words + "c.gif --window 2")[0] == 0
    b, c = (load_video(tmp_path / name) for name in ("b.gif", "c.gif"))
    assert not torch.equal(b, c)


# --- what a user can cause is one line, and exit code 2


@pytest.mark.parametrize(
    "words, told",
    [
        ("generate --out future.avi", "out must end in .gif or .mp4"),
        ("generate --out file/future.gif", "out can't be written"),
        ("generate --prompt nothing.mp4", "no video file or folder of images at"),
        ("generate --prompt file", "not a readable video"),
        ("generate --bundle moving-minst", "no bundled model or folder 'moving-minst'"),
        ("generate --temperature -1", "temperature must be a number of at least 0"),
        ("generate --temperature nan", "temperature must be a number of at least 0"),
        ("generate --new-frames 0", "new_frames must be a whole number of at least 1"),
        ("generate --samples 0", "samples must be a whole number of at least 1"),
        ("generate --prompt-frames 0", "prompt_frames must be a whole number of"),
        ("generate --window 0", "window must be a whole number of at least 1"),
        ("generate --clip -1", "clip must be a whole number in"),
        (f"generate --seed {2**64}", "seed must be a whole number in"),
        ("generate --fps inf", "fps must be in [0.01, 50]"),
        ("generate --device meta", "device 'meta' can't be used: "),
        ("generate --device tpu9", "device 'tpu9' can't be used: "),
        ("generate --device cuda:99", "device 'cuda:99' can't be used: "),
        ("evaluate --clips 0", "n must be a whole number of at least 1, got 0"),
        ("evaluate --canonical 5", "canonical needs frames (1, 64, 64)"),
        ("evaluate --out file/found.json", "out can't be written"),
        ("evaluate --bundle empty", "no file at "),
        ("evaluate --bundle broken", "is not a record"),
        ("train moving-mnist-tiny --steps 0", "steps must be a whole number above 0"),
        ("train moving-mnist-tiny --minutes nan", "minutes must be above 0, got nan"),
        ("train moving-mnist-tiny --size 30", "size must be a multiple of"),
        ("train moving-mnist-tiny --size 3", "size must be a whole number"),
        ("train moving-mnist-tiny --precision fp16", '"fp16" needs a GPU'),
        ("train moving-mnist-tiny --tokenizer nothing", "no bundled tokenizer"),
        ("train folder nothing", "source must be a video or a folder"),
        ("train folder empty", "source must hold videos"),
        ("train folder file --fps 0", "fps must be a number above 0"),
        ("train moving-mnist-tiny --steps 5 --out file", "out can't be written: "),
        ("evaluate --bundle odd", "is not a record: expected an object"),
        ("evaluate --bundle nan", "holds numbers that are not finite"),
        ("generate --bundle RUN/transformer.safetensors", "no bundled model or folder"),
    ],
)
def test_mistakes_are_told_in_one_line(call, folder, tmp_path, words, told):
    (tmp_path / "file").write_text("not a folder, and no video")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    for path in folder.iterdir():
        (tmp_path / "broken" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "broken/transformer.json").write_text("")
    shutil.copytree(tmp_path / "broken", tmp_path / "odd")
    (tmp_path / "odd/transformer.json").write_text('{"data": [1]}')
    shutil.copytree(folder, tmp_path / "nan")
    model = load_pretrained(folder)
    model.transformer.start.data[:] = math.nan
    save_weights(model.transformer, tmp_path / "nan/transformer.safetensors")
    if not words.startswith("train") and "--bundle" not in words:
        words += " --bundle RUN"
    code, out, error = call(words)
    assert code == 2 and out == "", (code, out, error)
    assert told in error and error.startswith("stt-lite: ") and error.count("\n") == 1
    assert not list(tmp_path.glob("*.gif"))


@pytest.mark.parametrize(
    "error, told",
    [
        (FloatingPointError("the loss is nan at step 3"), "the loss is nan at step 3"),
        (ImportError("No module named 'ale_py'"), "No module named 'ale_py'"),
        (MemoryError(), "MemoryError"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "can't allocate"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (ValueError("two\nlines"), "two lines"),
    ],
)
def test_kinds_of_errors_that_input_causes(call, monkeypatch, error, told):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(commands, "train", fail)
    code, _, printed = call("train moving-mnist-tiny")
    assert code == 2 and told in printed and printed.count("\n") == 1


@pytest.mark.parametrize("kind", [KeyError, AttributeError, RuntimeError, TypeError])
def test_a_defect_shows_where_it_is_and_where_to_report_it(call, monkeypatch, kind):
    def fail(*arguments):
        raise kind("shapes")

    monkeypatch.setattr(commands, "train", fail)
    code, _, printed = call("train moving-mnist-tiny")
    assert code == 1 and "Traceback" in printed and "in fail\n" in printed
    assert printed.endswith(f"report it at {cli.REPORT}\n")


@pytest.mark.parametrize(
    "told", ["CUDA error: an illegal memory access", "refers to one memory location"]
)
def test_not_every_word_of_memory_is_of_a_full_one(told):
    assert not cli.is_users(RuntimeError(told))


def test_what_the_writer_refuses_is_told_before_the_work(call, monkeypatch):
    work = lambda *arguments, **options: pytest.fail("generated")  # noqa: E731
    monkeypatch.setattr(commands.VideoModel, "generate", work)
    code, _, printed = call("generate --fps 0")
    assert code == 2 and "fps must be in" in printed


def test_reports_go_to_the_books_repository(root):
    config = yaml.safe_load((root / "_config.yml").read_text())
    assert cli.REPORT == f"{config['repository']['url']}/issues"


@pytest.mark.parametrize("told", ["", "stopped at step 3; it goes on from x"])
def test_a_key_press_ends_it_quietly(call, monkeypatch, told):
    def stop(*arguments):
        raise KeyboardInterrupt(*filter(None, [told]))

    monkeypatch.setattr(commands, "train", stop)
    code, _, printed = call("train moving-mnist-tiny")
    assert code == 130 and printed == f"\nstt-lite: {told or 'stopped'}\n"


def test_a_training_that_is_told_to_stop_says_how_to_go_on(tmp_path):
    words = ["train", "moving-mnist-tiny", "--steps", "900", "--frames", "4", *TINY]
    command = [sys.executable, "-m", "stt_lite", *words, "--out", str(tmp_path)]
    for kind, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as run:
            while not list(tmp_path.glob("transformer-next.checkpoint")):
                assert run.poll() is None
                time.sleep(0.01)
            run.send_signal(kind)
            told = run.communicate()[1]
        assert run.returncode == code
        assert f"it goes on from {tmp_path / 'transformer.checkpoint'}\n" in told
        assert "Traceback" not in told
    assert ", on from step " in told  # of the second time


def test_bad_arguments_are_explained(call):
    for words in ("generate --samples many", "generate --sampels 3", "nonsense", ""):
        code, _, error = call(words)
        assert code == 2 and error and "Traceback" not in error, words
    assert "--samples" in call("generate --sampels 3")[2]


def test_output_is_checked_before_the_work(call, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    late = lambda *arguments: pytest.fail("loaded a model first")  # noqa: E731
    monkeypatch.setattr(commands, "load_pretrained", late)
    assert call("generate --bundle RUN --out file/out.gif")[0] == 2
    assert call("evaluate --bundle RUN --out file/out.json")[0] == 2


# --- train, evaluate, compare, pretrained


def test_a_preset_is_trained_as_told(call, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(commands, "train", lambda *a: seen.append(a) or tmp_path)
    out = call("train moving-mnist-tiny --steps 5 --size 16 --digits 2 --out x")[1]
    call("train moving-mnist --minutes 0.5 --tokenizer other")
    (config, source, tokenizer), (second, larger, other) = seen
    assert (config.steps, config.minutes, str(config.out)) == (5, None, "x")
    assert (source.size, source.digits) == (16, 2) and tokenizer == "moving-mnist-tiny"
    assert (second.minutes, second.patch, other) == (0.5, 2, "other")
    assert (larger.size, larger.digits) == (64, 2) and str(tmp_path) in out


@dataclass(frozen=True)
class Squares:
    """A kind of clips that no command knows."""

    size: int = 16
    side: int = 6

    @property
    def data(self):
        return {"content": "squares"}


def test_a_preset_brings_its_own_kind_of_clips(call, tmp_path, monkeypatch):
    seen, preset = [], PRESETS["moving-mnist-tiny"]._replace(source=Squares())
    monkeypatch.setitem(PRESETS, "squares", preset)
    monkeypatch.setattr(commands, "train", lambda *a: seen.append(a) or tmp_path)
    assert call("train squares --side 4 --steps 5")[0] == 0
    assert seen[0][0].steps == 5 and seen[0][1] == Squares(side=4)
    assert "16x16 pixels, squares" in call("train --help")[1]
    assert call("train squares --digits 2")[0] == 2


def test_digits_are_trained(call, tmp_path):
    words = ["train", "moving-mnist-tiny", "--steps", "1", "--frames", "4", *TINY]
    code, out, error = call(" ".join(words))
    assert code == 0 and out == "trained: runs/moving-mnist-tiny\n", error
    model = load_pretrained(tmp_path / "runs/moving-mnist-tiny")
    assert model.record["steps"] == 1 and model.trained_frames == 4


def test_a_folder_of_videos_is_trained_on(call, tmp_path):
    for name in "ab":
        clip = bouncing_square(12, 16, 6)
        save_video(tmp_path / f"videos/{name}.gif", clip, fps=10)
    (tmp_path / "videos/broken.mp4").touch()
    words = "train folder videos --size 16 --frames 4 --gray --codebook-size 16"
    code, out, error = call(" ".join([words, "--steps 3 --out mine", *TINY]))
    assert code == 0 and "skipped: " not in error, error
    assert out.startswith("2 sources, 24 frames of 16x16 pixels, grey\n")
    assert "broken.mp4 is not a readable video" in out
    assert "stt-lite generate --bundle mine --prompt VIDEO\n" in out
    model = load_pretrained(tmp_path / "mine")
    assert model.frame_shape == (1, 16, 16) and model.trained_frames == 4
    assert model.tokenizer.config.codebook_size == 16
    out = call("generate --bundle mine --prompt videos/a.gif --prompt-frames 3")[1]
    assert "10 frames taken per second, the last 3 of 12 frames taken" in out


def test_evaluation_is_written_before_it_is_printed(call, tmp_path, monkeypatch):
    words = "evaluate --bundle RUN --clips 2 --seeds 1 --out found.json"
    code, out, error = call(words)
    found = json.loads((tmp_path / "found.json").read_text())
    assert code == 0 and found["seeds"] == [1] and found["clips"] == 2, error
    error = found["model"]["15->5"]["squared_error"]
    assert len(error) == 5 and all(map(math.isfinite, error))
    assert f"{error[0]:.2f}" in out and out.endswith("found.json\n")
    (tmp_path / "found.json").unlink()
    monkeypatch.setattr(sys.stdout, "write", closed)
    assert call(words)[0] == 2
    assert json.loads((tmp_path / "found.json").read_text()) == found


def test_a_full_disk_loses_no_evaluation(call, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(commands, "write_file", full)
    code, out, error = call("evaluate --bundle RUN --clips 2 --seeds 1 --out a.json")
    assert code == 2 and "No space left" in error and "15->5" in out


def closed(text):
    raise BrokenPipeError(32, "Broken pipe")


def test_compare_hands_its_arguments_on(call, tmp_path, monkeypatch):
    script = tmp_path / "book/experiments/compare.py"
    monkeypatch.setattr(
        commands, "weights_folder", lambda: tmp_path / "stt_lite/weights"
    )
    code, _, error = call("compare --help")
    assert code == 2 and "needs a checkout" in error
    script.parent.mkdir(parents=True)
    script.write_text("import sys\n\ndef main(words):\n    print(sys.argv, words)")
    for name in ("path", "argv", "modules"):  # as they were, afterwards
        monkeypatch.setattr(sys, name, getattr(sys, name).copy())
    sys.modules.pop("compare", None)
    assert call("compare a --minutes 3 --help")[1] == (
        "['stt-lite compare'] ['a', '--minutes', '3', '--help']\n"
    )


def test_what_is_bundled_is_listed(call):
    assert call("pretrained")[1].strip() == repr(pretrained())


@pytest.mark.parametrize(
    "words, told",
    [
        ("--help", "generate train evaluate compare pretrained"),
        ("generate --help", "--prompt-frames --temperature --top-k default: 15"),
        ("train --help", "moving-mnist-tiny moving-mnist folder"),
        ("train moving-mnist-tiny --help", "--minutes --out --width --digits"),
        ("train folder --help", "--fps --codebook-size --minutes"),
        ("evaluate --help", "--clips --seeds --canonical"),
        ("--version", "stt-lite 0."),
    ],
)
def test_help(call, words, told):
    code, out, error = call(words)
    assert code == 0 and not error
    assert all(word in out for word in told.split())


@pytest.mark.parametrize(
    "words", ["generate", "evaluate", "train moving-mnist-tiny", "train folder"]
)
def test_every_option_is_described(call, monkeypatch, words):
    monkeypatch.setenv("COLUMNS", "80")
    lines = call(f"{words} --help")[1].splitlines()
    assert max(map(len, lines)) <= 80
    text = " ".join(line.strip("│ ") for line in lines)
    options = re.findall(r"--([a-z-]+) (?:\S+ )?(\(default|\S+)", text)
    bare = {name for name, told in options if told == "(default"}
    assert len(options) > 5 and not bare


def run(*arguments, **environment):
    """stt-lite in a process of its own; with it, the seconds that it computed."""
    command = [sys.executable, "-m", "stt_lite", *map(str, arguments)]
    before, environment = os.times(), os.environ | environment
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    after = os.times()
    used = after.children_user + after.children_system
    return done, used - before.children_user - before.children_system


def test_it_is_quick_from_a_cold_start(tmp_path):
    """From the start of the process to 5 frames in a file; digits not parsed yet."""
    out = tmp_path / "future.gif"
    cold = {"STT_LITE_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    done, seconds = run("generate", "--out", out, **cold)
    assert done.returncode == 0 and out.stat().st_size > 1000, done.stderr
    assert seconds < 10
    done, _ = run("generate", "--bundle", "nothing", "--out", out)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
