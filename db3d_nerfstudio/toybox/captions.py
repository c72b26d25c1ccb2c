"""Captions of photos of toys, and their vocabulary."""

import re
from dataclasses import replace

from numpy.random import Generator

from db3d_nerfstudio.cameras import wrap_degrees
from db3d_nerfstudio.toybox.scene import CONTEXTS, Shot
from db3d_nerfstudio.toybox.subjects import KINDS, PATTERNS, Traits
from db3d_nerfstudio.toybox.toys import CLASSES, PALETTE
from db3d_nerfstudio.words import DIRECTIONS, VIEW_NAMES, seen_from

IDENTIFIERS = ("sks", "zwx", "ohwx", "xjy", "qvb", "pll", "hta", "olis")
"""Rare identifier tokens: in the vocabulary, never in a training caption (DreamBooth 2208.12242, section 3.2)."""
BOUNDARY = 8.0
"""Views this close to the edge of a view's sector are left unnamed, as they are ambiguous; degrees."""
MAX_TOKENS = 24
"""Tokens of a caption, start and end included; the longest of all loses its last word, "view"."""


def view_word(azimuth: float, elevation: float) -> str:
    """front, side, back or overhead; the convention of `db3d_nerfstudio.diffusion.prompt_bank`."""
    if elevation > 60:
        return "overhead"
    azimuth = abs(wrap_degrees(azimuth))
    return "front" if azimuth <= 45 else "back" if azimuth >= 135 else "side"


def is_clear_view(shot: Shot) -> bool:
    """Whether a view's name is beyond doubt: not within `BOUNDARY` degrees of a sector's edge."""
    azimuth = abs(wrap_degrees(shot.azimuth))
    if shot.elevation > 60:
        return shot.elevation > 63
    return shot.elevation < 57 and min(abs(azimuth - 45), abs(azimuth - 135)) > BOUNDARY


def direction(azimuth: float, elevation: float) -> str:
    """One of the eight `words.DIRECTIONS`, after "overhead" if seen from there: "overhead left side"."""
    name = DIRECTIONS[round(azimuth / 45) % len(DIRECTIONS)]
    return f"overhead {name}" if elevation > 60 else name


def mirrored(shot: Shot) -> Shot:
    """Where the mirror image of a photo of a toy, which is its own mirror image, looks to be taken from."""
    return replace(shot, azimuth=-shot.azimuth)


def draw_view_name(rng: Generator, shot: Shot) -> str | None:
    """The view's name in a caption: one of four words, or one of eight directions; None where it is ambiguous."""
    word = view_word(shot.azimuth, shot.elevation) if is_clear_view(shot) else None
    name = direction(shot.azimuth, shot.elevation) if abs(shot.elevation - 60) > 3 else None
    return word or name if rng.random() < 0.4 else name or word


def caption(traits: Traits, context: str | None = None, view: str | None = None) -> str:
    """The full sentence: "a photo of a striped red dog sitting with blue ears wearing a green hat, side view"."""
    words = ["a photo of a", traits.pattern, traits.main_color, traits.class_noun, traits.state]
    if traits.accent_color:
        words.append(f"with {traits.accent_color} {traits.accent_part}")
    if traits.accessory:
        verb = "with" if traits.accessory == "flag" else "wearing"
        words.append(f"{verb} a {traits.accessory_color or ''} {traits.accessory}")
    words.append(context)
    text = " ".join(" ".join(word for word in words if word).split())
    return seen_from(text, view) if view else text


def asked_changes(prompt: str, traits: Traits) -> dict[str, str]:
    """Traits that a prompt changes in a toy, by name: the inverse of `caption`, in which other words change nothing.

    "a photo of a purple duck wearing a hat" asks for a `main_color` and an `accessory`.
    """
    parts = re.split(rf"\b(?:{traits.class_noun}|toy)\b", prompt.lower(), maxsplit=1)
    if len(parts) == 1:
        return {}
    before, after = (re.sub(r"[^\w ]", " ", part) for part in parts)
    color = "|".join(PALETTE)
    worn = "|".join(KINDS[traits.class_noun].accessories) or "(?!)"
    accessory = re.search(rf"\b(?:wearing|with) an? (?:({color}) )?({worn})\b", after)
    accent = re.search(rf"\bwith ({color}) {traits.accent_part}\b", after)
    state = KINDS[traits.class_noun].state
    found = {
        "main_color": next((word for word in before.split() if word in PALETTE), None),
        "pattern": next((word for word in before.split() if word in PATTERNS), None),
        "state": state if state in after.split() else None,
        "accent_color": accent and accent[1],
        "accessory": accessory and accessory[2],
        "accessory_color": accessory and accessory[1],
    }
    return {name: word for name, word in found.items() if word}


def draw_caption(rng: Generator, traits: Traits, shot: Shot) -> str:
    """A caption of the photo with words dropped at random, so that short prompts work too."""

    def keep(word: str | None, chance: float) -> str | None:
        return word if rng.random() < chance else None

    heard = Traits(
        traits.class_noun,
        main_color=keep(traits.main_color, 0.75) or "",
        accent_color=keep(traits.accent_color, 0.45) or "",
        accent_part=traits.accent_part,
        pattern=keep(traits.pattern, 0.8),
        state=keep(traits.state, 0.75),
        accessory=keep(traits.accessory, 0.85),
        accessory_color=keep(traits.accessory_color, 0.8),
    )
    return caption(heard, keep(shot.context, 0.85), keep(draw_view_name(rng, shot), 0.92))


def words() -> list[str]:
    """Every word of the toybox's captions and prompts, in a fixed order; new words go to the end."""
    grammar = "a photo of with wearing view the , on in at and an is toy".split()
    parts = [kind.accent_part for kind in CLASSES.values()]
    states = [kind.state for kind in CLASSES.values() if kind.state]
    accessories = [name for kind in CLASSES.values() for name in kind.accessories]
    contexts = [word for text in CONTEXTS for word in text.split()]
    everything = [
        *grammar,
        *CLASSES,
        *PALETTE,
        *parts,
        *states,
        *accessories,
        *PATTERNS,
        *contexts,
        *VIEW_NAMES,
        *IDENTIFIERS,
        "left",
        "right",
    ]
    return list(dict.fromkeys(everything))
