"""Chapter 08: bundled models and their records, folders of training, held-out clips."""

import hashlib
import json
import zlib
from dataclasses import replace

import pytest
import torch

import bundle
from models import small_model
from stt_lite.bundles import (
    HELD_OUT,
    bundles,
    held_out_clips,
    load_pretrained,
    pretrained,
)
from stt_lite.files import read_record, save_weights, weights_folder
from stt_lite.moving_mnist import MovingDigits, moving_mnist
from stt_lite.transformer import load_transformer

MODELS = sorted(bundles())
DATA = {"size": 32, "digits": 1, "frames": 20, "stochastic": False}


@pytest.fixture
def folder(tmp_path):
    """A folder as training writes it, of a small random model for 32x32."""
    run, model = tmp_path / "run", small_model(grid=(8, 8))
    save_weights(model.tokenizer, run / "tokenizer.safetensors")
    sha = read_record(run / "tokenizer.json")["sha256"]
    record = {"tokenizer_sha256": sha, "data": DATA}
    save_weights(model.transformer, run / "transformer.safetensors", record)
    return run


# Loading


def test_folder_of_a_training_run_loads(folder):
    model, again = load_pretrained(folder), load_pretrained(str(folder))
    prompt = moving_mnist(1, 3, 32, 1, seed=0)
    assert not model.training and model.record["data"] == DATA
    assert model.frame_shape == (1, 32, 32)
    videos = [m.generate(prompt, 2, seed=0) for m in (model, again)]
    assert torch.equal(*videos)


def test_what_does_not_load_says_why(folder, tmp_path):
    with pytest.raises(ValueError, match="no bundled model or folder .*nothing'"):
        load_pretrained(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="tokenizer.safetensors"):
        load_pretrained(tmp_path)
    other = small_model(grid=(8, 8), tokenizer={"residual_blocks": 1}).tokenizer
    save_weights(other, folder / "tokenizer.safetensors")
    with pytest.raises(ValueError, match="was trained with a tokenizer of sha256"):
        load_pretrained(folder)
    (folder / "transformer.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="transformer.safetensors"):
        load_pretrained(folder)


def test_unknown_name_gets_the_closest_one():
    with pytest.raises(ValueError, match="did you mean 'moving-mnist-tiny'"):
        load_pretrained("moving-minst-tiny")
    words = "no bundled model or folder 'runs/mine'. Bundled: .*moving-mnist-tiny"
    with pytest.raises(ValueError, match=words):
        load_pretrained("runs/mine")  # nothing like it: no guess


def test_pretrained_lists_what_loads():
    state = torch.get_rng_state()
    table = pretrained()
    assert torch.equal(torch.get_rng_state(), state)
    assert sorted(b.name for b in table) == MODELS and "moving-mnist-tiny" in MODELS
    lines = repr(table).splitlines()
    assert lines[0].startswith("name") and max(map(len, lines)) <= 120
    for row, line in zip(table, lines[1:], strict=True):
        model = load_pretrained(row.name)
        assert row.parameters == sum(p.numel() for p in model.parameters())
        assert f"{row.parameters:,}" in line and line.startswith(row.name)
        assert model.frame_shape[1:] == (row.size, row.size)
        assert row.megabytes <= 40 and row.licence


# Held-out clips


@pytest.mark.parametrize("stochastic", [False, True])
def test_held_out_clips_are_of_the_models_kind(folder, stochastic):
    model = load_pretrained(folder)
    model.record["data"] = DATA | {"stochastic": stochastic}
    got = held_out_clips(model, 3, 20, seed=1)
    options = {"split": "test", "stochastic": stochastic, "seed": 1}
    assert torch.equal(got, moving_mnist(3, 20, 32, 1, **options))


def test_unknown_kinds_are_refused_and_new_ones_are_one_line(monkeypatch):
    model = small_model(record={"data": {"squares": 3, "size": 16}})
    with pytest.raises(ValueError, match="record must tell of its clips .* of digits"):
        held_out_clips(model, 3, 20, seed=1)
    seen = []

    def squares(data):
        seen.append(data)
        return MovingDigits(size=data["size"], digits=data["squares"])

    monkeypatch.setitem(HELD_OUT, "squares", squares)
    assert held_out_clips(model, 3, 20, 1).shape == (3, 20, 1, 16, 16)
    assert seen == [{"squares": 3, "size": 16}]


# Bundling: book/bundle.py


@pytest.mark.parametrize("half, copied", [(False, False), (True, False), (False, True)])
def test_a_run_becomes_a_bundle(folder, tmp_path, monkeypatch, half, copied):
    """Also where its tokenizer is that of another bundle."""
    target, metrics = tmp_path / "weights", {"15->5": {"first": 1.0, "mean": 2.0}}
    measured = {"metrics": metrics, "copy_last_frame": metrics}
    monkeypatch.setattr(bundle, "ROOT", tmp_path)
    monkeypatch.setattr(bundle, "weights_folder", lambda: target)
    monkeypatch.setattr(bundle, "transformer_metrics", lambda model, clips: measured)
    monkeypatch.setattr(bundle, "tokenizer_metrics", lambda model: {"perplexity": 3.0})
    for part in ("tokenizer", "transformer"):
        path = folder / f"{part}.json"
        training = {"training": {"out": "/a/folder", "minutes": 2}}
        if copied and part == "tokenizer":
            training = {"copied_from": "moving-mnist-tiny"}
        path.write_text(json.dumps(read_record(path) | training))
    bundle.main(bundle.Args(folder, "mine", half=half, note="short"))
    for part in ("tokenizer", "transformer"):
        record = read_record(target / f"mine-{part}.json")
        trained = None if copied and part == "tokenizer" else {"minutes": 2}
        assert record.get("training") == trained and record["note"] == "short"
        assert (
            read_record(tmp_path / "book" / "results" / f"mine-{part}.json") == record
        )
    before = load_pretrained(folder).transformer.state_dict()
    path = target / "mine-transformer.safetensors"
    size = (folder / "transformer.safetensors").stat().st_size
    assert (path.stat().st_size < 0.6 * size) == half
    assert (read_record(path).get("stored_as") == "float16") == half
    for name, b in load_transformer(path).state_dict().items():
        assert b.dtype == torch.float32, name
        torch.testing.assert_close(before[name], b, rtol=half * 2**-11, atol=1e-7)


# What is bundled


@pytest.mark.parametrize("name", MODELS)
def test_a_bundled_models_record_is_whole_and_the_books(name, root):
    path = weights_folder() / f"{name}-transformer.json"
    record = json.loads(path.read_text())
    assert (root / "book" / "results" / path.name).read_text() == path.read_text()
    weights = path.with_suffix(".safetensors")
    assert weights.stat().st_size <= 20e6
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == record["sha256"]
    tokenizer = read_record(weights_folder() / f"{name}-tokenizer.json")
    assert record["tokenizer_sha256"] == tokenizer["sha256"]
    keys = "config training commit hardware torch seed seconds clips_seen curve"
    for key in (*keys.split(), "test_clips"):
        assert record.get(key) not in (None, "", []), key
    assert not {"out", "start"} & set(record["training"])  # no folder of that machine


@pytest.mark.parametrize("name", MODELS)
def test_readme_shows_the_recorded_errors(name, root):
    record = read_record(weights_folder() / f"{name}-transformer.json")
    lines = (root / "README.md").read_text().splitlines()
    title = "| squared error per frame |"
    header = next(line for line in lines if line.startswith(title))
    column = [cell.strip() for cell in header.split("|")].index(f"`{name}`")
    rows = ("15->5", "first"), ("15->5", "mean"), ("10->10", "mean")
    for protocol, key in rows:
        what = "first frame" if key == "first" else "mean"
        label = f"| {protocol.replace('->', ' to ')}, {what} |"
        row = next(line for line in lines if line.startswith(label))
        parts = record["metrics"], record["copy_last_frame"]
        model, copy = (part[protocol][key] for part in parts)
        expected = f"{model:.1f} (copying: {copy:.1f})"
        assert row.split("|")[column].strip() == expected


def test_a_wheel_stays_below_30_megabytes(root):
    """Zip compresses each file by itself, as here."""
    files = [*(root / "stt_lite").rglob("*"), *(root / "book/results").glob("*.json")]
    files = [path for path in files if path.is_file() and path.suffix != ".pyc"]
    sizes = [len(zlib.compress(path.read_bytes())) for path in files]
    assert len(sizes) > 100 and sum(sizes) < 29.9e6  # and a little for its lists


def errors_at_once(model, clips, prompt):
    """Squared error per new frame at temperature 0, mean over clips; and copying's."""
    new = clips[:, prompt:]
    video = model.generate(clips[:, :prompt], new.shape[1], 1, 0.0)[:, 0, prompt:]
    return [
        (guess - new).square().sum((2, 3, 4)).mean(0)
        for guess in (video, clips[:, prompt - 1 : prompt])
    ]


def test_the_recorded_errors_are_those_of_the_bundled_weights():
    """Those over 20 clips; the main figures, over 1,500, take minutes."""
    record = read_record(weights_folder() / "moving-mnist-tiny-transformer.json")
    check, model = record["check"], load_pretrained("moving-mnist-tiny")
    known = held_out_clips(model, check["clips"], 20, seed=1)
    for prompt in (15, 10):
        ours, copying = errors_at_once(model, known, prompt)
        assert (ours < copying).all()
        expected = check[f"{prompt}->{20 - prompt}"]
        assert ours.mean().item() == pytest.approx(expected, rel=0.02)


def test_sources_of_records_are_those_that_trained():
    for name in ("moving-mnist-tiny", "moving-mnist"):
        data = read_record(weights_folder() / f"{name}-transformer.json")["data"]
        source = HELD_OUT["digits"](data)
        assert replace(source).data == {key: data[key] for key in source.data}
