"""The Janus problem, counted: views that show a front where there is none, and how many faces go round the subject.

Who says what a view shows is injected: the judge's head for views, or a CLIP asked zero-shot.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from db3d_nerfstudio.cameras import Views
from db3d_nerfstudio.evaluation.metrics.r_precision import retrieve
from db3d_nerfstudio.words import VIEW_NAMES, view_weights


def true_views(views: Views) -> list[str]:
    """What each camera sees: front, side, back or overhead, by the convention of the prompts."""
    return [VIEW_NAMES[index] for index in view_weights(views, interpolate=False).argmax(-1).tolist()]


def zero_shot_views(images: Float[Tensor, "v d"], view_prompts: Float[Tensor, "4 d"]) -> list[str]:
    """What each picture is said to show: the nearest of the prompts that name a view, in the order of `VIEW_NAMES`."""
    return [VIEW_NAMES[index] for index in retrieve(images, view_prompts).tolist()]


def janus_rate(said: list[str], true: list[str]) -> float:
    """Share of the views that are not the front and are said to be; 0 for a sound asset.

    Raises:
        ValueError: every view is the front.
    """
    elsewhere = [word for word, view in zip(said, true, strict=True) if view != "front"]
    if not elsewhere:
        raise ValueError("the Janus rate needs views from elsewhere than the front")
    return elsewhere.count("front") / len(elsewhere)


def num_faces(said: list[str]) -> int:
    """How often a front begins on the way once round the subject: 1 for a sound asset.

    Args:
        said: What the views of one orbit are said to show, in the order of their azimuths.
    """
    begins = sum(word == "front" and said[index - 1] != "front" for index, word in enumerate(said))
    return begins or int(bool(said) and said[0] == "front")


def views_right(said: list[str], true: list[str]) -> float:
    """Share of the views that are said to be what they are."""
    return sum(word == view for word, view in zip(said, true, strict=True)) / len(true)
