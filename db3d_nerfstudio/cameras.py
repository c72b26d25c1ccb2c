"""Cameras around the unit sphere: DreamFusion's random views and even orbits (Poole et al. 2022, 2209.14988, A.2).

The world: z is up, +x is the subject's front, azimuth 0 looks at the front and grows counter-clockwise seen from +z.
All angles are in degrees, except inside functions of this file.
"""

import math
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.ranges import AngleInterval, FieldOfViewInterval, NonNegative, PositiveInterval, Share

__all__ = [
    "RandomCamerasConfig",
    "Views",
    "image_rays",
    "orbit_cameras",
    "random_cameras",
    "resolution_at",
    "wrap_degrees",
]

Degrees = TypeVar("Degrees", float, Tensor)


def wrap_degrees(angle: Degrees) -> Degrees:
    """The same angle in [-180, 180)."""
    return (angle + 180.0) % 360.0 - 180.0


@dataclass(frozen=True)
class Views:
    """The positions of a batch of cameras before jitter, which choose view-dependent prompts."""

    elevation: Float[Tensor, " b"]
    """Angle above the horizon, degrees."""
    azimuth: Float[Tensor, " b"]
    """Angle from the subject's front, degrees in [-180, 180)."""
    radius: Float[Tensor, " b"]
    """Distance from the origin, scene units."""
    fov: Float[Tensor, " b"]
    """Vertical field of view, degrees."""


@dataclass
class RandomCamerasConfig:
    """The distribution of random training views."""

    elevation_range: AngleInterval = (-10.0, 85.0)
    """Elevations, degrees above the horizon."""
    azimuth_range: AngleInterval = (-180.0, 180.0)
    """Azimuths, degrees from the subject's front."""
    radius_range: PositiveInterval = (2.8, 3.3)
    """Distances of the camera from the origin, scene units."""
    fov_range: FieldOfViewInterval = (40.0, 40.0)
    """Vertical fields of view, degrees."""
    uniform_sphere_prob: Share = 0.5
    """Share of the cameras placed uniformly in area on the sphere, instead of uniformly in elevation."""
    position_jitter: NonNegative = 0.1
    """Largest shift of the camera along each axis, scene units."""
    center_jitter: NonNegative = 0.05
    """Standard deviation of the point looked at, scene units along each axis."""
    up_jitter: NonNegative = 0.02
    """Standard deviation of the camera's up vector along each axis."""
    resolution: tuple[tuple[float, int], ...] = ((0.0, 32), (0.4, 64))
    """Sides of the views in pixels, each with the fraction of a phase from which it holds; rough shape needs few."""


def resolution_at(config: RandomCamerasConfig, progress: float) -> int:
    """Side of the random views in pixels when the fraction `progress` of a phase is done."""
    begun = [(start, side) for start, side in config.resolution if start <= progress]
    if not begun or min(side for _, side in config.resolution) < 1:
        raise UserError(
            "the views need a side of 1 pixel or more from the start of a phase on: "
            "set --pipeline.datamanager.random-cameras.resolution to pairs like 0 32 0.4 64"
        )
    return max(begun)[1]


def random_cameras(
    config: RandomCamerasConfig, num: int, resolution: int, generator: torch.Generator | None = None
) -> tuple[Cameras, Views]:
    """Draws `num` square cameras, each one independently, on the CPU."""
    views = Views(
        elevation=_random_elevation(config, num, generator),
        azimuth=_uniform(config.azimuth_range, num, generator),
        radius=_uniform(config.radius_range, num, generator),
        fov=_uniform(config.fov_range, num, generator),
    )
    jitter = [torch.rand(num, 3, generator=generator) * 2 - 1] + [
        torch.randn(num, 3, generator=generator) for _ in range(2)
    ]
    poses = _look_at(
        views,
        position_offset=jitter[0] * config.position_jitter,
        center=jitter[1] * config.center_jitter,
        up_offset=jitter[2] * config.up_jitter,
    )
    return _cameras(poses, views, resolution), views


def orbit_cameras(
    num: int, elevation: float, radius: float, fov: float, resolution: int, first_azimuth: float = 0.0
) -> tuple[Cameras, Views]:
    """Places `num` square cameras on a circle, at even azimuths from `first_azimuth` on; 0 is the subject's front."""
    azimuth = first_azimuth + torch.arange(num, dtype=torch.float32) * (360.0 / num)
    views = Views(
        elevation=torch.full((num,), float(elevation)),
        azimuth=wrap_degrees(azimuth),
        radius=torch.full((num,), float(radius)),
        fov=torch.full((num,), float(fov)),
    )
    zeros = torch.zeros(num, 3)
    return _cameras(_look_at(views, zeros, zeros, zeros), views, resolution), views


def image_rays(cameras: Cameras) -> RayBundle:
    """Rays through every pixel of equally large cameras, flattened image-major to [b*h*w]."""
    num, height, width = len(cameras), int(cameras.height[0]), int(cameras.width[0])
    coords = cameras[0].get_image_coords().to(cameras.device)
    indices = torch.arange(num, device=cameras.device)[:, None, None, None].expand(num, height, width, 1)
    return cameras.generate_rays(camera_indices=indices, coords=coords.expand(num, height, width, 2)).flatten()


def _uniform(bounds: tuple[float, float], num: int, generator: torch.Generator | None) -> Float[Tensor, " b"]:
    low, high = bounds
    return low + (high - low) * torch.rand(num, generator=generator)


def _random_elevation(config: RandomCamerasConfig, num: int, generator: torch.Generator | None) -> Float[Tensor, " b"]:
    """Mixes elevations uniform in angle with ones uniform in area, whose sines are uniform (Archimedes)."""
    in_angle = _uniform(config.elevation_range, num, generator)
    low, high = (math.sin(math.radians(bound)) for bound in config.elevation_range)
    in_area = torch.rad2deg(torch.asin(_uniform((low, high), num, generator)))
    return torch.where(torch.rand(num, generator=generator) < config.uniform_sphere_prob, in_area, in_angle)


def _look_at(
    views: Views,
    position_offset: Float[Tensor, "b 3"],
    center: Float[Tensor, "b 3"],
    up_offset: Float[Tensor, "b 3"],
) -> Float[Tensor, "b 3 4"]:
    """Camera-to-world matrices in OpenGL's convention: x right, y up, looking along -z.

    The up vector starts from the sphere's tangent towards the pole; without jitter this gives the same picture as the
    world's z axis, and it is still defined for a camera right above the subject.
    """
    elevation, azimuth = torch.deg2rad(views.elevation), torch.deg2rad(views.azimuth)
    sin_e, cos_e, sin_a, cos_a = elevation.sin(), elevation.cos(), azimuth.sin(), azimuth.cos()
    position = torch.stack([cos_e * cos_a, cos_e * sin_a, sin_e], -1) * views.radius[:, None] + position_offset
    up = torch.stack([-sin_e * cos_a, -sin_e * sin_a, cos_e], -1) + up_offset
    back = torch.nn.functional.normalize(position - center, dim=-1)
    right = torch.nn.functional.normalize(torch.linalg.cross(up, back), dim=-1)
    return torch.stack([right, torch.linalg.cross(back, right), back, position], -1)


def _cameras(poses: Float[Tensor, "b 3 4"], views: Views, resolution: int) -> Cameras:
    focal = 0.5 * resolution / torch.tan(torch.deg2rad(views.fov) / 2)
    return Cameras(
        camera_to_worlds=poses,
        fx=focal[:, None],
        fy=focal[:, None],
        cx=resolution / 2,
        cy=resolution / 2,
        width=resolution,
        height=resolution,
        camera_type=CameraType.PERSPECTIVE,
    )
