"""Pictures: tensors to images and back, grids and labelled sheets, data URIs and films."""

import base64
import io
from pathlib import Path
from textwrap import wrap
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import interpolate

_MARGIN, _TEXT = 8, 13
"""Pixels around the images, and of the letters' height."""

Row = tuple[str, Float[Tensor, "_ 3 _ _"]]


def image_to_tensor(image: Image.Image) -> Float[Tensor, "3 h w"]:
    """An 8-bit RGB image in [0, 1]."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255


def tensor_to_image(rgb: Float[Tensor, "3 h w"]) -> Image.Image:
    """Colours in [0, 1] as an 8-bit RGB image, rounded to the nearest value."""
    values = (rgb.detach().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).cpu().numpy())


def contact_sheet(rows: list[Float[Tensor, "_ 3 _ _"]], side: int = 96) -> Float[Tensor, "3 h w"]:
    """Rows of images as one picture, every image `side` pixels square, short rows filled up with white."""
    columns = max(len(row) for row in rows)
    sheet = torch.ones(3, side * len(rows), side * columns)
    for r, row in enumerate(rows):
        small = interpolate(row.cpu(), (side, side), mode="bilinear", antialias=True)
        for c, image in enumerate(small):
            sheet[:, r * side : (r + 1) * side, c * side : (c + 1) * side] = image
    return sheet


def tiled(images: list[Image.Image], columns: int) -> Image.Image:
    """Images of one size in rows of `columns`, white where the last row is short; one white pixel for no image."""
    if not images:
        return Image.new("RGB", (1, 1), "white")
    width, height = images[0].size
    sheet = Image.new("RGB", (width * columns, height * -(-len(images) // columns)), "white")
    for i, image in enumerate(images):
        sheet.paste(image, (i % columns * width, i // columns * height))
    return sheet


def data_uri(image: Image.Image, kind: Literal["JPEG", "WEBP"] = "WEBP", quality: int = 85) -> str:
    """A picture as part of a page."""
    data = io.BytesIO()
    image.convert("RGB").save(data, kind, quality=quality)
    return bytes_uri(data.getvalue(), f"image/{kind.lower()}")


def file_uri(path: Path) -> str:
    """A file as part of a page, byte for byte."""
    kinds = {".webp": "image/webp", ".gif": "image/gif", ".jpg": "image/jpeg", ".png": "image/png"}
    return bytes_uri(path.read_bytes(), kinds[path.suffix.lower()])


def bytes_uri(data: bytes, kind: str) -> str:
    """Bytes of a media type as a `data:` URI (RFC 2397)."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def save_animation(images: Float[Tensor, "n 3 h w"], path: Path, milliseconds: int = 90) -> None:
    """Write pictures as an endless animation (WebP), which every browser plays."""
    frames = [tensor_to_image(image) for image in images]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=milliseconds, loop=0, quality=85)


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
    small = interpolate(images.cpu().float(), (side, side), mode="bilinear", antialias=True)
    for i, image in enumerate(small):
        strip.paste(tensor_to_image(image), (_MARGIN + i * side, 0))
    return strip
