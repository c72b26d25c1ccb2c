"""Score distillation: how a frozen guide grades a rendering (DreamFusion, Poole et al. 2022, arXiv 2209.14988)."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from db3d_nerfstudio.guides.base import DiffusionGuide

Weighting = Literal["sigma2", "uniform", "fantasia"]


def guided_noise(
    guide: DiffusionGuide,
    z_t: Float[Tensor, "b c h w"],
    t: Int[Tensor, " b"],
    text: Float[Tensor, "b n d"],
    uncond: Float[Tensor, "b n d"],
    guidance_scale: float,
) -> Float[Tensor, "b c h w"]:
    """Classifier-free guidance, `eps_uncond + s (eps_text - eps_uncond)`, with one batched call for the pair.

    s = 1 is the conditional model, as in diffusers; DreamFusion's own omega is s - 1.
    """
    eps = guide.predict_noise(torch.cat([z_t, z_t]), torch.cat([t, t]), torch.cat([text, uncond]))
    eps_text, eps_uncond = eps.chunk(2)
    return eps_uncond + guidance_scale * (eps_text - eps_uncond)


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
    *,
    t: Int[Tensor, " b"],
    guidance_scale: float,
    weighting: Weighting = "sigma2",
    generator: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    """A scalar whose gradient with respect to `rgb` is the score distillation gradient (2209.14988, eq. 3),

        mean over b of  w(t) (eps_hat(z_t; text, t) - eps) dz / d rgb,    z = encode(rgb).

    The network is frozen and its Jacobian left out. The value is half the squared norm of that gradient in z: it says
    how far the guide wants to move the image, and is no measure of progress.
    """
    z = guide.encode(rgb)
    with torch.no_grad():
        eps = standard_noise(z.shape, z.device, generator)
        eps_hat = guided_noise(guide, add_noise(guide, z, t, eps), t, text, uncond, guidance_scale)
        gradient = sds_weight(guide.alphas_cumprod[t], weighting)[:, None, None, None] * (eps_hat - eps)
        if not gradient.isfinite().all():
            _raise_not_finite(eps_hat, t, guidance_scale)
        target = z - gradient
    return 0.5 * (z - target).square().sum() / len(z)


def _raise_not_finite(eps_hat: Float[Tensor, "b c h w"], t: Int[Tensor, " b"], guidance_scale: float) -> None:
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
