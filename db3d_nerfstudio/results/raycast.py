"""Where the rays of cameras meet triangles: a rasteriser without a compiler, by Embree through open3d."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray

if TYPE_CHECKING:
    from nerfstudio.cameras.cameras import Cameras


class Hits(NamedTuple):
    """What the rays of a picture meet first; the n rays that meet something in reading order."""

    hit: Bool[ndarray, "h w"]
    """Which rays meet something."""
    mesh: Int[ndarray, " n"]
    """Index of the mesh."""
    face: Int[ndarray, " n"]
    """Index of its triangle."""
    weights: Float[ndarray, "n 3"]
    """Barycentric coordinates of the point, for the triangle's corners."""


class Raycaster:
    """Triangle meshes, set up once and seen by as many cameras as you like."""

    def __init__(self, meshes: Sequence[tuple[Float[ndarray, "_ 3"], Int[ndarray, "_ 3"]]]) -> None:
        """Args: `meshes` are vertices and triangles, in scene units."""
        import open3d as o3d

        self._tensor = o3d.core.Tensor
        self._scene = o3d.t.geometry.RaycastingScene(nthreads=1)
        for vertices, faces in meshes:
            corners = np.ascontiguousarray(vertices, np.float32), np.ascontiguousarray(faces, np.uint32)
            self._scene.add_triangles(*map(self._tensor, corners))

    def look(self, camera: Cameras, supersample: int = 1) -> Hits:
        """What one camera sees, by `supersample` rays along each side of a pixel."""
        height, width = int(camera.height[0]) * supersample, int(camera.width[0]) * supersample
        rows, columns = ((torch.arange(n) + 0.5) / supersample for n in (height, width))
        coords = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1)
        bundle = camera.generate_rays(camera_indices=torch.zeros(height, width, 1, dtype=torch.long), coords=coords)
        rays = torch.cat([bundle.origins, bundle.directions], -1).numpy()
        found = self._scene.cast_rays(self._tensor(rays), nthreads=1)
        hit = np.isfinite(found["t_hit"].numpy())
        mesh, face = (found[name].numpy()[hit].astype(int) for name in ("geometry_ids", "primitive_ids"))
        second, third = found["primitive_uvs"].numpy()[hit].T
        return Hits(hit, mesh, face, np.stack([1 - second - third, second, third], -1))
