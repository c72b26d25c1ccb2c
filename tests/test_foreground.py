"""GrabCut on photos of toys, whose true silhouettes are known."""

import numpy as np
from PIL import Image

from db3d_nerfstudio.foreground import grabcut
from db3d_nerfstudio.toybox.examples import DEFAULT_SEED, casual_shots, default_truth
from db3d_nerfstudio.toybox.scene import Studio


def test_toys_are_cut_out_the_same_way_every_time():
    studio = Studio(default_truth())
    for shot in casual_shots(DEFAULT_SEED):
        photo, truth = Image.fromarray(studio.photograph(shot, 96)), studio.render(shot, 96)[1] > 0.5
        mask = np.asarray(grabcut(photo))
        found = mask > 127
        assert (found & truth).sum() / (found | truth).sum() > 0.9
        assert np.array_equal(mask, np.asarray(grabcut(photo)))


def test_masks_are_as_large_as_photos():
    photo = Image.new("RGB", (700, 400), "white")
    photo.paste("red", (200, 100, 500, 300))
    mask = grabcut(photo)
    assert mask.size == photo.size and mask.getpixel((350, 200)) == 255 and mask.getpixel((20, 20)) == 0


def test_nothing_is_found_in_a_photo_of_nothing():
    assert np.asarray(grabcut(Image.new("RGB", (64, 64), "gray"))).max() == 0
