"""The log of what did not work: its tables come from records."""

import json

import pytest

from tried import KINDS, TABLE, table

PAGE = "book/what_did_not_work.md"


@pytest.fixture
def tables(root):
    return TABLE.findall((root / PAGE).read_text(encoding="utf-8"))


def test_rows_of_a_table_had_equal_time_or_equal_steps(tables):
    assert len(tables) > 5
    for kind, rows in tables:
        heads = KINDS[kind][1].split(" | ")
        lines = table(kind, rows).splitlines()[2:]
        cells = [[c.strip() for c in line.strip("|").split("|")[1:]] for line in lines]
        assert len(cells) == rows.count(";") + 1 > 1
        budgets = [i for i, head in enumerate(heads) if head in ("minutes", "steps")]
        assert any(len({row[i] for row in cells}) == 1 for i in budgets), rows


def test_a_row_says_what_the_record_says(tmp_path):
    curves = {"15->5": [1.0, 3.0], "10->10": [4.0], "15->30": [5.04]}
    metrics = {name: {"squared_error": curve} for name, curve in curves.items()}
    (tmp_path / "a-seed0.json").write_text(
        json.dumps({"seconds": 180, "metrics": metrics})
    )
    row = table("errors", "a-seed0 = A", tmp_path).splitlines()[-1]
    assert row == "| A | 3 | 1.0 | 2.0 | 4.0 | 5.0 |"


def test_the_log_is_dated_and_every_record_that_it_names_is_there(root):
    text = (root / PAGE).read_text(encoding="utf-8")
    assert text.count(" November 2026\n") >= 3
    named = [
        part.split("=")[0].strip()
        for _, rows in TABLE.findall(text)
        for part in rows.split(";")
    ]
    assert all((root / "book" / "results" / f"{name}.json").is_file() for name in named)
