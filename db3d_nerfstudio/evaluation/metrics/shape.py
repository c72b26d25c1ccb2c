"""How close an exported mesh is to the true toy; `db3d evaluate --run RUN --mesh` prints it.

The mesh is first aligned by the turn about the vertical (of at most half a sector) and the scale that fit best. Shapes
are then compared point by point, and textures in unlit views from all round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.results.mesh import Y_UP

if TYPE_CHECKING:
    from trimesh import Trimesh

    from db3d_nerfstudio.toybox.scene import Shot
    from db3d_nerfstudio.toybox.subjects import Subject

NUM_POINTS = 100_000
"""Points drawn on each surface: two drawings of the same toy are 0.004 apart."""
SKIP = 40
"""Turn and scale are found with every `SKIP`-th of them."""
F_SCORE_DISTANCE = 0.04
"""How far apart points may be that count as the same, scene units: 2 % of a toy's diameter."""
MAX_TURN = 22.5
"""Largest turn granted, degrees."""
NUM_VIEWS, ELEVATION, RADIUS, VIEW_SIZE = 8, 20.0, 3.05, 128
"""The views in which textures are compared: number, degrees, scene units, pixels."""

Points = Float[ndarray, "_ 3"]


@dataclass(frozen=True)
class ShapeFidelity:
    """Distance of an exported mesh from the truth."""

    chamfer: float
    """Chamfer distance of the surfaces, scene units; a toy has a diameter of 1.9. Lower is better."""
    f_score: float
    """F-score of the surfaces at `F_SCORE_DISTANCE`, in [0, 1]; higher is better."""
    silhouette_iou: float
    """Intersection over union of the silhouettes, mean over the views."""
    texture_psnr: float
    """Peak signal-to-noise ratio of the colours where mesh and truth both cover a pixel, all views together, dB."""
    turn: float
    """The turn about the vertical that fits best, degrees."""
    scale: float
    """The scale that fits best."""


def chamfer_distance(one: Points, other: Points) -> float:
    """Mean distance to the nearest point of the other set, averaged over both directions."""
    there, back = nearest_distances(one, other)
    return float((there.mean() + back.mean()) / 2)


def f_score(one: Points, truth: Points, distance: float) -> float:
    """Harmonic mean of precision and recall: the shares of each set within `distance` of the other.

    Knapitsch et al. 2017, Tanks and Temples.
    """
    precision, recall = ((distances <= distance).mean() for distances in nearest_distances(one, truth))
    return float(2 * precision * recall / (precision + recall)) if precision + recall > 0 else 0.0


def nearest_distances(one: Points, other: Points) -> tuple[Float[ndarray, " _"], Float[ndarray, " _"]]:
    """Distance of each point to the nearest of the other set, for both sets."""
    from scipy.spatial import KDTree

    return KDTree(other).query(one)[0], KDTree(one).query(other)[0]


def turned(points: Points, turn: float, scale: float) -> Points:
    """Points of the scene turned about the vertical by `turn` degrees, counter-clockwise from above, and scaled."""
    cos, sin = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    return scale * points @ np.array([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]])


def align(points: Points, truth: Points) -> tuple[float, float]:
    """The turn in degrees and the scale that bring points nearest to the truth, by chamfer distance.

    Turns over the whole range are tried at the size of the truth; the best is refined together with the scale.
    """
    from scipy.optimize import minimize

    def error(guess: Sequence[float] | ndarray) -> float:
        turn, log_scale = float(guess[0]), float(guess[1])
        excess = max(0.0, abs(turn) - MAX_TURN)
        return chamfer_distance(turned(points, turn, float(np.exp(log_scale))), truth) + excess

    size = float(np.log(np.linalg.norm(truth, axis=1).max() / np.linalg.norm(points, axis=1).max()))
    start = min(((turn, size) for turn in np.linspace(-MAX_TURN, MAX_TURN, 13)), key=error)
    simplex = np.array(start) + np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 0.05]])
    turn, log_scale = minimize(
        error, start, method="Nelder-Mead", options={"initial_simplex": simplex, "xatol": 1e-3}
    ).x
    return float(turn), float(np.exp(log_scale))


def surface_points(meshes: Sequence[Trimesh], num: int, seed: int = 0) -> Points:
    """Points on the outside of a union of closed meshes, evenly by area; up to `num`, as hidden ones are left out."""
    import open3d as o3d
    import trimesh

    index = np.repeat(np.arange(len(meshes)), [len(mesh.faces) for mesh in meshes])
    union = cast("Trimesh", trimesh.util.concatenate(list(meshes)))
    points, faces = trimesh.sample.sample_surface(union, num, seed=seed)[:2]
    probes = (points + 1e-3 * union.face_normals[faces]).astype(np.float32)
    visible = np.ones(len(points), bool)
    for i, mesh in enumerate(meshes):
        caster = _caster(mesh)
        inside = caster.compute_occupancy(o3d.core.Tensor(probes), nthreads=1).numpy() > 0
        visible &= ~inside | (index[faces] == i)
    return np.asarray(points)[visible]


def _caster(mesh: Trimesh):
    import open3d as o3d

    caster = o3d.t.geometry.RaycastingScene(nthreads=1)
    vertices = o3d.core.Tensor(np.asarray(mesh.vertices, np.float32))
    caster.add_triangles(vertices, o3d.core.Tensor(np.asarray(mesh.faces, np.uint32)))
    return caster


def render_textured(
    mesh: Trimesh, shot: Shot, size: int, supersample: int = 2
) -> tuple[Float[ndarray, "size size 3"], Float[ndarray, "size size"]]:
    """An unlit view of a textured mesh in the scene's axes, in front of white, and how much of each pixel it covers."""
    import open3d as o3d
    from trimesh.visual.color import uv_to_interpolated_color

    from db3d_nerfstudio.toybox.scene import camera_rays

    eye, directions = camera_rays(shot, size * supersample)
    rays = np.concatenate([np.broadcast_to(eye, directions.shape), directions], -1).astype(np.float32)
    hits = _caster(mesh).cast_rays(o3d.core.Tensor(rays), nthreads=1)
    hit = np.isfinite(hits["t_hit"].numpy())
    image = np.ones((*hit.shape, 3))
    visual = cast(Any, mesh.visual)  # Of a mesh with a texture.
    corners = visual.uv[mesh.faces[hits["primitive_ids"].numpy()[hit]]]
    u, v = hits["primitive_uvs"].numpy()[hit].T[:, :, None]
    uv = corners[:, 0] * (1 - u - v) + corners[:, 1] * u + corners[:, 2] * v
    image[hit] = uv_to_interpolated_color(uv, visual.material.to_simple().image)[:, :3] / 255
    pool = (size, supersample, size, supersample)
    return image.reshape(*pool, 3).mean((1, 3)), hit.astype(float).reshape(pool).mean((1, 3))


def compare(mesh: Trimesh, subject: Subject) -> tuple[ShapeFidelity, Float[ndarray, "h w 3"]]:
    """Fidelity of an exported textured mesh (y up), and a picture: the true views above those of the mesh.

    Raises:
        UserError: the mesh has no texture.
    """
    from db3d_nerfstudio.evaluation.metrics.fidelity import masked_psnr, silhouette_iou
    from db3d_nerfstudio.toybox.scene import Shot, Studio

    if mesh.visual is None or mesh.visual.kind != "texture":
        raise UserError("the mesh has no texture to compare: export it as glb or obj, not ply")
    truth = surface_points([part.mesh for part in subject.parts], NUM_POINTS)
    mesh = mesh.copy()
    mesh.vertices = mesh.vertices @ Y_UP
    points = surface_points([mesh], NUM_POINTS)
    turn, scale = align(points[::SKIP], truth[::SKIP])
    points, mesh.vertices = turned(points, turn, scale), turned(mesh.vertices, turn, scale)
    shots = [Shot(360 / NUM_VIEWS * i, ELEVATION, RADIUS, ambient=1.0) for i in range(NUM_VIEWS)]
    studio = Studio(subject)
    ours, theirs = [], []
    for shot in shots:
        ours.append(render_textured(mesh, shot, VIEW_SIZE))
        theirs.append(studio.render(shot, VIEW_SIZE))
    (images, masks), (true_images, true_masks) = (
        (torch.from_numpy(np.stack(part)).float() for part in zip(*views, strict=True)) for views in (ours, theirs)
    )
    both = ((masks > 0.999) & (true_masks > 0.999)).float()
    fidelity = ShapeFidelity(
        chamfer=chamfer_distance(points, truth),
        f_score=f_score(points, truth, F_SCORE_DISTANCE),
        silhouette_iou=float(silhouette_iou(masks, true_masks).mean()),
        texture_psnr=masked_psnr(images, true_images, both),
        turn=turn,
        scale=scale,
    )
    rows = [np.concatenate(list(part.numpy()), 1) for part in (true_images, images)]
    return fidelity, np.concatenate(rows)
