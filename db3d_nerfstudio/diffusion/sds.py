"""Score distillation: how a frozen guide grades a rendering (DreamFusion, Poole et al. 2022, arXiv 2209.14988)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from db3d_nerfstudio.guides.base import DiffusionGuide

Weighting = Literal["sigma2", "uniform", "fantasia"]


@dataclass
class DistillationConfig:
    """What the guide is asked in score distillation, and what is made of its answer."""

    guidance_scale: float = 8.0
    """Classifier-free guidance `uncond + s (cond - uncond)`; 1 is no guidance."""
    guidance_rescale: float = 0.0
    """How far guidance is kept from raising the contrast of estimated images: 0 not at all, 1 entirely."""
    negative_prompt: str = ""
    """What guidance leads away from."""
    interpolate_prompts: bool = False
    """Blend the prompts of neighbouring views, instead of taking the nearest view's."""
    perp_neg: float = 0.0
    """How strongly guidance leads away from the front and side that a camera does not see; 1 as in threestudio.

    Best with interpolated prompts. Every step then asks the guide four times in place of twice.
    """
    sds_weighting: Weighting = "sigma2"
    """Weight of each timestep in score distillation."""
    t_range_start: tuple[float, float] = (0.02, 0.98)
    """Timesteps of score distillation when a phase begins, as fractions of the noise schedule."""
    t_range_end: tuple[float, float] = (0.02, 0.5)
    """Timesteps when it ends; linear in between."""


class Away(NamedTuple):
    """Prompts that guidance keeps away from, where that does not weaken what it leads to."""

    text: Float[Tensor, "b k n d"]
    weights: Float[Tensor, "b k"]


def guided_noise(
    guide: DiffusionGuide,
    z_t: Float[Tensor, "b c h w"],
    t: Int[Tensor, " b"],
    text: Float[Tensor, "b n d"],
    uncond: Float[Tensor, "b n d"],
    guidance_scale: float,
    rescale: float = 0.0,
    away: Away | None = None,
) -> Float[Tensor, "b c h w"]:
    """Classifier-free guidance, `eps_uncond + s (eps_text - eps_uncond)`, with one batched call for all prompts.

    s = 1 is the conditional model, as in diffusers; DreamFusion's own omega is s - 1. With `away`, the difference d is
    d - sum_k w_k d_k', where d_k' is what of `eps_away_k - eps_uncond` is perpendicular to d (Perp-Neg, Armandpour et
    al. 2023, arXiv 2304.04968). `rescale` is described at `rescaled`.
    """
    texts = [text, uncond, *(() if away is None else away.text.unbind(1))]
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
    """What of x is perpendicular to y, each image of a batch being one vector; all of x where y is zero."""
    along = (x * y).sum((1, 2, 3), keepdim=True) / y.square().sum((1, 2, 3), keepdim=True).clamp_min(1e-12)
    return x - along * y


def rescaled(
    guide: DiffusionGuide,
    z_t: Float[Tensor, "b c h w"],
    t: Int[Tensor, " b"],
    guided: Float[Tensor, "b c h w"],
    eps_text: Float[Tensor, "b c h w"],
    amount: float,
) -> Float[Tensor, "b c h w"]:
    """The guided noise, changed so that the clean z it amounts to has the standard deviation that the prompt's own has.

    This is the CFG rescale of Lin et al. 2023 (arXiv 2305.08891, section 3.4) in clean z, as MVDream (2308.16512) has
    it for distillation: at its high scales a rescaled noise would no longer cancel the noise that is there. `amount`
    blends between no (0) and full (1) rescaling.
    """
    abar = guide.alphas_cumprod[t][:, None, None, None]
    a, s = abar.sqrt(), (1 - abar).sqrt()
    z, z_text = (z_t - s * guided) / a, (z_t - s * eps_text) / a
    ratio = z_text.std((1, 2, 3), keepdim=True) / z.std((1, 2, 3), keepdim=True)
    return (z_t - a * z * (amount * ratio + 1 - amount)) / s


def standard_noise(shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal noise, drawn where the generator lives so that a seed means the same on every device."""
    return torch.randn(shape, generator=generator, device=generator.device if generator else device).to(device)


def add_noise(
    guide: DiffusionGuide, z: Float[Tensor, "b c h w"], t: Int[Tensor, " b"], eps: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b c h w"]:
    """Forward diffusion, `z_t = sqrt(alphas_cumprod[t]) z + sqrt(1 - alphas_cumprod[t]) eps`."""
    abar = guide.alphas_cumprod[t][:, None, None, None]
    return abar.sqrt() * z + (1 - abar).sqrt() * eps


def sds_weight(abar: Float[Tensor, " b"], weighting: Weighting) -> Float[Tensor, " b"]:
    """w(t) of eq. 3: `sigma2` is DreamFusion's sigma_t^2, `fantasia` is alpha_t sigma_t^2 (Latent-NeRF, Fantasia3D)."""
    match weighting:
        case "sigma2":
            return 1 - abar
        case "uniform":
            return torch.ones_like(abar)
        case "fantasia":
            return abar.sqrt() * (1 - abar)


def sds_loss(
    guide: DiffusionGuide,
    rgb: Float[Tensor, "b 3 h w"],
    text: Float[Tensor, "b n d"],
    uncond: Float[Tensor, "b n d"],
    **how,
) -> Float[Tensor, ""]:
    """`sds_loss_of_z` of z = encode(rgb), whose gradient gets the factor dz / d rgb. The guide may be elsewhere."""
    return sds_loss_of_z(guide, guide.encode(rgb.to(guide.device)), text, uncond, **how).to(rgb.device)


def sds_loss_of_z(
    guide: DiffusionGuide,
    z: Float[Tensor, "b c h w"],
    text: Float[Tensor, "b n d"],
    uncond: Float[Tensor, "b n d"],
    *,
    t: Int[Tensor, " b"],
    guidance_scale: float,
    weighting: Weighting = "sigma2",
    rescale: float = 0.0,
    away: Away | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    """A scalar whose gradient with respect to `z` is the score distillation gradient (2209.14988, eq. 3),

        mean over b of  w(t) (eps_hat(z_t; text, t) - eps).

    The network is frozen and its Jacobian left out. The value is half the squared norm of that gradient: it says how
    far the guide wants to move the image, and is no measure of progress.
    """
    with torch.no_grad():
        eps = standard_noise(z.shape, z.device, generator)
        eps_hat = guided_noise(guide, add_noise(guide, z, t, eps), t, text, uncond, guidance_scale, rescale, away)
        gradient = sds_weight(guide.alphas_cumprod[t], weighting)[:, None, None, None] * (eps_hat - eps)
        _check_finite(gradient, eps_hat, t, guidance_scale)
        target = z - gradient
    return 0.5 * (z - target).square().sum() / len(z)


def _check_finite(
    gradient: Float[Tensor, "b c h w"], eps_hat: Float[Tensor, "b c h w"], t: Int[Tensor, " b"], guidance_scale: float
) -> None:
    if gradient.isfinite().all():
        return
    bad = ~eps_hat.isfinite().flatten(1).all(1)
    source = f"The guide's noise estimate at t = {t[bad].tolist()}" if bad.any() else "The rendered image"
    raise FloatingPointError(
        f"{source} is not finite (guidance scale {guidance_scale:g}). Set the guide's dtype to float32, "
        "or lower the field's learning rates if it is the rendering that diverged."
    )


def sample_timesteps(
    num: int,
    t_range: tuple[float, float],
    num_timesteps: int,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> Int[Tensor, " num"]:
    """Timesteps drawn uniformly between two fractions of the schedule."""
    low, high = (min(round(fraction * num_timesteps), num_timesteps - 1) for fraction in t_range)
    if not 0 <= low <= high:
        raise ValueError(f"The range of timesteps must satisfy 0 <= low <= high <= 1, got {t_range}.")
    drawn_on = generator.device if generator else device
    return torch.randint(low, high + 1, (num,), generator=generator, device=drawn_on).to(device)


def annealed_t_range(
    progress: float, start: tuple[float, float] = (0.02, 0.98), end: tuple[float, float] = (0.02, 0.5)
) -> tuple[float, float]:
    """The range of timesteps, moved linearly from `start` to `end` while `progress` goes from 0 to 1.

    High noise decides the layout, low noise the details; annealing lets the first finish before the second.
    """
    progress = min(max(progress, 0.0), 1.0)
    return tuple(a + (b - a) * progress for a, b in zip(start, end, strict=True))
