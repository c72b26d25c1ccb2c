"""`db3d export RUN --refine-texture 200`: a mesh's texture, fitted to a run's pseudo views and led by its tuned guide.

A baked texture is as coarse as the NeRF. Here its texels are the parameters: rays through the pixels of a camera find
places in the texture, which are sampled bilinearly, so gradients of an image's loss reach the texels. Shape and places
are fixed; no differentiable rasteriser is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from db3d_nerfstudio.cameras import Views, spiral_cameras
from db3d_nerfstudio.results.posed_images import PosedImages
from db3d_nerfstudio.results.raycast import Raycaster
from db3d_nerfstudio.run.config import read_config

if TYPE_CHECKING:
    from nerfstudio.cameras.cameras import Cameras
    from nerfstudio.pipelines.base_pipeline import Pipeline
    from trimesh import Trimesh

    from db3d_nerfstudio.nerf.model import DreamBooth3DModel

LEARNING_RATE = 0.02
"""Of Adam, for colours in [0, 1]."""
NUM_GUIDED = 100
"""Views that the guide is asked about, in a random order."""

Texture = Float[Tensor, "1 3 t t"]


@dataclass(frozen=True)
class Footprint:
    """Where one camera sees the surface."""

    hit: Bool[Tensor, "h w"]
    """Which pixels show it."""
    places: Float[Tensor, "n 2"]
    """Of these, in reading order: the place in the texture, in [-1, 1], as `grid_sample` counts."""
    facing: Float[Tensor, " n"]
    """The cosine of the angle at which the surface is seen."""

    def colors(self, texture: Texture) -> Float[Tensor, "n 3"]:
        """The texture at these places, differentiably."""
        sampled = F.grid_sample(texture, self.places[None, None], padding_mode="border", align_corners=False)
        return sampled[0, :, 0].T

    def image(self, texture: Texture, background: Float[Tensor, " 3"]) -> Float[Tensor, "1 3 h w"]:
        """The textured mesh in front of a colour."""
        pixels = background.expand(*self.hit.shape, 3).clone()
        pixels[self.hit] = self.colors(texture)
        return pixels.permute(2, 0, 1)[None]


@dataclass(frozen=True)
class TextureGuidance:
    """Score distillation of views of the textured mesh."""

    loss: Callable[[Float[Tensor, "1 3 h w"], Views], Float[Tensor, ""]]
    """Weighted as beside the loss of the pseudo views."""
    cameras: Cameras
    """Of the views, of any size."""
    views: Views
    """Where they stand."""
    background: Float[Tensor, " 3"]


def tuned_guidance(run: Path, pipeline: Pipeline, weight: float) -> TextureGuidance:
    """Score distillation as at the end of a run's training: by D_multi, beside the loss of the pseudo views.

    Args:
        weight: A factor of its share in training.
    """
    model = cast("DreamBooth3DModel", pipeline.model)
    settings = cast(Any, read_config(run).pipeline)  # This package's own, of a layer above.
    tuned = [run / "dreambooth" / name for name in ("multiview", "partial")]
    distillation, config = model.distillation, model.config
    distillation.guide.load(next((path for path in tuned if path.exists()), None))
    distillation.identifier = settings.phases.identifier
    distillation.embed_prompts()
    share = weight * config.sds_loss_mult / config.recon_loss_mult

    def loss(image: Float[Tensor, "1 3 h w"], views: Views) -> Float[Tensor, ""]:
        return share * distillation.loss(image, views, 1.0, model.field.colors.encode)

    drawn = settings.datamanager.random_cameras
    radius, fov = sum(drawn.radius_range) / 2, sum(drawn.fov_range) / 2
    cameras, views = spiral_cameras(NUM_GUIDED, drawn.elevation_range, radius, fov, resolution=1)
    return TextureGuidance(loss, cameras, views, model.background.color(torch.device("cpu")))


def footprint(caster: Raycaster, mesh: Trimesh, camera: Cameras) -> Footprint:
    """What a camera sees of a mesh with a texture."""
    hits = caster.look(camera)
    corners = mesh.faces[hits.face]
    points = (mesh.vertices[corners] * hits.weights[..., None]).sum(1)
    back = camera.camera_to_worlds[0, :, 3].numpy() - points
    facing = (mesh.face_normals[hits.face] * back).sum(1) / np.linalg.norm(back, axis=1)
    uv = (cast(Any, mesh.visual).uv[corners] * hits.weights[..., None]).sum(1)
    places = np.stack([2 * uv[:, 0] - 1, 1 - 2 * uv[:, 1]], -1)  # v grows upwards, rows downwards.
    values = (hits.hit, places.astype(np.float32), np.abs(facing).astype(np.float32))
    return Footprint(*map(torch.from_numpy, values))


def refine_texture(
    mesh: Trimesh,
    views: PosedImages,
    steps: int,
    size: int,
    guidance: TextureGuidance | None = None,
    report: Callable[[int], None] = lambda step: None,
) -> Trimesh:
    """The mesh, in scene units, with its texture fitted to pictures of the subject.

    Pixels count by the squared cosine of the angle at which they see the surface: at its rim, a picture that is not
    aligned to the pixel shows the background. Absolute differences let the views outvote one that contradicts them.

    Args:
        views: Pictures of the subject; an alpha channel is not used.
        steps: Steps, each with one of the pictures and, if there is guidance, one random view.
        size: Side of the views in which mesh and pictures are compared, pixels.
        guidance: The guide's part.
        report: Called with the number of each step.
    """
    material = cast(Any, mesh.visual).material
    texture = torch.from_numpy(np.asarray(material.baseColorTexture.convert("RGB"), np.float32) / 255)
    texture = texture.permute(2, 0, 1)[None].contiguous().requires_grad_()
    caster = Raycaster([(np.asarray(mesh.vertices), np.asarray(mesh.faces))])
    cameras = _resized_cameras(views.cameras, size)
    seen = [footprint(caster, mesh, cameras[i : i + 1]) for i in range(len(cameras))]
    targets = [_resized(image, size)[part.hit] for image, part in zip(views.images, seen, strict=True)]
    optimizer = torch.optim.Adam([texture], lr=LEARNING_RATE)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(steps, generator=generator) % len(seen)
    for step, which in enumerate(order.tolist()):
        report(step)
        weights = seen[which].facing[:, None].square()
        loss = ((seen[which].colors(texture) - targets[which]).abs() * weights).sum() / (3 * weights.sum()).clamp_min(1)
        if guidance is not None:
            drawn = int(torch.randint(len(guidance.cameras), (1,), generator=generator))
            camera = _resized_cameras(guidance.cameras[drawn : drawn + 1], size)
            where = Views(*(value[drawn : drawn + 1] for value in vars(guidance.views).values()))
            loss = loss + guidance.loss(footprint(caster, mesh, camera).image(texture, guidance.background), where)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            texture.clamp_(0, 1)
    pixels = (texture.detach()[0].permute(1, 2, 0) * 255).round().byte().numpy()
    refined = mesh.copy()
    cast(Any, refined.visual).material.baseColorTexture = Image.fromarray(pixels)
    return refined


def _resized_cameras(cameras: Cameras, size: int) -> Cameras:
    """Cameras of square pictures with `size` pixels on a side."""
    resized = cameras.to("cpu")[:]
    resized.rescale_output_resolution(size / int(resized.width[0]))
    return resized


def _resized(image: Tensor, size: int) -> Float[Tensor, "size size 3"]:
    rgb = image[..., :3].permute(2, 0, 1)[None].float() / 255
    return F.interpolate(rgb, (size, size), mode="bilinear", antialias=True)[0].permute(1, 2, 0)
