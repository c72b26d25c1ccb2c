"""The Janus problem in numbers: views that show a front where there is none, and the number of faces around a subject.

The classifier of views is passed in: the judge's head for views, or CLIP zero-shot.
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
    """The view in each picture: the nearest of the prompts that name a view, in the order of `VIEW_NAMES`."""
    return [VIEW_NAMES[index] for index in retrieve(images, view_prompts).tolist()]


def janus_rate(said: list[str], true: list[str]) -> float:
    """Share of the views from elsewhere that are classified as the front; 0 for a sound asset.

    Raises:
        ValueError: every view is the front.
    """
    elsewhere = [word for word, view in zip(said, true, strict=True) if view != "front"]
    if not elsewhere:
        raise ValueError("the Janus rate needs views from elsewhere than the front, got front views only")
    return elsewhere.count("front") / len(elsewhere)


def num_faces(said: list[str]) -> int:
    """How often a front begins on one way around the subject: 1 for a sound asset.

    Args:
        said: The classified views of one orbit, in the order of their azimuths.
    """
    begins = sum(word == "front" and said[index - 1] != "front" for index, word in enumerate(said))
    return begins or int(bool(said) and said[0] == "front")


def views_right(said: list[str], true: list[str]) -> float:
    """Share of the views that are classified correctly."""
    return sum(word == view for word, view in zip(said, true, strict=True)) / len(true)
