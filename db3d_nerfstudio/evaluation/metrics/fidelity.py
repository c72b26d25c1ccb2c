"""How close an asset is to its subject where the truth is known: the toybox's toys.

Views all round are compared with photos of the true toy from the same cameras. A generated asset has coordinates of
its own, so it is first aligned by the turn (of at most half a sector) and the scale at which the silhouettes fit best,
compared by the coverage of pixels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from db3d_nerfstudio.evaluation.metrics.pixels import Distance, ssim
from db3d_nerfstudio.evaluation.metrics.renders import ELEVATION, FIRST_AZIMUTH, NUM_VIEWS, RADIUS

if TYPE_CHECKING:
    from db3d_nerfstudio.toybox.scene import Studio
    from db3d_nerfstudio.toybox.subjects import Subject

TURNS = (-22.5, -15.0, -7.5, 0.0, 7.5, 15.0, 22.5)
"""Turns of the truth that are tried first, degrees."""
SCALES = (0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15)
"""Sizes of the truth that are tried first."""
FINER = ((3.75, 0.025), (1.875, 0.0125))
"""Distances in turn and size at which both are then tried around the best; the last is half a pixel of `SIDE`."""
SIDE = 64
"""Side of the silhouettes that are aligned, pixels."""

Pictures = Float[Tensor, "v h w 3"]
Masks = Float[Tensor, "v h w"]


@dataclass(frozen=True)
class Fidelity:
    """Distance of the views from the true ones."""

    silhouette_iou: float
    """Intersection over union of the silhouettes, mean over views; higher is better."""
    psnr: float
    """Peak signal-to-noise ratio over the pixels of the true silhouettes, dB; higher is better."""
    ssim: float
    """Structural similarity, mean over views; higher is better."""
    lpips: float | None
    """Perceptual distance, mean over views; lower is better. None without its weights."""
    turn: float
    """The turn of the truth that fits best, degrees."""
    scale: float
    """The size of the truth that fits best."""


def silhouette_iou(one: Masks, other: Masks) -> Float[Tensor, " v"]:
    """Intersection over union, view by view, of masks thresholded at one half; empty against empty is 1."""
    one, other = one > 0.5, other > 0.5
    union = (one | other).sum((1, 2))
    return torch.where(union > 0, (one & other).sum((1, 2)) / union.clamp_min(1), 1.0)


def soft_iou(one: Masks, other: Masks) -> Float[Tensor, " v"]:
    """Intersection over union of coverages, view by view: the sum of minima over that of maxima (Ruzicka)."""
    return torch.minimum(one, other).sum((1, 2)) / torch.maximum(one, other).sum((1, 2)).clamp_min(1e-6)


def masked_psnr(image: Pictures, truth: Pictures, mask: Masks) -> float:
    """-10 log10 of the mean squared error over the pixels of the mask, all views together; in dB.

    Raises:
        ValueError: the mask is empty.
    """
    inside = mask > 0.5
    if not inside.any():
        raise ValueError("the mask of the PSNR is empty: no view shows the true subject")
    return float(-10 * (image - truth)[inside].square().mean().clamp_min(1e-10).log10())


def photograph_truth(studio: Studio, turn: float = 0.0, scale: float = 1.0, size: int = SIDE) -> tuple[Pictures, Masks]:
    """The true toy from the cameras of the evaluation, in front of white, and its silhouettes, `size` pixels wide.

    A change of size is a change of distance, as the toy is small against that.
    """
    from db3d_nerfstudio.toybox.scene import Shot

    shot = Shot(0.0, ELEVATION, RADIUS / scale)
    azimuths = FIRST_AZIMUTH + np.arange(NUM_VIEWS) * 360 / NUM_VIEWS
    shots = [replace(shot, azimuth=float(azimuth + turn)) for azimuth in azimuths]
    pairs = [studio.render(shot, size) for shot in shots]
    images, masks = (torch.from_numpy(np.stack(part)).float() for part in zip(*pairs, strict=True))
    return images, masks


def align(masks: Masks, studio: Studio) -> tuple[float, float]:
    """Turn in degrees and scale of the truth whose silhouettes fit best.

    Thresholded silhouettes fit almost alike over several sizes, while a rim of half a pixel costs decibels.
    """
    masks = interpolate(masks[:, None], (SIDE, SIDE), mode="area")[:, 0]
    fits: dict[tuple[float, float], float] = {}

    def best_of(turns: Iterable[float], scales: Iterable[float]) -> tuple[float, float]:
        for turn, scale in set(product(turns, scales)) - fits.keys():
            _, true_masks = photograph_truth(studio, turn, scale)
            fits[turn, scale] = float(soft_iou(masks, true_masks).mean())
        return max(sorted(fits), key=fits.__getitem__)

    best = best_of(TURNS, SCALES)
    for steps in FINER:
        turns, scales = ((value - step, value, value + step) for value, step in zip(best, steps, strict=True))
        best = best_of((turn for turn in turns if TURNS[0] <= turn <= TURNS[-1]), scales)
    return best


@torch.no_grad()
def compare(
    images: Pictures, masks: Masks, subject: Subject, lpips: Distance | None = None
) -> tuple[Fidelity, Pictures]:
    """Fidelity of the views of the evaluation, and the true views they were compared with."""
    from db3d_nerfstudio.toybox.scene import Studio

    studio = Studio(subject)
    turn, scale = align(masks, studio)
    truth, true_masks = photograph_truth(studio, turn, scale, masks.shape[-1])
    pair = images.permute(0, 3, 1, 2), truth.permute(0, 3, 1, 2)
    return Fidelity(
        silhouette_iou=float(silhouette_iou(masks, true_masks).mean()),
        psnr=masked_psnr(images, truth, true_masks),
        ssim=ssim(*pair),
        lpips=None if lpips is None else float(lpips(*pair).mean()),
        turn=turn,
        scale=scale,
    ), truth
