"""Images from a guide: from pure noise, or from another image (SDEdit, Meng et al. 2021, arXiv 2108.01073).

The guide's sampler, a scheduler of diffusers, takes the steps; by default it is deterministic DDIM (Song et al. 2020,
arXiv 2010.02502). Guidance may be limited to an interval of noise levels (Kynkaanniemi et al. 2024, arXiv 2404.07724):
at high noise it costs variety, at low noise it does little, and a step without it takes half the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Real
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d

from db3d_nerfstudio.diffusion.guidance import Conditioning, add_noise, guided_noise, standard_noise
from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.guides.base import DiffusionGuide
from db3d_nerfstudio.ranges import NonNegative, Share, ShareInterval, Steps

BATCH_SIZE = 8
"""Images drawn at a time."""


@dataclass
class SamplingConfig:
    """Steps and guidance of drawing an image."""

    steps: Steps = 25
    """Steps of the sampler, from pure noise to a clean image."""
    guidance_scale: NonNegative = 5.0
    """Classifier-free guidance `uncond + s (cond - uncond)`; 1 is no guidance."""
    guidance_interval: ShareInterval = (0.0, 1.0)
    """Noise levels at which guidance acts, as fractions of the schedule; elsewhere there is none."""


@dataclass
class TranslationConfig(SamplingConfig):
    """Steps, guidance and strength of redrawing an image."""

    strength: Share = 0.5
    """Noise level that the image starts from, as a fraction of the schedule; this share of `steps` is taken."""


@torch.no_grad()
def sample(
    guide: DiffusionGuide,
    conditioning: Conditioning,
    config: SamplingConfig,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "b 3 h w"]:
    """New images of the prompts."""
    z = standard_noise((len(conditioning), *guide.z_shape), guide.device, generator)
    sampler = Sampler(guide, config, generator)
    return guide.decode(sampler.denoise(z, sampler.timesteps, conditioning))


@torch.no_grad()
def draw(
    guide: DiffusionGuide,
    prompts: list[str],
    config: SamplingConfig,
    seed: int,
    negative_prompt: str = "",
    progress: Callable[[int], None] | None = None,
) -> Float[Tensor, "n 3 h w"]:
    """One image of every prompt, on the CPU.

    Args:
        progress: Called after every batch with the number of images so far.
    """
    images: list[Tensor] = []
    for batch in draw_batches(guide, prompts, config, seed, negative_prompt):
        images += batch.cpu()
        if progress is not None:
            progress(len(images))
    return torch.stack(images)


def draw_batches(
    guide: DiffusionGuide, prompts: list[str], config: SamplingConfig, seed: int, negative_prompt: str = ""
) -> Iterator[Float[Tensor, "b 3 h w"]]:
    """Images of the prompts, `BATCH_SIZE` at a time; those of a batch depend on the seed and its place alone."""
    generator = torch.Generator().manual_seed(seed)
    for i in range(0, len(prompts), BATCH_SIZE):
        with torch.no_grad():
            conditioning = Conditioning.of(guide, prompts[i : i + BATCH_SIZE], negative_prompt)
        yield sample(guide, conditioning, config, generator)


@torch.no_grad()
def translate(
    guide: DiffusionGuide,
    rgb: Float[Tensor, "b 3 h w"],
    conditioning: Conditioning,
    config: TranslationConfig,
    generator: torch.Generator | None = None,
    mask: Float[Tensor, "b 1 h w"] | None = None,
) -> Float[Tensor, "b 3 h2 w2"]:
    """Images redrawn by the guide: noised up to `strength`, DreamBooth3D's t_pseudo as a fraction, then denoised.

    As in diffusers, `steps` covers the whole schedule and a share of `strength` of them is taken. Strength 0 returns
    the image as the codec reproduces it; strength 1 forgets the image, except for the part that the mask keeps.

    Args:
        mask: 1 where the guide may draw, at least in part of the area that a pixel of z covers. Elsewhere every step
            begins from the image at the same noise level (SDEdit with a mask).
    """
    if not 0 <= config.strength <= 1:
        raise UserError(f"The strength of a translation must be in [0, 1], got {config.strength}.")
    z = guide.encode(rgb)
    taken = round(config.strength * config.steps)
    if taken == 0:
        return guide.decode(z)
    sampler = Sampler(guide, config, generator)
    timesteps = sampler.timesteps[-taken:]
    eps = standard_noise(z.shape, guide.device, generator)
    kept = None if mask is None else Kept(z, eps, adaptive_max_pool2d(mask.to(z), z.shape[-2:]))
    z = eps if config.strength == 1 else add_noise(guide, z, timesteps[0].expand(len(z)), eps)
    return guide.decode(sampler.denoise(z, timesteps, conditioning, kept))


class Kept(NamedTuple):
    """Images that are kept where the guide may not draw."""

    z: Float[Tensor, "b c h w"]
    eps: Float[Tensor, "b c h w"]
    mask: Float[Tensor, "b 1 h w"]

    def put_into(self, guide: DiffusionGuide, z: Tensor, t: Tensor | None) -> Float[Tensor, "b c h w"]:
        """`z` where the mask is 1, else the image noised up to `t`, or clean where that is None."""
        own = self.z if t is None else add_noise(guide, self.z, t.expand(len(z)), self.eps)
        return torch.where(self.mask > 0, z, own)


class Sampler:
    """The guided steps of a guide's scheduler."""

    def __init__(self, guide: DiffusionGuide, config: SamplingConfig, generator: torch.Generator | None) -> None:
        from diffusers import DDIMScheduler

        low, high = config.guidance_interval
        if not 0 <= low <= high <= 1:
            raise UserError(f"A guidance_interval must satisfy 0 <= low <= high <= 1, got {low} and {high}.")
        self._guide, self._config, self._generator = guide, config, generator
        self._scheduler = guide.sampler(config.steps)
        # Where the estimate of the clean z was clipped, the noise must be the remainder, or both drift apart.
        # (Ancestral samplers use the clean z alone.)
        is_ddim = isinstance(self._scheduler, DDIMScheduler)
        self._options: dict[str, Any] = {"use_clipped_model_output": True} if is_ddim else {}

    @property
    def timesteps(self) -> Real[Tensor, " steps"]:
        """All timesteps of the schedule, from pure noise on."""
        return self._scheduler.timesteps

    def denoise(
        self,
        z: Float[Tensor, "b c h w"],
        timesteps: Real[Tensor, " taken"],
        conditioning: Conditioning,
        kept: Kept | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """From the noisy z at the first of the last `timesteps` to a clean one."""
        for t, following in zip(timesteps, [*timesteps[1:], None], strict=True):
            eps = self._noise(z, t, conditioning)
            z = self._scheduler.step(eps, t, z, generator=self._generator, **self._options).prev_sample
            z = z if kept is None else kept.put_into(self._guide, z, following)
        return z

    def _noise(self, z: Float[Tensor, "b c h w"], t: Real[Tensor, ""], conditioning: Conditioning) -> Tensor:
        low, high = self._config.guidance_interval
        if low <= t.item() / (len(self._guide.alphas_cumprod) - 1) <= high:
            return guided_noise(self._guide, z, t.expand(len(z)), conditioning, self._config.guidance_scale)
        return self._guide.predict_noise(z, t.expand(len(z)), conditioning.text)
