"""DreamFusion's random training views (Poole et al. 2022, 2209.14988, A.2)."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor

from db3d_nerfstudio.cameras import Views, look_at, square_cameras
from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.ranges import AngleInterval, FieldOfViewInterval, NonNegative, PositiveInterval, Share


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
    poses = look_at(
        views,
        position_offset=jitter[0] * config.position_jitter,
        center=jitter[1] * config.center_jitter,
        up_offset=jitter[2] * config.up_jitter,
    )
    return square_cameras(poses, views, resolution), views


def _uniform(bounds: tuple[float, float], num: int, generator: torch.Generator | None) -> Float[Tensor, " b"]:
    low, high = bounds
    return low + (high - low) * torch.rand(num, generator=generator)


def _random_elevation(config: RandomCamerasConfig, num: int, generator: torch.Generator | None) -> Float[Tensor, " b"]:
    """Mixes elevations uniform in angle with ones uniform in area, whose sines are uniform (Archimedes)."""
    in_angle = _uniform(config.elevation_range, num, generator)
    low, high = (math.sin(math.radians(bound)) for bound in config.elevation_range)
    in_area = torch.rad2deg(torch.asin(_uniform((low, high), num, generator)))
    return torch.where(torch.rand(num, generator=generator) < config.uniform_sphere_prob, in_area, in_angle)
