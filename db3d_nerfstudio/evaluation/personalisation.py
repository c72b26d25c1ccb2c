"""The effect of DreamBooth on a guide: what it gains of the subject, and what it loses.

A guide that is tuned for too long draws the subject from the photos' sides only, which is DreamBooth3D's reason for
three stages (2303.13508, section 3.1).
"""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from math import log
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from db3d_nerfstudio.evaluation.metrics.pixels import Distance
from db3d_nerfstudio.words import VIEW_NAMES, view_prompts

if TYPE_CHECKING:
    pass


def view_diversity(said: list[str]) -> float:
    """Normalised entropy of the views that samples show: 0 if all show the same view, at most 1.

    Args:
        said: The classified views of samples whose prompts name every view equally often.
    """
    shares = [count / len(said) for count in Counter(said).values()]
    return sum(-share * log(share) for share in shares) / log(len(VIEW_NAMES))


def diversity(images: Float[Tensor, "n 3 h w"], distance: Distance) -> float:
    """DIV: mean distance, LPIPS in the paper, over all pairs of samples of one prompt (2208.12242, table 3).

    Raises:
        ValueError: there are fewer than two samples.
    """
    pairs = list(combinations(range(len(images)), 2))
    if not pairs:
        raise ValueError(f"diversity needs at least two samples, got {len(images)}")
    first, second = zip(*pairs, strict=True)
    return float(distance(images[list(first)], images[list(second)]).mean())


def prompts_of_all_views(prompt: str, per_view: int) -> list[str]:
    """The prompt from every side, `per_view` times each, view by view in the order of `VIEW_NAMES`."""
    return [named for named in view_prompts(prompt).values() for _ in range(per_view)]
