"""Remarks on a folder of photos before anything long begins."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.photo_file import opened, read_photo
from db3d_nerfstudio.photos import left_out_of, photo_paths, square

MOST_NAMES = 5
"""Names in a line; the others are counted."""
MANY = 12
"""More photos than these get a remark: DreamBooth's subjects have four to six."""
SMALL = 100
"""Pixels of the shorter side of a thumbnail."""
_PLAIN = 3.0
"""Largest difference in levels within a picture of one colour, such as of a covered lens."""
_LOOK, _ALIKE = 16, 6.0
"""Side in pixels at which photos are compared, and the largest difference in levels of pictures that are the same."""


@dataclass(frozen=True)
class Look:
    """A photo's file at a glance."""

    name: str
    size: tuple[int, int]
    """Width and height in pixels."""
    lost: float
    """Share of the photo that its square leaves out."""
    moving: bool
    """Whether the file has several pictures, of which the first is used."""
    sha256: bytes
    small: np.ndarray


def check_photos(folder: Path) -> list[str]:
    """Read every photo once, and return remarks on them, one line each.

    Raises:
        UserError: there are no photos, or some cannot be read; one line about all of them.
    """
    looks, broken = [], []
    for path in photo_paths(folder):
        try:
            looks.append(_look(path))
        except UserError as error:
            broken.append(str(error))
    if broken:
        more = [f"and {len(broken) - MOST_NAMES} more"] if len(broken) > MOST_NAMES else []
        raise UserError("; ".join([*broken[:MOST_NAMES], *more]))
    return [*_left_out(folder), *_numbers(looks), *_crops(looks), *_sizes(looks), *_plain(looks), *_alike(looks)]


def _look(path: Path) -> Look:
    with opened(path) as file:
        size, format = file.size, file.format
        moving = getattr(file, "is_animated", False) and format not in ("MPO", "HEIF")
    image = read_photo(path, 4 * _LOOK)
    left, top, right, bottom = square(image.size, image.getchannel("A"))
    kept = (min(right, image.width) - max(left, 0)) * (min(bottom, image.height) - max(top, 0))
    lost = 1 - kept / (image.width * image.height)
    small = np.asarray(image.resize((_LOOK, _LOOK), Image.Resampling.BOX), np.float32)
    return Look(shown_name(path), size, lost, moving, hashlib.sha256(path.read_bytes()).digest(), small)


def shown_name(path: Path) -> str:
    """A file's name with everything that a terminal cannot print replaced."""
    name = os.fsencode(path.name).decode("utf8", "replace")
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name)


def _listed(entries: list[str]) -> str:
    more = len(entries) - MOST_NAMES
    return ", ".join(entries[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _left_out(folder: Path) -> list[str]:
    entries = [f"{shown_name(path)} ({reason})" for path, reason in left_out_of(folder)]
    return [f"Left out of {folder}: {_listed(entries)}"] if entries else []


def _numbers(looks: list[Look]) -> list[str]:
    if len(looks) == 1:
        return ["One photo shows one side only: three to six photos from several sides give a better result"]
    if len(looks) > MANY:
        return [f"{len(looks)} photos: three to six are enough, and the more there are, the less often each is seen"]
    return []


def _crops(looks: list[Look]) -> list[str]:
    lost = [(look.name, round(100 * look.lost)) for look in looks if look.lost >= 0.01]
    if not lost:
        return []
    shares = {share for _, share in lost}
    if len(shares) == 1 and len(lost) == len(looks):
        return [
            f"Photos are cropped to squares, which removes {lost[0][1]} % of each: check that the subject is inside"
        ]
    each = _listed([f"{share} % of {name}" for name, share in sorted(lost, key=lambda entry: -entry[1])])
    return [f"Photos are cropped to squares, which removes {each}: check that the subject is inside"]


def _sizes(looks: list[Look]) -> list[str]:
    small = [f"{look.name} ({look.size[0]} x {look.size[1]})" for look in looks if min(look.size) < SMALL]
    moving = [look.name for look in looks if look.moving]
    return [
        *([f"As small as thumbnails: {_listed(small)}"] if small else []),
        *([f"Only the first of several pictures is used of {_listed(moving)}"] if moving else []),
    ]


def _plain(looks: list[Look]) -> list[str]:
    plain = [look.name for look in looks if _is_plain(look.small[..., :3], look.small[..., 3:])]
    return [f"Nothing to be seen in {_listed(plain)}, which would be learned as the subject"] if plain else []


def _is_plain(rgb: np.ndarray, alpha: np.ndarray) -> bool:
    """Whether a picture is of one colour, or wholly transparent."""
    return max(float(np.ptp(part, axis=(0, 1)).max()) for part in (rgb * alpha / 255, alpha)) < _PLAIN


def _alike(looks: list[Look]) -> list[str]:
    """Photos that are there more than once, whose background would be learned as well as the subject."""
    groups: list[list[Look]] = []
    for look in looks:
        group = next((group for group in groups if _same(group[0], look)), None)
        if group is None:
            groups.append([look])
        else:
            group.append(look)
    twice = [" = ".join(look.name for look in group) for group in groups if len(group) > 1]
    return [f"The same picture more than once: {_listed(twice)}"] if twice else []


def _same(a: Look, b: Look) -> bool:
    return a.sha256 == b.sha256 or float(np.abs(a.small - b.small).max()) < _ALIKE
