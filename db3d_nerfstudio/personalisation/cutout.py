"""`db3d photos`: cut the subject out of its photos, so that neither guide nor NeRF learns its surroundings.

Photos with transparency are used as they are. In others a network finds the subject, one of rembg's or a CLIPSeg model
(Lüddecke and Ecker 2022, arXiv 2112.10003) that searches for the class noun; or GrabCut does. Masks are kept. A sheet
shows what was cut, and `--whole` restores a photo.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from PIL import Image

from db3d_nerfstudio.console import announce
from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.foreground import grabcut
from db3d_nerfstudio.images import tiled
from db3d_nerfstudio.paths import command
from db3d_nerfstudio.photo_file import read_photo
from db3d_nerfstudio.photos import photo_paths
from db3d_nerfstudio.workspace import publish

Segmenter = Callable[[Image.Image], Image.Image]
"""An RGB picture to how much each of its pixels belongs to the subject, 8 bits."""
SIDE = 2048
"""Pixels of the shorter side that are read of a photo; guides see 1024 at most."""
MASKS = ".masks"
"""The folder of masks beside the cut-outs, which readers of photos pass over."""
_THUMBNAIL = 256
_LEAST, _MOST = 0.01, 0.95
"""Shares of a photo between which a subject can be."""


@dataclass
class PhotosConfig:
    """Cut the subject out of photos, and draw a sheet of what was cut."""

    photos: Annotated[Path, tyro.conf.Positional]
    """Folder of photos."""
    output: Path | None = None
    """Folder for the cut-outs; by default the name of the photos' folder with "-cut-out" appended."""
    model: str = "isnet-general-use"
    """One of rembg's models, "grabcut" for plain surroundings (no download), or a CLIPSeg model: a hub id such as
    CIDAS/clipseg-rd64-refined, or a local folder."""
    noun: str = ""
    """What a CLIPSeg model searches for; best, the class noun, such as dog."""
    whole: tuple[str, ...] = ()
    """Names of photos to leave whole."""


def main(config: PhotosConfig) -> None:
    """Write the cut-outs and the sheet, and print the command that trains on them."""
    folder = config.photos.expanduser().absolute()
    output = folder.with_name(f"{folder.name}-cut-out") if config.output is None else config.output.expanduser()
    sheet = cut_out(folder, output.absolute(), config)
    announce(f"Look at {sheet}. To leave a photo whole, add --whole NAME")
    masked = ("--pipeline.phases.dreambooth.masked-loss", "True")
    prompt = f"a photo of a sks {config.noun or 'NOUN'}"
    announce(command("ns-train", "dreambooth3d", "--data", output.absolute(), "--prompt", prompt, *masked))


def cut_out(folder: Path, output: Path, config: PhotosConfig) -> Path:
    """The cut-outs of a folder's photos in the folder `output`; returns the sheet, a file beside it.

    Raises:
        UserError: no photo has a name in `whole`, nothing or everything is found in a photo, or the model or its
            package is missing.
    """
    paths = photo_paths(folder)
    unknown = set(config.whole) - {path.name for path in paths}
    if unknown:
        raise UserError(f"{folder} has no photo named {', '.join(sorted(unknown))}: give --whole names of its photos")
    (output / MASKS).mkdir(parents=True, exist_ok=True)
    names = output_names(paths)
    for old in output.glob("*.png"):
        if old.name not in names:
            old.unlink()  # Of a photo that is gone.
    segment = _Lazy(config.model, config.noun)
    pairs = []
    for path, name in zip(paths, names, strict=True):
        photo = read_photo(path, SIDE)
        if path.name in config.whole:
            photo.putalpha(255)
        elif np.asarray(photo.getchannel("A")).min() > 127:
            photo.putalpha(_mask(path, photo, output / MASKS, segment))
        _save(photo, output / name)
        pairs += [_on(photo, None), _on(photo, (255, 0, 255))]
    _save(tiled(pairs, columns=2), output.with_name(f"{output.name}.png"))
    return output.with_name(f"{output.name}.png")


def output_names(paths: list[Path]) -> list[str]:
    """Names of PNG files for photos; they keep the stems, and so the sides in them, if these differ."""
    stems = [path.stem for path in paths]
    return [f"{path.stem if stems.count(path.stem) == 1 else path.name}.png" for path in paths]


def _mask(path: Path, photo: Image.Image, cache: Path, segment: _Lazy) -> Image.Image:
    """The cached mask of a photo, or a new one."""
    key = hashlib.sha256(path.read_bytes() + segment.name.encode()).hexdigest()[:16]
    file = cache / f"{key}.png"
    if not file.exists():
        mask = segment(photo.convert("RGB")).convert("L").resize(photo.size, Image.Resampling.BILINEAR)
        share = float(np.asarray(mask).mean()) / 255
        if not _LEAST < share < _MOST:
            found = "nothing" if share <= _LEAST else "nothing but the subject"
            raise UserError(f"{segment.name} finds {found} in {path}: choose another --model, or --whole {path.name}")
        _save(mask, file)
    with Image.open(file) as mask:
        return mask.convert("L")


def _on(photo: Image.Image, colour: tuple[int, int, int] | None) -> Image.Image:
    """A thumbnail of the original photo, or of the cut-out in front of a rare colour."""
    if colour is None:
        seen = photo.convert("RGB")
    else:
        seen = Image.alpha_composite(Image.new("RGBA", photo.size, (*colour, 255)), photo).convert("RGB")
    seen.thumbnail((_THUMBNAIL, _THUMBNAIL))
    square = Image.new("RGB", (_THUMBNAIL, _THUMBNAIL), "white")
    square.paste(seen, ((_THUMBNAIL - seen.width) // 2, (_THUMBNAIL - seen.height) // 2))
    return square


def _save(image: Image.Image, path: Path) -> None:
    scratch = path.with_name(f"{path.name}.tmp")
    image.save(scratch, "PNG")
    publish(scratch, path)


class _Lazy:
    """A segmenter that is loaded when the first photo needs it."""

    def __init__(self, model: str, noun: str) -> None:
        self._model, self._noun = model, noun
        self._segmenter: Segmenter | None = None

    @property
    def name(self) -> str:
        return f"{self._model} {self._noun}".strip()

    def __call__(self, photo: Image.Image) -> Image.Image:
        if self._segmenter is None:
            self._segmenter = _segmenter(self._model, self._noun)
        return self._segmenter(photo)


def _segmenter(model: str, noun: str) -> Segmenter:
    if model == "grabcut":
        return grabcut
    by_words = "/" in model or Path(model).is_dir()
    return clipseg(model, noun) if by_words else rembg_model(model)


def rembg_model(name: str) -> Segmenter:
    """A salient-object network of rembg, which downloads its weights on first use."""
    try:
        from rembg import new_session, remove
    except ImportError:
        raise UserError(
            'this model needs rembg: pip install "db3d_nerfstudio[cutout]", or give --model grabcut, which needs plain '
            "surroundings, or a CLIPSeg model such as CIDAS/clipseg-rd64-refined, and --noun"
        ) from None
    announce(f"Loading {name}, which rembg downloads on first use")
    try:
        session = new_session(name)
    except OSError as error:
        raise UserError(
            f"rembg cannot download {name} ({type(error).__name__}): connect this machine once, copy the file to the "
            "place that the line above names, or cut the photos out elsewhere: ones with transparency need no model"
        ) from None
    except ValueError as error:
        raise UserError(
            f"rembg has no model {name} ({error}): use u2net, isnet-general-use or birefnet-general"
        ) from None
    return lambda photo: remove(photo, session=session, only_mask=True)


def clipseg(model: str, noun: str) -> Segmenter:
    """A network that segments what a word names."""
    import torch
    from transformers import AutoProcessor, CLIPSegForImageSegmentation

    if not noun:
        raise UserError(f"{model} needs a word to search for: set --noun to the class noun, such as dog")
    try:
        processor = AutoProcessor.from_pretrained(model)
        network = CLIPSegForImageSegmentation.from_pretrained(model).eval()
    except OSError as error:
        raise UserError(f"{model} cannot be read: give --model a CLIPSeg model's hub id or folder ({error})") from None

    @torch.no_grad()
    def segment(photo: Image.Image) -> Image.Image:
        logits = network(**processor(text=[f"a {noun}"], images=[photo], return_tensors="pt")).logits
        found = logits.sigmoid().reshape(logits.shape[-2:])
        found = (found / found.max().clamp_min(1e-6) * 255).round().to(torch.uint8)
        return Image.fromarray(found.numpy(), "L")

    return segment
