"""Where the front of a thing is: the side from which a guide believes its renders to be taken."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from db3d_nerfstudio.cameras import Views, wrap_degrees
from db3d_nerfstudio.diffusion.captions import caption_errors
from db3d_nerfstudio.guides.base import DiffusionGuide
from db3d_nerfstudio.words import nearest_prompts


@torch.no_grad()
def guess_front(
    guide: DiffusionGuide, renders: Float[Tensor, "b 3 h w"], views: Views, class_prompt: str, seed: int
) -> float:
    """The azimuth of the front in degrees, one of those that the renders are taken from.

    If the front is at f, a render from azimuth a shows the side at a - f. The f is chosen with whose captions the guide
    denoises all renders best together.
    """

    def captions(front: float) -> list[str]:
        turned = replace(views, azimuth=wrap_degrees(views.azimuth - front))
        return nearest_prompts(class_prompt, turned, guide.tells_sides)

    fronts = views.azimuth.tolist()
    known = list(dict.fromkeys(caption for front in fronts for caption in captions(front)))
    text, generator = guide.embed(known), torch.Generator().manual_seed(seed)
    errors = [caption_errors(guide, render, text, generator).tolist() for render in renders]

    def total(front: float) -> float:
        return sum(row[known.index(caption)] for row, caption in zip(errors, captions(front), strict=True))

    return min(fronts, key=total)
