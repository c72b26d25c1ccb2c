"""Images out of a guide: from pure noise, or from another image (SDEdit, Meng et al. 2021, arXiv 2108.01073).

The steps are those of the guide's sampler, a scheduler of diffusers: as a rule deterministic DDIM (Song et al. 2020,
arXiv 2010.02502).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d

from db3d_nerfstudio.diffusion.sds import add_noise, guided_noise, standard_noise
from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.guides.base import DiffusionGuide

if TYPE_CHECKING:
    from diffusers import SchedulerMixin


@torch.no_grad()
def sample(
    guide: DiffusionGuide,
    text: Float[Tensor, "b n d"],
    uncond: Float[Tensor, "b n d"],
    *,
    steps: int = 25,
    guidance_scale: float = 5.0,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "b 3 h w"]:
    """New images of the prompts."""
    size = guide.encode(torch.zeros(1, 3, guide.resolution, guide.resolution, device=guide.device)).shape[1:]
    z = standard_noise((len(text), *size), guide.device, generator)
    scheduler = guide.sampler(steps)
    return guide.decode(denoise(guide, scheduler, scheduler.timesteps, z, text, uncond, guidance_scale, generator))


@torch.no_grad()
def translate(
    guide: DiffusionGuide,
    rgb: Float[Tensor, "b 3 h w"],
    text: Float[Tensor, "b n d"],
    uncond: Float[Tensor, "b n d"],
    *,
    strength: float,
    steps: int = 25,
    guidance_scale: float = 5.0,
    generator: torch.Generator | None = None,
    mask: Float[Tensor, "b 1 h w"] | None = None,
) -> Float[Tensor, "b 3 h2 w2"]:
    """Images redrawn by the guide: noised up to `strength`, DreamBooth3D's t_pseudo as a fraction, then denoised.

    As in diffusers, `steps` covers the whole schedule and `strength` of them are taken. Strength 0 returns what the
    codec makes of the image, strength 1 forgets the image, all but what the mask keeps.

    Args:
        mask: 1 where the guide may draw, at least in part of what a pixel of z covers. Elsewhere every step begins
            from the image, noised as far (SDEdit with a mask).
    """
    if not 0 <= strength <= 1:
        raise UserError(f"The strength of a translation is a fraction of the noise schedule in [0, 1], got {strength}.")
    z = guide.encode(rgb)
    taken = round(strength * steps)
    if taken == 0:
        return guide.decode(z)
    scheduler = guide.sampler(steps)
    timesteps = scheduler.timesteps[-taken:]
    eps = standard_noise(z.shape, guide.device, generator)
    kept = None if mask is None else Kept(z, eps, adaptive_max_pool2d(mask.to(z), z.shape[-2:]))
    z = eps if strength == 1 else add_noise(guide, z, timesteps[0].expand(len(z)), eps)
    return guide.decode(denoise(guide, scheduler, timesteps, z, text, uncond, guidance_scale, generator, kept))


class Kept(NamedTuple):
    """An image that comes back where the guide may not draw."""

    z: Float[Tensor, "b c h w"]
    eps: Float[Tensor, "b c h w"]
    mask: Float[Tensor, "b 1 h w"]

    def put_into(self, guide: DiffusionGuide, z: Tensor, t: Tensor | None) -> Float[Tensor, "b c h w"]:
        """`z` where the mask is 1, else the image noised up to `t`, or clean where that is None."""
        own = self.z if t is None else add_noise(guide, self.z, t.expand(len(z)), self.eps)
        return torch.where(self.mask > 0, z, own)


def denoise(
    guide: DiffusionGuide,
    scheduler: SchedulerMixin,
    timesteps: Tensor,
    z: Float[Tensor, "b c h w"],
    text: Float[Tensor, "b n d"],
    uncond: Float[Tensor, "b n d"],
    guidance_scale: float,
    generator: torch.Generator | None,
    kept: Kept | None = None,
) -> Float[Tensor, "b c h w"]:
    """Guided steps of a sampler from the noisy z at the first of `timesteps` to a clean one."""
    from diffusers import DDIMScheduler

    # Where the estimate of the clean z was clipped, the noise must be what is left, or both drift apart. (Ancestral
    # samplers go by the clean z alone.)
    options = {"use_clipped_model_output": True} if isinstance(scheduler, DDIMScheduler) else {}
    for t, following in zip(timesteps, [*timesteps[1:], None], strict=True):
        eps = guided_noise(guide, z, t.expand(len(z)), text, uncond, guidance_scale)
        z = scheduler.step(eps, t, z, generator=generator, **options).prev_sample
        z = z if kept is None else kept.put_into(guide, z, following)
    return z
