"""Regularisers: functions of a `Render`, which are means over its rays, and their weights.

To add one, write `my_loss(render)` and give `LossWeights` a field `my` whose metadata names it. A loss that does not
apply to a rendering returns None.
"""

from dataclasses import dataclass, field, fields

from jaxtyping import Float
from torch import Tensor

from db3d_nerfstudio.nerf.render import Render
from db3d_nerfstudio.ranges import NonNegative

__all__ = ["LossWeights", "Weight", "distortion_loss", "entropy_loss", "opacity_loss", "orientation_loss"]

Scalar = Float[Tensor, ""]
Weight = NonNegative | tuple[NonNegative, NonNegative]
"""A number, or one at the start and one at the end of a phase with linear growth in between."""


def opacity_loss(render: Render) -> Scalar:
    """Keeps space empty: `sqrt(accumulation^2 + 0.01)` (DreamFusion, 2209.14988, A.2)."""
    return (render.accumulation.square() + 0.01).sqrt().mean()


def entropy_loss(render: Render) -> Scalar:
    """Makes rays either hit or miss: binary entropy of the accumulation in bits (Latent-NeRF, 2211.07600)."""
    p = render.accumulation.clamp(1e-4, 1 - 1e-4)
    return -(p * p.log2() + (1 - p) * (1 - p).log2()).mean()


def distortion_loss(render: Render) -> Scalar:
    """Gathers matter in one place along a ray (Mip-NeRF 360, 2111.12077, eq. 15), in time linear in the samples.

    The pairs are `2 sum_i w_i (m_i W_i - M_i)` with W and M the sums of w and w m in front of sample i (2206.05085).
    """
    samples, weights = render.samples, render.weights
    mids, lengths = samples.mids, samples.ends - samples.starts
    moment, mass = samples.exclusive_sum(weights * mids), samples.exclusive_sum(weights)
    between = 2 * weights * (mids * mass - moment)
    within = weights.square() * lengths / 3
    return (between + within).sum() / samples.num_rays


def orientation_loss(render: Render) -> Scalar | None:
    """Turns visible normals towards the camera: `sum_i stop_grad(w_i) max(0, n_i . d)^2` (Ref-NeRF, 2112.03907).

    It applies to lit views only, as normals cost six more evaluations of the field. DreamFusion stops the gradient into
    the weights, since hiding a surface would otherwise lower the loss as well as turning it.
    """
    if not render.lit:
        return None
    normals, weights, rays = render.visible_normals
    away = (normals * render.rays.directions[rays]).sum(-1).clamp_min(0)
    return (weights.detach() * away.square()).sum() / render.samples.num_rays


@dataclass
class LossWeights:
    """The weight of each regulariser: one number, or two for its weights at the start and at the end of a phase."""

    opacity: Weight = field(default=0.1, metadata={"loss": opacity_loss})
    """Weight of `opacity_loss`, which keeps space empty."""
    entropy: Weight = field(default=(0.0, 3.0), metadata={"loss": entropy_loss})
    """Weight of `entropy_loss`, which makes rays either hit or miss."""
    distortion: Weight = field(default=0.01, metadata={"loss": distortion_loss})
    """Weight of `distortion_loss`, which gathers matter along a ray."""
    orientation: Weight = field(default=0.01, metadata={"loss": orientation_loss})
    """Weight of `orientation_loss`, which turns the normals of lit views towards the camera."""

    def weighted(self, render: Render, progress: float) -> dict[str, Scalar]:
        """Every loss that applies and has a weight, multiplied by it; `progress` is the fraction of the phase done."""
        losses = {}
        for loss in fields(self):
            weight = getattr(self, loss.name)
            if weight and (value := loss.metadata["loss"](render)) is not None:
                start, end = weight if isinstance(weight, tuple) else (weight, weight)
                losses[f"{loss.name}_loss"] = (start + (end - start) * progress) * value
        return losses
