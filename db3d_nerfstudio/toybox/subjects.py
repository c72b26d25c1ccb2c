"""Subjects: one procedural toy per seed, with the words that describe it.

The same subject can be photographed from any camera (`scene.py`) and exported as a mesh: it is the ground truth.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, cast

import numpy as np
import trimesh
from jaxtyping import Float
from numpy import ndarray
from numpy.random import Generator
from trimesh.visual import ColorVisuals

from db3d_nerfstudio.toybox.compositions import TOY
from db3d_nerfstudio.toybox.shapes import Part, normalise, pattern_mask
from db3d_nerfstudio.toybox.toys import CLASSES, PALETTE, Color, ToyBuilder, add_accessory

PATTERNS = ("striped", "spotted")
CLASS_NOUNS = tuple(CLASSES)
"""The named kinds, which judge and benchmark use."""
KINDS = {**CLASSES, "toy": TOY}
"""The named kinds, and "toy" for none of them, which is drawn only on request."""


NO_CHANGES: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Traits:
    """The properties of a subject that a caption can name."""

    class_noun: str
    main_color: str
    accent_color: str
    accent_part: str
    """The word for the part in the accent colour: "ears", "roof", "wings", ..."""
    pattern: str | None = None
    state: str | None = None
    """A pose or state: "sitting", "open", ..."""
    accessory: str | None = None
    accessory_color: str | None = None


@dataclass(frozen=True)
class Subject:
    """A toy: its traits and its parts, inside the unit sphere, facing +x."""

    traits: Traits
    parts: tuple[Part, ...]

    def mesh(self) -> trimesh.Trimesh:
        """One coloured mesh of all parts (vertex colours; patterns are sampled at the vertices)."""
        meshes = []
        for part in self.parts:
            mesh = part.mesh.copy()
            if part.pattern is not None:
                mesh = mesh.subdivide().subdivide()
            colors = surface_color(part, mesh.vertices)
            rgba = (np.c_[colors, np.ones(len(colors))] * 255).round().astype(np.uint8)
            mesh.visual = ColorVisuals(mesh, vertex_colors=rgba)
            meshes.append(mesh)
        return cast(trimesh.Trimesh, trimesh.util.concatenate(meshes))  # Of meshes it is one.

    def glb(self) -> bytes:
        """The mesh as a glTF file, y up and z in front as there (glTF 2.0, section 3.4)."""
        mesh = self.mesh()
        mesh.vertices = mesh.vertices[:, [1, 2, 0]]
        return cast(bytes, mesh.export(file_type="glb"))  # Text is for other formats.


def surface_color(part: Part, points: Float[ndarray, "n 3"]) -> Float[ndarray, "n 3"]:
    """Albedo of a part at points on its surface (scene units)."""
    if part.pattern is None or part.pattern_color is None:
        return np.broadcast_to(part.color, points.shape)
    mask = pattern_mask(part.pattern, points)[:, None]
    return part.color * (1 - mask) + part.pattern_color * mask


def draw_traits(rng: Generator, class_noun: str | None = None) -> Traits:
    """Random traits; main and accent colours differ, so do accessory and main colour.

    Raises:
        ValueError: the class noun is not in `KINDS`.
    """
    class_noun = str(rng.choice(CLASS_NOUNS)) if class_noun is None else class_noun
    if class_noun not in KINDS:
        raise ValueError(f"unknown class noun {class_noun!r}: choose among {', '.join(KINDS)}")
    kind = KINDS[class_noun]
    main, accent, extra = rng.choice(list(PALETTE), 3, replace=False)
    accessory = str(rng.choice(kind.accessories)) if kind.accessories and rng.random() < 0.3 else None
    return Traits(
        class_noun=class_noun,
        main_color=str(main),
        accent_color=str(accent),
        accent_part=kind.accent_part,
        pattern=str(rng.choice(PATTERNS)) if rng.random() < 0.2 else None,
        state=kind.state if kind.state is not None and rng.random() < 0.35 else None,
        accessory=accessory,
        accessory_color=str(extra) if accessory else None,
    )


def decorate(traits: Traits, rng: Generator) -> Traits:
    """The traits with a pattern, and with an accessory if their kind wears any, drawn where there is none yet."""
    colors = [color for color in PALETTE if color not in (traits.main_color, traits.accent_color)]
    pattern, color = str(rng.choice(PATTERNS)), str(rng.choice(colors))
    worn = KINDS[traits.class_noun].accessories
    if worn and traits.accessory is None:
        traits = replace(traits, accessory=str(rng.choice(worn)), accessory_color=color)
    return replace(traits, pattern=traits.pattern or pattern)


def make_subject(
    seed: int, class_noun: str | None = None, traits: Traits | None = None, changes: Mapping[str, Any] = NO_CHANGES
) -> Subject:
    """The subject of a seed: same seed, same toy. Traits may be given; the shape is still the seed's.

    Args:
        changes: Traits of this toy that differ, by name: the same toy in another colour, or with a hat.

    Raises:
        ValueError: unknown class noun.
    """
    rng = np.random.default_rng(seed)
    drawn = draw_traits(rng, class_noun if traits is None else traits.class_noun)
    traits = replace(drawn if traits is None else traits, **changes)

    def tone(name: str | None) -> Color:
        return np.clip(np.array(PALETTE[name or "white"]) + rng.normal(0, 0.03, 3), 0.02, 1.0)

    builder = ToyBuilder(rng, tone(traits.main_color), tone(traits.accent_color), traits.state)
    KINDS[traits.class_noun].build(builder)
    if traits.accessory is not None:
        add_accessory(builder, traits.accessory, tone(traits.accessory_color))
    parts = []
    for mesh, color, is_main in builder.parts:
        pattern = (traits.pattern, builder.accent) if is_main and traits.pattern else (None, None)
        parts.append(Part(mesh, color, *pattern, is_main=is_main))
    return Subject(traits, tuple(normalise(parts)))
