"""What stage 2 makes of the truth."""

from pathlib import Path

import pytest
import torch
from tiny import GaussianGuideConfig

from db3d_nerfstudio.evaluation.redrawing import full_of, redraw, true_views
from db3d_nerfstudio.toybox.examples import default_truth
from db3d_nerfstudio.training.pipeline import DreamBooth3DPipelineConfig


@pytest.fixture
def settings() -> DreamBooth3DPipelineConfig:
    settings = DreamBooth3DPipelineConfig()
    settings.model.prompt = "a photo of a sks duck"
    settings.model.guide = GaussianGuideConfig(resolution=16)
    settings.model.background.color = (0.5, 0.5, 0.5)
    orbit = settings.datamanager.dataparser
    orbit.num_views, orbit.resolution = 3, 16
    settings.phases.pseudo_views.steps = 4
    return settings


def test_true_views_stand_in_front_of_the_nerf_s_background(settings: DreamBooth3DPipelineConfig) -> None:
    images, masks = true_views(default_truth(), settings)
    assert images.shape == (3, 16, 16, 3) and masks.shape == (3, 16, 16)
    assert bool((images[masks == 0] == 0.5).all()) and bool((masks == 1).any(-1).any(-1).all())


def test_the_truth_is_redrawn_as_renders_are(settings: DreamBooth3DPipelineConfig, tmp_path: Path) -> None:
    toy, run = default_truth(), tmp_path / "run"
    settings.model.guide.setup().save(full_of(run))
    ratios = []
    for settings.phases.pseudo_views.strength in (0.0, 0.5):
        psnr, truth, redrawn = redraw(run, settings, toy, seed=0)
        assert redrawn.shape == truth.shape
        ratios.append(psnr)
    assert ratios[0] > 90 > ratios[1], "at strength 0 a guide of pixels returns what it was given"


def test_only_the_margin_around_the_toy_is_redrawn(settings: DreamBooth3DPipelineConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings.model.guide.setup().save(full_of(run))
    settings.phases.pseudo_views.margin = 0.0
    _, truth, redrawn = redraw(run, settings, default_truth(), seed=0)
    assert torch.allclose(redrawn[:, :2, :2], truth[:, :2, :2], atol=1e-4), "corners are far from the toy"
