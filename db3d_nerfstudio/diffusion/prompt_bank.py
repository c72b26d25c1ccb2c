"""View-dependent prompts (DreamFusion, arXiv 2209.14988, section 3.2), embedded once for all cameras."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from db3d_nerfstudio.cameras import Views, wrap_degrees
from db3d_nerfstudio.diffusion.guidance import Conditioning, PerpNeg
from db3d_nerfstudio.guides.base import DiffusionGuide
from db3d_nerfstudio.words import direction_names, direction_weights, seen_from, view_weights


def perp_neg_weights(views: Views) -> Float[Tensor, "b 2"]:
    """Weights with which guidance avoids the prompts of front and side at each camera, as in threestudio's Perp-Neg.

    A camera in front avoids the side, one at the side avoids the front, one behind avoids the front most of all. The
    higher the camera, the less, as interpolated prompts turn into the overhead prompt.
    """
    turned = wrap_degrees(views.azimuth).abs() / 90
    before = turned <= 1
    front = torch.where(before, 4 * (-0.5 * (1 - turned)).exp() - 2.426, (-0.5 * (2 - turned)).exp() + 0.967)
    side = torch.where(before, 4 * (-0.5 * turned).exp() - 2.426, (-0.5 * (2 - turned)).exp() - 0.606)
    overhead = view_weights(views, interpolate=True)[:, -1]
    return torch.stack([front, side], -1).clamp(min=0) * (1 - overhead[:, None])


class PromptBank:
    """The embeddings of a prompt from every side, computed once. Build a new one when the guide's weights change."""

    @torch.no_grad()
    def __init__(
        self,
        guide: DiffusionGuide,
        prompt: str,
        negative_prompt: str = "",
        interpolate: bool = False,
        perp_neg: float = 0.0,
    ) -> None:
        """Embed the prompts.

        Args:
            negative_prompt: The prompt that guidance leads away from.
            interpolate: Blend the prompts of neighbouring views, instead of using the nearest view's.
            perp_neg: Strength with which guidance avoids the front and side that a camera does not see; 0 is off.
        """
        self._guide, self._interpolate, self._perp_neg = guide, interpolate, perp_neg
        directions = [seen_from(prompt, name) for name in direction_names(guide.tells_sides)]
        sides = [seen_from(prompt, name) for name in ("front", "side")]
        unique = list(dict.fromkeys([*directions, *sides, negative_prompt]))
        embeddings = dict(zip(unique, guide.embed(unique), strict=True))
        self._directions = torch.stack([embeddings[text] for text in directions])
        self._front_and_side = torch.stack([embeddings[text] for text in sides])
        self._uncond = embeddings[negative_prompt][None]

    def __call__(self, views: Views) -> Conditioning:
        """The conditioning for the views of b cameras."""
        weights = direction_weights(views, self._interpolate, self._guide.tells_sides).to(self._directions.device)
        text = torch.einsum("bv,vnd->bnd", weights, self._directions)
        uncond = self._uncond.expand(len(views.azimuth), -1, -1)
        add_cameras = self._guide.add_cameras
        return Conditioning(add_cameras(text, views), add_cameras(uncond, views), self._away(views))

    def _away(self, views: Views) -> PerpNeg | None:
        if self._perp_neg == 0:
            return None
        front_and_side = self._front_and_side.expand(len(views.azimuth), -1, -1, -1)
        text = [self._guide.add_cameras(view, views) for view in front_and_side.unbind(1)]
        return PerpNeg(torch.stack(text, 1), self._perp_neg * perp_neg_weights(views).to(self._directions.device))
