"""A field's colours on a mesh: a UV atlas, and a texture baked into it. Pure functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

if TYPE_CHECKING:
    from trimesh import Trimesh

    from db3d_nerfstudio.nerf.field import GridField

CHUNK = 1 << 18
"""Points that are looked up in the field at a time."""


@dataclass(frozen=True)
class Atlas:
    """A mesh cut open along seams and laid out flat."""

    vertices: Int[ndarray, " v"]
    """Which vertex of the mesh each vertex of the atlas is; those on a seam occur more than once."""
    faces: Int[ndarray, "f 3"]
    """Triangles of atlas vertices, in the order of the mesh's faces."""
    uv: Float[ndarray, "v 2"]
    """Places in the texture, in [0, 1]; the origin is the lower left corner."""


def unwrap(mesh: Trimesh, size: int) -> Atlas:
    """The atlas of a mesh for a texture of `size` pixels, by xatlas, with two pixels between its charts."""
    import xatlas

    atlas, pack = xatlas.Atlas(), xatlas.PackOptions()
    pack.resolution, pack.padding = size, 2
    atlas.add_mesh(mesh.vertices.astype(np.float32), mesh.faces.astype(np.uint32))
    atlas.generate(pack_options=pack)
    vertices, faces, uv = atlas[0]
    return Atlas(vertices.astype(int), faces.astype(int), uv.astype(float))


def texel_points(
    mesh: Trimesh, atlas: Atlas, size: int
) -> tuple[Bool[ndarray, "size size"], Float[ndarray, "n 3"], Float[ndarray, "n 3"]]:
    """The points of the surface at the centres of the texels, found by casting a ray through every texel.

    Returns:
        Which texels show the surface, row 0 on top; for each of these, in reading order, the point and the normal
        there, both interpolated between the triangle's corners.
    """
    import open3d as o3d

    flat = np.pad(atlas.uv, ((0, 0), (0, 1))).astype(np.float32)
    caster = o3d.t.geometry.RaycastingScene(nthreads=1)
    caster.add_triangles(o3d.core.Tensor(flat), o3d.core.Tensor(atlas.faces.astype(np.uint32)))
    centres = (np.arange(size) + 0.5) / size
    rays = np.zeros((size, size, 6), np.float32)
    rays[..., 0], rays[..., 1], rays[..., 2], rays[..., 5] = centres[None], 1 - centres[:, None], 1.0, -1.0
    hits = caster.cast_rays(o3d.core.Tensor(rays), nthreads=1)
    covered = np.isfinite(hits["t_hit"].numpy())
    corners = atlas.vertices[atlas.faces[hits["primitive_ids"].numpy()[covered]]]
    u, v = hits["primitive_uvs"].numpy()[covered].T
    weights = np.stack([1 - u - v, u, v], -1)[..., None]
    points, normals = ((values[corners] * weights).sum(1) for values in (mesh.vertices, mesh.vertex_normals))
    return covered, points, normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-8)


@torch.no_grad()
def surface_albedo(
    density_and_albedo: Callable[[Float[Tensor, "n 3"]], tuple[Float[Tensor, " n"], Float[Tensor, "n 3"]]],
    points: Float[ndarray, "n 3"],
    normals: Float[ndarray, "n 3"],
    depth: float,
    num_samples: int = 5,
    device: torch.device | str = "cpu",
) -> Float[ndarray, "n 3"]:
    """The albedo that a ray perpendicular to the surface shows, by the weights of volume rendering.

    Right at the surface the field may be nearly empty, where its colour is untrained; so samples run from `depth`
    scene units outside to `depth` inside.
    """
    offsets = torch.linspace(depth, -depth, num_samples, device=device)
    step, colours = 2 * depth / (num_samples - 1), []
    for start in range(0, len(points), CHUNK):
        part = slice(start, start + CHUNK)
        where, out = (torch.from_numpy(np.ascontiguousarray(v[part])).float().to(device) for v in (points, normals))
        samples = where[:, None] + offsets[:, None] * out[:, None]
        density, albedo = density_and_albedo(samples.reshape(-1, 3))
        optical = density.view(-1, num_samples) * step
        light = torch.exp(optical - optical.cumsum(-1))
        # The last sample stands for all the matter behind it, and takes the light that is left.
        opacity = torch.cat([-torch.expm1(-optical[:, :-1]), torch.ones_like(optical[:, :1])], -1)
        colours.append(((light * opacity)[..., None] * albedo.view(-1, num_samples, 3)).sum(1).cpu())
    return torch.cat(colours).numpy()


def fill_gaps(image: Float[ndarray, "h w 3"], covered: Bool[ndarray, "h w"]) -> Float[ndarray, "h w 3"]:
    """Give every texel without surface the colour of the nearest one with, so that no seam bleeds at any zoom."""
    from scipy.ndimage import distance_transform_edt

    indices = distance_transform_edt(~covered, return_distances=False, return_indices=True)
    rows, columns = cast(ndarray, indices)
    return image[rows, columns]


def bake(mesh: Trimesh, field: GridField, size: int, depth: float) -> Trimesh:
    """The mesh with the field's colours as a texture, still in scene units; seams double the vertices on them.

    Args:
        mesh: A surface of the field, in scene units.
        size: Side of the texture, pixels.
        depth: Distance from the surface within which colours are sampled, scene units.
    """
    import trimesh
    from PIL import Image
    from trimesh.visual import TextureVisuals
    from trimesh.visual.material import PBRMaterial

    atlas = unwrap(mesh, size)
    covered, points, normals = texel_points(mesh, atlas, size)
    image = np.zeros((size, size, 3), np.float32)
    image[covered] = surface_albedo(field.density_and_albedo, points, normals, depth, device=device_of(field))
    pixels = (fill_gaps(image, covered).clip(0, 1) * 255).round().astype(np.uint8)
    material = PBRMaterial(
        name="albedo",
        baseColorTexture=Image.fromarray(pixels),
        baseColorFactor=(255, 255, 255, 255),
        metallicFactor=0.0,
        roughnessFactor=1.0,
    )
    return trimesh.Trimesh(
        mesh.vertices[atlas.vertices],
        atlas.faces,
        vertex_normals=mesh.vertex_normals[atlas.vertices],
        visual=TextureVisuals(uv=atlas.uv, material=material),
        process=False,
    )


def device_of(field: GridField) -> torch.device:
    """Where the field's parameters are; the CPU for a field that has none."""
    parameter = next(field.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device
