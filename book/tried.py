"""Tables of `book/what_did_not_work.md`, from the records of runs.

Where the page says `% table: KIND RECORD = title; RECORD = title`, a build puts a table
of these records. Part of the Sphinx extension in book/pages.py.
"""

import json
import re
from pathlib import Path
from statistics import fmean

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "book" / "results"
TABLE = re.compile(r"^% table: (\w+) (.+)$", re.MULTILINE)


def errors(record: dict) -> list[str]:
    """Squared error a frame: the first, and the means of three protocols."""
    found = {name: m["squared_error"] for name, m in record["metrics"].items()}
    means = [fmean(found[name]) for name in ("15->5", "10->10", "15->30")]
    numbers = [record["seconds"] / 60, found["15->5"][0], *means]
    return [f"{numbers[0]:.0f}", *(f"{number:.1f}" for number in numbers[1:])]


def sharpness(record: dict) -> list[str]:
    """Of reconstructed photographs (crops of 128x128 pixels)."""
    found = record["metrics"]["128"]
    power = found["high_frequency_power"]
    kept = power["reconstruction"] / power["input"]
    numbers = [f"{found['psnr']:.1f}", f"{found['ssim']:.2f}", f"{kept:.0%}"]
    return [f"{record['seconds'] / 60:.0f}", str(record["steps"]), *numbers]


def balls(record: dict) -> list[str]:
    """Of reconstructed frames of two games."""
    found = record["metrics"]
    kept = [f"{found[game]['ball_kept']:.0%}" for game in ("pong", "breakout")]
    psnr = [f"{found[game]['psnr']:.1f}" for game in ("pong", "breakout")]
    return [str(record["steps"]), *kept, *psnr]


KINDS = {
    "errors": (errors, "minutes | first frame | 15 to 5 | 10 to 10 | 15 to 30"),
    "sharpness": (sharpness, "minutes | steps | PSNR | SSIM | power of fine detail"),
    "balls": (balls, "steps | balls kept, Pong | Breakout | PSNR, Pong | Breakout"),
}


def table(kind: str, rows: str, records: Path = RECORDS) -> str:
    """A table in Markdown with a row for each `RECORD = title` of `rows`."""
    measure, heads = KINDS[kind]
    lines = [f"| | {heads} |", "|---" * (heads.count("|") + 2) + "|"]
    for row in rows.split(";"):
        name, title = (part.strip() for part in row.split("="))
        record = json.loads((records / f"{name}.json").read_text(encoding="utf-8"))
        lines.append(f"| {title} | {' | '.join(measure(record))} |")
    return "\n".join(lines)


def fill_in(app, docname, source):
    source[0] = TABLE.sub(lambda found: table(found[1], found[2]), source[0])
