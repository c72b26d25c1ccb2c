"""Cameras around the unit sphere, and even orbits of them.

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

__all__ = ["Views", "image_rays", "look_at", "orbit_cameras", "spiral_cameras", "square_cameras", "wrap_degrees"]

GOLDEN_ANGLE = 180 * (3 - 5**0.5)
"""Degrees between neighbours on a spiral whose points are spread evenly."""

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
    return square_cameras(look_at(views, zeros, zeros, zeros), views, resolution), views


def spiral_cameras(
    num: int, elevations: tuple[float, float], radius: float, fov: float, resolution: int
) -> tuple[Cameras, Views]:
    """Places `num` square cameras evenly, in area, on the sphere between two elevations, on a spiral from below."""
    index = torch.arange(num, dtype=torch.float32)
    low, high = (math.sin(math.radians(bound)) for bound in elevations)
    views = Views(
        elevation=torch.rad2deg(torch.asin(low + (high - low) * (index + 0.5) / num)),
        azimuth=wrap_degrees(index * GOLDEN_ANGLE),
        radius=torch.full((num,), float(radius)),
        fov=torch.full((num,), float(fov)),
    )
    zeros = torch.zeros(num, 3)
    return square_cameras(look_at(views, zeros, zeros, zeros), views, resolution), views


def image_rays(cameras: Cameras) -> RayBundle:
    """Rays through every pixel of equally large cameras, flattened image-major to [b*h*w]."""
    num, height, width = len(cameras), int(cameras.height[0]), int(cameras.width[0])
    coords = cameras[0].get_image_coords().to(cameras.device)
    indices = torch.arange(num, device=cameras.device)[:, None, None, None].expand(num, height, width, 1)
    return cameras.generate_rays(camera_indices=indices, coords=coords.expand(num, height, width, 2)).flatten()


def look_at(
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


def square_cameras(poses: Float[Tensor, "b 3 4"], views: Views, resolution: int) -> Cameras:
    """Cameras at `poses` with the fields of view of `views`, whose images are `resolution` pixels wide and high."""
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
