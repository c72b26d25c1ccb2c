"""Views of an asset all round: its albedo, its shaded colours, and its shape shaded in white.

R-precision of the albedo is highest for the worst geometry (DreamFusion 2209.14988, table 2): report all three.
The albedo of a NeRF of latents is what the affine map in its checkpoint makes of z (`colors.py`), at any resolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from db3d_nerfstudio.cameras import Views, orbit_cameras
from db3d_nerfstudio.nerf.shading import Shading, Surface, shade

if TYPE_CHECKING:
    from nerfstudio.cameras.cameras import Cameras

    from db3d_nerfstudio.nerf.model import DreamBooth3DModel

NUM_VIEWS = 16
ELEVATION = 20.0
RADIUS = 3.05
FOV = 40.0
FIRST_AZIMUTH = 11.25
"""Half a step, so that no view lies on the border between two view words; degrees."""

Pictures = Float[Tensor, "v 3 h w"]


@dataclass(frozen=True)
class Renders:
    """An asset seen by the cameras of an orbit, in front of white."""

    albedo: Pictures
    """Its colours."""
    lambertian: Pictures
    """Its colours, lit from the camera."""
    textureless: Pictures
    """White, lit from the camera."""
    masks: Float[Tensor, "v h w"]
    """How opaque it is."""
    views: Views
    """Where the cameras stand."""


def evaluation_orbit(resolution: int, num_views: int = NUM_VIEWS) -> tuple[Cameras, Views]:
    """The cameras of the evaluation: even azimuths, one elevation, those of the toybox's photos."""
    return orbit_cameras(num_views, ELEVATION, RADIUS, FOV, resolution, FIRST_AZIMUTH)


@torch.no_grad()
def render_orbit(model: DreamBooth3DModel, resolution: int, num_views: int = NUM_VIEWS) -> Renders:
    """Views from the cameras of the evaluation; puts the model into evaluation mode."""
    model.eval()
    cameras, views = evaluation_orbit(resolution, num_views)
    parts = [_render(model, cameras[i : i + 1].to(model.device)) for i in range(len(cameras))]
    albedo, lambertian, textureless, masks = (torch.stack(part).cpu() for part in zip(*parts, strict=True))
    return Renders(albedo, lambertian, textureless, masks, views)


def _render(model: DreamBooth3DModel, camera: Cameras) -> tuple[Tensor, ...]:
    outputs = model.get_outputs_for_camera(camera)
    height, width = outputs["accumulation"].shape[:2]
    rays = camera.generate_rays(camera_indices=0)
    points = rays.origins + rays.directions * outputs["depth"]
    values = (outputs["albedo"], outputs["accumulation"], outputs["unit_normals"], points)
    surface = Surface(*(value.view(1, height * width, -1) for value in values))
    light = rays.origins.view(-1, 3)[:1]
    images = []
    for mode in (Shading.ALBEDO, Shading.LAMBERTIAN, Shading.TEXTURELESS):
        which = torch.tensor([int(mode)])
        colour = shade(model.config.shading, which, surface, light)
        image = (colour + 1 - surface.accumulation).view(height, width, 3)
        images.append(image.permute(2, 0, 1).clamp(0, 1))
    return *images, surface.accumulation.view(height, width)
