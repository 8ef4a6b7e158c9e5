"""Draw what moves on README and front page: `python book/make_hero.py` (20 s).

`hero.gif` for README; for the front page `futures.png`, a sheet of frames that its
player shows (book/js/front.js), `digits.png`, test digits to throw, and `card.png`, the
still that stands in for the player and that other sites show beside a link.
"""

import json
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont

import stt_lite as stt
from stt_lite.moving_mnist import mnist_digits
from stt_lite.strips import GENERATED_COLOUR, PROMPT_COLOUR

BOOK = Path(__file__).resolve().parent
GIF, CARD = BOOK / "_assets" / "hero.gif", BOOK / "_assets" / "card.png"
SHEET, DIGITS = BOOK / "js" / "futures.png", BOOK / "js" / "digits.png"
BUNDLE, CLIPS, PROMPT, NEW, SAMPLES = "moving-mnist", (2, 3, 6), 15, 5, 3
LONG = 10  # new frames on the front page
SIDE, GAP, CAPTION = 160, 10, 26
BACKGROUND, TEXT = (24, 26, 31), (214, 218, 226)
# Of the test digits, two of each kind that a reader takes for what they are.
PICKED = (3, 10, 2, 5, 1, 35, 18, 30, 4, 6, 8, 15, 11, 21, 0, 17, 61, 84, 7, 9)


def picture(truth, samples, t: int) -> Image.Image:
    """Frame t of a clip beside its futures, bordered and labelled."""
    width = (1 + SAMPLES) * (SIDE + GAP) + GAP
    drawn = Image.new("RGB", (width, SIDE + 2 * GAP + CAPTION), BACKGROUND)
    draw, font = ImageDraw.Draw(drawn), ImageFont.load_default(size=14)
    for column, video in enumerate([truth, *samples]):
        left = GAP + column * (SIDE + GAP)
        given = t < PROMPT or column == 0
        border = PROMPT_COLOUR if given else GENERATED_COLOUR
        box = (left - 3, GAP - 3, left + SIDE + 2, GAP + SIDE + 2)
        draw.rectangle(box, fill=border)
        pixels = video[t, 0].mul(255).round().to(torch.uint8).numpy()
        frame = Image.fromarray(pixels).resize((SIDE, SIDE), Image.NEAREST)
        drawn.paste(frame, (left, GAP))
        made = "prompt" if given else f"generated, future {column}"
        label = made if column else "truth"
        place = (left + SIDE / 2, SIDE + GAP + CAPTION / 2 + 2)
        draw.text(place, label, TEXT, font, anchor="mm")
    return drawn


def write_sheet(clips, futures) -> None:
    """Truth and what is new in each future, clip by clip, in rows of 15 frames."""
    rows = [torch.cat([c, f[:, PROMPT:].flatten(0, 1)]) for c, f in zip(clips, futures)]
    tiles = torch.cat(rows)[:, 0]
    grey = tiles.mul(15).round().mul(17).to(torch.uint8)  # 16 levels: half the bytes
    grey = torch.nn.functional.pad(grey, (0, 0, 0, 0, 0, -len(grey) % 15))
    sheet = rearrange(grey, "(r c) h w -> (r h) (c w)", c=15)
    palette = Image.fromarray((sheet // 17).numpy(), "P")
    palette.putpalette([level * 17 for level in range(16) for _ in "rgb"])
    palette.save(SHEET, optimize=True, bits=4)
    about = {"size": clips.shape[-1], "clips": len(clips), "prompt": PROMPT}
    about |= {"new": LONG, "futures": SAMPLES, "columns": 15}
    SHEET.with_suffix(".json").write_text(json.dumps(about) + "\n")


def main() -> None:
    model = stt.load_pretrained(BUNDLE)
    size, digits = (model.record["data"][name] for name in ("size", "digits"))
    clips = stt.moving_mnist(8, PROMPT + LONG, size, digits, split="test", seed=7)[
        list(CLIPS)
    ]  # held-out digits
    futures = model.generate(clips[:, :PROMPT], LONG, samples=SAMPLES, seed=0)
    write_sheet(clips, futures)
    both = list(zip(clips, futures))
    frames = [picture(*one, t) for one in both for t in range(PROMPT + NEW)]
    iio.imwrite(GIF, [np.asarray(frame) for frame in frames], duration=160, loop=0)
    picture(*both[0], PROMPT + 2).save(CARD, optimize=True)
    picked = mnist_digits("test")[list(PICKED)]
    row = rearrange(picked, "n h w -> h (n w)")
    Image.fromarray(row.numpy()).save(DIGITS, optimize=True)
    for path in (GIF, CARD, SHEET, DIGITS):
        print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
