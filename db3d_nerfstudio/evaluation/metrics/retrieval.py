"""Instance retrieval: does a render find its own subject among others of the same class?

Likeness to the class alone gives no better than chance here, where R-precision and mean similarities are high already.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize


@dataclass(frozen=True)
class Gallery:
    """Pictures of subjects of one class."""

    own: Float[Tensor, "_ 3 _ _"]
    """Of the subject itself."""
    others: tuple[Float[Tensor, "_ 3 _ _"], ...]
    """Of each other subject."""


def instance_retrieval(
    renders: Float[Tensor, "v d"], own: Float[Tensor, "n d"], others: Sequence[Float[Tensor, "_ d"]]
) -> float:
    """The share of renders whose nearest picture, by cosine, shows their own subject; with k others, chance is about
    1 / (k + 1).

    Raises:
        ValueError: there are no others to find it among.
    """
    if not others:
        raise ValueError("retrieval needs pictures of at least one other subject")
    unit = normalize(renders, dim=-1)
    nearest = [(unit @ normalize(pictures, dim=-1).T).amax(-1) for pictures in (own, *others)]
    return float((torch.stack(nearest).argmax(0) == 0).float().mean())
