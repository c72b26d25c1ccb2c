"""From a density field to a mesh: grid, level, marching cubes without dust, face budget, y-up. Pure functions.

The scene has z up and +x in front (`cameras.py`). An exported mesh has y up and +z in front, as in glTF (glTF 2.0,
section 3.4), its bounding box centred at the origin, and 1 as the box's longest edge.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from torch import Tensor

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.nerf.occupancy import RADIUS

if TYPE_CHECKING:
    from trimesh import Trimesh

Y_UP = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
"""Turns points of the scene into points of an exported mesh: its x is the scene's y, its y is z, its z is x."""
MIN_OPACITY = 0.01
"""A scene none of whose rays loses this share of its light is empty."""
NUM_LEVELS = 24
"""Levels that are tried."""
SURFACE_OPACITY = 0.25
"""A surface is where this share of the light is gone."""
LEAST_PIECE = 0.01
"""Pieces smaller than this share of the largest one are dust; a beak that floats in front of its head is not."""
MAX_RAYS = 64
"""Rays along each edge of a view that levels are judged by."""


@torch.no_grad()
def density_grid(
    density: Callable[[Float[Tensor, "n 3"]], Float[Tensor, " n"]], resolution: int, device: torch.device | str = "cpu"
) -> Float[ndarray, "r r r"]:
    """Density at the `resolution`^3 vertices of a grid over [-1, 1]^3; zero outside of the sphere that rays see.

    Raises:
        UserError: a density is not a finite number.
    """
    line = torch.linspace(-RADIUS, RADIUS, resolution, device=device)
    grid = torch.zeros(resolution, resolution, resolution)
    for i, x in enumerate(line):
        points = torch.cartesian_prod(x[None], line, line)
        inside = points.norm(dim=-1) < RADIUS
        grid[i].view(-1)[inside.cpu()] = density(points[inside]).float().cpu()
    if not grid.isfinite().all():
        raise UserError("the field's density is not a finite number somewhere: train again with lower learning rates")
    return grid.numpy()


def surface_level(grid: Float[ndarray, "r r r"], spacing: float) -> float:
    """The density whose level set lies where the renderer sees the surface; below the peak, so never an empty set.

    A fixed level (25 in threestudio) loses soft scenes and swells hard ones. Here the surface is where a ray has lost
    a quarter of its light, or, in a scene so thin that this lies deep inside or nowhere, a quarter of the densest ray's
    optical depth; at a half, pinholes open the hollows inside. Rays along the three axes in both directions are
    integrated through the grid, and of `NUM_LEVELS` levels the one is used whose first crossing is nearest to that
    depth in the mean. A ray that only one of the two hits counts as a miss by an eighth of the scene, so that
    silhouettes count too.

    Args:
        grid: Density per scene unit.
        spacing: Distance of neighbouring vertices, scene units.

    Raises:
        UserError: the scene is empty.
    """
    skip = -(-len(grid) // MAX_RAYS)
    views = [np.moveaxis(grid, axis, 0)[::way, ::skip, ::skip] for axis in range(3) for way in (1, -1)]
    passed = [np.cumsum(view, 0) * spacing for view in views]
    densest = max(float(optical[-1].max()) for optical in passed)
    if densest < -np.log1p(-MIN_OPACITY):
        raise UserError(
            f"the scene is empty: no ray through it loses {MIN_OPACITY:.0%} of its light. Look at it in ns-viewer, and "
            "train again with another seed or a lower --pipeline.model.losses.opacity"
        )
    reach, miss = min(float(-np.log1p(-SURFACE_OPACITY)), densest / 4), len(grid) / 8
    seen = [_first(optical >= reach) for optical in passed]

    def error(level: float) -> float:
        crossings = [_first(view > level) for view in views]
        differences = [np.abs(crossing - depth) for crossing, depth in zip(crossings, seen, strict=True)]
        return float(np.mean([np.minimum(difference, miss) for difference in differences]))

    peak = float(grid.max())
    faintest = min(reach / (2 * RADIUS), peak / 2)
    return min(np.geomspace(faintest, 0.9 * peak, NUM_LEVELS).tolist(), key=error)


def _first(hit: Bool[ndarray, "n r r"]) -> Float[ndarray, "r r"]:
    """Index of the first hit along the first axis; its length where there is none."""
    return np.where(hit.any(0), hit.argmax(0), len(hit)).astype(float)


def extract_surface(grid: Float[ndarray, "r r r"], level: float) -> Trimesh:
    """The closed outer surface of the matter, without dust, in scene units.

    Pieces are connected sets of vertices above the level; those below `LEAST_PIECE` are removed. Hollows inside are
    filled, because nobody sees them. The cubes march on the logarithm of the density, which has the same level sets
    and is nearer to linear between two vertices.

    Raises:
        ValueError: nothing is above the level.
    """
    import trimesh
    from scipy import ndimage
    from skimage.measure import marching_cubes

    pieces, _ = cast(tuple[ndarray, int], ndimage.label(grid > level))
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0  # What is below the level.
    if not sizes.any():
        raise UserError(f"no density is above the level {level:.3g}")
    matter = (sizes >= LEAST_PIECE * sizes.max())[pieces]
    values = np.log(np.maximum(grid, 1e-3 * level) / level)
    values = np.where(matter, np.maximum(values, 1e-3), np.minimum(values, -1e-3))  # No vertex on the surface.
    values[ndimage.binary_fill_holes(matter) & ~matter] = 1.0
    values = np.pad(values, 1, constant_values=np.log(1e-3))
    vertices, faces, _, _ = marching_cubes(values, 0.0, gradient_direction="ascent")
    spacing = 2 * RADIUS / (len(grid) - 1)
    return trimesh.Trimesh((vertices - 1) * spacing - RADIUS, faces)


def decimate(mesh: Trimesh, max_faces: int) -> Trimesh:
    """The mesh with at most `max_faces` faces, by quadric error metrics (Garland and Heckbert 1997)."""
    import open3d as o3d
    import trimesh

    if len(mesh.faces) <= max_faces:
        return mesh
    vertices = o3d.utility.Vector3dVector(mesh.vertices)
    full = o3d.geometry.TriangleMesh(vertices, o3d.utility.Vector3iVector(mesh.faces))
    small = full.simplify_quadric_decimation(max_faces)
    return trimesh.Trimesh(np.asarray(small.vertices), np.asarray(small.triangles))


def y_up_unit(mesh: Trimesh) -> Trimesh:
    """A mesh of the scene, in place, with y up and z in front, its box centred at the origin, its longest edge 1."""
    turn = np.eye(4)
    turn[:3, :3] = Y_UP
    mesh.apply_transform(turn)
    low, high = cast(ndarray, mesh.bounds)  # None of an empty mesh alone.
    return mesh.apply_translation(-(low + high) / 2).apply_scale(1 / (high - low).max())
