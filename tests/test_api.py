"""What a researcher imports, on the embedded guide; and that importing it is cheap."""

import subprocess
import sys

import torch

from db3d_nerfstudio import diffusion, guides
from db3d_nerfstudio.cameras import Views
from db3d_nerfstudio.diffusion import (
    DreamBoothConfig,
    PromptBank,
    SamplingConfig,
    SDSConfig,
    TrainingSet,
    TranslationConfig,
    draw,
    finetune,
    sds_loss,
    translate,
)
from db3d_nerfstudio.guides import StableDiffusionGuideConfig
from db3d_nerfstudio.toybox.guide import ToyboxGuideConfig


def test_the_embedded_guide_draws_learns_distils_and_translates() -> None:
    guide, prompt = ToyboxGuideConfig(tuning="lora").setup(), "a photo of a sks duck"
    photos = draw(guide, [prompt] * 2, SamplingConfig(steps=2), seed=0)
    data = TrainingSet(photos, [{prompt: 1.0}] * 2)
    losses = finetune(guide, data, DreamBoothConfig(prior_loss_weight=0.0), max_train_steps=2, seed=0)
    assert len(losses) == 2 and guide.fingerprint() != ToyboxGuideConfig(tuning="lora").setup().fingerprint()

    sides = torch.tensor([0.0, 180.0])
    conditioning = PromptBank(guide, prompt)(Views(sides, sides, torch.full((2,), 3.0), torch.full((2,), 40.0)))
    rgb = photos.clone().requires_grad_()
    sds_loss(guide, rgb, conditioning, torch.tensor([500, 700]), SDSConfig()).backward()
    assert rgb.grad.abs().sum() > 0
    redrawn = translate(guide, photos, conditioning, TranslationConfig(steps=4, strength=0.5))
    assert redrawn.shape == photos.shape and not torch.equal(redrawn, photos)


def test_real_models_have_a_configuration_each() -> None:
    assert StableDiffusionGuideConfig().model and issubclass(guides.SDXLGuide, guides.DiffusionGuide)
    public = {name for name in vars(diffusion) if name[0].isupper()}
    assert public >= {"Conditioning", "SubjectTuner", "UpscalerConfig", "TranslationConfig"}


def test_importing_it_loads_no_diffusion_library() -> None:
    code = (
        "import sys\nimport db3d_nerfstudio.guides, db3d_nerfstudio.diffusion\n"
        "assert not {'diffusers', 'transformers', 'peft'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
