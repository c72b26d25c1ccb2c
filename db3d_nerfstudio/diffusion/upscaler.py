"""DeepFloyd IF stage II: images of 64 pixels upscaled to 256, with the subject's details (DreamBooth, 2208.12242).

The network's input is z_t and the small image, enlarged and slightly noised. The published model was trained with much
noise in that image, takes a subject's fine patterns for noise and blurs them. So DreamBooth tunes it on pairs of
photos, small and large, with less noise, and later uses as little.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import interpolate

from db3d_nerfstudio.diffusion.dreambooth import DreamBoothConfig, Progress, finetune
from db3d_nerfstudio.diffusion.guidance import Conditioning, standard_noise
from db3d_nerfstudio.diffusion.sampling import Sampler, SamplingConfig
from db3d_nerfstudio.diffusion.training_set import TrainingSet
from db3d_nerfstudio.diffusion.tuner import SubjectTuner
from db3d_nerfstudio.guides.base import DiffusionGuide
from db3d_nerfstudio.guides.diffusers_guide import resize
from db3d_nerfstudio.guides.unet.deepfloyd import DeepFloydGuide, DeepFloydGuideConfig
from db3d_nerfstudio.photos import load_photos
from db3d_nerfstudio.ranges import Natural


@dataclass
class UpscalerConfig(DeepFloydGuideConfig):
    """Configuration of IF's second stage."""

    _target: type = field(default_factory=lambda: Upscaler)
    model: str = "DeepFloyd/IF-II-L-v1.0"
    """Hub id, or local folder in diffusers' layout."""
    tuning: Literal["full", "lora"] = "lora"
    """What DreamBooth trains: the whole UNet, or a low-rank adapter on its attention layers."""
    max_train_steps: Natural = 0
    """Iterations of DreamBooth on small and large photos; 0 leaves the model untuned."""
    noise_level: Natural = 25
    """Noise in the small image, as one of 1000 timesteps, in tuning and afterwards. IF's pipeline uses 250."""
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(50, 4.0))
    """Steps and guidance of drawing the large images."""


class Upscaler(DeepFloydGuide):
    """A guide of large images, conditioned on small ones."""

    config: UpscalerConfig
    channels = 6
    folders = (*DeepFloydGuide.folders, "image_noising_scheduler")
    learning_rates = {"full": 5e-6, "lora": 1e-6}  # diffusers' DreamBooth of IF's second stage.

    def __init__(
        self, config: UpscalerConfig, device: torch.device | str = "cpu", first_stage: DiffusionGuide | None = None
    ) -> None:
        """Args: `first_stage` embeds the prompts, if it is IF's and so has the same T5 in memory."""
        from diffusers import DDPMScheduler

        super().__init__(config, device)
        noising = self._read(DDPMScheduler, "image_noising_scheduler")
        self._noising_abar = noising.alphas_cumprod[config.noise_level].to(self.device)
        self._first_stage = first_stage if isinstance(first_stage, DeepFloydGuide) else None
        self._shown: Float[Tensor, "b 3 h w"] | None = None

    def embed(self, prompts: list[str]) -> Float[Tensor, "b n d"]:
        if self._first_stage is None:
            return super().embed(prompts)
        return self._first_stage.embed(prompts).to(self.device)

    def show(self, small: Float[Tensor, "b 3 hs ws"], generator: torch.Generator | None = None) -> None:
        """Set the small images, in [0, 1], that `predict_noise` is conditioned on from now on, one per image of z_t."""
        side = (self.resolution, self.resolution)
        large = interpolate(small * 2 - 1, side, mode="bilinear", align_corners=True)  # As IF was trained.
        noise = standard_noise(large.shape, self.device, generator)
        self._shown = self._noising_abar**0.5 * large + (1 - self._noising_abar) ** 0.5 * noise

    def _inputs(self, z_t: Float[Tensor, "b c hz wz"], text: Float[Tensor, "b n d"]) -> Float[Tensor, "b c2 hz wz"]:
        if self._shown is None:
            raise ValueError("An upscaler has no low-resolution image: call show() first.")
        prompts = len(z_t) // len(self._shown)  # Classifier-free guidance has each image several times.
        return torch.cat([z_t, self._shown.repeat(prompts, 1, 1, 1)], dim=1)

    def _conditions(self, text: Float[Tensor, "b n d"]) -> dict[str, Any]:
        level = torch.full((len(text),), self.config.noise_level, device=self.device)
        return {**super()._conditions(text), "class_labels": level}


@torch.no_grad()
def upscale(
    upscaler: Upscaler,
    small: Float[Tensor, "b 3 hs ws"],
    conditioning: Conditioning,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "b 3 h w"]:
    """The small images at the upscaler's resolution."""
    z = standard_noise((len(small), *upscaler.z_shape), upscaler.device, generator)
    upscaler.show(small.to(upscaler.device), generator)
    sampler = Sampler(upscaler, upscaler.config.sampling, generator)
    return upscaler.decode(sampler.denoise(z, sampler.timesteps, conditioning))


def tuned_upscaler(
    config: UpscalerConfig, tuner: SubjectTuner, path: Path, progress: Progress | None = None
) -> Upscaler:
    """The upscaler of a guide's images, tuned on the subject's photos and saved in `path` if the config asks for it."""
    upscaler = config.setup(device=tuner.guide.device, first_stage=tuner.guide)
    if config.max_train_steps > 0:
        photos, caption = load_photos(tuner.photos, upscaler.resolution), tuner.subject.instance_prompt
        pairs = upscaling_pairs(upscaler, photos, caption, tuner.guide.resolution)
        tune_upscaler(upscaler, pairs, tuner.config, tuner.seed, progress)
        upscaler.save(path)
    return upscaler


def upscaling_pairs(
    upscaler: Upscaler, photos: Float[Tensor, "n 3 h w"], caption: str, small_resolution: int
) -> TrainingSet:
    """Pairs of photos, small and large.

    Args:
        photos: At least as large as the upscaler's resolution.
        small_resolution: Resolution of the images that will be upscaled.
    """
    small = resize(photos, small_resolution).to(upscaler.device)

    def show(index: Int[Tensor, " b"], generator: torch.Generator) -> None:
        upscaler.show(small[index.to(upscaler.device)], generator)

    return TrainingSet(photos, [{caption: 1.0}] * len(photos), before_batch=show)


def tune_upscaler(
    upscaler: Upscaler, pairs: TrainingSet, config: DreamBoothConfig, seed: int, progress: Progress | None = None
) -> list[float]:
    """DreamBooth on pairs of photos; return the losses."""
    config = replace(config, prior_loss_weight=0.0)
    return finetune(upscaler, pairs, config, upscaler.config.max_train_steps, seed, progress)
