"""Our translation against diffusers' img2img pipelines: same folder, same prompt, same seed, same pixels."""

from pathlib import Path

import pytest
import torch
from tiny import tiny_stable_diffusion_folder
from tiny_pipelines import tiny_if_folder, tiny_sdxl_folder
from torch import Tensor

from db3d_nerfstudio.diffusion.guidance import Conditioning
from db3d_nerfstudio.diffusion.sampling import TranslationConfig, translate
from db3d_nerfstudio.guides.base import DiffusionGuide
from db3d_nerfstudio.guides.unet.deepfloyd import DeepFloydGuideConfig
from db3d_nerfstudio.guides.unet.sdxl import SDXLGuideConfig
from db3d_nerfstudio.guides.unet.stable_diffusion import StableDiffusionGuideConfig

PROMPT, SCALE, STRENGTH, STEPS = "a photo of a dog", 4.0, 0.5, 8
RGB = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def ours(guide: DiffusionGuide, negative: str = "") -> Tensor:
    config = TranslationConfig(STEPS, SCALE, strength=STRENGTH)
    return translate(guide, RGB, Conditioning.of(guide, [PROMPT], negative), config, torch.Generator().manual_seed(7))


def theirs(pipeline, image: Tensor, **settings) -> Tensor:
    pipeline.set_progress_bar_config(disable=True)
    settings |= {"strength": STRENGTH, "num_inference_steps": STEPS, "guidance_scale": SCALE, "output_type": "pt"}
    return pipeline(prompt=PROMPT, image=image, generator=torch.Generator().manual_seed(7), **settings).images


def ddim(pipeline):
    """DDIM on the folder's schedule, with the choices of our sampler."""
    from diffusers import DDIMScheduler

    choices = {"timestep_spacing": "trailing", "set_alpha_to_one": True, "clip_sample": False, "steps_offset": 0}
    return DDIMScheduler.from_config(pipeline.scheduler.config, **choices)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("negative", ["", "a red dog"])
def test_stable_diffusion(tmp_path: Path, prediction_type: str, negative: str) -> None:
    from diffusers import StableDiffusionImg2ImgPipeline

    folder = tiny_stable_diffusion_folder(tmp_path, prediction_type)
    guide = StableDiffusionGuideConfig(model=str(folder)).setup()
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(folder, dtype=torch.float32, safety_checker=None)
    pipeline.scheduler = ddim(pipeline)
    # Latents as the image: the pipeline would draw from the posterior of which our codec takes the mode.
    images = theirs(pipeline, guide.encode(RGB), negative_prompt=negative)
    torch.testing.assert_close(ours(guide, negative), images, atol=1e-4, rtol=0)


@pytest.mark.parametrize("negative", ["", "a red dog"])
def test_sdxl(tmp_path: Path, negative: str) -> None:
    from diffusers import StableDiffusionXLImg2ImgPipeline

    folder = tiny_sdxl_folder(tmp_path)
    guide = SDXLGuideConfig(model=str(folder)).setup()
    pipeline = StableDiffusionXLImg2ImgPipeline.from_pretrained(folder, dtype=torch.float32, add_watermarker=False)
    pipeline.scheduler = ddim(pipeline)
    sizes = {"original_size": (16, 16), "target_size": (16, 16)}
    images = theirs(pipeline, guide.encode(RGB), negative_prompt=negative or None, **sizes)
    torch.testing.assert_close(ours(guide, negative), images, atol=1e-4, rtol=0)


@pytest.mark.parametrize("negative", ["", "a red dog"])
def test_deepfloyd(tmp_path: Path, negative: str) -> None:
    """With the sampler of IF, ancestral and thresholded, its variance fixed as after any fine-tuning."""
    from diffusers import DDPMScheduler, IFImg2ImgPipeline

    folder = tiny_if_folder(tmp_path)
    guide = DeepFloydGuideConfig(model=str(folder)).setup()
    parts = {"safety_checker": None, "feature_extractor": None, "watermarker": None}
    pipeline = IFImg2ImgPipeline.from_pretrained(folder, dtype=torch.float32, **parts)
    choices = {"variance_type": "fixed_small", "timestep_spacing": "trailing"}
    pipeline.scheduler = DDPMScheduler.from_config(pipeline.scheduler.config, **choices)
    images = theirs(pipeline, RGB * 2 - 1, negative_prompt=negative)
    torch.testing.assert_close(ours(guide, negative), (images / 2 + 0.5).clamp(0, 1), atol=1e-4, rtol=0)
