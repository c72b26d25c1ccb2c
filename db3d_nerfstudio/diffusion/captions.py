"""Captions of the photos in fine-tuning: the subject's prompt, and the side that a photo shows if that is known.

DreamBooth's captions name no side. A guide that was trained on the names of sides then learns the subject without one,
and a prompt that names a side still gives the generic class. The side is taken from the file's name, or guessed: of
several captions, the likeliest is the one with which the guide denoises the photo best (Li et al. 2023, 2303.16203).
"""

import json
import re
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from db3d_nerfstudio.console import announce
from db3d_nerfstudio.diffusion.denoising import NoiseLevels, denoising_errors
from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.guides.base import DiffusionGuide
from db3d_nerfstudio.photos import load_photos, photo_paths, photos_digest
from db3d_nerfstudio.words import DIRECTIONS, VIEW_NAMES, Subject, seen_from
from db3d_nerfstudio.workspace import Workspace

ViewWords = Literal["none", "file_names", "guess"]
Captions = dict[str, float]
"""What an image may be called, and the shares in which it is; they sum to 1."""
GUESS_LEVELS = NoiseLevels((0.5, 0.7, 0.8, 0.9, 0.95), draws=4)
"""At which a photo is denoised: less noise hides no side, more hides every one."""
GUESS_SHARPNESS = 25.0
"""How much likelier a caption is per relative error of denoising: exp(-sharpness * error).

Sharpness and noises are those that made the truth likeliest for the embedded guide. Front and back look much alike to
it, so guesses are limited to the front half, where casual photos are taken.
"""

_LONGEST_FIRST = sorted(DIRECTIONS, key=lambda name: -len({*name.split()} - {"side"}))


def named_view(path: Path, tells_sides: bool) -> str | None:
    """The view that a file is named after: "2_back.jpg", "3_front_left.jpg", "overhead-left.png".

    Left is the subject's own left. A guide that does not tell left from right gets the name it was trained on:
    "3_front_left.jpg" is a front to it, and "4_left.jpg" a side.
    """
    words = set(re.split(r"[\W_\d]+", path.stem.lower()))
    if tells_sides:
        around = next((name for name in _LONGEST_FIRST if {*name.split()} - {"side"} <= words), None)
        overhead = "overhead" if "overhead" in words else None
        named = " ".join(part for part in (overhead, around) if part)
        return named or ("side" if "side" in words else None)
    if "overhead" in words:
        return "overhead"
    if words & {"left", "right"} and not words & {"front", "back"}:
        return "side"
    return next((view for view in VIEW_NAMES if view in words), None)


def front_half(tells_sides: bool) -> list[str]:
    """The sides of a subject that casual photos show."""
    return [name for name in DIRECTIONS if "back" not in name] if tells_sides else ["front", "side"]


@torch.no_grad()
def caption_errors(
    guide: DiffusionGuide, photo: Float[Tensor, "3 h w"], text: Float[Tensor, "c n d"], generator: torch.Generator
) -> Float[Tensor, " c"]:
    """The error of denoising a photo with each of the captions, over the mean of all captions' errors."""
    z = guide.encode(photo[None].to(guide.device)).expand(len(text), -1, -1, -1)
    errors = denoising_errors(guide, z, text, GUESS_LEVELS, generator)
    return (errors / errors.mean(1, keepdim=True)).mean(0)


@torch.no_grad()
def guess_views(
    guide: DiffusionGuide, photos: Float[Tensor, "n 3 h w"], class_prompt: str, seed: int
) -> list[dict[str, float]]:
    """The probability of each side of `front_half` for each photo, according to the untouched guide."""
    views = front_half(guide.tells_sides)
    text = guide.embed([seen_from(class_prompt, view) for view in views])
    generator = torch.Generator().manual_seed(seed)
    guesses = []
    for photo in photos:
        errors = caption_errors(guide, photo, text, generator)
        shares = torch.softmax(-GUESS_SHARPNESS * errors, 0).tolist()
        guesses.append(dict(zip(views, shares, strict=True)))
    return guesses


def caption(prompt: str, views: dict[str, float]) -> Captions:
    """The prompt with each of the views named, or the plain prompt if there are none."""
    return {seen_from(prompt, view): share for view, share in views.items()} or {prompt: 1.0}


def photo_captions(
    workspace: Workspace, guide: DiffusionGuide, folder: Path, subject: Subject, view_words: ViewWords, seed: int
) -> list[Captions]:
    """The captions of each photo; guesses are made once, and kept in the workspace's `photo_views/views.json`.

    To guess, the guide's base model is restored: fine-tuned on the photos, it denoises them well with any caption.

    Raises:
        UserError: views are to be taken from file names, and no name has one.
    """
    paths = photo_paths(folder)
    views = [{} if (name := named_view(path, guide.tells_sides)) is None else {name: 1.0} for path in paths]
    if view_words == "none":
        views = [{} for _ in paths]
    elif view_words == "file_names" and not any(views):
        raise UserError(
            f"no photo in {folder} is named after a view ({', '.join(VIEW_NAMES)}, left, front left ...): "
            "set view_words to guess or none"
        )
    elif view_words == "guess":
        guessed = _guessed(workspace, guide, folder, subject.class_prompt, seed)
        views = [view or guess for view, guess in zip(views, guessed, strict=True)]
    return [caption(subject.instance_prompt, each) for each in views]


def _guessed(
    workspace: Workspace, guide: DiffusionGuide, folder: Path, class_prompt: str, seed: int
) -> list[dict[str, float]]:
    guide.load(None)

    def make(path: Path) -> None:
        guesses = guess_views(guide, load_photos(folder, guide.resolution), class_prompt, seed)
        names = [photo.name for photo in photo_paths(folder)]
        likeliest = [max(guess, key=guess.__getitem__) for guess in guesses]
        announce("The photos show: " + ", ".join(f"{n} {view}" for n, view in zip(names, likeliest, strict=True)))
        text = json.dumps(dict(zip(names, guesses, strict=True)), indent=2)
        (path / "views.json").write_text(f"{text}\n", "utf8")

    recipe = {
        "photos": photos_digest(folder),
        "guide": guide.fingerprint(),
        "class_prompt": class_prompt,
        "seed": seed,
    }
    path = workspace.once("photo_views", recipe, make)
    return list(json.loads((path / "views.json").read_text("utf8")).values())
