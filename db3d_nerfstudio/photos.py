"""The subject's photos: a folder of a few casual pictures, without poses."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.images import image_to_tensor

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def photo_paths(folder: Path) -> list[Path]:
    """The image files of a folder in the order of their names; other files are left alone."""
    if not folder.is_dir():
        raise UserError(f"no photos folder at {folder}: give --data a folder with 3 to 6 photos of the subject")
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not paths:
        raise UserError(f"no photos in {folder}: put 3 to 6 photos of the subject there ({', '.join(SUFFIXES)})")
    return paths


def load_photo(path: Path, resolution: int) -> Image.Image:
    """A photo upright, on white where transparent, its central square resized to `resolution` pixels."""
    image = _read(path)
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return ImageOps.fit(image, (resolution, resolution), Image.Resampling.LANCZOS)


def load_photos(folder: Path, resolution: int) -> Float[Tensor, "n 3 h w"]:
    """All photos of a folder, in [0, 1]."""
    return torch.stack([image_to_tensor(load_photo(path, resolution)) for path in photo_paths(folder)])


def load_masks(folder: Path, resolution: int) -> Float[Tensor, "n 1 h w"]:
    """Where each photo is opaque, in [0, 1]; everywhere, for those without transparency."""
    alphas = [_read(path).getchannel("A") for path in photo_paths(folder)]
    if all(alpha.getextrema()[0] == 255 for alpha in alphas):
        raise UserError(f"no photo in {folder} has a transparent part: cut the subject out, or turn masked_loss off")
    fitted = [ImageOps.fit(alpha, (resolution, resolution), Image.Resampling.BOX) for alpha in alphas]
    masks = torch.stack([torch.from_numpy(np.array(alpha))[None].float() / 255 for alpha in fitted])
    for path, mask in zip(photo_paths(folder), masks, strict=True):
        if mask.max() == 0:
            raise UserError(f"nothing is opaque in the central square of the photo {path}: replace or remove it")
    return masks


def _read(path: Path) -> Image.Image:
    """An image file upright, with an alpha channel."""
    try:
        with Image.open(path) as file:
            return ImageOps.exif_transpose(file).convert("RGBA")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot read the photo {path} ({error}): replace or remove it") from None


def photos_digest(folder: Path) -> str:
    """A fingerprint of the photos' bytes in order: a changed or renamed photo is another subject."""
    digest = hashlib.sha256()
    for path in photo_paths(folder):
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]
