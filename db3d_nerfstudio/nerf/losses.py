"""Regularisers that nerfstudio lacks, or has only for samples that are not packed. All are means over rays."""

from jaxtyping import Float
from torch import Tensor

from db3d_nerfstudio.nerf.occupancy import Samples

__all__ = ["distortion_loss", "entropy_loss", "opacity_loss", "orientation_loss"]


def orientation_loss(
    weights: Float[Tensor, " s"],
    normals: Float[Tensor, "s 3"],
    directions: Float[Tensor, "s 3"],
    num_rays: int,
) -> Float[Tensor, ""]:
    """Normals of visible samples face the camera: `sum_i stop_grad(w_i) max(0, n_i . d)^2` (Ref-NeRF, 2112.03907).

    DreamFusion stops the gradient into the weights, or hiding a surface would do as well as turning it.
    """
    away = (normals * directions).sum(-1).clamp_min(0)
    return (weights.detach() * away.square()).sum() / num_rays


def opacity_loss(accumulation: Float[Tensor, "n 1"]) -> Float[Tensor, ""]:
    """Matter costs: `sqrt(accumulation^2 + 0.01)` (DreamFusion, 2209.14988, A.2), so that space stays empty."""
    return (accumulation.square() + 0.01).sqrt().mean()


def entropy_loss(accumulation: Float[Tensor, "n 1"]) -> Float[Tensor, ""]:
    """Rays either hit or miss: binary entropy of the accumulation in bits (Latent-NeRF, 2211.07600)."""
    p = accumulation.clamp(1e-4, 1 - 1e-4)
    return -(p * p.log2() + (1 - p) * (1 - p).log2()).mean()


def distortion_loss(weights: Float[Tensor, " s"], samples: Samples) -> Float[Tensor, ""]:
    """Matter along a ray gathers in one place (Mip-NeRF 360, 2111.12077, eq. 15), at a cost linear in the samples.

    The pairs are `2 sum_i w_i (m_i W_i - M_i)` with W and M the sums of w and w m in front of sample i (2206.05085).
    """
    mids, lengths = samples.mids, samples.ends - samples.starts
    moment, mass = samples.exclusive_sum(weights * mids), samples.exclusive_sum(weights)
    between = 2 * weights * (mids * mass - moment)
    within = weights.square() * lengths / 3
    return (between + within).sum() / samples.num_rays
