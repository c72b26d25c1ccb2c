"""Random point lights and DreamFusion's three ways to shade (Poole et al. 2022, arXiv 2209.14988, section 3.2 and A.2).

Shading is deferred: it works on composited rays. nerfstudio's `LambertianShader` has no ambient light and one direction
for all rays, so it is not used.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from db3d_nerfstudio.ranges import NonNegative, PositiveInterval, Share

__all__ = ["Shading", "ShadingConfig", "Surface", "draw_shading", "sample_light", "shade"]


class Shading(IntEnum):
    """How a view is shaded."""

    ALBEDO = 0
    """The colours themselves."""
    LAMBERTIAN = 1
    """Colours lit by a point light and ambient light."""
    TEXTURELESS = 2
    """The same light on white, so that shape cannot hide behind paint."""


@dataclass
class ShadingConfig:
    """Shading of guided views. Reconstruction and evaluation use the albedo."""

    warmup: Share = 0.2
    """Fraction of a phase during which views show only the albedo."""
    lambertian_prob: Share = 0.75
    """Share of views that are lit after the warm-up."""
    textureless_prob: Share = 0.5
    """Share of the lit views that are textureless."""
    ambient: NonNegative = 0.1
    """Ambient light."""
    diffuse: NonNegative = 0.9
    """Intensity of the point light on a surface that faces it."""
    light_distance: PositiveInterval = (0.8, 1.5)
    """Distances of the point light from the origin, scene units."""
    light_jitter: NonNegative = 1.0
    """Standard deviation of the light's direction around the camera, scene units at the camera's distance."""


def draw_shading(
    config: ShadingConfig, num: int, progress: float, generator: torch.Generator | None = None
) -> Int[Tensor, " b"]:
    """The `Shading` of each view, as a pure function of `progress` and the random numbers."""
    lit, textureless = torch.rand(2, num, generator=generator)
    if progress < config.warmup:
        return torch.full((num,), int(Shading.ALBEDO))
    shading = torch.where(textureless < config.textureless_prob, int(Shading.TEXTURELESS), int(Shading.LAMBERTIAN))
    return torch.where(lit < config.lambertian_prob, shading, int(Shading.ALBEDO))


def sample_light(
    config: ShadingConfig, cameras: Float[Tensor, "b 3"], generator: torch.Generator | None = None
) -> Float[Tensor, "b 3"]:
    """Positions of point lights: towards N(camera, jitter^2), at a distance of their own."""
    noise = torch.randn(cameras.shape, generator=generator).to(cameras)
    low, high = config.light_distance
    distance = low + (high - low) * torch.rand(len(cameras), 1, generator=generator).to(cameras)
    return F.normalize(cameras + config.light_jitter * noise, dim=-1) * distance


class Surface(NamedTuple):
    """The composited rays of some views."""

    albedo: Float[Tensor, "b n 3"]
    """Colours in front of black, that is, multiplied by the accumulation."""
    accumulation: Float[Tensor, "b n 1"]
    """Opacity of each ray."""
    normals: Float[Tensor, "b n 3"]
    """Unit vectors; any vector where the ray hits nothing."""
    positions: Float[Tensor, "b n 3"]
    """Positions of the surface."""


def shade(
    config: ShadingConfig, shading: Int[Tensor, " b"], surface: Surface, light: Float[Tensor, "b 3"]
) -> Float[Tensor, "b n 3"]:
    """Colours in front of black, `albedo * (ambient + diffuse * max(0, n . l))`, of every ray of every view.

    Args:
        shading: The `Shading` of each view.
        light: The position of each view's point light.
    """
    direction = F.normalize(light[:, None] - surface.positions, dim=-1)
    facing = (surface.normals * direction).sum(-1, keepdim=True).clamp_min(0)
    lit = config.ambient + config.diffuse * facing
    mode = shading.to(surface.albedo.device)[:, None, None]
    colour = torch.where(mode == Shading.TEXTURELESS, surface.accumulation, surface.albedo)
    return torch.where(mode == Shading.ALBEDO, surface.albedo, colour * lit)
