"""Fidelity: the truth itself gets the ceiling, another toy does not, and values worked out by hand."""

import pytest
import torch

from db3d_nerfstudio.evaluation.metrics import fidelity
from db3d_nerfstudio.toybox.scene import Studio
from db3d_nerfstudio.toybox.subjects import make_subject


def test_silhouette_iou_by_hand():
    one, other = torch.zeros(2, 2, 2), torch.zeros(2, 2, 2)
    one[0, 0] = 1.0  # Two pixels, of which ...
    other[0, :, 0] = 1.0  # ... one is shared with two others: 1 / 3. The second view is empty on both sides.
    assert fidelity.silhouette_iou(one, other).tolist() == pytest.approx([1 / 3, 1.0])


def test_soft_iou_by_hand():
    one, other = torch.tensor([[[0.5, 1.0]]]), torch.tensor([[[1.0, 0.25]]])
    assert fidelity.soft_iou(one, other).tolist() == pytest.approx([0.75 / 2.0])


def test_masked_psnr_by_hand():
    truth, mask = torch.zeros(1, 2, 2, 3), torch.zeros(1, 2, 2)
    image = torch.ones(1, 2, 2, 3)
    mask[0, 0, 0] = 1.0
    image[0, 0, 0] = 0.1  # An error of 0.1 is 20 dB; what lies outside of the mask does not count.
    assert fidelity.masked_psnr(image, truth, mask) == pytest.approx(20.0, abs=1e-4)
    with pytest.raises(ValueError, match="empty"):
        fidelity.masked_psnr(image, truth, torch.zeros(1, 2, 2))


def test_truth_gets_the_ceiling_and_its_turn_and_scale_are_found(monkeypatch):
    monkeypatch.setattr(fidelity, "TURNS", (0.0, 15.0))
    monkeypatch.setattr(fidelity, "SCALES", (0.85, 1.0))
    subject = make_subject(7, "duck")
    images, masks = fidelity.photograph_truth(Studio(subject), turn=15.0, scale=0.85)
    same, truth = fidelity.compare(images, masks, subject, lpips=lambda a, b: (a - b).abs().mean((1, 2, 3)))
    assert (same.turn, same.scale) == (15.0, 0.85) and torch.equal(truth, images)
    assert (
        same.silhouette_iou == 1.0 and same.psnr > 90 and same.ssim == pytest.approx(1.0, abs=1e-4) and same.lpips == 0
    )
    monkeypatch.setattr(fidelity, "TURNS", (0.0,))
    other, _ = fidelity.compare(images, masks, make_subject(8, "house"))
    assert other.silhouette_iou < 0.8 and other.psnr < 20 and other.ssim < 0.9 and other.lpips is None


def test_larger_views_are_aligned_and_compared_as_well(monkeypatch):
    monkeypatch.setattr(fidelity, "TURNS", (0.0, 15.0))
    monkeypatch.setattr(fidelity, "SCALES", (0.85, 1.0))
    subject = make_subject(7, "duck")
    images, masks = fidelity.photograph_truth(Studio(subject), 15.0, 0.85, size=96)
    same, truth = fidelity.compare(images, masks, subject)
    assert truth.shape == (16, 96, 96, 3) and torch.equal(truth, images) and same.silhouette_iou == 1.0


def test_turn_and_size_between_the_first_ones_are_found(monkeypatch):
    monkeypatch.setattr(fidelity, "TURNS", (0.0, 7.5))
    monkeypatch.setattr(fidelity, "SCALES", (0.95, 1.0))
    studio = Studio(make_subject(7, "house"))
    _, masks = fidelity.photograph_truth(studio, turn=3.75, scale=0.9625)
    assert fidelity.align(masks, studio) == pytest.approx((3.75, 0.9625))


def test_the_coverage_of_pixels_tells_sizes_apart_that_a_threshold_does_not(monkeypatch):
    def photograph(studio, turn=0.0, scale=1.0):
        masks = torch.ones(1, 64, 64)
        masks[:, :, 0] = 0.4 * scale  # Never above one half.
        return masks[..., None].expand(-1, -1, -1, 3), masks

    monkeypatch.setattr(fidelity, "photograph_truth", photograph)
    _, masks = photograph(None, scale=0.9125)
    assert fidelity.align(masks, None)[1] == pytest.approx(0.9125)
