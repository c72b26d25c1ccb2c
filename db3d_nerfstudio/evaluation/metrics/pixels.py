"""Pixel-wise comparison with the true views, by torchmetrics: SSIM, and LPIPS if its weights are on this machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

Images = Float[Tensor, "v 3 h w"]
Distance = Callable[[Images, Images], Float[Tensor, " v"]]


def ssim(images: Images, truth: Images) -> float:
    """Structural similarity (Wang et al. 2004), mean over views; 1 is the truth itself."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    return float(cast(Tensor, structural_similarity_index_measure(images, truth, data_range=1.0)))


def lpips_weights() -> Path | None:
    """AlexNet's weights in torchvision's cache; None if they were never downloaded."""
    from torchvision.models import AlexNet_Weights

    name = AlexNet_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[-1]
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    return path if path.exists() else None


def load_lpips() -> Distance | None:
    """LPIPS (Zhang et al. 2018, arXiv 1801.03924) between pictures in [0, 1]; None without its weights.

    To download them once: `python -c "import torchvision; torchvision.models.alexnet(weights='DEFAULT')"`.
    """
    if lpips_weights() is None:
        return None
    from torchmetrics.image import LearnedPerceptualImagePatchSimilarity

    network = LearnedPerceptualImagePatchSimilarity("alex", reduction="sum", normalize=True)

    @torch.no_grad()
    def distance(one: Images, other: Images) -> Float[Tensor, " v"]:
        return torch.stack([network(a[None], b[None]) for a, b in zip(one, other, strict=True)])

    return distance
