"""Figures for dark pages: each picture that a cell shows, on paper as dark as the page.

Part of the Sphinx extension in book/pages.py. Notebooks draw on white. For the dark
theme a second file is made of each: paper becomes transparent, ink light, hues stay,
and what is a picture itself (a frame of a clip, a map of attention) is left as it is.
"""

import html
import re
from pathlib import Path
from urllib.parse import unquote

import numpy as np
from PIL import Image
from scipy import ndimage

WHITE = 250  # of 255: paper
BORDER = 4  # pixels that a frame's border takes
WIDE = 600  # pixels: wider ones are moved sideways on a phone, not made small
LEAST = 16  # pixels: what is smaller either way is ink, not a picture
IMAGE = re.compile(r'<img\b[^>]*?\bsrc="([^"]*/_images/[^"/]+)\.(png|jpg)"[^>]*>')
# The dark one's ending, and what is paper: a JPEG blurs it beside a picture's edge.
KINDS = {"png": ("dark.png", WHITE), "jpg": ("dark.webp", 228)}


def pictures(rgb: np.ndarray, paper_from: int = WHITE) -> np.ndarray:
    """Where pictures are (H W), in a drawing (H W 3) of bytes: areas, not lines.

    They are rectangles that paper surrounds, dashed borders and all; not mostly white
    (a plot) and not of one colour (a bar), unless they are as large as another one, as
    black frames are.
    """
    white = (rgb >= paper_from).all(-1)
    places, _ = ndimage.label(white)
    edge = np.concatenate([places[0], places[-1], places[:, 0], places[:, -1]])
    paper = white & np.isin(places, edge[edge > 0])
    solid = ndimage.binary_opening(~paper, np.ones((LEAST // 2, LEAST // 2)))
    found, flat = [], []
    areas, _ = ndimage.label(solid)
    for number, place in enumerate(ndimage.find_objects(areas), 1):
        inside = areas[place] == number
        size = np.array(inside.shape)
        if size.min() < LEAST or inside.mean() < 0.75 or white[place].mean() > 0.5:
            continue
        pixels = rgb[place][BORDER:-BORDER, BORDER:-BORDER].reshape(-1, 3)
        one = np.ptp(pixels, axis=0).max() <= 2
        (flat if one else found).append((place, size))
    alike = [
        (place, size)
        for place, size in flat
        if any(np.abs(size - other).max() <= BORDER for _, other in found)
    ]
    kept = np.zeros_like(white)
    for place, _ in found + alike:
        kept[place] = ~paper[place]  # between a border's dashes is paper
        kept[place][BORDER:-BORDER, BORDER:-BORDER] = True
    return kept


def for_dark(picture: Image.Image, paper_from: int = WHITE) -> Image.Image:
    """The same drawing for a dark page: lightness upside down, but not of pictures."""
    rgba = np.asarray(picture.convert("RGBA")).astype(np.int32)
    alpha = rgba[..., 3:]
    rgb = (rgba[..., :3] * alpha + 255 * (255 - alpha)) // 255  # as on white
    darkest, lightest = rgb.min(-1, keepdims=True), rgb.max(-1, keepdims=True)
    turned = rgb + 255 - lightest - darkest  # hue and chroma stay
    cover = turned.max(-1, keepdims=True)  # black is the page itself
    ink = turned * 255 // np.maximum(cover, 1)
    drawn = np.concatenate([ink, cover], -1)
    kept = pictures(rgb, paper_from)
    drawn[kept] = np.concatenate([rgb, np.full_like(cover, 255)], -1)[kept]
    return Image.fromarray(drawn.astype(np.uint8), "RGBA")


def draw_for_dark(app, exception):
    """Beside each figure of a chapter its dark one, which a dark page shows instead."""
    out, sizes = Path(app.outdir), {}
    for path in [] if exception else (out / "notebooks").glob("*.html"):
        text = path.read_text(encoding="utf-8")

        def both(match):
            name, (ending, white) = f"{match[1]}.{match[2]}", KINDS[match[2]]
            source = (path.parent / unquote(html.unescape(name))).resolve()
            if source not in sizes:
                with Image.open(source) as picture:
                    dark = for_dark(picture, white)
                dark.save(source.with_suffix(f".{ending}"), optimize=True)
                sizes[source] = dark.size
            width, height = sizes[source]
            end = ' alt="Film strip' in match[0]  # what is generated is on the right
            wide = f' data-wide="{"end" if end else ""}"' if width > WIDE else ""
            place = f'loading="lazy" width="{width}" height="{height}"'
            light = match[0].replace("<img", f'<img data-paper="light"{wide}', 1)
            dark = match[0].replace(f'src="{name}', f'src="{match[1]}.{ending}', 1)
            dark = dark.replace("<img", f'<img data-paper="dark"{wide} {place}', 1)
            return light + dark

        after = IMAGE.sub(both, text)
        if after != text:
            path.write_text(after, encoding="utf-8")
