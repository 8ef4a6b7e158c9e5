"""Figures for dark pages: paper and ink change, pictures do not."""

import numpy as np
import pytest
from PIL import Image

from dark import draw_for_dark, for_dark

PAPER, BLUE = (255, 255, 255), (31, 78, 140)


@pytest.fixture
def drawing():
    """White paper (120 x 200) with a picture, two bars and a line of ink."""
    rgb = np.full((120, 200, 3), 255, np.uint8)
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3))
    rgb[10:50, 10:50] = noise  # a frame
    rgb[10:50, 60:100] = 0  # another, black
    rgb[10:90, 120:140] = BLUE  # a bar
    rgb[60:62, 10:100] = 0  # an axis
    return rgb


def dark(rgb) -> np.ndarray:
    return np.asarray(for_dark(Image.fromarray(rgb))).astype(int)


def test_paper_is_clear_and_ink_is_light(drawing):
    after = dark(drawing)
    assert (after[100:, :, 3] == 0).all()
    assert (after[60:62, 10:100] == 255).all()


def test_pictures_stay_as_they_are(drawing):
    after = dark(drawing)
    for place in (np.s_[10:50, 10:50], np.s_[10:50, 60:100]):
        assert (after[place][..., 3] == 255).all()
        assert (after[place][..., :3] == drawing[place]).all()


def test_a_dashed_border_does_not_turn_a_picture(drawing):
    for column in range(10, 50, 8):
        drawing[10:13, column : column + 4] = 255
        drawing[47:50, column : column + 4] = 255
    after = dark(drawing)
    assert (after[14:46, 14:46, :3] == drawing[14:46, 14:46]).all()
    assert (after[10:13, 10:14, 3] == 0).all()  # paper between dashes


def test_a_bar_keeps_its_hue_and_becomes_as_light_as_it_was_dark(drawing):
    ink, cover = np.split(dark(drawing)[50, 130], [3])
    shown = ink * cover / 255  # on black
    assert shown == pytest.approx(np.array(BLUE) + 255 - min(BLUE) - max(BLUE), abs=2)


def test_a_black_box_that_is_no_frame_is_turned(drawing):
    drawing[10:50, 10:50] = 255
    assert (dark(drawing)[10:50, 60:100] == 255).all()


@pytest.mark.parametrize("kind, dark_kind", [("png", "dark.png"), ("jpg", "dark.webp")])
def test_a_page_gets_a_dark_figure_beside_each_light_one(
    tmp_path, drawing, kind, dark_kind
):
    class App:
        outdir = tmp_path

    for folder in ("_images", "notebooks"):
        (tmp_path / folder).mkdir()
    Image.fromarray(drawing).save(tmp_path / "_images" / f"a.{kind}")
    page = tmp_path / "notebooks" / "x.html"
    image = f'alt="b &gt; ../_images/a.{kind}" src="../_images/a.{kind}"'
    page.write_text(f"<p><img {image} /></p>")
    draw_for_dark(App, None)
    text = page.read_text()
    assert text.count("<img") == 2 and text.count(image.split(" src")[0]) == 2
    assert f'data-paper="light" {image}' in text
    assert (
        f'src="../_images/a.{dark_kind}"' in text and text.count('loading="lazy"') == 1
    )
    with Image.open(tmp_path / "_images" / f"a.{dark_kind}") as picture:
        assert picture.mode == "RGBA" and picture.size == (200, 120)
