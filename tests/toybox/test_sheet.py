"""The sheet of samples of a guide in training."""

from PIL import Image
from tiny import tiny_toybox_folder

from db3d_nerfstudio.toybox import captions, sheet


def test_a_sheet_shows_every_prompt_from_four_sides(tmp_path):
    words = [word for word in captions.words() if word != ","]
    sheet.sample_sheet(tiny_toybox_folder(tmp_path / "guide", words), tmp_path / "samples.png")
    with Image.open(tmp_path / "samples.png") as image:
        assert image.size == (4 * 16, len(sheet.PROMPTS) * 16)
        first = [image.crop((16 * view, 0, 16 * view + 16, 16)).tobytes() for view in range(4)]
    assert len(set(first)) == 4
