"""The panel's pictures; the panel itself is seen through a browser in test_viewer.py."""

import torch

from db3d_nerfstudio.images import contact_sheet, tensor_to_image
from db3d_nerfstudio.training.viewer_panel import render_and_translation


def colours(*values):
    return torch.tensor(values)[:, None, None, None].expand(len(values), 3, 8, 8)


def test_renders_are_shown_beside_what_was_made_of_them():
    photos, renders, views = colours(0.1, 0.2, 0.3, 0.4), colours(0.5, 0.6, 0.7), colours(0.8, 0.9)
    sheet = tensor_to_image(contact_sheet([photos, renders, views]))
    tiles = [round(tile.getpixel((5, 5))[0] / 255, 1) for tile in render_and_translation(sheet)]
    assert tiles == [0.5, 0.8, 0.6, 0.9], "the third is not translated yet"
