"""The subject of a photo without a network: GrabCut (Rother et al. 2004, ACM Transactions on Graphics 23, 309).

It parts the colours of the subject from those at the border of the photo, so it is for plain surroundings.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

SIDE = 256
"""Pixels of the longer side that are segmented; masks are enlarged."""
ITERATIONS = 5
BORDER = 1 / 32
"""Width of what is taken as surroundings, as a share of the shorter side."""


def grabcut(photo: Image.Image) -> Image.Image:
    """How much each pixel of an RGB photo belongs to the subject, 8 bits; the same mask every time."""
    import cv2

    small = photo.copy()
    small.thumbnail((SIDE, SIDE))
    border = max(1, round(BORDER * min(small.size)))
    inner = (border, border, small.width - 2 * border, small.height - 2 * border)
    labels = np.zeros((small.height, small.width), np.uint8)
    colors = np.zeros((1, 65)), np.zeros((1, 65))  # Of surroundings and subject, as OpenCV keeps them.
    cv2.setRNGSeed(0)
    cv2.grabCut(np.asarray(small)[..., ::-1].copy(), labels, inner, *colors, ITERATIONS, cv2.GC_INIT_WITH_RECT)
    subject = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    return Image.fromarray((subject * 255).astype(np.uint8)).resize(photo.size, Image.Resampling.BILINEAR)
