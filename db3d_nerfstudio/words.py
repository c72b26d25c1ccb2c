"""Words: the subject that a prompt names, and the names of views (DreamFusion, arXiv 2209.14988, section 3.2)."""

import re
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from db3d_nerfstudio.cameras import Views
from db3d_nerfstudio.class_noun import find_class_noun
from db3d_nerfstudio.errors import UserError

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
"""Names of the sides for guides trained on left and right, every 45 degrees of azimuth; left is the subject's own."""
OVERHEAD_ELEVATION = 60.0
"""Elevation in degrees above which a view is called overhead (2209.14988, section 3.2)."""
OVERHEAD_BLEND = 15.0
"""Half the width in degrees of the band in which interpolated prompts turn into the overhead prompt."""


_INVISIBLE = {ord(space): " " for space in "\N{ZERO WIDTH SPACE}\N{WORD JOINER}\N{ZERO WIDTH NO-BREAK SPACE}"}
_QUOTES = "\"'`\u201c\u201d\u201e\u2018\u2019\u201a\u00ab\u00bb"
_ENDS = " .,;:"
"""What ends a prompt and would stand before the name of a view."""


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
        """The caption of the photos; with "a" before vowels too, as in the captions that guides are trained on here."""
        return f"a photo of a {self.identifier} {self.class_noun}"

    @property
    def class_prompt(self) -> str:
        """The caption of the images that preserve the prior."""
        return f"a photo of a {self.class_noun}"

    def introduction(self, option: str) -> str:
        """A line for the start: a wrong class noun costs much, and nobody sees it otherwise.

        Args:
            option: The command-line option that sets the class noun.
        """
        return f'The subject is "{self.identifier}", its class noun "{self.class_noun}" ({option} sets another)'


def tidy(prompt: str) -> str:
    """A prompt without what typing and copying leave around it: line breaks, invisible spaces, quotes, a full stop."""
    text = " ".join(prompt.translate(_INVISIBLE).split()).rstrip(_ENDS)
    if len(text) > 1 and text[0] in _QUOTES and text[-1] in _QUOTES:
        text = text[1:-1].strip().rstrip(_ENDS)
    return text


def parse_subject(prompt: str, identifier: str = "sks", class_noun: str | None = None) -> Subject:
    """Find identifier and class noun in a prompt.

    The class noun is, unless given, what `find_class_noun` makes of the words after the identifier: a wrong one costs
    much likeness (DreamBooth, arXiv 2208.12242, table 4).
    """
    found = re.search(f"{_identifier_pattern(identifier)}(?P<rest>.*)", prompt, re.DOTALL)
    if found is None:
        meant = re.search(rf"{_identifier_pattern(identifier)}|\[\w+\]|<\w+>", prompt, re.IGNORECASE)
        instead = f' in place of "{meant[0]}"' if meant else " before the class noun"
        raise UserError(
            f'The prompt "{prompt}" does not contain the identifier "{identifier}". Write it{instead}, '
            f'as in "a photo of a {identifier} {class_noun or "robot"}", or name another identifier.'
        )
    class_noun = find_class_noun(found["rest"]) if class_noun is None else " ".join(class_noun.split())
    if not class_noun:
        raise UserError(
            f'No class noun follows "{identifier}" in the prompt "{prompt}". '
            f'Say what kind of thing the subject is, as in "a photo of a {identifier} robot", or give the class noun.'
        )
    return Subject(prompt, identifier, class_noun)


def drop_identifier(prompt: str, identifier: str) -> str:
    """The prompt without the identifier: "a sks dog" becomes "a dog", which an encoder can read."""
    return " ".join(re.sub(_identifier_pattern(identifier), "", prompt).split())


def _identifier_pattern(identifier: str) -> str:
    return rf"(?<![\w-]){re.escape(identifier)}(?![\w-])"


def seen_from(prompt: str, view: str) -> str:
    """The prompt with a view named: "a dog" from "front" becomes "a dog, front view"."""
    return f"{prompt}, {view} view"


def view_prompts(prompt: str) -> dict[str, str]:
    """The prompt with each view named, in the order of `VIEW_NAMES`."""
    return {view: seen_from(prompt, view) for view in VIEW_NAMES}


def direction_names(sided: bool) -> list[str]:
    """The names of the sides, from eye level and then from overhead, each in steps of azimuth from the front on."""
    if sided:
        return [*DIRECTIONS, *(f"overhead {name}" for name in DIRECTIONS)]
    return ["front", "side", "back", "side", *["overhead"] * 4]


def prompts_of_run(
    prompt: str, subject: Subject | None = None, negative_prompt: str = "", sided: bool = False
) -> list[str]:
    """Every text that a run may embed, to be checked before anything long begins.

    Args:
        prompt: What the NeRF is to show.
        subject: What the photos show; None where nothing is learned from photos.
        sided: Whether the guide was trained on the names of all `DIRECTIONS`.
    """
    named = dict.fromkeys([*VIEW_NAMES, *direction_names(sided)])
    plain = [prompt]
    if subject is not None:
        plain += [subject.instance_prompt, subject.class_prompt, drop_identifier(prompt, subject.identifier)]
    return list(
        dict.fromkeys([*plain, *(seen_from(text, view) for text in plain for view in named), negative_prompt, ""])
    )


def direction_weights(views: Views, interpolate: bool, sided: bool) -> Float[Tensor, "b n"]:
    """The weight of each direction's prompt for a camera; columns as in `direction_names`, rows sum to 1.

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
    """`direction_weights` of the names that every guide was trained on; columns as in `VIEW_NAMES`."""
    front, left, back, right, *overhead = direction_weights(views, interpolate, sided=False).unbind(-1)
    return torch.stack([front, left + right, back, sum(overhead, torch.zeros_like(front))], dim=-1)


def nearest_prompts(prompt: str, views: Views, sided: bool) -> list[str]:
    """The prompt with the name of each camera's view."""
    names = direction_names(sided)
    nearest = direction_weights(views, interpolate=False, sided=sided).argmax(-1)
    return [seen_from(prompt, names[index]) for index in nearest.tolist()]
