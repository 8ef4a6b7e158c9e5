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
LEAST = 16  # pixels: what is smaller either way is ink, not a picture
IMAGE = re.compile(r'<img\b[^>]*?\bsrc="([^"]*/_images/[^"/]+\.png)"[^>]*>')


def pictures(rgb: np.ndarray) -> np.ndarray:
    """Where pictures are (H W), in a drawing (H W 3) of bytes: areas, not lines.

    They are rectangles that paper surrounds, dashed borders and all; not mostly white
    (a plot) and not of one colour (a bar), unless they are as large as another one, as
    black frames are.
    """
    white = (rgb >= WHITE).all(-1)
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


def for_dark(picture: Image.Image) -> Image.Image:
    """The same drawing for a dark page: lightness upside down, but not of pictures."""
    rgba = np.asarray(picture.convert("RGBA")).astype(np.int32)
    alpha = rgba[..., 3:]
    rgb = (rgba[..., :3] * alpha + 255 * (255 - alpha)) // 255  # as on white
    darkest, lightest = rgb.min(-1, keepdims=True), rgb.max(-1, keepdims=True)
    turned = rgb + 255 - lightest - darkest  # hue and chroma stay
    cover = turned.max(-1, keepdims=True)  # black is the page itself
    ink = turned * 255 // np.maximum(cover, 1)
    drawn = np.concatenate([ink, cover], -1)
    kept = pictures(rgb)
    drawn[kept] = np.concatenate([rgb, np.full_like(cover, 255)], -1)[kept]
    return Image.fromarray(drawn.astype(np.uint8), "RGBA")


def draw_for_dark(app, exception):
    """Beside each figure of a chapter its dark one, which a dark page shows instead."""
    out, sizes = Path(app.outdir), {}
    for path in [] if exception else (out / "notebooks").glob("*.html"):
        text = path.read_text(encoding="utf-8")

        def both(match):
            source = (path.parent / unquote(html.unescape(match[1]))).resolve()
            if source not in sizes:
                with Image.open(source) as picture:
                    dark = for_dark(picture)
                dark.save(source.with_suffix(".dark.png"), optimize=True)
                sizes[source] = 'width="{}" height="{}"'.format(*dark.size)
            light = match[0].replace("<img", '<img data-paper="light"', 1)
            dark = match[0].replace(".png", ".dark.png", 1)
            late = f'<img data-paper="dark" loading="lazy" {sizes[source]}'  # its place
            dark = dark.replace("<img", late, 1)
            return light + dark

        after = IMAGE.sub(both, text)
        if after != text:
            path.write_text(after, encoding="utf-8")
