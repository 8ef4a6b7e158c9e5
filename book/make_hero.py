"""Draw the animation of the README and the first page: `python book/make_hero.py`, about ten seconds."""

from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

import stt_lite as stt

OUT = Path(__file__).resolve().parent / "_assets" / "hero.gif"
SCALE, GAP, CAPTION = 3, 12, 26
BACKGROUND, TEXT = (24, 26, 31), (214, 218, 226)


def main() -> None:
    tokenizer = stt.load_tokenizer("moving-mnist")
    clip = stt.moving_mnist(1, 48, 64, 2, split="test", seed=7)[0]  # held-out digits
    panels = {
        "frames": clip.expand(-1, 3, -1, -1),
        "256 tokens each": stt.token_colours(tokenizer, clip),
        "decoded from the tokens": tokenizer.reconstruct(clip).expand(-1, 3, -1, -1),
    }
    side, font = 64 * SCALE, ImageFont.load_default(size=14)
    base = Image.new("RGB", (len(panels) * (side + GAP) + GAP, side + GAP + CAPTION), BACKGROUND)
    for column, label in enumerate(panels):
        centre = GAP + column * (side + GAP) + side / 2
        ImageDraw.Draw(base).text((centre, side + GAP + CAPTION / 2), label, TEXT, font, anchor="mm")
    frames = []
    for t in range(len(clip)):
        picture = base.copy()
        for column, video in enumerate(panels.values()):
            pixels = video[t].mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy()
            picture.paste(Image.fromarray(pixels).resize((side, side), Image.NEAREST), (GAP + column * (side + GAP), GAP))
        frames.append(np.asarray(picture))
    iio.imwrite(OUT, frames, duration=120, loop=0)
    print(f"{OUT}: {OUT.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
