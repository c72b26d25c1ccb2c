"""Where rays are sampled: inside the unit sphere, and there only in occupied space (instant NGP, 2201.05989, E.2).

Samples are packed: one flat list over all rays, in order along each ray. That is the layout of nerfacc, whose
`OccGridEstimator` holds the occupancy. Its traversal and its packed rendering are CUDA kernels that do not compile for
current releases of torch, so the grid is looked up here, in plain torch, on every device.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from nerfacc import OccGridEstimator
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.configs.base_config import InstantiateConfig
from torch import Tensor, nn
from torch.nn import functional as F

from db3d_nerfstudio.ranges import Count, NonNegative, Share

__all__ = ["OccupancySampler", "OccupancySamplerConfig", "Samples", "intersect_sphere"]

RADIUS = 1.0
"""The scene is the unit sphere."""


@dataclass(frozen=True)
class Samples:
    """Intervals along rays, flat and sorted by ray and distance."""

    rays: Int[Tensor, " s"]
    """The ray of each interval."""
    starts: Float[Tensor, " s"]
    """Distance from the ray's origin to the interval's near end, in units of the ray's direction."""
    ends: Float[Tensor, " s"]
    """Distance to the far end."""
    num_rays: int
    """Number of rays, including those without samples."""

    @functools.cached_property
    def mids(self) -> Float[Tensor, " s"]:
        """Distance to the middle, where the field is evaluated."""
        return (self.starts + self.ends) / 2

    @functools.cached_property
    def first(self) -> Int[Tensor, " s"]:
        """Index of the first sample of each sample's ray."""
        counts = torch.bincount(self.rays, minlength=self.num_rays)
        return (counts.cumsum(0) - counts)[self.rays]

    def positions(self, rays: RayBundle) -> Float[Tensor, "s 3"]:
        """Positions of the middles, scene units."""
        origins, directions = (values.index_select(0, self.rays) for values in (rays.origins, rays.directions))
        return torch.addcmul(origins, directions, self.mids[:, None])

    def exclusive_sum(self, values: Float[Tensor, " s"]) -> Float[Tensor, " s"]:
        """Sum of the values in front of each sample on its ray.

        One running sum over all rays, minus its value where the ray begins; in double precision, because what counts
        is the difference of two large sums. Flat, because CUDA scans columns one after another.
        """
        values = values.double()
        running = values.cumsum(0) - values
        return (running - running.index_select(0, self.first)).float()

    def render_weights(self, density: Float[Tensor, " s"]) -> Float[Tensor, " s"]:
        """Quadrature of volume rendering, `w_i = T_i (1 - exp(-sigma_i delta_i))` with `T_i` the light that is left."""
        optical_depth = density * (self.ends - self.starts)
        return torch.exp(-self.exclusive_sum(optical_depth)) * -torch.expm1(-optical_depth)

    def composite(self, weights: Float[Tensor, " s"], values: Float[Tensor, "s c"]) -> Float[Tensor, "n c"]:
        """Weighted sum over each ray."""
        return values.new_zeros(self.num_rays, values.shape[1]).index_add(0, self.rays, weights[:, None] * values)


def intersect_sphere(rays: RayBundle) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """The distances at which rays enter and leave the scene, in front of the camera and within the rays' own limits.

    Rays that miss have `near >= far`. Directions need not be of unit length.
    """
    squared = rays.directions.square().sum(-1).clamp_min(1e-12)
    middle = -(rays.origins * rays.directions).sum(-1) / squared
    closest = rays.origins + middle[:, None] * rays.directions
    half = ((RADIUS**2 - closest.square().sum(-1)) / squared).clamp_min(0).sqrt()
    near, far = (middle - half).clamp_min(0), middle + half
    if rays.nears is not None and rays.fars is not None:
        near, far = torch.maximum(near, rays.nears[:, 0]), torch.minimum(far, rays.fars[:, 0])
    return near, far


@dataclass
class OccupancySamplerConfig(InstantiateConfig):
    """Empty-space skipping."""

    _target: type = field(default_factory=lambda: OccupancySampler)
    num_samples: Count = 64
    """Samples along a diameter of the scene; the step between samples is the diameter over this."""
    resolution: Count = 48
    """Edge length of the occupancy grid in cells."""
    threshold: NonNegative = 0.02
    """Opacity of one step above which a cell is occupied, or the mean over all cells if that is less."""
    decay: Share = 0.9
    """Share of a cell's remembered density that is left after each update."""
    update_every: Count = 16
    """Steps between updates."""


class OccupancySampler(nn.Module):
    """Samples rays only in the occupied cells of a grid, which is part of the checkpoint."""

    updates: Int[Tensor, ""]

    def __init__(self, config: OccupancySamplerConfig) -> None:
        super().__init__()
        self.config = config
        self.grid = OccGridEstimator(torch.tensor([-RADIUS] * 3 + [RADIUS] * 3), resolution=config.resolution)
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self.reset()

    @property
    def step_size(self) -> float:
        """Length of an interval, scene units."""
        return 2 * RADIUS / self.config.num_samples

    def reset(self) -> None:
        """Forget the scene: all of space is occupied until the next update."""
        self.updates.zero_()
        cast(Tensor, self.grid.occs).zero_()
        self.grid.binaries.fill_(True)

    @torch.no_grad()
    def sample(self, rays: RayBundle) -> Samples:
        """Intervals in occupied cells, without gradient; shifted at random along each ray in training."""
        near, far = intersect_sphere(rays)
        step = (self.step_size / rays.directions.norm(dim=-1).clamp_min(1e-6))[:, None]
        shift = torch.rand_like(step) if self.training else torch.ones_like(step)
        index = torch.arange(self.config.num_samples + 1, device=near.device)
        # With a random shift the first interval is a partial one, without it has no length.
        starts = torch.addcmul(near[:, None], index - shift, step)
        ends = torch.minimum(starts + step, far[:, None])
        starts = torch.maximum(starts, near[:, None])
        kept = self._occupied(rays, (starts + ends) / 2).logical_and_(ends > starts).view(-1).nonzero()[:, 0]
        which = kept.div(len(index), rounding_mode="floor")
        return Samples(which, starts.view(-1)[kept], ends.view(-1)[kept], len(near))

    def _occupied(self, rays: RayBundle, distances: Float[Tensor, "n k"]) -> Bool[Tensor, "n k"]:
        """Whether the cells at these distances along the rays are occupied."""
        size = self.config.resolution
        flat = torch.zeros_like(distances, dtype=torch.int)
        for origin, direction in zip(rays.origins.T, rays.directions.T, strict=True):
            scaled = (origin[:, None] / RADIUS + 1) * (size / 2), direction[:, None] * (size / 2 / RADIUS)
            flat.mul_(size).add_(torch.addcmul(scaled[0], scaled[1], distances).int().clamp_(0, size - 1))
        return self.grid.binaries.view(-1).index_select(0, flat.view(-1)).view(distances.shape)

    @torch.no_grad()
    def update(self, step: int, density: Callable[[Float[Tensor, "n 3"]], Float[Tensor, " n"]]) -> None:
        """Update the grid, at every `update_every`-th step."""
        if step % self.config.update_every:
            return
        # nerfacc looks at all cells during its warm-up, later at a random quarter and at the occupied ones.
        self.grid._update(
            step=int(self.updates),
            occ_eval_fn=lambda positions: density(positions)[:, None] * self.step_size,
            occ_thre=self.config.threshold,
            ema_decay=self.config.decay,
            warmup_steps=16,
        )
        # One cell more on every side, so that matter can grow.
        self.grid.binaries = F.max_pool3d(self.grid.binaries.float()[None], 3, stride=1, padding=1)[0] > 0
        self.updates += 1
