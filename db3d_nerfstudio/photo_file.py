"""One photo's file: anything that phones, scanners, browsers and chat programs write, as upright 8-bit sRGB with alpha.

A file's format is decided by its first bytes and never by its name. Metadata is read and not written again.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from db3d_nerfstudio.errors import UserError

FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
"""Pillow's names of the formats that are read; HEIC has a library of its own."""
MAX_PIXELS = 500_000_000
"""Larger pictures are refused; phones have up to 200 million pixels."""
MIN_SIDE = 4
"""Pixels; anything smaller is a spacer of a web page and not a photo."""

_SIGNATURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF8": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    **{b"P%d%c" % (n, space): "PPM" for n in range(1, 7) for space in b" \t\r\n"},
}
_OTHERS = {
    b"\xff\x0a": "JPEG XL, which is not read",
    b"JXL ": "JPEG XL, which is not read",
    b"%PDF": "a PDF, not a picture",
    b"8BPS": "a file of Photoshop, which is not read",
    b"PK\3\4": "an archive, not a picture",
    b"ftyp": "a video, not a picture",
}
"""Beginnings of files that are renamed to pictures."""
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"mif2", b"msf1"}
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_DNG_VERSION = 0xC612


def picture_format(path: Path) -> str | None:
    """The picture format that the first bytes of a file belong to; None for anything else."""
    with path.open("rb") as file:
        head = file.read(64)
    if head[4:8] == b"ftyp":
        brands = {head[i : i + 4] for i in range(8, min(len(head), int.from_bytes(head[:4])), 4)}
        return "AVIF" if brands & {b"avif", b"avis"} else "HEIC" if brands & _HEIC_BRANDS else None
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[:2] == b"BM" and head[6:10] == bytes(4):
        return "BMP"
    return next((name for mark, name in _SIGNATURES.items() if head.startswith(mark)), None)


def read_photo(path: Path, side: int | None = None) -> Image.Image:
    """A photo upright, in sRGB, with an alpha channel; the first picture of a file that has several.

    Args:
        side: Pixels that the shorter side needs; a huge photo is read reduced, to no less than this.

    Raises:
        UserError: the file cannot be read as a picture; the message names it and the fix.
    """
    with opened(path) as file:
        if side is not None and file.format in ("JPEG", "MPO"):
            file.draft(None, (side, side))  # The decoder leaves out what is not needed.
        file.load()
        image = file
        if side is not None and image.mode in ("L", "LA", "RGB", "RGBA", "CMYK"):
            image = image.reduce(max(1, min(image.size) // side))
        image = to_srgb(image, file.info.get("icc_profile"))
        turn = _UPRIGHT.get(_orientation(file))
    return image if turn is None else image.transpose(turn)


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """A picture file with its header read; every failure becomes a UserError that names the file."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, MAX_PIXELS // 2  # Pillow refuses twice its limit.
    try:
        with _no_warnings(), Image.open(path, formats=_formats(path)) as file:
            if file.width * file.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            if min(file.size) < MIN_SIDE:
                raise UserError(f"{path} has only {file.width} x {file.height} pixels: remove it")
            if isinstance(file, TiffImageFile) and _DNG_VERSION in file.tag_v2:
                raise UserError(f"{path} is a camera's raw picture: export it as JPEG, or remove it")
            yield file
    except UserError:
        raise
    except Image.DecompressionBombError:
        raise UserError(f"{path} has more than {MAX_PIXELS // 10**6} million pixels: save it smaller") from None
    except PermissionError:
        raise UserError(f"no permission to read {path}: change its permissions, or remove it") from None
    except Exception as error:  # Decoders raise errors of many kinds about damaged files.
        raise UserError(f"cannot read the photo {path} ({_reason(path, error)}): replace or remove it") from None
    finally:
        Image.MAX_IMAGE_PIXELS = limit


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Pillow warns about metadata that is not needed here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        yield


def _formats(path: Path) -> tuple[str, ...]:
    if picture_format(path) != "HEIC":
        return FORMATS
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        raise UserError(f"{path} is HEIC: pip install pillow-heif, or convert it to JPEG") from None
    register_heif_opener()
    return ("HEIF",)


def _reason(path: Path, error: Exception) -> str:
    """The reason why no decoder can read a file."""
    head = path.read_bytes()[:512] if path.is_file() else b""
    if not head:
        return "it is empty"
    if head.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS: run `git lfs pull`"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page, not a picture"
    if isinstance(error, UnidentifiedImageError):
        if known := picture_format(path):
            return f"it is damaged {known}, or {known} of a kind that is not read"
        other = next((name for mark, name in _OTHERS.items() if mark in head[:12]), None)
        return f"it is {other}" if other else "it is not a picture"
    known = {"truncated": "it is cut off", "decompressed data": "its metadata are too large"}
    return next((reason for part, reason in known.items() if part in str(error).lower()), str(error))


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation; 1 if it is missing or broken, as the photo itself may be fine."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
        return int(value[0] if isinstance(value, tuple) else value)
    except Exception:
        return 1


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """A picture of any mode as 8-bit RGBA in sRGB, converted by its colour profile if that can be read."""
    image = _to_8_bits(image)
    try:
        source = ImageCms.createProfile("LAB") if image.mode == "LAB" else profile and _profile(profile)
        if source is not None and image.mode not in ("L", "LAB", "CMYK"):
            rgb = ImageCms.profileToProfile(image.convert("RGB"), source, ImageCms.createProfile("sRGB"))
        elif source is not None:
            rgb = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        else:
            return image.convert("RGBA")
    except ImageCms.PyCMSError:  # A profile of another kind of picture, or a damaged one: browsers take sRGB too.
        return image.convert("RGBA")
    assert rgb is not None  # Only a conversion in place returns nothing.
    result = rgb.convert("RGBA")
    if image.has_transparency_data:
        result.putalpha(image.convert("RGBA").getchannel("A"))
    return result


def _profile(data: bytes) -> ImageCms.ImageCmsProfile | None:
    """A colour profile; None for sRGB, which needs no conversion."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
    except OSError as error:
        raise ImageCms.PyCMSError(error) from error
    return None if "srgb" in ImageCms.getProfileDescription(profile).lower() else profile


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits or of floats as grey of 8 bits: full scale is that of the narrowest type that holds it."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it has values that are not finite")
    fulls = (65535,) if image.mode.startswith("I;16") else (255, 65535) if image.mode == "I" else (1, 255, 65535)
    top = max(values.max(), 0)
    full = next((full for full in fulls if top <= full), top)
    return Image.fromarray((values.clip(0) / full * 255).round().astype(np.uint8))
