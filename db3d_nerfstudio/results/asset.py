"""An asset from elsewhere: a coloured mesh of any format that trimesh reads, placed in the scene, and its pictures.

Colours come from a texture, from the vertices, the faces or the material, and are shown unlit, as a NeRF's are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.results.mesh import Y_UP
from db3d_nerfstudio.results.raycast import Raycaster

if TYPE_CHECKING:
    from nerfstudio.cameras.cameras import Cameras
    from trimesh import Trimesh

Up = Literal["y", "z"]
ASSET_RADIUS = 0.95
"""Radius of the sphere around the origin that a placed asset touches from inside, scene units."""
MAX_FACES, MAX_BYTES = 5_000_000, 2 * 10**9
"""Embree takes about 200 bytes a face."""
DECIMATE = "simplify it in Blender or MeshLab"

Coloring = Callable[[Int[ndarray, " n"], Float[ndarray, "n 3"]], Float[ndarray, "n 3"]]
"""Colours in [0, 1] at points of faces, given by barycentric coordinates."""


@dataclass(frozen=True)
class Part:
    """A mesh of one material."""

    vertices: Float[ndarray, "v 3"]
    faces: Int[ndarray, "f 3"]
    color: Coloring


@dataclass(frozen=True)
class Asset:
    """A coloured thing in the axes of the scene."""

    parts: tuple[Part, ...]

    def turned(self, front: float) -> Asset:
        """The asset with what lies at azimuth `front`, in degrees, turned to the scene's front."""
        cos, sin = np.cos(np.radians(front)), np.sin(np.radians(front))
        turn = np.array([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]])
        return Asset(tuple(replace(part, vertices=part.vertices @ turn.T) for part in self.parts))


def read_asset(path: Path, up: Up = "y") -> Asset:
    """The asset in a file, upright, its bounding box centred at the origin, in the sphere of `ASSET_RADIUS`.

    Args:
        up: The axis that points up in the file; y in glTF and in most others of today.

    Raises:
        UserError: it is not a mesh, has no colours, or is too large.
    """
    meshes = [mesh for mesh in _load(path) if len(mesh.faces)]
    if not meshes:
        raise UserError(f"{path} has no triangles: export the asset as a mesh, such as GLB")
    number = sum(len(mesh.faces) for mesh in meshes)
    if number > MAX_FACES:
        raise UserError(f"{path} has {number:,} faces, more than {MAX_FACES:,}: {DECIMATE}")
    vertices = [np.asarray(mesh.vertices) @ (Y_UP if up == "y" else np.eye(3)) for mesh in meshes]
    low, high = np.min([v.min(0) for v in vertices], 0), np.max([v.max(0) for v in vertices], 0)
    centred = [v - (low + high) / 2 for v in vertices]
    radius = max(np.linalg.norm(v, axis=1).max() for v in centred)
    if not np.isfinite(radius) or radius == 0:
        raise UserError(f"{path} has no extent, or vertices that are not numbers: export it again")
    colorings = [_coloring(mesh) for mesh in meshes]
    known = [coloring for coloring in colorings if coloring is not None]
    if len(known) < len(meshes):
        raise UserError(
            f"{path} has {'no colours' if not known else 'parts without colours'}: export it with a texture, "
            "vertex colours or materials"
        )
    placed = zip(centred, meshes, known, strict=True)
    return Asset(tuple(Part(v * ASSET_RADIUS / radius, np.asarray(mesh.faces), color) for v, mesh, color in placed))


def _load(path: Path) -> list[Trimesh]:
    """The meshes of a file, where its scene puts them."""
    import trimesh
    from trimesh.exchange.load import mesh_formats

    if not path.is_file():
        raise UserError(f"{path} does not exist: give a mesh, such as a GLB")
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path} has {path.stat().st_size / 1e9:.1f} GB, more than {MAX_BYTES / 1e9:.0f}: {DECIMATE}")
    try:
        found = trimesh.load_scene(path).dump(concatenate=False)
    except Exception as error:  # Each reader of trimesh fails in its own way.
        kinds = ", ".join(sorted(mesh_formats()))
        raise UserError(f"{path} cannot be read as a mesh ({error}): export it as GLB; readable are {kinds}") from None
    return [mesh for mesh in found if isinstance(mesh, trimesh.Trimesh)]


def _coloring(mesh: Trimesh) -> Coloring | None:
    """Where a mesh has its colours from; None if it has none."""
    visual: Any = mesh.visual
    if visual.kind == "texture":
        return _textured(mesh)
    if visual.kind not in ("vertex", "face"):
        return None
    of_vertices = visual.kind == "vertex"
    colors = np.asarray(visual.vertex_colors if of_vertices else visual.face_colors)[:, :3] / 255
    faces = np.asarray(mesh.faces)
    if of_vertices:
        return lambda face, weights: (colors[faces[face]] * weights[..., None]).sum(1)
    return lambda face, weights: colors[face]


def _textured(mesh: Trimesh) -> Coloring | None:
    from trimesh.visual.color import uv_to_interpolated_color

    visual: Any = mesh.visual
    material = visual.material
    found = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
    factor = getattr(material, "baseColorFactor", None)
    tint = np.ones(3) if factor is None else np.asarray(factor)[:3] / 255
    if found is None or visual.uv is None:
        diffuse = getattr(material, "diffuse", None)
        plain = tint if diffuse is None else np.asarray(diffuse)[:3] / 255
        named = factor is not None or diffuse is not None
        return (lambda face, weights: np.broadcast_to(plain, (len(face), 3))) if named else None
    image, uv, faces = found.convert("RGB"), np.asarray(visual.uv), np.asarray(mesh.faces)

    def color(face: Int[ndarray, " n"], weights: Float[ndarray, "n 3"]) -> Float[ndarray, "n 3"]:
        places = (uv[faces[face]] * weights[..., None]).sum(1)
        return tint * uv_to_interpolated_color(places, image)[:, :3] / 255

    return color


def picture_asset(asset: Asset, cameras: Cameras, supersample: int = 2) -> Iterator[Float[Tensor, "4 h w"]]:
    """The asset seen by each camera: colours without background, and alpha; in [0, 1]."""
    caster = Raycaster([(part.vertices, part.faces) for part in asset.parts])
    for i in range(len(cameras)):
        hits = caster.look(cameras[i : i + 1].to("cpu"), supersample)
        colors = np.zeros((len(hits.face), 3))
        for index, part in enumerate(asset.parts):
            mine = hits.mesh == index
            colors[mine] = part.color(hits.face[mine], hits.weights[mine])
        fine = np.zeros((4, *hits.hit.shape))
        fine[:3, hits.hit], fine[3] = colors.T, hits.hit
        height, width = (side // supersample for side in hits.hit.shape)
        view = fine.reshape(4, height, supersample, width, supersample).mean((2, 4))
        view[:3] /= np.maximum(view[3:], 1e-6)
        yield torch.from_numpy(view).float().clamp(0, 1)
