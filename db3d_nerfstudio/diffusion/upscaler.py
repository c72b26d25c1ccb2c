"""DeepFloyd IF stage II: images of 64 pixels made 256, with the subject's details (DreamBooth, arXiv 2208.12242).

The network sees the small image, enlarged and a little noised, beside z_t. Trained as it comes, it blurs a subject's
fine patterns: it is used to much noise in what it sees, and takes them for such. So it is tuned on pairs of the photos,
small and large, with less noise, and later shown images with as little.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from db3d_nerfstudio.diffusion.dreambooth import DreamBoothConfig, dreambooth_loss
from db3d_nerfstudio.diffusion.guidance import Conditioning, standard_noise
from db3d_nerfstudio.diffusion.sampling import Sampler, SamplingConfig
from db3d_nerfstudio.guides.unet.deepfloyd import DeepFloydGuide, DeepFloydGuideConfig
from db3d_nerfstudio.guides.unet.guide import resize


@dataclass
class SuperResolutionConfig(DeepFloydGuideConfig):
    """Configuration of IF's second stage. Text comes from the first, whose T5 is the same."""

    _target: type = field(default_factory=lambda: SuperResolution)
    model: str = "DeepFloyd/IF-II-L-v1.0"
    """Hub id, or local folder in diffusers' layout."""
    tuning: Literal["full", "lora"] = "lora"
    """What fine-tuning moves: the whole UNet, or a low-rank adapter on its attention layers."""
    noise_level: int = 25
    """Noise in the small image, a step of a schedule of 1000, in tuning and after. IF's pipeline takes 250."""


class SuperResolution(DeepFloydGuide):
    """A guide of large images that are to look like the small ones shown to it."""

    config: SuperResolutionConfig
    folders = (*DeepFloydGuide.folders, "image_noising_scheduler")
    learning_rates = {"full": 5e-6, "lora": 1e-4}

    def __init__(self, config: SuperResolutionConfig, device: torch.device | str = "cpu") -> None:
        from diffusers import DDPMScheduler

        super().__init__(config, device)
        noising = self._read(DDPMScheduler, "image_noising_scheduler")
        self._noising_abar = noising.alphas_cumprod[config.noise_level].item()
        self._shown: Float[Tensor, "b 3 h w"] | None = None

    def show(self, small: Float[Tensor, "b 3 hs ws"], generator: torch.Generator | None = None) -> None:
        """Give the small images, in [0, 1], that `predict_noise` goes by from now on, one per image of z_t."""
        side = (self.resolution, self.resolution)
        large = interpolate(small * 2 - 1, side, mode="bilinear", align_corners=True)  # As IF was trained.
        noise = standard_noise(large.shape, self.device, generator)
        self._shown = self._noising_abar**0.5 * large + (1 - self._noising_abar) ** 0.5 * noise

    def _inputs(self, z_t: Float[Tensor, "b c hz wz"], text: Float[Tensor, "b n d"]) -> Float[Tensor, "b c2 hz wz"]:
        if self._shown is None:
            raise ValueError(
                "A super-resolution model is asked about nothing: call show() with the small images first."
            )
        prompts = len(z_t) // len(self._shown)  # Classifier-free guidance asks about each image several times.
        return torch.cat([z_t, self._shown.repeat(prompts, 1, 1, 1)], dim=1)

    def _conditions(self, text: Float[Tensor, "b n d"]) -> dict[str, Any]:
        level = torch.full((len(text),), self.config.noise_level, device=self.device)
        return {**super()._conditions(text), "class_labels": level}


@torch.no_grad()
def enlarge(
    guide: SuperResolution,
    small: Float[Tensor, "b 3 hs ws"],
    conditioning: Conditioning,
    config: SamplingConfig,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "b 3 h w"]:
    """The small images at the guide's resolution."""
    z = standard_noise((len(small), 3, guide.resolution, guide.resolution), guide.device, generator)
    guide.show(small, generator)
    sampler = Sampler(guide, config, generator)
    return guide.decode(sampler.denoise(z, sampler.timesteps, conditioning))


def tune_on_pairs(
    guide: SuperResolution,
    photos: Float[Tensor, "p 3 h w"],
    text: Float[Tensor, "1 n d"],
    small_resolution: int,
    *,
    steps: int,
    config: DreamBoothConfig,
    seed: int,
    progress: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Move `guide.parameters()` in place so that small photos become the large ones; return the losses.

    Args:
        photos: At least as large as the guide's resolution, or there is nothing to learn from them.
        text: The embedding of the photos' caption.
        small_resolution: That of the first stage.
    """
    z, small = guide.encode(photos), resize(photos, small_resolution)
    rate = guide.learning_rate if config.learning_rate is None else config.learning_rate
    optimizer = torch.optim.AdamW(guide.parameters(), lr=rate, weight_decay=config.weight_decay, fused=True)
    generator, losses = torch.Generator().manual_seed(seed), []
    text, num = text.expand(config.batch_size, -1, -1), config.batch_size
    for step in range(steps):
        index = torch.randint(len(z), (num,), generator=generator).to(guide.device)
        guide.show(small[index], generator)
        t = torch.randint(len(guide.alphas_cumprod), (num,), generator=generator).to(guide.device)
        eps = standard_noise((num, *z.shape[1:]), guide.device, generator)
        everywhere = z.new_ones(num, 1, *z.shape[2:])
        loss = dreambooth_loss(guide, z[index], text, t, eps, everywhere, num, config)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(guide.parameters(), config.max_grad_norm)
        optimizer.step()
        losses.append(loss.item())
        if progress is not None:
            progress(step + 1, losses[-1])
    optimizer.zero_grad()
    return losses
