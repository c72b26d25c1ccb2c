"""All three stages with every family of guides, in miniature, by what `ns-train` calls after reading arguments."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from nerfstudio.scripts.train import main
from tiny import tiny_stable_diffusion_folder, tiny_toybox_folder
from tiny_pipelines import tiny_if_folder, tiny_sdxl_folder
from tiny_presets import VIEWS, tiny_config

from db3d_nerfstudio.diffusion.sampling import SamplingConfig
from db3d_nerfstudio.diffusion.upscaler import UpscalerConfig
from db3d_nerfstudio.results.film import render_views
from db3d_nerfstudio.results.open_run import open_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # nerfstudio's trainer and its imports, as in ns-train.
]


FAMILIES: dict[str, tuple[str, Callable[[Path], Path], dict]] = {
    "epsilon": ("dreambooth3d", tiny_stable_diffusion_folder, {}),
    "v": ("dreambooth3d", lambda path: tiny_stable_diffusion_folder(path, "v_prediction"), {"tuning": "lora"}),
    "sdxl": ("dreambooth3d_sdxl", tiny_sdxl_folder, {}),
    "if": ("dreambooth3d_if", tiny_if_folder, {}),
    "if, two stages": ("dreambooth3d_if", tiny_if_folder, {}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_three_stages(family: str, tmp_path: Path, photos: Path) -> None:
    preset, build, guide = FAMILIES[family]
    config = tiny_config(preset, build(tmp_path / "model"), photos, tmp_path / "out", **guide)
    upscaled = family == "if, two stages"
    if upscaled:
        model = str(tiny_if_folder(tmp_path / "model_2", stage=2))
        upscaler = UpscalerConfig(model=model, max_train_steps=2, sampling=SamplingConfig(2))
        config.pipeline.phases.pseudo_views.upscaler = upscaler
    main(config)
    (run,) = (tmp_path / "out").glob("*/*/*/config.yml")
    for name, steps in (("partial", 2), ("full", 3), ("multiview", 1)):
        losses = json.loads((run.parent / "dreambooth" / name / "losses.json").read_text())
        assert len(losses) == steps and all(map(math.isfinite, losses))
    assert len(list((run.parent / "pseudo_views" / "images").iterdir())) == VIEWS
    assert (run.parent / "pseudo_views" / "upscaler").is_dir() == upscaled
    (checkpoint,) = (run.parent / "nerfstudio_models").iterdir()
    state = torch.load(checkpoint, weights_only=True)
    assert state["step"] == 9 and all(value.isfinite().all() for value in state["pipeline"].values())


@pytest.mark.parametrize(
    ("preset", "build", "channels", "grid"),
    [("latent_nerf", tiny_stable_diffusion_folder, 4, 8), ("latent_nerf_toybox", tiny_toybox_folder, 4, 4)],
)
def test_a_nerf_of_latents_is_looked_at_without_its_guide(
    preset, build, channels, grid, tmp_path: Path, photos: Path
) -> None:
    config = tiny_config(preset, build(tmp_path / "model"), photos, tmp_path / "out")
    config.pipeline.phases.final.steps = 0
    config.pipeline.datamanager.random_cameras.resolution = ((0.0, grid),)
    config.pipeline.model.field.latent_channels = channels
    main(config)
    shutil.rmtree(tmp_path / "model")
    (run,) = (tmp_path / "out").glob("*/*/*")
    pipeline = open_run(run)
    assert pipeline.model.field.colors.from_rgb_map.abs().min() > 0, "fitted, and kept"
    images, _ = render_views(pipeline.model, pipeline.datamanager.config.dataparser.orbit()[0])
    assert images.shape == (VIEWS, 3, 16, 16) and images.std() > 0.01
    assert not (run / "initial").exists() and not (run / "pseudo_views").exists()
