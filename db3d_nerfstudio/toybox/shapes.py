"""Parts: the coloured primitives that toys are built of.

Convention of the whole project: +x is the subject's front, +y its left, z is up. Lengths are free; `normalise` scales
the finished toy into the unit sphere.
"""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import trimesh
from jaxtyping import Float
from numpy import ndarray

Number = float | int
Vec3 = tuple[Number, Number, Number]

TOY_RADIUS = 0.95
"""Radius of the sphere around the origin that every finished toy touches from inside, in scene units."""


@dataclass(frozen=True)
class Part:
    """One primitive of one colour."""

    mesh: trimesh.Trimesh
    color: Float[ndarray, "3"]
    """Linear rgb in [0, 1]."""
    pattern: str | None = None
    """None, "striped" or "spotted": where the second colour is painted."""
    pattern_color: Float[ndarray, "3"] | None = None
    is_main: bool = False
    """Whether it has the toy's main colour."""


@cache
def _unit(kind: str) -> trimesh.Trimesh:
    """A primitive that fits the cube [-1, 1]^3 (a torus: major radius 1, minor 0.25); made once, copied by `place`."""
    create = trimesh.creation
    return {
        "ball": lambda: create.icosphere(3),
        "box": lambda: create.box((2, 2, 2)),
        "rod": lambda: create.cylinder(1, 2, sections=24),
        "cone": lambda: create.cone(1, 2, sections=24).apply_translation((0, 0, -1)),
        "ring": lambda: create.torus(1, 0.25, major_sections=24, minor_sections=12),
        "roof": _prism,
    }[kind]()


def _prism() -> trimesh.Trimesh:
    """A gable roof: triangle in the y-z plane, ridge along x, filling [-1, 1]^3."""
    corners = [(x, y, z) for x in (-1, 1) for y, z in ((-1, -1), (1, -1), (0, 1))]
    return trimesh.convex.convex_hull(np.array(corners, dtype=float))


def place(kind: str, center: Vec3, half: Vec3, tilt: Number = 0, axis: Vec3 = (0, 1, 0)) -> trimesh.Trimesh:
    """A primitive with half extents `half`, turned by `tilt` degrees about `axis`, then moved to `center`."""
    matrix = np.diag([*half, 1.0])
    if tilt:
        matrix = trimesh.transformations.rotation_matrix(np.radians(tilt), axis) @ matrix
    matrix[:3, 3] += center
    return _unit(kind).copy().apply_transform(matrix)


def normalise(parts: list[Part]) -> list[Part]:
    """Centre the parts' bounding box at the origin and scale them into the sphere of `TOY_RADIUS`."""
    vertices = np.concatenate([part.mesh.vertices for part in parts])
    center = (vertices.min(0) + vertices.max(0)) / 2
    scale = TOY_RADIUS / np.linalg.norm(vertices - center, axis=1).max()
    return [replace(part, mesh=part.mesh.copy().apply_translation(-center).apply_scale(scale)) for part in parts]


def pattern_mask(pattern: str, points: Float[ndarray, "n 3"]) -> Float[ndarray, " n"]:
    """1 where the pattern's second colour is painted on a surface point (scene units), else 0."""
    if pattern == "striped":
        return (np.sin(points[:, 0] * 16.0) > 0.2).astype(np.float64)
    if pattern == "spotted":
        cells = points * 4.2
        return (np.linalg.norm(cells - np.round(cells), axis=1) < 0.36).astype(np.float64)
    raise ValueError(f"unknown pattern {pattern!r}; use 'striped' or 'spotted'")
