"""Pictures: grids, data URIs, films, and what becomes of colours on the way."""

import base64
import io

import pytest
import torch
from PIL import Image

from db3d_nerfstudio.images import (
    contact_sheet,
    data_uri,
    file_uri,
    image_to_tensor,
    save_animation,
    tensor_to_image,
    tiled,
)


def test_a_tensor_becomes_an_image_and_comes_back():
    rgb = torch.arange(256).float().view(1, 16, 16).expand(3, -1, -1) / 255
    assert torch.equal(image_to_tensor(tensor_to_image(rgb)), rgb)
    assert tensor_to_image(torch.full((3, 1, 1), 1.7)).getpixel((0, 0)) == (255, 255, 255), "clipped, not wrapped"


def test_tiles_fill_rows():
    images = [Image.new("RGB", (20, 30), (i, 0, 0)) for i in range(5)]
    sheet = tiled(images, columns=2)
    assert sheet.size == (2 * 20, 3 * 30)
    assert [sheet.getpixel((5 + i % 2 * 20, 5 + i // 2 * 30))[0] for i in range(6)] == [0, 1, 2, 3, 4, 255]
    assert tiled([], columns=2).size == (1, 1)


def test_short_rows_of_a_contact_sheet_end_in_white():
    sheet = contact_sheet([torch.zeros(2, 3, 8, 8), torch.zeros(1, 3, 4, 4)], side=4)
    assert sheet.shape == (3, 8, 8)
    assert sheet[:, :4].max() == 0 and sheet[:, 4:, :4].max() == 0 and sheet[:, 4:, 4:].min() == 1


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_pictures_travel_inside_a_page(kind):
    uri = data_uri(Image.new("RGBA", (6, 4), "blue"), kind)
    assert uri.startswith(f"data:image/{kind.lower()};base64,")
    with Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))) as image:
        assert image.size == (6, 4) and image.format == kind


def test_files_travel_byte_for_byte(tmp_path):
    (tmp_path / "a.gif").write_bytes(b"bytes")
    assert file_uri(tmp_path / "a.gif") == "data:image/gif;base64," + base64.b64encode(b"bytes").decode()


def test_an_animation_plays_all_frames(tmp_path):
    save_animation(torch.linspace(0, 1, 4)[:, None, None, None].expand(4, 3, 33, 33), tmp_path / "t.webp")
    with Image.open(tmp_path / "t.webp") as film:
        assert film.n_frames == 4 and film.size == (33, 33) and film.info["loop"] == 0
