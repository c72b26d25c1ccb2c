"""The panel's pictures; the panel itself is seen through a browser in test_viewer.py."""

import pytest
import torch

from db3d_nerfstudio.images import contact_sheet, tensor_to_image
from db3d_nerfstudio.training.viewer_panel import address_line, render_and_translation


def colours(*values):
    return torch.tensor(values)[:, None, None, None].expand(len(values), 3, 8, 8)


@pytest.mark.parametrize(
    ("host", "port", "wanted", "line"),
    [
        ("127.0.0.1", 7007, None, "Viewer: http://127.0.0.1:7007"),
        ("127.0.0.1", 7008, 7007, "Viewer: http://127.0.0.1:7008 (port 7007 is taken)"),
        ("0.0.0.0", 7007, 7007, "Viewer: http://localhost:7007 (and at the other addresses of this machine)"),
        ("::1", 7007, None, "Viewer: http://[::1]:7007"),
    ],
)
def test_the_address_is_the_one_that_is_served(host, port, wanted, line):
    assert address_line(host, port, wanted) == line


def test_renders_are_shown_beside_what_was_made_of_them():
    photos, renders, views = colours(0.1, 0.2, 0.3, 0.4), colours(0.5, 0.6, 0.7), colours(0.8, 0.9)
    sheet = tensor_to_image(contact_sheet([photos, renders, views]))
    tiles = [round(tile.getpixel((5, 5))[0] / 255, 1) for tile in render_and_translation(sheet)]
    assert tiles == [0.5, 0.8, 0.6, 0.9], "the third is not translated yet"
