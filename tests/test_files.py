"""Appendix 91: files are written whole, read with their hash, or refused in a line."""

import dataclasses
import json
import math
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
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


def test_weights_and_record_are_a_pair_whatever_happens(path, monkeypatch):
    before = path.read_bytes(), read_record(path)
    with pytest.raises(TypeError):
        save_weights(Line(LineConfig()), path, {"device": torch.device("cpu")})
    assert (path.read_bytes(), read_record(path)) == before

    def stopped(path, content, write=write_file):
        if path.suffix == ".json":
            raise KeyboardInterrupt  # between the one file and the other
        write(path, content)

    monkeypatch.setattr("stt_lite.files.write_file", stopped)
    line = Line(LineConfig())
    with pytest.raises(KeyboardInterrupt):
        save_weights(line, path, {"seed": 2})
    assert torch.equal(load_line(path).weight, line.weight) and read_record(path) == {}


def test_weights_that_overflow_are_refused(path):
    large = torch.full((3, 2), 1e39, dtype=torch.float64)  # more than float32 holds
    state = {"weight": large, "bias": torch.zeros(3)}
    metadata = {"config": json.dumps({"sizes": [2, 3]})}
    path.with_suffix(".json").unlink()
    safetensors.torch.save_file(state, path, metadata)
    with pytest.raises(ValueError, match="weight holds numbers that are not finite"):
        load_line(path)


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


class Tower(torch.nn.ModuleList):
    """As many layers as its config says: a million would take minutes to build."""

    def __init__(self, config):
        super().__init__(torch.nn.Linear(2, 3) for _ in range(config.sizes[0]))
        self.config = config


def test_a_config_that_claims_more_than_the_file_holds_is_not_built(tmp_path):
    made, path = [], tmp_path / "tower.safetensors"
    save_weights(Tower(LineConfig((20, 0))), path)

    def build(fields):
        for layer in range(fields["sizes"][0]):
            made.append(torch.nn.Linear(2, 3))
        return torch.nn.ModuleList(made[-fields["sizes"][0] :])

    assert len(load_weights(path, "tower", build)) == 20
    made.clear()
    rewrite(path, lambda h: h["__metadata__"].update(config='{"sizes": [20000, 0]}'))
    with pytest.raises(ValueError, match="asks for more than its 40 tensors"):
        load_weights(path, "tower", build)
    assert len(made) < 100


HOSTILE = {
    "int8": (
        lambda w: w.to(torch.int8),
        "weight must be torch.float32, got torch.int8",
    ),
    "complex": (lambda w: w + 0j, "weight must be torch.float32, got torch.complex64"),
    "nan": (lambda w: w * math.nan, "weight holds numbers that are not finite"),
    "infinite": (lambda w: w + math.inf, "weight holds numbers that are not finite"),
    "transposed": (lambda w: w.T.contiguous(), "size mismatch for weight"),
    "empty": (lambda w: w[:0], "size mismatch for weight"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_tensors_of_another_kind_are_refused(tmp_path, kind):
    change, message = HOSTILE[kind]
    line, path = Line(LineConfig()), tmp_path / "line.safetensors"
    state = line.state_dict() | {"weight": change(line.weight.data)}
    metadata = {"config": json.dumps({"sizes": [2, 3]})}
    safetensors.torch.save_file(state, path, metadata)
    with pytest.raises(ValueError, match=f"not a whole line file: .*{message}"):
        load_line(path)
    for keys in (["bias"], ["bias", "weight", "more"]):
        more = {key: line.weight.data.clone() for key in keys}
        safetensors.torch.save_file(more, path, metadata)
        with pytest.raises(ValueError, match="line.safetensors is not a whole line"):
            load_line(path)


def test_half_precision_becomes_full(path):
    line = load_line(path)
    half = {name: value.half() for name, value in line.state_dict().items()}
    metadata = {"config": json.dumps({"sizes": [2, 3]})}
    safetensors.torch.save_file(half, path, metadata)
    path.with_suffix(".json").unlink()
    assert load_line(path).weight.dtype == torch.float32


def test_what_is_no_file_is_refused_at_once(path):
    for other in (path, path.with_suffix(".json")):
        other.unlink()
        os.mkfifo(other)
    with pytest.raises(FileNotFoundError, match="no file at .*line.safetensors"):
        load_line(path)
    with pytest.raises(ValueError, match="line.json is not a record: expected a file"):
        read_record(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(FileNotFoundError, match="no file at .*line.safetensors"):
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


def test_unknown_names_are_answered_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="bundled: game, moving-mnist-tiny, moving-"):
        load_weights("moving-mnist-tny", "tokenizer", build_line)
    with pytest.raises(ValueError, match="no bundled line 'moving-mnist'; bundled: no"):
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
    ((name, new, old),) = seen
    assert re.fullmatch(r"\.part-[0-9a-f]{16}", name) and (new, old) == (b"new", b"old")
    assert path.read_bytes() == b"new"
    assert [file.name for file in path.parent.iterdir()] == ["note.txt"]
    (tmp_path / "file").touch()
    with pytest.raises(OSError):  # no folder there, and none can be made
        write_file(tmp_path / "file" / "note.txt", b"new")


def test_names_that_are_as_long_as_can_be(tmp_path):
    path = tmp_path / ("n" * 251 + ".txt")
    write_file(path, b"long")
    assert path.read_bytes() == b"long"


def test_writers_of_one_file_do_not_meet(tmp_path):
    path, sizes = tmp_path / "note.txt", range(1, 200)
    with ThreadPoolExecutor(8) as pool:  # an error in one of them is raised here
        list(pool.map(lambda n: write_file(path, bytes([n]) * n * 1000), sizes))
    content = path.read_bytes()
    assert len(content) == content[0] * 1000 and set(content) == {content[0]}
    assert list(tmp_path.iterdir()) == [path]


def test_what_killed_writers_left_goes_after_an_hour(tmp_path):
    old, new = f".part-{16 * '0'}", f".part-{16 * '1'}"
    for name, hours in ((old, 1.1), (new, 0.9), (".part-archive", 1.1)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - hours * 3600,) * 2)
    (tmp_path / f".part-{16 * '2'}").mkdir()
    write_file(tmp_path / "note.txt", b"")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {new, ".part-archive", f".part-{16 * '2'}", "note.txt"}


def test_a_home_folder_is_found_wherever_a_path_enters(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write_file("~/a.txt", b"a")
    check_writable(Path("~/b/b.txt"))
    assert save_weights(Line(LineConfig()), "~/c.safetensors").parent == tmp_path
    assert read_record("~/c.safetensors")["config"] == {"sizes": [2, 3]}
    load_line("~/c.safetensors")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"a.txt", "b", "c.safetensors", "c.json"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_read_only(path):
    path.parent.chmod(0o500)
    try:
        with pytest.raises(PermissionError):
            save_weights(Line(LineConfig()), path)
        with pytest.raises(OSError, match="out can't be written: Permission denied"):
            check_writable(path)
    finally:
        path.parent.chmod(0o700)
    load_line(path)


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
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
    for name in {"new", "pipe"} & {path.name for path in tmp_path.iterdir()}:
        with pytest.raises(OSError, match=f"out must name a file, .*{name} is none"):
            check_writable(tmp_path / name)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="out can't be written: .*: .*file"):
        check_writable(tmp_path / "file" / "a.mp4")


# --- records


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[1]",
        b"null",
        b"3",
        b"{",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"data": [1]}',
        b'{"data": null}',
        b" " * (2**25 + 1),
    ],
    ids=range(11),
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
