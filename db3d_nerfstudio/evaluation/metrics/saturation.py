"""Over-saturation: how much more colourful an asset is than the photos of its subject.

Score distillation with strong guidance over-saturates colours (DreamFusion 2209.14988, section 5); DreamBooth3D
(2303.13508, section 4.3) lists it as a failure. Colourfulness is chroma in CIELAB, where equal steps look equal.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def mean_chroma(images: Float[Tensor, "n 3 h w"], masks: Float[Tensor, "n h w"]) -> float:
    """Mean length of (a*, b*) over the pixels of the subject; 0 is grey, pure red is 104.6.

    Raises:
        ValueError: the masks are empty.
    """
    from skimage.color import rgb2lab

    inside = masks > 0.5
    if not inside.any():
        raise ValueError("no picture shows the subject: the masks are empty")
    lab = rgb2lab(images.permute(0, 2, 3, 1).cpu().numpy())
    return float(torch.from_numpy(lab[..., 1:]).norm(dim=-1)[inside.cpu()].mean())


def over_saturation(
    renders: Float[Tensor, "n 3 h w"],
    render_masks: Float[Tensor, "n h w"],
    photos: Float[Tensor, "m 3 h2 w2"],
    photo_masks: Float[Tensor, "m h2 w2"],
) -> float:
    """Chroma of the asset minus chroma of the subject in its photos; 0 is best, above 20 looks burnt."""
    return mean_chroma(renders, render_masks) - mean_chroma(photos, photo_masks)
