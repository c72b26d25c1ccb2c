"""What a fine-tuning learns from."""

import pytest
import torch

from db3d_nerfstudio.diffusion.training_set import TrainingSet

CAPTION = {"a sks dog": 1.0}


def test_further_images_are_learned_everywhere() -> None:
    data = TrainingSet(torch.zeros(2, 3, 4, 4), [CAPTION] * 2, torch.zeros(2, 1, 4, 4))
    more = data.extended(torch.ones(1, 3, 4, 4), [{"a sks dog, back view": 1.0}])
    assert more.images.mean((1, 2, 3)).tolist() == [0, 0, 1] and more.masks.mean((1, 2, 3)).tolist() == [0, 0, 1]
    assert more.captions == [CAPTION, CAPTION, {"a sks dog, back view": 1.0}]
    unmasked = TrainingSet(data.images, data.captions).extended(torch.ones(1, 3, 4, 4), [CAPTION])
    assert unmasked.masks is None and len(unmasked.images) == 3


def test_every_image_needs_its_captions() -> None:
    with pytest.raises(ValueError, match="2 images, captions of 1"):
        TrainingSet(torch.zeros(2, 3, 4, 4), [CAPTION])
