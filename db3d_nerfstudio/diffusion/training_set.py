"""The data of a fine-tuning: images of the subject with their captions, and images of its class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from db3d_nerfstudio.diffusion.captions import Captions


class Prior(NamedTuple):
    """Images of the class by the untouched guide and their prompts, for prior preservation."""

    images: Float[Tensor, "m 3 h w"]
    prompts: list[str]


@dataclass(frozen=True)
class TrainingSet:
    """Images of a subject, and everything else for DreamBooth."""

    images: Float[Tensor, "n 3 h w"]
    captions: list[Captions]
    """The captions of each image and their shares; one is drawn each time that the image is used."""
    masks: Float[Tensor, "n 1 h w"] | None = None
    """1 where the images show the subject; None for everywhere."""
    prior: Prior | None = None
    """Images of the class; may be None where `needs_prior` returns False."""
    before_batch: Callable[[Int[Tensor, " b"], torch.Generator], None] | None = None
    """Called with the indices of every batch of images, and the generator of the random draws."""

    def __post_init__(self) -> None:
        if len(self.captions) != len(self.images):
            raise ValueError(
                f"Every image needs its captions: {len(self.images)} images, captions of {len(self.captions)}."
            )

    def extended(self, images: Float[Tensor, "k 3 h w"], captions: list[Captions]) -> TrainingSet:
        """The set with further images, without masks of their own."""
        masks = self.masks
        if masks is not None:
            masks = torch.cat([masks, masks.new_ones(len(images), *masks.shape[1:])])
        return replace(self, images=torch.cat([self.images, images]), captions=self.captions + captions, masks=masks)
