"""Sheets of images with words: a title, and rows that say what they show."""

from __future__ import annotations

from textwrap import wrap

import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from db3d_nerfstudio.photos import tensor_to_image

_MARGIN, _TEXT = 8, 13
"""Pixels around the images, and of the letters' height."""

Row = tuple[str, Float[Tensor, "_ 3 _ _"]]


def labelled_sheet(title: str, rows: list[Row], side: int = 128) -> Image.Image:
    """One picture of all rows, each with its label above and its images `side` pixels square."""
    columns = max(len(images) for _, images in rows)
    width = 2 * _MARGIN + max(columns, 3) * side
    pieces = [_text(title, width, _TEXT + 3)]
    for label, images in rows:
        pieces += [_text(label, width, _TEXT), _strip(images, width, side)]
    sheet = Image.new("RGB", (width, sum(piece.height for piece in pieces) + _MARGIN), "white")
    top = 0
    for piece in pieces:
        sheet.paste(piece, (0, top))
        top += piece.height
    return sheet


def _text(text: str, width: int, size: int) -> Image.Image:
    font = ImageFont.load_default(size)
    lines = wrap(text, int((width - 2 * _MARGIN) / font.getlength("x")))
    piece = Image.new("RGB", (width, _MARGIN + len(lines) * (size + 4)), "white")
    ImageDraw.Draw(piece).multiline_text((_MARGIN, _MARGIN - 2), "\n".join(lines), "black", font, spacing=4)
    return piece


def _strip(images: Float[Tensor, "n 3 h w"], width: int, side: int) -> Image.Image:
    strip = Image.new("RGB", (width, side), "white")
    small = torch.nn.functional.interpolate(images.cpu().float(), (side, side), mode="bilinear", antialias=True)
    for i, image in enumerate(small):
        strip.paste(tensor_to_image(image), (_MARGIN + i * side, 0))
    return strip
