"""Files as phones, scanners, browsers and chat programs write them."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.photo_file import picture_format, read_photo

RED, BLUE = (200, 30, 40), (30, 40, 200)
ORIENTATION = 0x0112


def scene(mode: str = "RGB") -> Image.Image:
    """Wide: red on the left, blue on the right."""
    image = Image.new("RGB", (48, 32), RED)
    image.paste(BLUE, (24, 0, 48, 32))
    return image.convert(mode)


def turned() -> Image.Exif:
    """What a phone writes that was held upright: to be turned clockwise, which puts the left on top."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    return exif


def near(pixel: tuple[int, ...], colour: tuple[int, int, int]) -> bool:
    return all(abs(a - b) <= 6 for a, b in zip(pixel, colour, strict=False))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    if kind == "HEIF":
        import pillow_heif

        pillow_heif.register_heif_opener()
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


LOSSY = {"quality": 95}
FORMATS = {
    "PNG": {},
    "JPEG": LOSSY,
    "MPO": {**LOSSY, "save_all": True, "append_images": [Image.new("RGB", (9, 9))]},
    "WEBP": {**LOSSY, "save_all": True, "append_images": [Image.new("RGB", (48, 32))]},
    "GIF": {"save_all": True, "append_images": [Image.new("RGB", (48, 32))]},
    "AVIF": LOSSY,
    "HEIF": LOSSY,
    "JPEG2000": {},
    "BMP": {},
    "TIFF": {"save_all": True, "append_images": [Image.new("RGB", (9, 9))]},
    "PPM": {},
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", ["photo", "photo.jpg", "фото 名.PNG"])
def test_a_photo_is_read_whatever_it_is_called(tmp_path: Path, kind: str, name: str) -> None:
    (tmp_path / name).write_bytes(encoded(scene(), kind, **FORMATS[kind]))
    image = read_photo(tmp_path / name)
    assert (image.mode, image.size) == ("RGBA", (48, 32)) and picture_format(tmp_path / name)
    assert near(image.getpixel((4, 16)), RED) and near(image.getpixel((44, 16)), BLUE)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF", "HEIF", "TIFF"])
def test_it_is_put_upright(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a").write_bytes(encoded(scene(), kind, exif=turned().tobytes()))
    image = read_photo(tmp_path / "a")
    assert image.size == (32, 48)
    assert near(image.getpixel((16, 4)), RED) and near(image.getpixel((16, 44)), BLUE)


def exif_block(*entries: tuple[int, int, int, bytes]) -> bytes:
    body = struct.pack("<H", len(entries)) + b"".join(
        struct.pack("<HHI", tag, kind, count) + value.ljust(4, b"\0") for tag, kind, count, value in entries
    )
    return b"Exif\0\0II*\0" + struct.pack("<I", 8) + body + bytes(4)


SIX = (ORIENTATION, 3, 1, b"\6\0")


@pytest.mark.parametrize(
    "entries",
    [
        [(0x0100, 2, 4, b"abc"), SIX],  # A width that is a text.
        [(0x0103, 9, 1, struct.pack("<i", -5)), SIX],  # A negative number where none can be.
        [(0x0106, 11, 1, struct.pack("<f", 2.5)), SIX],  # A float as an integer.
        [SIX, (0x011A, 2, 4, b"abc")],  # A resolution that is a text.
        [SIX, (0x010F, 2, 400, struct.pack("<I", 60000))],  # A text outside the block.
        [SIX, (0x8769, 4, 1, struct.pack("<I", 4_000_000_000))],
        [SIX, (0x9999, 77, 1, b"")],
        [(ORIENTATION, 3, 2, struct.pack("<HH", 6, 6))],
        [(ORIENTATION, 2, 2, b"6")],
    ],
)
def test_exif_that_cannot_be_written_again_is_no_reason_to_fail(tmp_path: Path, entries) -> None:
    data, block = encoded(scene(), "JPEG", **LOSSY), exif_block(*entries)
    (tmp_path / "a.jpg").write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + data[2:])
    assert read_photo(tmp_path / "a.jpg").size == (32, 48)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("CMYK", "JPEG"), ("CMYK", "TIFF"), ("P", "PNG"), ("RGBA", "WEBP"), ("YCbCr", "TIFF"), ("LAB", "TIFF")],
)
def test_colours_of_every_mode(tmp_path: Path, mode: str, kind: str) -> None:
    image = scene().quantize(8) if mode == "P" else scene()
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(image, *profiles, outputMode="LAB")
    (tmp_path / "a").write_bytes(encoded(image.convert(mode), kind, **({"quality": 100} if kind != "PNG" else {})))
    assert near(read_photo(tmp_path / "a").getpixel((4, 16)), RED)


@pytest.mark.parametrize("mode", ["L", "LA", "1", "I", "F"])
def test_grey_of_any_depth_has_its_brightness(tmp_path: Path, mode: str) -> None:
    Image.new("L", (8, 8), 255 if mode == "1" else 100).convert(mode).save(tmp_path / "a.tif")
    assert read_photo(tmp_path / "a.tif").getpixel((4, 4))[:3] == ((255 if mode == "1" else 100),) * 3


def test_sixteen_bits_become_eight(tmp_path: Path) -> None:
    for kind in ("png", "tif"):
        Image.fromarray(np.full((8, 8), 100 * 257, np.uint16)).save(tmp_path / f"a.{kind}")
        assert read_photo(tmp_path / f"a.{kind}").getpixel((4, 4)) == (100, 100, 100, 255)
    Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"a\.tif .*not finite"):
        read_photo(tmp_path / "a.tif")


def test_transparency_is_kept_of_palettes_too(tmp_path: Path) -> None:
    image = scene("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 24, 32))
    for name in ("a.png", "a.webp", "a.gif", "a.avif"):
        image.save(tmp_path / name)
        alpha = read_photo(tmp_path / name).getchannel("A")
        assert alpha.getpixel((4, 16)) == 0 and alpha.getpixel((44, 16)) == 255


def swapped_profile() -> bytes:
    """A colour profile in which red is green and green is red."""
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for a, b in ((b"rXYZ", b"????"), (b"gXYZ", b"rXYZ"), (b"????", b"gXYZ")):
        data = data.replace(a, b, 1)
    return data.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be")).replace(b"sRGB built", b"swap built")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_colour_profile_is_obeyed_and_a_broken_one_is_not(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a").write_bytes(encoded(Image.new("RGB", (16, 16), RED), kind, icc_profile=swapped_profile()))
    assert near(read_photo(tmp_path / "a").getpixel((8, 8)), (30, 200, 40))
    for harmless in (b"garbage" * 30, ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()):
        (tmp_path / "a").write_bytes(encoded(Image.new("RGB", (16, 16), RED), kind, icc_profile=harmless))
        assert near(read_photo(tmp_path / "a").getpixel((8, 8)), RED)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb() -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", b"")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is empty"),
        (b"<!DOCTYPE html><html>403</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"hello", "not a picture"),
        (b"\xff\x0a" + bytes(60), "JPEG XL, which is not read"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL, which is not read"),
        (b"%PDF-1.7", "a PDF, not a picture"),
        (b"\0\0\0\x14ftypqt  ", "a video, not a picture"),
        (b"II*\0\x10\0\0\0CR\2\0" + bytes(99), "damaged TIFF, or TIFF of a kind that is not read"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200), "damaged HEIC"),
        (encoded(scene(), "JPEG")[:400], "cut off|damaged"),
        (encoded(scene(), "PNG")[:60], "cut off|damaged"),
        (bomb(), "500 million pixels"),
        (encoded(Image.new("RGB", (1, 300)), "PNG"), "1 x 300 pixels"),
    ],
)
def test_what_cannot_be_read_is_named_with_the_reason(tmp_path: Path, data: bytes, reason: str) -> None:
    (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(UserError, match=rf"a\.jpg.*({reason}).*(remove it|smaller)"):
        read_photo(tmp_path / "a.jpg")


def test_a_raw_picture_that_looks_like_tiff_is_named(tmp_path: Path) -> None:
    tags = ImageFileDirectory_v2()
    tags[0xC612] = b"\1\4\0\0"
    scene().save(tmp_path / "a.tif", tiffinfo=tags)
    with pytest.raises(UserError, match=r"a\.tif is a camera's raw picture"):
        read_photo(tmp_path / "a.tif")


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_huge_photo_is_read_small(tmp_path: Path, kind: str) -> None:
    wide = scene().resize((1600, 1200))
    (tmp_path / "a").write_bytes(encoded(wide, kind))
    small = read_photo(tmp_path / "a", side=100)
    assert 100 <= min(small.size) < 200 and near(small.getpixel((4, 4)), RED)
    assert read_photo(tmp_path / "a", side=1000).size == (1600, 1200)
