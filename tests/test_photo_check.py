"""What is said about a folder of photos."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.photo_check import check_photos


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three square photos that there is nothing to say about."""
    path = tmp_path / "photos"
    path.mkdir()
    for i in range(3):
        picture(path / f"{i}.png", i)
    return path


def picture(path: Path, seed: int, size: tuple[int, int] = (120, 120)) -> None:
    noise = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), np.uint8)
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(path)


def said(folder: Path) -> str:
    return "\n".join(check_photos(folder))


def test_good_photos_need_no_words(folder: Path) -> None:
    assert check_photos(folder) == []


def test_what_is_left_out_is_named_with_the_reason(folder: Path) -> None:
    for name in ("notes.txt", "IMG_1.MOV", "x.psd", "y.NEF", ".IMG_2.HEIC.icloud", ".DS_Store", "Thumbs.db", "._0.png"):
        (folder / name).write_bytes(b"8BPS" + bytes(99))
    (folder / "gone.jpg").symlink_to(folder / "nowhere")
    (folder / "sub").mkdir()
    picture(folder / "sub" / "a.jpg", 9)
    (line,) = check_photos(folder)
    assert line.startswith(
        f"Left out of {folder}: .IMG_2.HEIC.icloud (still in iCloud, download it), IMG_1.MOV (a video)"
    )
    assert "gone.jpg (a link to nothing)" in line and "notes.txt (no picture)" in line and "and 2 more" in line
    assert "DS_Store" not in line and "Thumbs" not in line


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_pipe_is_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "pipe.jpg")
    assert "pipe.jpg (not a regular file)" in said(folder)


def test_one_photo_and_dozens(folder: Path) -> None:
    for i in range(3, 30):
        picture(folder / f"{i}.png", i)
    assert "30 photos: three to six" in said(folder)
    for i in range(1, 30):
        (folder / f"{i}.png").unlink()
    assert "One photo shows one side only" in said(folder)


def test_how_much_is_cropped_away(folder: Path) -> None:
    picture(folder / "wide.png", 7, (480, 120))
    assert "cropped to squares, which removes 75 % of wide.png" in said(folder)
    for i in range(3):
        picture(folder / f"{i}.png", i, (120, 480))
    assert "which removes 75 % of each" in said(folder)


def test_small_moving_and_equal_photos(folder: Path) -> None:
    picture(folder / "thumb.jpg", 8, (60, 60))
    frames = [Image.new("RGB", (120, 120), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "moves.gif", save_all=True, append_images=frames[1:])
    Image.open(folder / "1.png").save(folder / "1.webp", quality=95)
    lines = said(folder)
    assert "thumb.jpg (60 x 60)" in lines
    assert "Only the first of several pictures is used of moves.gif" in lines
    assert "The same picture more than once: 1.png = 1.webp" in lines


def test_all_that_cannot_be_read_is_in_one_line(folder: Path) -> None:
    (folder / "empty.jpg").touch()
    (folder / "page.jpg").write_text("<html>403</html>")
    with pytest.raises(UserError, match=r"(?s)empty\.jpg.*empty.*page\.jpg.*web page"):
        check_photos(folder)


def test_names_that_no_terminal_can_print(folder: Path) -> None:
    picture(folder / "a\nb.png", 5, (60, 60))
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png")).write_bytes((folder / "a\nb.png").read_bytes())
    line = said(folder)
    assert line.encode("utf8") and "a\N{REPLACEMENT CHARACTER}b.png = caf\N{REPLACEMENT CHARACTER}.png" in line


def test_pictures_of_nothing_are_named_and_silhouettes_are_not(folder: Path) -> None:
    Image.new("RGB", (120, 120), "black").save(folder / "lens_cap.png")
    clear = Image.open(folder / "0.png").convert("RGBA")
    clear.putalpha(0)
    clear.save(folder / "clear.png")
    silhouette = Image.new("RGBA", (120, 120), "black")
    silhouette.putalpha(Image.open(folder / "1.png").convert("L"))
    silhouette.save(folder / "silhouette.png")
    assert "Nothing to be seen in clear.png, lens_cap.png, which" in said(folder)


def test_of_many_broken_photos_the_first_are_named(folder: Path) -> None:
    for i in range(60):
        (folder / f"broken_{i:02}.jpg").touch()
    with pytest.raises(UserError, match=r"broken_04\.jpg [^;]*; and 55 more$"):
        check_photos(folder)
