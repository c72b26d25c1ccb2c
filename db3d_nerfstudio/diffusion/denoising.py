"""How well a guide denoises images given their captions: its training loss, separately at each noise level.

This measures how well a guide models a subject, unseen sides included, in a few evaluations and without sampling noise.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from db3d_nerfstudio.diffusion.guidance import add_noise, standard_noise
from db3d_nerfstudio.guides.base import DiffusionGuide


class NoiseLevels(NamedTuple):
    """The noise levels at which errors are measured, and the number of draws at each."""

    fractions: tuple[float, ...]
    """Fractions of the noise schedule."""
    draws: int
    """Number of noise samples that the error at each fraction is averaged over."""


@torch.no_grad()
def denoising_errors(
    guide: DiffusionGuide,
    z: Float[Tensor, "b c hz wz"],
    text: Float[Tensor, "b n d"],
    levels: NoiseLevels,
    generator: torch.Generator,
    mask: Float[Tensor, "b 1 hz wz"] | None = None,
) -> Float[Tensor, "t b"]:
    """Mean squared error of the guide's noise estimate at each of the levels, the same noise for all of a batch.

    Args:
        mask: Where errors count; by default everywhere.
    """
    mask = torch.ones_like(z[:, :1]) if mask is None else mask.to(z)
    errors = torch.zeros(len(levels.fractions), len(z), device=z.device)
    for row, fraction in zip(errors, levels.fractions, strict=True):
        t = torch.full((len(z),), round(fraction * (len(guide.alphas_cumprod) - 1)), device=z.device)
        for _ in range(levels.draws):
            eps = standard_noise(z[:1].shape, z.device, generator).expand_as(z)
            squared = (guide.predict_noise(add_noise(guide, z, t, eps), t, text) - eps).square()
            row += (squared.mean(1, keepdim=True) * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3)) / levels.draws
    return errors
