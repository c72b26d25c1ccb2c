"""Similarity of pictures with pictures and with words: CLIP-I, DINO and CLIP-T (DreamBooth, 2208.12242, section 4.1).

The three are the same arithmetic on vectors of different encoders, which are normalised here.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize


def mean_pairwise(generated: Float[Tensor, "m d"], real: Float[Tensor, "n d"]) -> float:
    """CLIP-I, or DINO with DINO's class tokens: mean cosine over all pairs of a generated and a real picture.

    Between samples of the class and photos of the subject it is PRES, which measures language drift (2208.12242,
    table 3): the lower, the less the class has become the subject.
    """
    return float((normalize(generated, dim=-1) @ normalize(real, dim=-1).T).mean())


def mean_within(features: Float[Tensor, "n d"]) -> float:
    """Real against real, the ceiling of `mean_pairwise`, without pairs of a picture with itself.

    Raises:
        ValueError: there are fewer than two pictures.
    """
    if len(features) < 2:
        raise ValueError(f"a ceiling needs at least two pictures, got {len(features)}")
    unit = normalize(features, dim=-1)
    cosines = unit @ unit.T
    return float((cosines.sum() - cosines.trace()) / (len(unit) * (len(unit) - 1)))


def mean_to_prompt(images: Float[Tensor, "n d"], prompt: Float[Tensor, " d"]) -> float:
    """CLIP-T: mean cosine of pictures and their prompt, in [-1, 1] and not times 100."""
    return float((normalize(images, dim=-1) @ normalize(prompt, dim=-1)).mean())


def flatten(
    images: Float[Tensor, "n 3 h w"], masks: Float[Tensor, "n h w"], background: float = 1.0
) -> Float[Tensor, "n 3 h w"]:
    """The subject alone in front of one colour, so that a photo's surroundings do not count as likeness."""
    masks = masks[:, None]
    return images * masks + (1 - masks) * torch.as_tensor(background)
