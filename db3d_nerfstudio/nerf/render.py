"""Volume rendering: colours, depth and normals as pure functions of field, sampler and rays."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor

from db3d_nerfstudio.nerf.field import GridField
from db3d_nerfstudio.nerf.occupancy import RADIUS, OccupancySampler, Samples

__all__ = ["Render", "VisibleNormals", "over", "render_rays"]


class VisibleNormals(NamedTuple):
    """Normals at the visible samples of a batch of rays."""

    normals: Float[Tensor, "m 3"]
    """Unit vectors out of the matter."""
    weights: Float[Tensor, " m"]
    """The samples' shares of their ray's light."""
    rays: Int[Tensor, " m"]
    """The ray of each sample."""


@dataclass(frozen=True)
class Render:
    """A batch of rays and their rendering: everything that a loss needs."""

    field: GridField
    rays: RayBundle
    samples: Samples
    weights: Float[Tensor, " s"]
    """Each sample's share of its ray's light."""
    colors: Float[Tensor, "n c"]
    """Composited colours in the sense of `field.colors`, in front of nothing."""
    accumulation: Float[Tensor, "n 1"]
    """Opacity of each ray."""
    distance: Float[Tensor, "n 1"]
    """Distances along the ray, composited like a colour."""
    normal_threshold: float = 0.0
    """Share of a ray's light above which the normal of a sample is computed."""
    lit: bool = False
    """Whether these views are shaded, so that there are normals anyway."""

    @cached_property
    def albedo(self) -> Float[Tensor, "n 3"]:
        """Red, green and blue in front of black."""
        return self.field.colors.to_rgb(self.colors, self.accumulation)

    @cached_property
    def depth(self) -> Float[Tensor, "n 1"]:
        """Mean distance to the matter. Empty rays end behind the scene, where TSDF fusion carves and adds no shell."""
        directions = self.rays.directions.norm(dim=-1, keepdim=True).clamp_min(1e-6)
        beyond = (self.rays.origins.norm(dim=-1, keepdim=True) + 1.5 * RADIUS) / directions
        return torch.where(self.accumulation > 0.5, self.distance / self.accumulation.clamp_min(1e-6), beyond)

    @cached_property
    def surface(self) -> Float[Tensor, "n 3"]:
        """The points at that depth."""
        return self.rays.origins + self.rays.directions * self.depth

    @cached_property
    def visible_normals(self) -> VisibleNormals:
        """Normals of the samples that weigh more than `normal_threshold`, with their gradients."""
        kept = (self.weights > self.normal_threshold).nonzero()[:, 0]
        normals = self.field.normals(self.samples.positions(self.rays)[kept])
        return VisibleNormals(normals, self.weights[kept], self.samples.rays[kept])

    @cached_property
    def normals(self) -> Float[Tensor, "n 3"]:
        """The unit normal of the surface that each ray hits, zero where it hits none."""
        normals, weights, rays = self.visible_normals
        summed = normals.new_zeros(self.samples.num_rays, 3).index_add(0, rays, weights[:, None] * normals)
        return summed / summed.square().sum(-1, keepdim=True).clamp_min(1e-8).sqrt()


def render_rays(field: GridField, sampler: OccupancySampler, rays: RayBundle, normal_threshold: float = 0.0) -> Render:
    """Render rays of the field."""
    samples = sampler.sample(rays)
    density, colors = field.density_and_colors(samples.positions(rays))
    weights = samples.render_weights(density)
    stacked = torch.cat([colors, torch.ones_like(colors[:, :1]), samples.mids[:, None]], -1)
    colors, accumulation, distance = samples.composite(weights, stacked).split([colors.shape[1], 1, 1], -1)
    return Render(field, rays, samples, weights, colors, accumulation, distance, normal_threshold)


def over(
    colors: Float[Tensor, "*n c"], accumulation: Float[Tensor, "*n 1"], background: Float[Tensor, "*m c"]
) -> Float[Tensor, "*n c"]:
    """Composited colours in front of a background."""
    return colors + (1 - accumulation) * background
