"""Photos of a subject: from camera, light and background to a picture, by ray casting (embree, through open3d).

The azimuth and elevation convention is that of `db3d_nerfstudio.cameras`: azimuth 0 looks at the front from +x.
"""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray
from numpy.random import Generator

from db3d_nerfstudio.toybox.shapes import TOY_RADIUS
from db3d_nerfstudio.toybox.subjects import Subject, surface_color

RESOLUTION = 64
FOV = 40.0
"""Vertical field of view of every toybox camera, degrees."""
RADIUS_RANGE = (2.8, 3.3)
"""Distances of the camera from the origin, scene units."""
CONTEXTS = {
    # words of the caption: (floor, wall or sky)
    "on grass": ((0.35, 0.62, 0.22), (0.55, 0.78, 0.95)),
    "on the beach": ((0.90, 0.80, 0.55), (0.45, 0.75, 0.95)),
    "in the snow": ((0.93, 0.95, 0.98), (0.66, 0.75, 0.85)),
    "on a table": ((0.55, 0.36, 0.20), (0.85, 0.80, 0.72)),
    "at night": ((0.08, 0.08, 0.13), (0.03, 0.04, 0.12)),
}


@dataclass(frozen=True)
class Shot:
    """Everything about a photo that is not the subject."""

    azimuth: float
    """Degrees; 0 faces the front."""
    elevation: float
    """Degrees above the horizon."""
    radius: float = 3.05
    """Distance of the camera from the origin, scene units."""
    light: tuple[float, float, float] | None = None
    """Direction to the light; None puts it at the camera."""
    ambient: float = 0.55
    """Share of ambient light, in [0, 1]."""
    context: str | None = None
    """A key of `CONTEXTS`; None gives a plain or two-tone background."""
    floor: tuple[float, float, float] = (1.0, 1.0, 1.0)
    wall: tuple[float, float, float] = field(default=(1.0, 1.0, 1.0))


def draw_shot(rng: Generator, azimuth: float | None = None, elevation: float | None = None) -> Shot:
    """A casual photo: any side, mostly from eye height, random light, plain, two-tone or named background."""
    if elevation is None:
        elevation = float(rng.uniform(-10, 60) if rng.random() < 0.82 else rng.uniform(60, 85))
    azimuth = float(rng.uniform(-180, 180)) if azimuth is None else azimuth
    light = None
    if rng.random() < 0.6:
        direction = rng.normal(size=3)
        light = tuple(direction / np.linalg.norm(direction) * np.sign(direction[2] or 1.0))
    kind = rng.random()
    context = str(rng.choice(list(CONTEXTS))) if kind < 0.18 else None
    if context is not None:
        floor, wall = (np.clip(np.array(c) + rng.normal(0, 0.04, 3), 0, 1) for c in CONTEXTS[context])
    elif kind < 0.33:
        floor, wall = rng.uniform(0, 1, 3), rng.uniform(0, 1, 3)
    else:
        gray = rng.random() < 0.45
        floor = wall = np.full(3, rng.choice((1.0, 1.0, rng.uniform(0, 1)))) if gray else rng.uniform(0, 1, 3)
    radius, ambient = float(rng.uniform(*RADIUS_RANGE)), float(rng.uniform(0.45, 0.75))
    return Shot(azimuth, elevation, radius, light, ambient, context, tuple(floor), tuple(wall))


def camera_rays(shot: Shot, size: int) -> tuple[Float[ndarray, "3"], Float[ndarray, "h w 3"]]:
    """Camera position and unit directions of the rays through the pixel centres, row 0 on top."""
    azimuth, elevation = np.radians(shot.azimuth), np.radians(shot.elevation)
    eye = np.array((np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)))
    right = np.array((-np.sin(azimuth), np.cos(azimuth), 0.0))
    up = np.cross(eye, right)
    grid = ((np.arange(size) + 0.5) / size * 2 - 1) * np.tan(np.radians(FOV) / 2)
    directions = -eye + grid[None, :, None] * right - grid[:, None, None] * up
    return shot.radius * eye, directions / np.linalg.norm(directions, axis=-1, keepdims=True)


def background(shot: Shot, eye: Float[ndarray, "3"], directions: Float[ndarray, "h w 3"]) -> Float[ndarray, "h w 3"]:
    """The wall, and below the toy a floor with a soft contact shadow."""
    image = np.broadcast_to(np.array(shot.wall), directions.shape).copy()
    if shot.floor == shot.wall:
        return image
    below = directions[..., 2] < -1e-3
    distance = (-TOY_RADIUS - eye[2]) / np.where(below, directions[..., 2], 1.0)
    point = eye + distance[..., None] * directions
    on_floor = below & (distance > 0) & (point[..., 0] ** 2 + point[..., 1] ** 2 < 64.0)
    shade = 1 - 0.35 * np.exp(-(point[..., :2] ** 2).sum(-1) / 0.5)
    image[on_floor] = (np.array(shot.floor) * shade[..., None])[on_floor]
    return image


class Studio:
    """A subject set up for ray casting; `photograph` it as often as you like."""

    def __init__(self, subject: Subject):
        import open3d as o3d

        self.subject = subject
        self._o3d = o3d
        self._caster = o3d.t.geometry.RaycastingScene(nthreads=1)
        for part in subject.parts:
            vertices = o3d.core.Tensor(np.asarray(part.mesh.vertices, np.float32))
            self._caster.add_triangles(vertices, o3d.core.Tensor(np.asarray(part.mesh.faces, np.uint32)))

    def _cast(self, shot: Shot, size: int):
        """The rays of a photo, and what each of them hits."""
        eye, directions = camera_rays(shot, size)
        rays = np.concatenate([np.broadcast_to(eye, directions.shape), directions], -1).astype(np.float32)
        return eye, directions, self._caster.cast_rays(self._o3d.core.Tensor(rays), nthreads=1)

    def main_share(self, shot: Shot, size: int = 32) -> float:
        """The share of the visible toy that has its main colour, in [0, 1]; 0 if nothing is visible."""
        ids = self._cast(shot, size)[2]["geometry_ids"].numpy()
        seen = ids[ids < len(self.subject.parts)]
        is_main = np.array([part.is_main for part in self.subject.parts])
        return float(is_main[seen].mean()) if len(seen) else 0.0

    def render(self, shot: Shot, size: int = RESOLUTION, supersample: int = 2):
        """The photo and the share of every pixel that the subject covers.

        Returns:
            rgb, Float[ndarray, "size size 3"] in [0, 1], and coverage, Float[ndarray, "size size"] in [0, 1].
        """
        eye, directions, hits = self._cast(shot, size * supersample)
        part_ids, depth = hits["geometry_ids"].numpy(), hits["t_hit"].numpy()
        hit = np.isfinite(depth)
        image = background(shot, eye, directions)
        if hit.any():
            points = eye + depth[hit][:, None] * directions[hit]
            normals = hits["primitive_normals"].numpy()[hit]
            image[hit] = self._shade(shot, part_ids[hit], points, normals, directions[hit], eye)
        pool = (size, supersample, size, supersample)
        return image.reshape(*pool, 3).mean((1, 3)), hit.astype(float).reshape(pool).mean((1, 3))

    def cut_out(self, shot: Shot, size: int = RESOLUTION) -> UInt8[ndarray, "size size 4"]:
        """The subject in front of nothing; at its edges in its own colour, however little of a pixel it covers."""
        rgb, coverage = self.render(shot, size)
        alpha = coverage[..., None]
        own = (rgb - (1 - alpha) * np.array(shot.wall)) / np.maximum(alpha, 1e-6)
        return (np.concatenate([np.where(alpha > 0, own, 0), alpha], -1).clip(0, 1) * 255).round().astype(np.uint8)

    def _shade(self, shot: Shot, part_ids, points, normals, directions, eye) -> Float[ndarray, "n 3"]:
        """Lambertian shading: albedo * (ambient + (1 - ambient) * max(0, n . l))."""
        albedo = np.empty_like(points)
        for index in np.unique(part_ids):
            mine = part_ids == index
            albedo[mine] = surface_color(self.subject.parts[int(index)], points[mine])
        normals = normals * -np.sign((normals * directions).sum(-1, keepdims=True) + 1e-9)
        light = eye / np.linalg.norm(eye) if shot.light is None else np.array(shot.light)
        diffuse = np.clip(normals @ light, 0, 1)[:, None]
        return albedo * (shot.ambient + (1 - shot.ambient) * diffuse)

    def photograph(self, shot: Shot, size: int = RESOLUTION) -> UInt8[ndarray, "size size 3"]:
        """The photo as 8-bit colours."""
        return (self.render(shot, size)[0].clip(0, 1) * 255).round().astype(np.uint8)
