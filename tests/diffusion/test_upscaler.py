"""IF's second stage against diffusers' pipeline, and what tuning on pairs of photos changes."""

from pathlib import Path

import pytest
import torch
from tiny_pipelines import tiny_if_folder
from torch import Tensor

from db3d_nerfstudio.diffusion.dreambooth import DreamBoothConfig
from db3d_nerfstudio.diffusion.guidance import Conditioning
from db3d_nerfstudio.diffusion.sampling import SamplingConfig
from db3d_nerfstudio.diffusion.upscaler import SuperResolution, SuperResolutionConfig, enlarge, tune_on_pairs
from db3d_nerfstudio.guides.unet.deepfloyd import DeepFloydGuide, DeepFloydGuideConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_if_folder(tmp_path_factory.mktemp("if_stage_2"), stage=2)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def enlarged(guide: SuperResolution, small: Tensor) -> Tensor:
    return enlarge(guide, small, Conditioning.of(guide, ["a dog"] * len(small)), SamplingConfig(4, 4.0), seeded())


@pytest.mark.parametrize("noise_level", [0, 250])
def test_images_are_those_of_the_pipeline(folder: Path, noise_level: int) -> None:
    from diffusers import DDPMScheduler, IFSuperResolutionPipeline

    guide = SuperResolutionConfig(model=str(folder), noise_level=noise_level).setup()
    parts = {"safety_checker": None, "feature_extractor": None, "watermarker": None}
    pipeline = IFSuperResolutionPipeline.from_pretrained(folder, dtype=torch.float32, **parts)
    pipeline.set_progress_bar_config(disable=True)
    choices = {"variance_type": "fixed_small", "timestep_spacing": "trailing"}
    pipeline.scheduler = DDPMScheduler.from_config(pipeline.scheduler.config, **choices)
    small = torch.rand(1, 3, 16, 16, generator=seeded(1))
    theirs = pipeline(
        prompt="a dog", image=small * 2 - 1, generator=seeded(), num_inference_steps=4, guidance_scale=4.0,
        noise_level=noise_level, output_type="pt",
    ).images  # fmt: skip
    assert theirs.shape == (1, 3, 32, 32)
    torch.testing.assert_close(enlarged(guide, small), (theirs / 2 + 0.5).clamp(0, 1), atol=1e-4, rtol=0)


def test_every_image_goes_by_its_own_small_one(folder: Path) -> None:
    guide = SuperResolutionConfig(model=str(folder)).setup()
    guide.show(torch.stack([torch.zeros(3, 16, 16), torch.ones(3, 16, 16)]), seeded())
    seen = guide._inputs(torch.zeros(4, 3, 32, 32), guide.embed([""] * 4))  # Both prompts of classifier-free guidance.
    means = seen[:, 3:].mean((1, 2, 3))
    assert (means[[0, 2]] < -0.9).all() and (means[[1, 3]] > 0.9).all() and not seen[:, :3].any()


def test_less_noise_shows_more_of_the_small_image(folder: Path) -> None:
    small = torch.full((1, 3, 16, 16), 0.5)
    spread = []
    for noise_level in (0, 25, 250):
        guide = SuperResolutionConfig(model=str(folder), noise_level=noise_level).setup()
        guide.show(small, seeded())
        spread.append(guide._inputs(torch.zeros(1, 3, 32, 32), guide.embed([""]))[:, 3:].std().item())
    assert spread == sorted(spread) and spread[0] < 0.01 and spread[2] > 0.3


def test_tuning_on_pairs_is_learned_repeatable_and_kept(folder: Path, tmp_path: Path) -> None:
    photos = torch.rand(2, 3, 32, 32, generator=seeded(2))
    config = DreamBoothConfig(learning_rate=3e-3, batch_size=2)

    def tuned() -> tuple[SuperResolution, list[float]]:
        guide = SuperResolutionConfig(model=str(folder), tuning="full").setup()
        text = guide.embed(["a photo of a sks dog"])
        return guide, tune_on_pairs(guide, photos, text, 16, steps=30, config=config, seed=0)

    guide, losses = tuned()
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    assert tuned()[1] == losses
    guide.save(tmp_path)
    again = SuperResolutionConfig(model=str(folder), tuning="full").setup()
    small = torch.nn.functional.interpolate(photos, (16, 16), mode="bilinear", antialias=True)
    assert not torch.equal(enlarged(again, small), enlarged(guide, small))
    again.load(tmp_path)
    assert torch.equal(enlarged(again, small), enlarged(guide, small))


def test_first_stage_hands_its_images_on(folder: Path, tmp_path: Path) -> None:
    """With the details it was taught; and without a second stage, as they are."""
    first = str(tiny_if_folder(tmp_path / "first"))
    rgb = torch.rand(2, 3, 16, 16, generator=seeded(3))

    def handed_on(**settings) -> tuple[DeepFloydGuide, Tensor]:
        guide = DeepFloydGuideConfig(model=first, **settings).setup()
        text, uncond = guide.embed(["a dog"] * 2), guide.embed([""] * 2)
        config = DreamBoothConfig(learning_rate=1e-2)
        guide.tune_details(lambda side: torch.rand(2, 3, side, side), "a sks dog", config, 0, tmp_path / "details")
        return guide, guide.enlarge(rgb, text, uncond, seeded())

    alone, same = handed_on()
    assert torch.equal(same, rgb) and not (tmp_path / "details").exists()
    stages = {"stage_2": str(folder)}
    plain, large = handed_on(**stages)
    assert large.shape == (2, 3, 32, 32) and not (tmp_path / "details").exists()
    taught, detailed = handed_on(**stages, stage_2_steps=2)
    assert (tmp_path / "details").is_dir() and not torch.equal(detailed, large)
    noised, other = handed_on(**stages, stage_2_noise_level=250)
    assert not torch.equal(other, large)
    assert len({guide.fingerprint() for guide in (alone, plain, taught, noised)}) == 4


def test_nothing_shown_is_an_error(folder: Path) -> None:
    guide = SuperResolutionConfig(model=str(folder)).setup()
    with pytest.raises(ValueError, match=r"call show\(\)"):
        guide.predict_noise(torch.zeros(1, 3, 32, 32), torch.tensor([5]), guide.embed(["a dog"]))
