import pytest
import torch
from PIL import Image

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.images import image_to_tensor, tensor_to_image
from db3d_nerfstudio.photos import load_masks, load_photo, load_photos, photo_paths, photos_digest, square


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
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 4, 8, 8))  # The lower half is transparent.
    exif = Image.Exif()
    exif[0x0112] = 3  # Taken upside down.
    image.save(tmp_path / "a.png", exif=exif)
    rgb = image_to_tensor(load_photo(tmp_path / "a.png", 8))
    assert rgb[:, 0, 0].tolist() == [1, 1, 1] and rgb[:, -1, 0].tolist() == [1, 0, 0]


def cut_out(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    image = Image.new("RGBA", size, (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), box)
    return image


@pytest.mark.parametrize(
    ("size", "box", "kept"),
    [
        ((90, 30), (35, 5, 50, 25), (30, 0, 60, 30)),  # In the middle square: that one.
        ((90, 30), (65, 5, 85, 25), (55, 0, 85, 30)),  # Beside it: moved no farther than needed.
        ((30, 90), (5, 0, 25, 20), (0, 0, 30, 30)),  # At an end.
        ((90, 30), (10, 5, 70, 25), (10, -15, 70, 45)),  # Longer than the square: a larger one.
    ],
)
def test_the_square_of_a_cut_out_holds_the_subject(tmp_path, size, box, kept):
    image = cut_out(size, box)
    assert square(size, image.getchannel("A")) == kept
    image.save(tmp_path / "a.png")
    side = kept[2] - kept[0]
    red = image_to_tensor(load_photo(tmp_path / "a.png", side))[1] == 0
    mask = load_masks(tmp_path, side)[0, 0] == 1
    area = (box[2] - box[0]) * (box[3] - box[1])
    assert red.sum() == area and (red == mask).all()


def test_rounded_corners_are_no_cut_out():
    alpha = Image.new("L", (90, 30), 255)
    alpha.paste(0, (0, 0, 4, 4))
    assert square((90, 30), alpha) == square((90, 30)) == (30, 0, 60, 30)


def test_photos_can_be_cropped_as_their_cut_outs(tmp_path):
    for name in ("photos", "cutouts"):
        (tmp_path / name).mkdir()
    image = Image.new("RGB", (90, 30), "blue")
    image.paste("red", (65, 5, 85, 25))
    image.save(tmp_path / "photos" / "a.jpg", quality=100)
    cut_out((90, 30), (65, 5, 85, 25)).save(tmp_path / "cutouts" / "a.png")
    assert load_photos(tmp_path / "photos", 30)[0, 0].max() < 0.1
    red = load_photos(tmp_path / "photos", 30, tmp_path / "cutouts")[0, 0] > 0.5
    assert (red == load_masks(tmp_path / "cutouts", 30)[0, 0].bool()).float().mean() > 0.98
    cut_out((90, 30), (65, 5, 85, 25)).save(tmp_path / "cutouts" / "b.png")
    with pytest.raises(UserError, match="needs a cut-out of each of the 1 photos"):
        load_photos(tmp_path / "photos", 30, tmp_path / "cutouts")


def test_conversion_to_8_bits_round_trips():
    rgb = torch.arange(256).float()[None, None].expand(3, 1, -1) / 255
    assert torch.equal(image_to_tensor(tensor_to_image(rgb)), rgb)


def test_the_digest_tells_photos_apart(photos):
    before = photos_digest(photos)
    assert photos_digest(photos) == before
    (photos / "00.png").rename(photos / "05.png")
    assert photos_digest(photos) != before
    (photos / "00.png").write_bytes((photos / "05.png").read_bytes())
    (photos / "05.png").unlink()
    assert photos_digest(photos) == before


def test_accents_may_be_written_as_on_another_system(photos):
    (photos / "00.png").rename(photos / "caf\N{LATIN SMALL LETTER E WITH ACUTE}.png")
    before = photos_digest(photos)
    (photos / "caf\N{LATIN SMALL LETTER E WITH ACUTE}.png").rename(photos / "cafe\N{COMBINING ACUTE ACCENT}.png")
    assert photos_digest(photos) == before


def test_photos_one_folder_down_or_a_single_file_are_recognised(photos):
    with pytest.raises(UserError, match="photos: a folder with 4 pictures"):
        photo_paths(photos.parent)
    with pytest.raises(UserError, match=r"00\.png is a file: give the folder"):
        photo_paths(photos / "00.png")


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
