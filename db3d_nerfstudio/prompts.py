"""Words: the subject that a prompt names, and view-dependent prompts (DreamFusion, arXiv 2209.14988, section 3.2)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from db3d_nerfstudio.distill import Away
from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.guides.base import DiffusionGuide

if TYPE_CHECKING:
    from db3d_nerfstudio.cameras import Views

VIEW_NAMES = ("front", "side", "back", "overhead")
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


def view_weights(views: Views, interpolate: bool) -> Float[Tensor, "b 4"]:
    """How much of each view's prompt a camera is given; columns as in `VIEW_NAMES`, rows sum to 1.

    The nearest one: overhead above 60 degrees, else front within 45 degrees of azimuth 0, back within 45 of 180, else
    side. Interpolated: linear in azimuth between front (0), side (90) and back (180), in elevation between 45 and 75.
    """
    turned = ((views.azimuth + 180) % 360 - 180).abs()
    if interpolate:
        overhead = ((views.elevation - OVERHEAD_ELEVATION) / (2 * OVERHEAD_BLEND) + 0.5).clamp(0, 1)
        front, back = (1 - turned / 90).clamp(min=0), (turned / 90 - 1).clamp(min=0)
    else:
        overhead = (views.elevation > OVERHEAD_ELEVATION).float()
        front, back = (turned <= 45).float(), (turned >= 135).float()
    around = torch.stack([front, 1 - front - back, back], dim=-1)
    return torch.cat([around * (1 - overhead[:, None]), overhead[:, None]], dim=-1)


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
        embeddings = guide.embed([*view_prompts(prompt).values(), negative_prompt])
        self._views, self._uncond = embeddings[:-1], embeddings[-1:]

    def text(self, views: Views, interpolate: bool = False) -> Float[Tensor, "b n d"]:
        """The embedding that goes with each camera."""
        weights = view_weights(views, interpolate).to(self._views.device)
        return self._guide.add_cameras(torch.einsum("bv,vnd->bnd", weights, self._views), views)

    def away(self, views: Views, strength: float) -> Away | None:
        """The views that guidance shall keep away from for each camera (`away_weights`); None at strength 0."""
        if strength == 0:
            return None
        front_and_side = self._views[:2].expand(len(views.azimuth), -1, -1, -1)
        text = [self._guide.add_cameras(view, views) for view in front_and_side.unbind(1)]
        return Away(torch.stack(text, 1), strength * away_weights(views).to(self._views.device))

    def uncond(self, views: Views) -> Float[Tensor, "b n d"]:
        """The embedding of the negative prompt, once for each camera."""
        return self._guide.add_cameras(self._uncond.expand(len(views.azimuth), -1, -1), views)
