"""The panel's pictures; the panel itself is seen through a browser in test_viewer.py."""

import base64
import io

import torch
from PIL import Image

from db3d_nerfstudio.photos import tensor_to_image
from db3d_nerfstudio.training.pseudo_views import contact_sheet
from db3d_nerfstudio.training.viewer_panel import TILE, ViewerPanel, as_markdown, render_and_translation, tiled


def colours(*values):
    return torch.tensor(values)[:, None, None, None].expand(len(values), 3, 8, 8)


def test_renders_are_shown_beside_what_was_made_of_them():
    photos, renders, views = colours(0.1, 0.2, 0.3, 0.4), colours(0.5, 0.6, 0.7), colours(0.8, 0.9)
    sheet = tensor_to_image(contact_sheet([photos, renders, views]))
    tiles = [round(tile.getpixel((5, 5))[0] / 255, 1) for tile in render_and_translation(sheet)]
    assert tiles == [0.5, 0.8, 0.6, 0.9], "the third is not translated yet"


def test_tiles_fill_rows():
    images = [Image.new("RGB", (TILE, TILE), (i, 0, 0)) for i in range(5)]
    sheet = tiled(images, columns=2)
    assert sheet.size == (2 * TILE, 3 * TILE)
    assert [sheet.getpixel((5 + i % 2 * TILE, 5 + i // 2 * TILE))[0] for i in range(6)] == [0, 1, 2, 3, 4, 255]


def test_pictures_travel_inside_the_text():
    text = as_markdown(Image.new("RGB", (6, 4), "blue"), "name")
    assert text.startswith("![name](data:image/jpeg;base64,") and text.endswith(")")
    data = base64.b64decode(text.split(",")[1][:-1])
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (6, 4)


def test_without_a_viewer_the_panel_does_nothing():
    ViewerPanel().follow(runner=None)
