"""The table of mutations fits the package; tests/mutations.py tries each."""

import pytest

import mutations

ROWS = mutations.read_mutations()


@pytest.mark.parametrize("row", ROWS, ids=[f"{row.module}: {row.what}" for row in ROWS])
def test_row_fits(row):
    assert not mutations.mistake(row)
    assert row.old != row.new and row.tests


def test_script_goes_on_after_a_mistake(tmp_path, monkeypatch, capsys):
    for folder in ("stt_lite", "tests", "book"):
        (tmp_path / folder).mkdir()
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "stt_lite" / "sums.py").write_text("def add(a, b):\n    return a + b\n")
    (tmp_path / "tests" / "test_sums.py").write_text(
        "import runpy\nadd = runpy.run_path('stt_lite/sums.py')['add']\n"
        "def test_add():\n    assert add(2, 2) == 4\n"
    )
    table = tmp_path / "mutations.toml"
    table.write_text(
        '[sums]\n"gone" = ["a - b", "a", "add"]\n"no test" = ["a + b", "a", "minus"]\n'
        '"caught" = ["a + b", "a - b", "add"]\n"kept" = ["a + b", "a * b", "add"]\n'
        '[quotients]\n"no module" = ["a / b", "a", "divide"]\n'
    )
    monkeypatch.setattr(mutations, "ROOT", tmp_path)
    monkeypatch.setattr(mutations, "TABLE", table)
    monkeypatch.setattr("sys.argv", ["mutations.py"])
    with pytest.raises(SystemExit) as end:
        mutations.main()
    assert end.value.code == 1
    printed = capsys.readouterr().out
    assert "not tried: gone: sums.py holds its text 0 times" in printed
    assert "not tried: no module: there is no module quotients" in printed
    assert "not tried: no test: pytest" in printed
    assert "1 of 5 survived: kept" in printed
    assert "caught" in printed
