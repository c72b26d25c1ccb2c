"""All three stages of every family on the pretend device, by what `ns-train` calls after reading arguments."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from nerfstudio.scripts.train import main
from pretend import DEVICE, MixedDevices, pretend_device
from tiny import tiny_stable_diffusion_folder, tiny_toybox_folder
from tiny_pipelines import tiny_flux2_folder, tiny_if_folder, tiny_sd3_folder, tiny_sdxl_folder
from tiny_presets import tiny_config

from db3d_nerfstudio.diffusion.sampling import SamplingConfig
from db3d_nerfstudio.diffusion.upscaler import UpscalerConfig
from db3d_nerfstudio.guides.diffusers_guide import DiffusersGuide
from db3d_nerfstudio.guides.unet.guide import UNetGuide
from db3d_nerfstudio.training.trainer import DreamBooth3DTrainerConfig

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def tiny_v_folder(path: Path) -> Path:
    return tiny_stable_diffusion_folder(path, "v_prediction")


FROZEN_TEXT = {"train_text_encoder": False}
FAMILIES: dict[str, tuple[str, Callable[[Path], Path], dict]] = {
    "sd": ("dreambooth3d", tiny_stable_diffusion_folder, {"tuning": "full"}),
    "sd, adapters": (
        "dreambooth3d",
        tiny_stable_diffusion_folder,
        {**FROZEN_TEXT, "tuning": "lora", "text_encoder_memory": "free"},
    ),
    "sd, text encoder": ("dreambooth3d", tiny_stable_diffusion_folder, {"train_text_encoder": True}),
    "sd, v prediction": ("dreambooth3d", tiny_v_folder, {**FROZEN_TEXT, "text_encoder_memory": "offload"}),
    "sd, a new word": ("textual_inversion_fusion", tiny_stable_diffusion_folder, {"new_token_like": "a"}),
    "sdxl": ("dreambooth3d_sdxl", tiny_sdxl_folder, {}),
    "if": ("dreambooth3d_if", tiny_if_folder, {}),
    "flux2": ("dreambooth3d_flux2", tiny_flux2_folder, {"resolution": 16}),
    "sd3": ("dreambooth3d_sd3", tiny_sd3_folder, {"resolution": 16}),
    "toybox": ("dreambooth3d_toybox", tiny_toybox_folder, {}),
    "latents": ("latent_nerf", tiny_stable_diffusion_folder, {}),
}


def pretend_config(family: str, path: Path, photos: Path) -> DreamBooth3DTrainerConfig:
    preset, build, guide = FAMILIES[family]
    config = tiny_config(preset, build(path / "model"), photos, path / "out", **guide)
    if preset == "textual_inversion_fusion":
        config.pipeline.model.prompt = "a photo of a <sks> dog"
    if family == "if":
        model = str(tiny_if_folder(path / "model_2", stage=2))
        upscaler = UpscalerConfig(model=model, max_train_steps=1, sampling=SamplingConfig(2))
        config.pipeline.phases.pseudo_views.upscaler = upscaler
    phases = config.pipeline.phases
    phases.initial.steps, phases.final.steps = 2, phases.final.steps and 2
    phases.partial_steps = phases.full_steps = 1
    config.machine.device_type = DEVICE
    return config


@pytest.mark.parametrize("family", FAMILIES)
def test_three_stages(family: str, tmp_path: Path, photos: Path) -> None:
    config = pretend_config(family, tmp_path, photos)
    with pretend_device():
        main(config)
    (checkpoint,) = (tmp_path / "out").glob("*/*/*/nerfstudio_models/*")
    state = torch.load(checkpoint, weights_only=True)
    assert state["step"] == config.pipeline.phases.total_steps() - 1
    assert all(value.isfinite().all() for value in state["pipeline"].values())


def test_a_guide_on_another_device_than_the_nerf(tmp_path: Path, photos: Path) -> None:
    config = pretend_config("sd", tmp_path, photos)
    config.machine.device_type, config.pipeline.model.guide.device = "cpu", DEVICE
    with pretend_device():
        main(config)


def fetch_what_the_guide_answers(patch: pytest.MonkeyPatch) -> None:
    right = UNetGuide.predict_noise
    patch.setattr(UNetGuide, "predict_noise", lambda *args: right(*args).cpu())


def leave_token_ids_behind(patch: pytest.MonkeyPatch) -> None:
    right = DiffusersGuide._token_ids
    patch.setattr(DiffusersGuide, "_token_ids", lambda *args: right(*args).cpu())


def draw_noise_there_by_a_generator_here(patch: pytest.MonkeyPatch) -> None:
    def noise(shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None = None) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device)

    for user in ("tuner", "sampling"):
        patch.setattr(f"db3d_nerfstudio.diffusion.{user}.standard_noise", noise)


@pytest.mark.parametrize(
    "mistake", [fetch_what_the_guide_answers, leave_token_ids_behind, draw_noise_there_by_a_generator_here]
)
def test_a_planted_mistake_ends_the_run(
    mistake: Callable, tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = pretend_config("sd", tmp_path, photos)
    mistake(monkeypatch)
    with pretend_device(), pytest.raises(MixedDevices):
        main(config)
