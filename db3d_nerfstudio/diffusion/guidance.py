"""Noise, and guidance of its estimates: classifier-free guidance, Perp-Neg, rescaling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Real
from torch import Tensor

from db3d_nerfstudio.guides.base import DiffusionGuide


class PerpNeg(NamedTuple):
    """k prompts for each image that guidance avoids, as far as that does not weaken the prompt it follows."""

    text: Float[Tensor, "b k n d"]
    weights: Float[Tensor, "b k"]


@dataclass(frozen=True)
class Conditioning:
    """The embedded prompts of b images."""

    text: Float[Tensor, "b n d"]
    """The prompts."""
    uncond: Float[Tensor, "b n d"]
    """The prompt that guidance leads away from: the empty one, or a negative prompt."""
    away: PerpNeg | None = None
    """The prompts that Perp-Neg avoids."""

    @classmethod
    def of(cls, guide: DiffusionGuide, prompts: list[str], negative_prompt: str = "") -> Conditioning:
        """Embed one prompt for each image, and the negative prompt that they share."""
        *text, uncond = guide.embed([*prompts, negative_prompt])
        return cls(torch.stack(text), uncond.expand(len(prompts), -1, -1))

    def __len__(self) -> int:
        return len(self.text)

    def __getitem__(self, part: slice) -> Conditioning:
        """The conditioning of some of the images."""
        away = None if self.away is None else PerpNeg(self.away.text[part], self.away.weights[part])
        return Conditioning(self.text[part], self.uncond[part], away)


def guided_noise(
    guide: DiffusionGuide,
    z_t: Float[Tensor, "b c h w"],
    t: Real[Tensor, " b"],
    conditioning: Conditioning,
    guidance_scale: float,
    rescale: float = 0.0,
) -> Float[Tensor, "b c h w"]:
    """Classifier-free guidance, `eps_uncond + s (eps_text - eps_uncond)`, with one batched call for all prompts.

    s = 1 is the conditional model, as in diffusers; DreamFusion's own omega is s - 1. With `away`, the difference d is
    d - sum_k w_k d_k', where d_k' is the part of `eps_away_k - eps_uncond` perpendicular to d (Perp-Neg, Armandpour et
    al. 2023, arXiv 2304.04968). `rescale` is described at `rescaled`.
    """
    away = conditioning.away
    texts = [conditioning.text, conditioning.uncond, *(() if away is None else away.text.unbind(1))]
    num = len(texts)
    eps = guide.predict_noise(torch.cat([z_t] * num), torch.cat([t] * num), torch.cat(texts))
    eps_text, eps_uncond, *others = eps.chunk(num)
    direction = difference = eps_text - eps_uncond
    if away is not None:
        for other, weight in zip(others, away.weights.unbind(1), strict=True):
            direction = direction - weight[:, None, None, None] * perpendicular(other - eps_uncond, difference)
    guided = eps_uncond + guidance_scale * direction
    return rescaled(guide, z_t, t, guided, eps_text, rescale) if rescale else guided


def perpendicular(x: Float[Tensor, "b c h w"], y: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """The part of x that is perpendicular to y, each image being one vector; all of x where y is zero."""
    along = (x * y).sum((1, 2, 3), keepdim=True) / y.square().sum((1, 2, 3), keepdim=True).clamp_min(1e-12)
    return x - along * y


def rescaled(
    guide: DiffusionGuide,
    z_t: Float[Tensor, "b c h w"],
    t: Real[Tensor, " b"],
    guided: Float[Tensor, "b c h w"],
    eps_text: Float[Tensor, "b c h w"],
    amount: float,
) -> Float[Tensor, "b c h w"]:
    """The guided noise, rescaled so that its clean z has the standard deviation of the conditional estimate's.

    This is the CFG rescale of Lin et al. 2023 (arXiv 2305.08891, section 3.4) in clean z, as in MVDream (2308.16512):
    at the high scales of distillation, a rescaled noise would no longer cancel the noise in z_t. `amount` 0 is no
    and 1 is full rescaling.
    """
    abar = guide.abar(t)[:, None, None, None]
    a, s = abar.sqrt(), (1 - abar).sqrt()
    z, z_text = (z_t - s * guided) / a, (z_t - s * eps_text) / a
    ratio = z_text.std((1, 2, 3), keepdim=True) / z.std((1, 2, 3), keepdim=True)
    return (z_t - a * z * (amount * ratio + 1 - amount)) / s


def standard_noise(shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal noise, drawn on the generator's device so that a seed gives the same on every device."""
    return torch.randn(shape, generator=generator, device=generator.device if generator else device).to(device)


def add_noise(
    guide: DiffusionGuide, z: Float[Tensor, "b c h w"], t: Real[Tensor, " b"], eps: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b c h w"]:
    """Forward diffusion, `z_t = sqrt(alphas_cumprod[t]) z + sqrt(1 - alphas_cumprod[t]) eps`."""
    abar = guide.abar(t)[:, None, None, None]
    return abar.sqrt() * z + (1 - abar).sqrt() * eps
