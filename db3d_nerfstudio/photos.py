"""The subject's photos: a folder of a few casual pictures, without poses."""

from __future__ import annotations

import hashlib
import math
import os
import unicodedata
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.images import image_to_tensor
from db3d_nerfstudio.photo_file import picture_format, read_photo

SUFFIXES = frozenset(
    ".png .apng .jpg .jpeg .jpe .jfif .mpo .webp .bmp .dib .tif .tiff .gif .avif .heic .heif .hif .jp2 .j2k".split()
)
"""A file so named is meant as a photo, even where its bytes are damaged."""
RAW = frozenset(".dng .nef .cr2 .cr3 .crw .arw .sr2 .orf .rw2 .raf .pef .srw .3fr .iiq .x3f".split())
_VIDEO = frozenset(".mov .mp4 .m4v .avi .mkv .webm .3gp".split())
_OTHER = frozenset(".jxl .psd .svg .xcf .kra .tga .ico .eps .ai .pdf .exr .hdr".split())
_ARCHIVES = frozenset(".zip .rar .7z .tar .gz .tgz".split())
_OVERSAMPLING = 4
"""Pixels read of a huge photo for each pixel asked for, along a side."""
_MIN_TRANSPARENT = 0.05
"""Share of a cut-out that is transparent."""

Box = tuple[float, float, float, float]


def photo_paths(folder: Path) -> list[Path]:
    """The photos of a folder in the order of their names: files with a picture's bytes or a picture's suffix."""
    paths = [path for path, reason in _entries(folder) if reason is None]
    if not paths:
        left_out = "; ".join(f"{path.name}: {reason}" for path, reason in left_out_of(folder))
        raise UserError(f"no photos in {folder}: put 3 to 6 photos of the subject there{left_out and f' ({left_out})'}")
    return paths


def left_out_of(folder: Path) -> list[tuple[Path, str]]:
    """Everything else in the folder, with the reason why it is not used, except files that systems put there."""
    return [(path, reason) for path, reason in _entries(folder) if reason]


def _entries(folder: Path) -> list[tuple[Path, str | None]]:
    """Everything in a folder with the reason to leave it out: None for photos, empty for files of the system."""
    if folder.is_file():
        raise UserError(f"{folder} is a file: give the folder that it is in")
    if not folder.is_dir():
        raise UserError(f"the folder {folder} does not exist: give one with 3 to 6 photos of the subject")
    try:
        return [(path, _reason_against(path)) for path in sorted(folder.iterdir())]
    except PermissionError as error:
        raise UserError(f"no permission to read {error.filename}: change its permissions") from None


def _reason_against(path: Path) -> str | None:
    suffix = path.suffix.lower()
    if path.name.startswith("."):
        return "still in iCloud, download it" if suffix == ".icloud" else ""
    if path.is_dir():
        number = sum(p.suffix.lower() in SUFFIXES and not p.name.startswith(".") for p in path.iterdir())
        return f"a folder with {number} pictures, give that one" if number else ""
    if path.is_symlink() and not path.exists():
        return "a link to nothing"
    if not path.is_file():
        return "not a regular file"
    if suffix in RAW:
        return "a camera's raw picture, export it as JPEG"
    if suffix in _VIDEO:
        return "a video"
    if suffix in SUFFIXES:
        return None
    if suffix in _ARCHIVES:
        return "an archive, unpack it"
    if suffix in _OTHER:
        return f"{suffix[1:].upper()} is not read, convert it to PNG"
    if path.name.lower() in ("thumbs.db", "desktop.ini"):
        return ""
    return None if picture_format(path) else "no picture"


def square(size: tuple[int, int], alpha: Image.Image | None = None) -> Box:
    """The square that a photo is cropped to: the largest one in its middle, moved to where the subject is opaque.

    A subject that is longer than the photo's shorter side gets a square of its own length, which reaches beyond the
    photo; there is nothing outside a cut-out.
    """
    side, centre = min(size), [size[0] / 2, size[1] / 2]
    opaque = alpha and _subject(alpha)
    if opaque:
        side = max(side, opaque[2] - opaque[0], opaque[3] - opaque[1])
        for axis in (0, 1):
            first, last = opaque[axis + 2] - side / 2, opaque[axis] + side / 2  # Centres with the subject inside.
            inside = (side / 2, size[axis] - side / 2) if side <= size[axis] else (size[axis] / 2,) * 2
            centre[axis] = min(max(centre[axis], first), last)
            centre[axis] = min(max(centre[axis], min(inside)), max(inside))
    return (centre[0] - side / 2, centre[1] - side / 2, centre[0] + side / 2, centre[1] + side / 2)


def _subject(alpha: Image.Image) -> tuple[int, int, int, int] | None:
    """The extent of the opaque part of a cut-out; None for a photo, even one with rounded corners."""
    seen = alpha.point([255 * (value > 127) for value in range(256)])
    transparent = seen.histogram()[0] / (alpha.width * alpha.height)
    return seen.getbbox() if transparent > _MIN_TRANSPARENT else None


def load_photo(path: Path, resolution: int, cut_out: Path | None = None) -> Image.Image:
    """A photo upright, on white where transparent, its `square` resized to `resolution` pixels.

    Args:
        cut_out: The same photo with everything but the subject transparent, if the square is to be that one's.
    """
    image = read_photo(path, _OVERSAMPLING * resolution)
    alpha = image.getchannel("A")
    if cut_out is not None:
        alpha = read_photo(cut_out, _OVERSAMPLING * resolution).getchannel("A").resize(image.size)
    box = square(image.size, alpha)
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return _fitted(image, box, resolution, Image.Resampling.LANCZOS, "white")


def load_photos(folder: Path, resolution: int, cut_outs: Path | None = None) -> Float[Tensor, "n 3 h w"]:
    """All photos of a folder, in [0, 1].

    Args:
        cut_outs: Folder of the same photos with everything but the subject transparent, if squares are to be theirs.
    """
    paths = photo_paths(folder)
    same = photo_paths(cut_outs) if cut_outs is not None else [None] * len(paths)
    if len(same) != len(paths):
        raise UserError(f"{cut_outs} needs a cut-out of each of the {len(paths)} photos in {folder}, not {len(same)}")
    photos = [load_photo(path, resolution, cut) for path, cut in zip(paths, same, strict=True)]
    return torch.stack([image_to_tensor(photo) for photo in photos])


def load_alpha(path: Path, resolution: int) -> Image.Image | None:
    """The alpha channel of a cut-out's `square`, resized; None for a photo without transparency."""
    alpha = read_photo(path, _OVERSAMPLING * resolution).getchannel("A")
    if alpha.getextrema()[0] == 255:
        return None
    return _fitted(alpha, square(alpha.size, alpha), resolution, Image.Resampling.BOX, 0)


def load_masks(folder: Path, resolution: int) -> Float[Tensor, "n 1 h w"]:
    """Where each photo is opaque, in [0, 1]; everywhere, for those without transparency."""
    paths = photo_paths(folder)
    alphas = [load_alpha(path, resolution) for path in paths]
    if not any(alphas):
        raise UserError(f"no photo in {folder} has a transparent part: cut the subject out, or turn masked_loss off")
    opaque = Image.new("L", (resolution, resolution), 255)
    masks = torch.stack([torch.from_numpy(np.array(alpha or opaque))[None].float() / 255 for alpha in alphas])
    for path, mask in zip(paths, masks, strict=True):
        if mask.max() == 0:
            raise UserError(f"nothing is opaque in the photo {path}: replace or remove it")
    return masks


def _fitted(image: Image.Image, box: Box, side: int, filter: Image.Resampling, beyond: str | int) -> Image.Image:
    """The square `box` of an image, resized; `beyond` fills what lies outside the image."""
    left, top, right, bottom = box
    if left < 0 or top < 0 or right > image.width or bottom > image.height:
        wide = Image.new(image.mode, (round(right - left), round(bottom - top)), beyond)
        wide.paste(image, (-math.floor(left), -math.floor(top)))
        image, box = wide, (0, 0, *wide.size)
    return image.resize((side, side), filter, box=box)


def photos_digest(folder: Path) -> str:
    """A fingerprint of the photos' bytes in order: a changed or renamed photo is another subject.

    Names that differ only in how a system writes accents are the same.
    """
    digest = hashlib.sha256()
    for path in photo_paths(folder):
        name = os.fsencode(unicodedata.normalize("NFC", path.name))
        digest.update(name + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]
