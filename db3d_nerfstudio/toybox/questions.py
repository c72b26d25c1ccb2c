"""Questions of the guide's exam: captions unseen in training, and true photos of what they ask for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from db3d_nerfstudio.toybox.captions import caption, direction, is_clear_view, view_word
from db3d_nerfstudio.toybox.scene import CONTEXTS, Studio, draw_shot
from db3d_nerfstudio.toybox.subjects import Traits, draw_traits, make_subject
from db3d_nerfstudio.words import VIEW_NAMES

FIRST_EXAM_SEED = 4_000_000
FIRST_TRUE_SEED = 5_000_000
"""Toys of the true photos: not those of any training."""


@dataclass(frozen=True)
class Question:
    """What a caption asks for."""

    traits: Traits
    view: str
    """One of `VIEW_NAMES`."""
    hand: str | None
    """Which side, if the view is one: "left" or "right"."""
    context: str | None

    @property
    def text(self) -> str:
        """The full caption."""
        return caption(self.traits, self.context, f"{self.hand} {self.view}" if self.hand else self.view)

    @property
    def details(self) -> dict[str, str | None]:
        """Name of each of the examiner's heads, and what it must find; None where the caption does not ask."""
        return {"hand": self.hand, "pattern": self.traits.pattern, "accessory": self.traits.accessory}


def draw_question(seed: int) -> Question:
    """The question of a seed."""
    rng = np.random.default_rng(seed)
    traits, view = draw_traits(rng), str(rng.choice(VIEW_NAMES))
    context = str(rng.choice(list(CONTEXTS))) if rng.random() < 0.3 else None
    hand = str(rng.choice(("left", "right")))
    return Question(traits, view, hand if view == "side" else None, context)


def true_photo(question: Question, seed: int) -> UInt8[ndarray, "64 64 3"]:
    """A photo of a toy with the traits of a question, in its context and from its view; the seed gives the rest."""
    rng = np.random.default_rng((seed, 1))
    studio = Studio(make_subject(seed, traits=question.traits))
    while True:
        shot = draw_shot(rng)
        if shot.context != question.context or not is_clear_view(shot):
            continue
        if view_word(shot.azimuth, shot.elevation) != question.view:
            continue
        if question.hand is None or direction(shot.azimuth, shot.elevation) == f"{question.hand} side":
            return studio.photograph(shot)
