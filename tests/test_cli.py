"""Appendix 94: the command line."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models import small_model
from stt_lite import cli
from stt_lite.bundles import pretrained
from stt_lite.cli import main
from stt_lite.files import read_record, save_weights
from stt_lite.moving_mnist import moving_mnist
from stt_lite.video import load_video, save_video


@pytest.fixture
def folder(tmp_path):
    """A folder as training writes it, of a small random model for 32x32."""
    run, model = tmp_path / "run", small_model(grid=(8, 8))
    save_weights(model.tokenizer, run / "tokenizer.safetensors")
    sha = read_record(run / "tokenizer.json")["sha256"]
    data = {"size": 32, "digits": 1, "frames": 20, "stochastic": False}
    record = {"tokenizer_sha256": sha, "data": data}
    save_weights(model.transformer, run / "transformer.safetensors", record)
    return run


def run(*arguments, **environment):
    """stt-lite in a new process: exit code, stdout, stderr, seconds of computing."""
    start = time_of_children()
    command = [
        sys.executable,
        "-c",
        "from stt_lite.cli import main; main()",
        *map(str, arguments),
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": str(os.path.dirname(os.path.dirname(cli.__file__))),
        **environment,
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    return done.returncode, done.stdout, done.stderr, time_of_children() - start


def time_of_children() -> float:
    """Seconds that finished child processes have computed: what a free core would take, however busy this one is."""
    times = os.times()
    return times.children_user + times.children_system


def test_command_continues_a_held_out_clip(folder, tmp_path, capsys):
    out = tmp_path / "new" / "future.gif"
    arguments = [
        "generate",
        "--bundle",
        str(folder),
        "--samples",
        "3",
        "--prompt-frames",
        "4",
        "--new-frames",
        "2",
    ]
    main([*arguments, "--out", str(out)])
    printed = capsys.readouterr().out
    assert (
        str(out) in printed
        and re.search(r"in \d+\.\d s", printed)
        and "left" in printed
    )
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
    assert (
        "64x40" in printed
        and "32x32" in printed
        and "grey" in printed
        and "last 5 of 8 frames" in printed
    )
    assert len(load_video(tmp_path / "out.mp4")) == 10
    save_video(tmp_path / "fits.gif", moving_mnist(1, 3, 32, 1, seed=0)[0])
    main(
        [
            "generate",
            "--bundle",
            str(folder),
            "--prompt",
            str(tmp_path / "fits.gif"),
            "--out",
            str(tmp_path / "out.gif"),
        ]
    )
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
        (
            ["--prompt-frames", "0"],
            "prompt_frames must be a whole number of at least 1",
        ),
        (["--window", "0"], "window must be a whole number of at least 1"),
        (["--device", "tpu9"], "tpu9"),
    ],
)
def test_command_says_in_one_line_what_is_wrong(
    folder, tmp_path, capsys, monkeypatch, arguments, words
):
    (tmp_path / "file").write_text("not a folder, and no video")
    monkeypatch.chdir(tmp_path)
    arguments = [
        "generate",
        "--bundle",
        str(folder),
        *(a.replace("OUT", str(tmp_path)) for a in arguments),
    ]
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    printed = capsys.readouterr()
    assert exit.value.code == 2 and printed.out == ""
    assert (
        words in printed.err
        and printed.err.startswith("stt-lite: ")
        and printed.err.count("\n") == 1
    )
    assert not list(tmp_path.glob("*.gif"))


def test_output_is_checked_before_the_work(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(
        cli, "load_pretrained", lambda *a: pytest.fail("loaded a model first")
    )
    with pytest.raises(SystemExit):
        main(
            [
                "generate",
                "--bundle",
                str(folder),
                "--out",
                str(tmp_path / "file" / "out.gif"),
            ]
        )


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
    monkeypatch.setattr(cli, "train", lambda config: (seen.append(config), tmp_path)[1])
    main(["train", "moving-mnist-tiny", "--minutes", "0.5", "--out", str(tmp_path)])
    (config,) = seen
    assert config.minutes == 0.5 and config.size == 32 and config.out == tmp_path
    assert str(tmp_path) in capsys.readouterr().out


def test_command_is_quick_from_a_cold_start(tmp_path):
    """15 frames in, 5 out, the digits not parsed yet, from the start of the process to the written file."""
    cold = {"STT_LITE_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    code, out, error, seconds = run(
        "generate", "--out", tmp_path / "future.gif", **cold
    )
    assert code == 0 and (tmp_path / "future.gif").stat().st_size > 1000, error
    print(f"{seconds:.1f} s\n{out}")
    assert seconds < 10


def test_command_fails_without_traceback(tmp_path):
    code, out, error, _ = run(
        "generate", "--bundle", "nothing", "--out", tmp_path / "future.gif"
    )
    assert (
        code == 2
        and out == ""
        and error.startswith("stt-lite: ")
        and error.count("\n") == 1
    )
    code, _, error, _ = run("generate", "--samples", "many")
    assert code == 2 and "Traceback" not in error
