"""The NeRF: rays to outputs, deterministically but for the jitter of training samples; a batch to losses.

The batch decides the loss. A rendering is compared with the pixels of a pseudo view; without pixels (a random camera)
it is lit, put in front of a background and passed to score distillation. Light, shading and background are drawn in the
loss, so that viewer, evaluation and exporters see a plain renderer.
"""

import dataclasses
from typing import Any

import torch
import tyro
from jaxtyping import Float, Int
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.configs.config_utils import to_immutable_dict
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.models.base_model import Model, ModelConfig
from torch import Tensor
from torch.nn import Parameter
from torch.nn import functional as F

from db3d_nerfstudio.diffusion.sds import Distillation, SDSConfig
from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.guides.base import DiffusionGuideConfig
from db3d_nerfstudio.nerf.background import BackgroundConfig
from db3d_nerfstudio.nerf.checks import check_finite, check_not_empty
from db3d_nerfstudio.nerf.field import GridField, GridFieldConfig
from db3d_nerfstudio.nerf.losses import LossWeights
from db3d_nerfstudio.nerf.occupancy import OccupancySampler, OccupancySamplerConfig
from db3d_nerfstudio.nerf.render import Render, over, render_rays
from db3d_nerfstudio.nerf.shading import Shading, ShadingConfig, Surface, draw_shading, sample_light, shade
from db3d_nerfstudio.ranges import Count, NonNegative, Share

MAX_EMPTY_RENDERS = 20
"""How often in a row an exporter may ask for opaque pixels in vain."""


@dataclasses.dataclass
class DreamBooth3DModelConfig(ModelConfig):
    """The NeRF, its losses and its guide."""

    _target: type = dataclasses.field(default_factory=lambda: DreamBooth3DModel)
    # nerfstudio's, without a use here: rays are clipped to the unit sphere, and losses have weights of their own.
    enable_collider: tyro.conf.Suppress[bool] = False
    collider_params: tyro.conf.Suppress[dict[str, float] | None] = None
    loss_coefficients: tyro.conf.Suppress[dict[str, float]] = to_immutable_dict({})
    eval_num_rays_per_chunk: Count = 16384
    """Number of rays rendered at a time outside training."""
    guide: DiffusionGuideConfig = dataclasses.field(default_factory=DiffusionGuideConfig)
    """The text-to-image diffusion model."""
    sds: SDSConfig = dataclasses.field(default_factory=SDSConfig)
    """Score distillation."""
    field: GridFieldConfig = dataclasses.field(default_factory=GridFieldConfig)
    """Density and colour over space."""
    sampler: OccupancySamplerConfig = dataclasses.field(default_factory=OccupancySamplerConfig)
    """Empty-space skipping."""
    shading: ShadingConfig = dataclasses.field(default_factory=ShadingConfig)
    """Lights and shading of guided views."""
    background: BackgroundConfig = dataclasses.field(default_factory=BackgroundConfig)
    """What lies behind the object."""
    normal_weight_threshold: Share = 0.01
    """Share of a ray's light above which a sample's normal is computed in training."""
    sds_loss_mult: NonNegative = 0.01
    """Weight of score distillation."""
    recon_loss_mult: NonNegative = 10.0
    """Weight of reconstruction: the mean absolute difference from the colours of pseudo views."""
    perceptual_loss_mult: NonNegative = 0.0
    """Weight of a perceptual term beside it: the mean absolute difference of the guide's z. If it is not 0, pseudo
    views and photos are reconstructed one by one, and not pixels of all."""
    losses: LossWeights = dataclasses.field(default_factory=LossWeights)
    """Weights of the regularisers."""


class DreamBooth3DModel(Model):
    """A NeRF in the unit sphere, guided by a diffusion model that is not part of it."""

    config: DreamBooth3DModelConfig
    field: GridField
    sampler: OccupancySampler

    def populate_modules(self) -> None:
        super().populate_modules()
        config = self.config
        if config.field.latent_channels is not None and config.shading.lambertian_prob > 0:
            raise UserError("a guide's z cannot be shaded: set --pipeline.model.shading.lambertian-prob 0")
        self.field = config.field.setup()
        self.sampler = config.sampler.setup()
        self.background = config.background.setup(colors=self.field.colors.channels)
        self.distillation = Distillation(
            config.sds, config.prompt or "", lambda: config.guide.setup(device=self.device)
        )
        self._progress = 0.0
        self._empty_renders = 0

    def set_progress(self, progress: float) -> None:
        """Set the fraction of the present phase that is done; every schedule is a function of it."""
        self._progress = progress

    @torch.no_grad()
    def reset_field(self) -> None:
        """Start a second NeRF in the same Parameters, which the optimizers hold."""
        channels = self.field.colors.channels
        fresh = self.config.field.setup(), self.config.background.setup(colors=channels)
        for module, start in zip((self.field, self.background), fresh, strict=True):
            for parameter, value in zip(module.parameters(), start.parameters(), strict=True):
                parameter.copy_(value)
        self.sampler.reset()

    def get_param_groups(self) -> dict[str, list[Parameter]]:
        field, background = self.field.param_groups(), self.background.param_groups()
        return {name: parameters + background.get(name, []) for name, parameters in field.items()}

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> list[TrainingCallback]:
        # After and not before the iteration: by then the step's random numbers have been seeded.
        after = [TrainingCallbackLocation.AFTER_TRAIN_ITERATION]
        return [TrainingCallback(after, self._after_step, update_every_num_iters=1)]

    def _after_step(self, step: int) -> None:
        check_finite([*self.field.parameters(), *self.background.parameters()])
        self.sampler.update(step, self.field.density)

    # Rendering.

    def get_outputs(self, ray_bundle: RayBundle) -> dict[str, Tensor | Render]:
        threshold = self.config.normal_weight_threshold if self.training else 0.0
        render = render_rays(self.field, self.sampler, ray_bundle, threshold)
        albedo, accumulation = render.albedo, render.accumulation
        behind = self.background.color(albedo.device)
        outputs: dict[str, Tensor | Render] = {
            "rgb": over(albedo, accumulation, behind),
            "accumulation": accumulation,
            "depth": render.depth,
            "albedo": albedo,
        }
        if self.training:
            return outputs | {"render": render}
        return outputs | {
            "shaded": over(self._lit_from_the_camera(render), accumulation, behind).clamp(0, 1),
            "normals": (render.normals * accumulation + 1) / 2,  # A picture, grey where there is nothing.
            "unit_normals": render.normals,
        }

    def _lit_from_the_camera(self, render: Render) -> Float[Tensor, "n 3"]:
        """Lambertian shading by a light at every ray's own origin: nothing is drawn at random outside of guidance."""
        shading = torch.full((len(render.albedo),), int(Shading.LAMBERTIAN))
        values = (render.albedo, render.accumulation, render.normals, render.surface)
        surface = Surface(*(value[:, None] for value in values))
        return shade(self.config.shading, shading, surface, render.rays.origins)[:, 0]

    # Losses.

    def get_loss_dict(self, outputs: dict, batch: dict, metrics_dict: dict | None = None) -> dict[str, Tensor]:
        if not self.training:  # nerfstudio's evaluation of pixels: there is nothing to regularise.
            return self._reconstruction(outputs, batch)
        render: Render = outputs["render"]
        check_not_empty(render)
        if "image" in batch:
            losses = self.config.losses.weighted(render, self._progress)
            return losses | self._reconstruction(outputs, batch)
        shading = draw_shading(self.config.shading, batch["image_shape"][0], self._progress)
        render = dataclasses.replace(render, lit=bool((shading != Shading.ALBEDO).any()))
        losses = self.config.losses.weighted(render, self._progress)
        image = self._guided_image(render, shading, batch["image_shape"])
        sds_loss = self.distillation.loss(image, batch["views"], self._progress, self.field.colors.encode)
        return losses | {"sds_loss": self.config.sds_loss_mult * sds_loss}

    def _reconstruction(self, outputs: dict, batch: dict) -> dict[str, Tensor]:
        """Differences from the pixels, which are compared in front of random colours if they have an alpha channel, and
        from the whole picture if they are one.
        """
        image, rgb, shape = batch["image"].to(outputs["rgb"]), outputs["rgb"], batch.get("picture_shape")
        if image.shape[-1] == 4:
            drawn = image[:, :3] if shape is None else image[:1, :3]  # A whole picture has one colour behind it.
            background = torch.rand_like(drawn).expand(len(image), 3)
            rgb = over(outputs["albedo"], outputs["accumulation"], background)
            image = _flattened(image, background)
        losses = {"recon_loss": self.config.recon_loss_mult * F.l1_loss(rgb, image)}
        if self.training and shape is not None and self.config.perceptual_loss_mult > 0:
            pair = (pixels.view(1, *shape, 3).permute(0, 3, 1, 2) for pixels in (rgb, image))
            losses["perceptual_loss"] = self.config.perceptual_loss_mult * self._perceptual_distance(*pair)
        return losses

    def _perceptual_distance(
        self, render: Float[Tensor, "1 3 h w"], picture: Float[Tensor, "1 3 h w"]
    ) -> Float[Tensor, ""]:
        guide = self.distillation.guide
        with torch.no_grad():
            z = guide.encode(picture.to(guide.device))
        return F.l1_loss(guide.encode(render.to(guide.device)), z).to(render.device)

    def _guided_image(
        self, render: Render, shading: Int[Tensor, " b"], image_shape: tuple[int, int, int]
    ) -> Float[Tensor, "b c h w"]:
        """The images for score distillation: the views, lit as drawn, each in front of a background of its own."""
        num, height, width = image_shape
        colors = render.colors.view(num, height * width, -1)
        accumulation = render.accumulation.view(num, -1, 1)
        if render.lit:
            normals, positions = (value.view(num, -1, 3) for value in (render.normals, render.surface.detach()))
            light = sample_light(self.config.shading, render.rays.origins.view(num, -1, 3)[:, 0])
            colors = shade(self.config.shading, shading, Surface(colors, accumulation, normals, positions), light)
        background = self.background.draw(render.rays.directions.view(num, -1, 3), self.field.colors)
        return over(colors, accumulation, background).view(num, height, width, -1).permute(0, 3, 1, 2)

    # Evaluation.

    @torch.no_grad()
    def get_metrics_dict(self, outputs: dict, batch: dict) -> dict[str, Tensor]:
        metrics = {"accumulation": outputs["accumulation"].mean()}
        if "render" in outputs:
            metrics["samples_per_ray"] = torch.tensor(len(outputs["render"].samples.rays) / len(outputs["rgb"]))
        if "image" in batch:
            rgb = outputs["rgb"]
            metrics["psnr"] = _psnr(rgb, _flattened(batch["image"].to(rgb), self.background.color(rgb.device)))
        return metrics

    def get_rgba_image(self, outputs: dict[str, Tensor], output_name: str = "rgb") -> Float[Tensor, "*n 4"]:
        """Colours without the background, and true alpha.

        Point cloud exporters render until they have enough opaque pixels, which in an empty scene never ends.
        """
        alpha = outputs["accumulation"]
        opaque = bool((alpha > 0.5).any())
        self._empty_renders = 0 if opaque else self._empty_renders + 1
        if self._empty_renders > MAX_EMPTY_RENDERS:
            raise RuntimeError(
                f"The scene is empty: none of {MAX_EMPTY_RENDERS} renderings had an opaque pixel. Look at it in "
                "ns-viewer, and train again with another seed or a lower --pipeline.model.losses.opacity."
            )
        rgb = outputs[output_name] - (1 - alpha) * self.background.color(alpha.device)
        return torch.cat([(rgb / alpha.clamp_min(1e-6)).clamp(0, 1), alpha], -1)

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Any]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        rgb = outputs["rgb"]
        image = batch["image"][..., :3].to(rgb)
        images = {"img": torch.cat([image, rgb], 1)}
        images |= {name: outputs[name].expand(-1, -1, 3) for name in ("accumulation", "normals")}
        return {"psnr": float(_psnr(rgb, image))}, images


def _flattened(image: Float[Tensor, "n c"], background: Float[Tensor, "*m 3"]) -> Float[Tensor, "n 3"]:
    """Pixels in front of a background, if they have an alpha channel."""
    return image if image.shape[-1] == 3 else over(image[:, :3] * image[:, 3:], image[:, 3:], background)


def _psnr(rgb: Tensor, image: Tensor) -> Float[Tensor, ""]:
    return -10 * F.mse_loss(rgb, image).clamp_min(1e-10).log10()
