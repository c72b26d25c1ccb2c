"""Words: the subject that a prompt names, and view-dependent prompts (DreamFusion, arXiv 2209.14988, section 3.2)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from db3d_nerfstudio.diffusion.sds import Away
from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.guides.base import DiffusionGuide

if TYPE_CHECKING:
    from db3d_nerfstudio.cameras import Views

VIEW_NAMES = ("front", "side", "back", "overhead")
DIRECTIONS = (
    "front",
    "front left",
    "left side",
    "back left",
    "back",
    "back right",
    "right side",
    "front right",
)
"""The sides that a guide knows which tells left from right, every 45 degrees of azimuth; left is the subject's own."""
OVERHEAD_ELEVATION = 60.0
"""Elevation in degrees above which a view is called overhead (2209.14988, section 3.2)."""
OVERHEAD_BLEND = 15.0
"""Half the width in degrees of the band in which interpolated prompts turn into the overhead prompt."""

# Words that end a class noun: what follows describes the scene and not the subject.
_CONTEXT = frozenset(
    "and as at behind beside by from in inside into is like made near of on over that under wearing with without "
    "carrying dancing eating flying holding jumping lying playing reading riding running sitting sleeping standing "
    "swimming walking".split()
)


@dataclass(frozen=True)
class Subject:
    """What the photos show: "a photo of a sks robot wearing a hat" is about the robot that is called sks."""

    prompt: str
    """The prompt of the asset to make; may add context to the subject."""
    identifier: str
    """The rare word that DreamBooth binds to the subject."""
    class_noun: str
    """What kind of thing the subject is."""

    @property
    def instance_prompt(self) -> str:
        """The caption of the photos."""
        return f"a photo of a {self.identifier} {self.class_noun}"

    @property
    def class_prompt(self) -> str:
        """The caption of the images that preserve the prior."""
        return f"a photo of a {self.class_noun}"


def parse_subject(prompt: str, identifier: str = "sks", class_noun: str | None = None) -> Subject:
    """Find identifier and class noun in a prompt.

    The class noun is, unless given, what follows the identifier up to punctuation or a word that begins a context
    ("wearing", "on", "sitting", ...): a wrong one costs much likeness (DreamBooth, arXiv 2208.12242, table 4).
    """
    found = re.search(rf"(?<![\w-]){re.escape(identifier)}(?![\w-])(?P<rest>.*)", prompt, re.DOTALL)
    if found is None:
        raise UserError(
            f'The prompt "{prompt}" does not contain the identifier "{identifier}". Write it before the class noun, '
            f'as in "a photo of a {identifier} {class_noun or "robot"}", or name another identifier.'
        )
    if class_noun is None:
        words = []
        for word in re.match(r"[\w\s'-]*", found["rest"])[0].split():
            if word.lower() in _CONTEXT:
                break
            words.append(word)
        class_noun = " ".join(words)
    if not class_noun:
        raise UserError(
            f'No class noun follows "{identifier}" in the prompt "{prompt}". '
            f'Say what kind of thing the subject is, as in "a photo of a {identifier} robot", or give the class noun.'
        )
    return Subject(prompt, identifier, class_noun)


def view_prompts(prompt: str) -> dict[str, str]:
    """The prompt with each view named, in the order of `VIEW_NAMES`."""
    return {view: f"{prompt}, {view} view" for view in VIEW_NAMES}


def direction_names(sided: bool) -> list[str]:
    """What the sides are called, from eye level and then from overhead, each in steps of azimuth from the front on."""
    if sided:
        return [*DIRECTIONS, *(f"overhead {name}" for name in DIRECTIONS)]
    return ["front", "side", "back", "side", *["overhead"] * 4]


def direction_weights(views: Views, interpolate: bool, sided: bool) -> Float[Tensor, "b n"]:
    """How much of each direction's prompt a camera is given; columns as in `direction_names`, rows sum to 1.

    The nearest one: overhead above 60 degrees of elevation, and of four or eight steps of azimuth the nearest.
    Interpolated: linear in azimuth between neighbouring steps, in elevation between 45 and 75 degrees.
    """
    num = len(direction_names(sided)) // 2
    steps = views.azimuth * (num / 360)
    if interpolate:
        overhead = ((views.elevation - OVERHEAD_ELEVATION) / (2 * OVERHEAD_BLEND) + 0.5).clamp(0, 1)
        lower = steps.floor()
    else:
        overhead = (views.elevation > OVERHEAD_ELEVATION).float()
        lower = steps = steps.round()
    around = torch.zeros(len(steps), num, device=steps.device)
    for index, share in ((lower, 1 - (steps - lower)), (lower + 1, steps - lower)):
        around.scatter_add_(1, (index.long() % num)[:, None], share[:, None])
    return torch.cat([around * (1 - overhead[:, None]), around * overhead[:, None]], dim=-1)


def view_weights(views: Views, interpolate: bool) -> Float[Tensor, "b 4"]:
    """`direction_weights` of the names that every guide knows; columns as in `VIEW_NAMES`."""
    front, left, back, right, *overhead = direction_weights(views, interpolate, sided=False).unbind(-1)
    return torch.stack([front, left + right, back, sum(overhead)], dim=-1)


def nearest_prompts(prompt: str, views: Views, sided: bool) -> list[str]:
    """The prompt with what the view of each camera is called."""
    names = direction_names(sided)
    return [
        f"{prompt}, {names[i]} view"
        for i in direction_weights(views, interpolate=False, sided=sided).argmax(-1).tolist()
    ]


def away_weights(views: Views) -> Float[Tensor, "b 2"]:
    """How strongly a camera is to keep away from the prompts of front and side, the weights of threestudio's Perp-Neg.

    A camera in front keeps away from the side, one at the side from the front, one behind from the front most of all;
    and the higher they stand the less, as interpolated prompts turn into the overhead prompt.
    """
    turned = ((views.azimuth + 180) % 360 - 180).abs() / 90
    before = turned <= 1
    front = torch.where(before, 4 * (-0.5 * (1 - turned)).exp() - 2.426, (-0.5 * (2 - turned)).exp() + 0.967)
    side = torch.where(before, 4 * (-0.5 * turned).exp() - 2.426, (-0.5 * (2 - turned)).exp() - 0.606)
    overhead = view_weights(views, interpolate=True)[:, -1]
    return torch.stack([front, side], -1).clamp(min=0) * (1 - overhead[:, None])


class PromptBank:
    """The embeddings of a prompt from every side, computed once; to be rebuilt whenever the guide's weights change."""

    @torch.no_grad()
    def __init__(self, guide: DiffusionGuide, prompt: str, negative_prompt: str = "") -> None:
        """Args: `negative_prompt` takes the place of the empty prompt as what guidance leads away from."""
        self._guide = guide
        directions = [f"{prompt}, {name} view" for name in direction_names(guide.tells_sides)]
        sides = [f"{prompt}, {name} view" for name in ("front", "side")]
        unique = list(dict.fromkeys([*directions, *sides, negative_prompt]))
        embeddings = dict(zip(unique, guide.embed(unique), strict=True))
        self._directions = torch.stack([embeddings[text] for text in directions])
        self._front_and_side = torch.stack([embeddings[text] for text in sides])
        self._uncond = embeddings[negative_prompt][None]

    def text(self, views: Views, interpolate: bool = False) -> Float[Tensor, "b n d"]:
        """The embedding that goes with each camera."""
        weights = direction_weights(views, interpolate, self._guide.tells_sides).to(self._directions.device)
        return self._guide.add_cameras(torch.einsum("bv,vnd->bnd", weights, self._directions), views)

    def away(self, views: Views, strength: float) -> Away | None:
        """The views that guidance shall keep away from for each camera (`away_weights`); None at strength 0."""
        if strength == 0:
            return None
        front_and_side = self._front_and_side.expand(len(views.azimuth), -1, -1, -1)
        text = [self._guide.add_cameras(view, views) for view in front_and_side.unbind(1)]
        return Away(torch.stack(text, 1), strength * away_weights(views).to(self._directions.device))

    def uncond(self, views: Views) -> Float[Tensor, "b n d"]:
        """The embedding of the negative prompt, once for each camera."""
        return self._guide.add_cameras(self._uncond.expand(len(views.azimuth), -1, -1), views)
