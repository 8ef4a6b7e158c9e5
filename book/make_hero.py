"""Draw the animation of README and first page: `python book/make_hero.py` (10 s)."""

from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

import stt_lite as stt
from stt_lite.video import GENERATED_COLOUR, PROMPT_COLOUR

OUT = Path(__file__).resolve().parent / "_assets" / "hero.gif"
BUNDLE, CLIPS, PROMPT, NEW = "moving-mnist", (2, 3, 6), 15, 5
SIDE, GAP, CAPTION = 160, 10, 26
BACKGROUND, TEXT = (24, 26, 31), (214, 218, 226)


def main() -> None:
    model = stt.load_pretrained(BUNDLE)
    size, digits = (model.record["data"][name] for name in ("size", "digits"))
    clips = stt.moving_mnist(8, PROMPT + NEW, size, digits, split="test", seed=7)[
        list(CLIPS)
    ]  # held-out digits
    futures = model.generate(clips[:, :PROMPT], NEW, samples=3, seed=0)  # (B S T C H W)
    font, width = ImageFont.load_default(size=14), 4 * (SIDE + GAP) + GAP
    frames = []
    for truth, samples in zip(clips, futures):
        for t in range(PROMPT + NEW):
            given = t < PROMPT
            picture = Image.new("RGB", (width, SIDE + 2 * GAP + CAPTION), BACKGROUND)
            draw = ImageDraw.Draw(picture)
            for column, video in enumerate([truth, *samples]):
                left = GAP + column * (SIDE + GAP)
                border = PROMPT_COLOUR if given or column == 0 else GENERATED_COLOUR
                draw.rectangle(
                    (left - 3, GAP - 3, left + SIDE + 2, GAP + SIDE + 2), fill=border
                )
                pixels = video[t, 0].mul(255).round().to(torch.uint8).numpy()
                picture.paste(
                    Image.fromarray(pixels).resize((SIDE, SIDE), Image.NEAREST),
                    (left, GAP),
                )
                label = (
                    "truth"
                    if column == 0
                    else "prompt"
                    if given
                    else f"generated, future {column}"
                )
                draw.text(
                    (left + SIDE / 2, SIDE + GAP + CAPTION / 2 + 2),
                    label,
                    TEXT,
                    font,
                    anchor="mm",
                )
            frames.append(np.asarray(picture))
    iio.imwrite(OUT, frames, duration=160, loop=0)
    print(f"{OUT}: {OUT.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
