import pytest
import torch
from PIL import Image

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.images import image_to_tensor, tensor_to_image
from db3d_nerfstudio.photos import load_masks, load_photo, load_photos, photo_paths, photos_digest


def test_photos_are_read_in_order_and_other_files_left_alone(photos):
    images = load_photos(photos, 8)
    assert images.shape == (4, 3, 8, 8)
    assert torch.allclose(
        images[:, :, 4, 4] * 255, torch.tensor([[200.0, 30, 30], [30, 200, 30], [30, 30, 200], [90] * 3])
    )


def test_the_central_square_is_kept(tmp_path):
    image = Image.new("RGB", (90, 30), "red")
    image.paste("blue", (30, 0, 60, 30))
    image.save(tmp_path / "a.png")
    assert torch.allclose(image_to_tensor(load_photo(tmp_path / "a.png", 30)), torch.tensor([0.0, 0, 1])[:, None, None])


def test_photos_are_turned_upright_and_put_on_white(tmp_path):
    image = Image.new("RGBA", (4, 8), (255, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 4, 4, 8))  # The lower half is transparent.
    exif = Image.Exif()
    exif[0x0112] = 3  # Taken upside down.
    image.save(tmp_path / "a.png", exif=exif)
    rgb = image_to_tensor(load_photo(tmp_path / "a.png", 4))
    assert rgb[:, 0, 0].tolist() == [1, 1, 1] and rgb[:, -1, 0].tolist() == [1, 0, 0]


def test_conversion_to_8_bits_round_trips():
    rgb = torch.arange(256).float()[None, None].expand(3, 1, -1) / 255
    assert torch.equal(image_to_tensor(tensor_to_image(rgb)), rgb)


def test_the_digest_tells_photos_apart(photos):
    before = photos_digest(photos)
    assert photos_digest(photos) == before
    (photos / "00.png").rename(photos / "05.png")
    assert photos_digest(photos) != before


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: (p.mkdir(), (p / "a.txt").touch())])
def test_a_folder_without_photos_is_an_error_with_the_fix(tmp_path, make):
    make(tmp_path / "p")
    with pytest.raises(UserError, match="3 to 6 photos of the subject"):
        photo_paths(tmp_path / "p")


@pytest.mark.parametrize("keep", [0, 60])
def test_a_corrupt_photo_is_named(photos, keep):
    file = photos / "01.png"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"01\.png .*: replace or remove it"):
        load_photos(photos, 8)


def test_masks_are_the_opaque_parts(photos):
    with pytest.raises(UserError, match="masked_loss off"):  # Photos without an alpha channel.
        load_masks(photos, 8)
    cut_out = Image.new("RGBA", (30, 30), (9, 9, 9, 255))
    cut_out.paste((0, 0, 0, 0), (0, 0, 15, 30))
    cut_out.save(photos / "00.png")
    masks = load_masks(photos, 8)
    assert masks.shape == (4, 1, 8, 8) and masks[1:].min() == 1
    assert masks[0, 0, :, :3].max() == 0 and masks[0, 0, :, 5:].min() == 1
    Image.new("RGBA", (9, 9), (0, 0, 0, 0)).save(photos / "02.png")
    with pytest.raises(UserError, match=r"02\.png.*replace or remove"):
        load_masks(photos, 8)
