"""The applications of the DreamBooth paper (2208.12242, section 4.4) as prompts.

The embedded guide gets prompts from its own vocabulary; other models those of the paper's figures and of its
evaluation (github.com/google/dreambooth, dataset/prompts_and_classes.txt).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from db3d_nerfstudio.words import Subject, view_prompts

UseName = Literal["recontextualisation", "view_synthesis", "property_change", "accessories", "art_rendition"]
USES: tuple[UseName, ...] = get_args(UseName)


@dataclass(frozen=True)
class Use:
    """One application, and prompts that show it."""

    name: UseName
    title: str
    prompts: tuple[str, ...]


def uses(subject: Subject, toys: bool) -> list[Use]:
    """All applications for a subject.

    Args:
        toys: Use only words of the embedded guide.
    """
    return _uses_of_toys(subject) if toys else _uses(subject)


def _uses_of_toys(subject: Subject) -> list[Use]:
    from db3d_nerfstudio.toybox.scene import CONTEXTS

    photo, name = subject.instance_prompt, f"{subject.identifier} {subject.class_noun}"
    return [
        Use("recontextualisation", "Recontextualisation", tuple(f"{photo} {context}" for context in CONTEXTS)),
        Use("view_synthesis", "Text-guided view synthesis", tuple(view_prompts(photo).values())),
        Use(
            "property_change", "Property change", _each("a photo of a {} " + name, ("red", "green", "purple", "black"))
        ),
        Use(
            "accessories",
            "Accessories",
            _each(photo + " {}", ("wearing a red hat", "wearing a yellow scarf", "with a green flag")),
        ),
        Use(
            "art_rendition",
            "Art rendition (patterns, as the toybox has no painters)",
            _each("a photo of a {} " + name, ("striped", "spotted")),
        ),
    ]


def _uses(subject: Subject) -> list[Use]:
    photo, name = subject.instance_prompt, f"{subject.identifier} {subject.class_noun}"
    places = (
        "in the jungle",
        "in the snow",
        "on the beach",
        "on a cobblestone street",
        "with a mountain in the background",
        "with the Eiffel Tower in the background",
    )
    sides = ("from the front", "from the side", "from the back", "from above", "from below")
    clothes = (
        "wearing a santa hat",
        "wearing a rainbow scarf",
        "wearing a black top hat and a monocle",
        "in a chef outfit",
        "wearing pink glasses",
    )
    artists = ("Vincent van Gogh", "Johannes Vermeer", "Leonardo da Vinci", "Pierre-Auguste Renoir")
    renditions = (*_each("a painting of a " + name + " in the style of {}", artists), f"a marble statue of a {name}")
    return [
        Use("recontextualisation", "Recontextualisation", _each(photo + " {}", places)),
        Use("view_synthesis", "Text-guided view synthesis", _each(photo + " seen {}", sides)),
        Use(
            "property_change",
            "Property change",
            _each("a photo of a {} " + name, ("red", "purple", "shiny", "wet", "cube shaped", "wooden")),
        ),
        Use("accessories", "Accessories", _each(photo + " {}", clothes)),
        Use("art_rendition", "Art rendition", renditions),
    ]


def _each(pattern: str, words: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(pattern.format(word) for word in words)
