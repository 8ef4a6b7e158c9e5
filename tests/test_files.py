"""Appendix 91: files are written whole, read with their hash, or refused in a line."""

import dataclasses
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from stt_lite.files import (
    check_writable,
    load_weights,
    read_record,
    records,
    results_folder,
    save_weights,
    weights_folder,
    write_file,
)


@dataclasses.dataclass(frozen=True)
class LineConfig:
    sizes: tuple[int, int] = (2, 3)


class Line(torch.nn.Linear):
    def __init__(self, config):
        super().__init__(*config.sizes)
        self.config = config


def build_line(fields):
    return Line(LineConfig(tuple(fields["sizes"])))


@pytest.fixture
def path(tmp_path):
    return save_weights(Line(LineConfig()), tmp_path / "line.safetensors", {"seed": 1})


def load_line(path):
    return load_weights(path, "line", build_line)


# --- weights


def test_saved_and_loaded_are_equal(tmp_path):
    line = Line(LineConfig())
    path = save_weights(line, tmp_path / "new" / "a.safetensors", {"note": "mine"})
    loaded = load_line(path)
    assert loaded.config == line.config and not loaded.training
    assert torch.equal(loaded.weight, line.weight)
    record = read_record(path)
    assert record["note"] == "mine" and record["config"] == {"sizes": [2, 3]}


def test_loading_leaves_the_callers_random_numbers_alone(path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_line(path)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("record", [True, False])
@pytest.mark.parametrize("damage", ["cut", "header", "number"])
def test_damaged_weights_are_refused(path, damage, record):
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    else:
        content[20 if damage == "header" else -1] ^= 255
    path.write_bytes(content)
    if record:
        with pytest.raises(
            ValueError, match="line.safetensors is damaged: expected sha"
        ):
            load_line(path)
        return
    path.with_suffix(".json").unlink()
    if damage == "number":  # nobody can know without the hash
        load_line(path)
    else:
        with pytest.raises(
            ValueError, match="line.safetensors is not a whole line file"
        ):
            load_line(path)


def rewrite(path, change):
    """The same file with another header, without a record that would tell."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    path.with_suffix(".json").unlink()


@pytest.mark.parametrize(
    "config", ["", "{", "null", "[1]", "{}", '{"sizes": 3}', '{"sizes": [2, 4]}']
)
def test_a_config_that_does_not_fit_is_refused_in_one_line(path, config):
    rewrite(path, lambda header: header["__metadata__"].update(config=config))
    with pytest.raises(ValueError, match="not a whole line file: .+") as caught:
        load_line(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_config_that_claims_too_much_takes_no_memory(path):
    huge = '{"sizes": [1000000, 1000000]}'  # 4 TB
    rewrite(path, lambda header: header["__metadata__"].update(config=huge))
    with pytest.raises(ValueError, match="size mismatch for weight"):
        load_line(path)


def test_other_files_and_pickles_are_refused(tmp_path):
    safetensors.torch.save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="other.safetensors is not a whole line file"):
        load_line(tmp_path / "other.safetensors")

    class Bomb:
        def __reduce__(self):
            return (sys.exit, ("a pickle was opened",))

    for name, message in {
        "weights.pt": "weights load from .safetensors only, got 'weights.pt'",
        "weights.safetensors": "weights.safetensors is not a whole line file",
    }.items():
        (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(ValueError, match=message):
            load_line(tmp_path / name)


def test_unknown_names_get_the_closest_match(tmp_path):
    with pytest.raises(
        ValueError, match="did you mean 'moving-mnist-tiny'.*Bundled: g"
    ):
        load_weights("moving-mnist-tny", "tokenizer", build_line)
    with pytest.raises(
        ValueError, match="no bundled line 'moving-mnist'; Bundled: none"
    ):
        load_line("moving-mnist")
    with pytest.raises(FileNotFoundError):
        load_line(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="path must end in .safetensors, got 'a.pt'"):
        save_weights(Line(LineConfig()), tmp_path / "a.pt")


def test_a_failed_save_keeps_the_old_files(path, monkeypatch):
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}

    def full_disk(descriptor):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_weights(Line(LineConfig()), path)
    after = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    assert after == before  # and no .part is left


def test_write_file_replaces_in_one_step(tmp_path, monkeypatch):
    path = tmp_path / "new" / "folder" / "note.txt"
    write_file(path, b"old")
    seen, replace = [], os.replace

    def watch(source, target):
        seen.append((Path(source).name, Path(source).read_bytes(), path.read_bytes()))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watch)
    write_file(path, b"new")
    assert seen == [("note.txt.part", b"new", b"old")] and path.read_bytes() == b"new"
    assert [file.name for file in path.parent.iterdir()] == ["note.txt"]
    (tmp_path / "file").touch()
    with pytest.raises(OSError):  # no folder there, and none can be made
        write_file(tmp_path / "file" / "note.txt", b"new")


def test_content_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    calls, sync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (calls.append("sync"), sync(file)))
    monkeypatch.setattr(os, "replace", lambda *p: (calls.append("name"), replace(*p)))
    write_file(tmp_path / "note.txt", b"new")
    assert calls == ["sync", "name"]


def test_check_writable(tmp_path):
    check_writable(tmp_path / "new" / "a.mp4")
    assert (
        list((tmp_path / "new").iterdir()) == []
    )  # the folder is there, no file in it
    with pytest.raises(OSError, match="out must name a file, .* is a folder"):
        check_writable(tmp_path / "new")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="out can't be written: .*: .*file"):
        check_writable(tmp_path / "file" / "a.mp4")


# --- records


@pytest.mark.parametrize(
    "content", [b"", b"[1]", b"null", b"{", b"\xff\xfe\x00", b"[" * 100_000]
)
def test_what_is_no_record_is_refused(path, content):
    path.with_suffix(".json").write_bytes(content)
    for call in (read_record, load_line):
        with pytest.raises(ValueError, match="line.json is not a record: "):
            call(path)


def test_weights_without_a_record_have_an_empty_one(path):
    assert read_record(path)["seed"] == 1
    path.with_suffix(".json").unlink()
    assert read_record(path) == {}


def test_records_by_pattern(root):
    assert results_folder() == root / "book" / "results"
    found = records("compare-convlstm-seed*")
    assert found and all(isinstance(record, dict) for record in found)
    with pytest.raises(FileNotFoundError, match="no record 'compare-nothing' in "):
        records("compare-nothing")


def test_an_installation_finds_its_records(root, tmp_path):
    """The folders of a wheel: no book/, the records in a folder that is no module."""
    package = tmp_path / "site-packages" / "stt_lite"
    (package / "results").mkdir(parents=True)
    (package / "weights").mkdir()
    (package / "__init__.py").touch()
    shutil.copy(root / "stt_lite" / "files.py", package)
    shutil.copy(root / "book" / "results" / "reference.json", package / "results")
    code = """
import importlib.resources
from stt_lite.files import records, results_folder, weights_folder
package = importlib.resources.files("stt_lite")
assert results_folder() == package / "results", results_folder()
assert weights_folder() == package / "weights"
assert (importlib.resources.files("stt_lite.results") / "reference.json").is_file()
print(len(records("reference")), end="")
"""
    environment = {**os.environ, "PYTHONPATH": str(package.parent)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "1", done.stderr


# --- what comes with the package

BUNDLES = sorted(path.stem for path in weights_folder().glob("*.safetensors"))


@pytest.mark.parametrize("name", BUNDLES)
def test_the_books_record_is_that_of_the_bundled_weights(name, root):
    """book/results/ holds the record that came with the weights."""
    record = (weights_folder() / f"{name}.json").read_bytes()
    assert (results_folder() / f"{name}.json").read_bytes() == record
