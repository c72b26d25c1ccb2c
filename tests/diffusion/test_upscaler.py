"""IF's second stage against diffusers' pipeline, and what tuning on pairs of photos changes."""

from pathlib import Path

import pytest
import torch
from tiny import GaussianGuideConfig
from tiny_pipelines import tiny_if_folder
from torch import Tensor

from db3d_nerfstudio.diffusion.dreambooth import DreamBoothConfig, noise_weights
from db3d_nerfstudio.diffusion.guidance import Conditioning, add_noise
from db3d_nerfstudio.diffusion.sampling import SamplingConfig
from db3d_nerfstudio.diffusion.upscaler import Upscaler, UpscalerConfig, tune_upscaler, upscale, upscaling_pairs
from db3d_nerfstudio.guides.diffusers_guide import resize
from db3d_nerfstudio.guides.unet.deepfloyd import DeepFloydGuideConfig

QUICK = SamplingConfig(4, 4.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_if_folder(tmp_path_factory.mktemp("if_stage_2"), stage=2)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def upscaled(upscaler: Upscaler, small: Tensor) -> Tensor:
    return upscale(upscaler, small, Conditioning.of(upscaler, ["a dog"] * len(small)), seeded())


@pytest.mark.parametrize("noise_level", [0, 250])
def test_images_are_those_of_the_pipeline(folder: Path, noise_level: int) -> None:
    from diffusers import DDPMScheduler, IFSuperResolutionPipeline

    guide = UpscalerConfig(model=str(folder), noise_level=noise_level, sampling=QUICK).setup()
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
    torch.testing.assert_close(upscaled(guide, small), (theirs / 2 + 0.5).clamp(0, 1), atol=1e-4, rtol=0)


def test_every_image_goes_by_its_own_small_one(folder: Path) -> None:
    guide = UpscalerConfig(model=str(folder)).setup()
    guide.show(torch.stack([torch.zeros(3, 16, 16), torch.ones(3, 16, 16)]), seeded())
    seen = guide._inputs(torch.zeros(4, 3, 32, 32), guide.embed([""] * 4))  # Both prompts of classifier-free guidance.
    means = seen[:, 3:].mean((1, 2, 3))
    assert (means[[0, 2]] < -0.9).all() and (means[[1, 3]] > 0.9).all() and not seen[:, :3].any()


def test_less_noise_shows_more_of_the_small_image(folder: Path) -> None:
    small = torch.full((1, 3, 16, 16), 0.5)
    spread = []
    for noise_level in (0, 25, 250):
        guide = UpscalerConfig(model=str(folder), noise_level=noise_level).setup()
        guide.show(small, seeded())
        spread.append(guide._inputs(torch.zeros(1, 3, 32, 32), guide.embed([""]))[:, 3:].std().item())
    assert spread == sorted(spread) and spread[0] < 0.01 and spread[2] > 0.3


@pytest.mark.slow
def test_tuning_on_pairs_is_learned_repeatable_and_kept(folder: Path, tmp_path: Path) -> None:
    photos = torch.rand(2, 3, 32, 32, generator=seeded(2))
    config = DreamBoothConfig(learning_rate=3e-3)
    settings = {"model": str(folder), "tuning": "full", "max_train_steps": 30, "sampling": QUICK}

    def tuned() -> tuple[Upscaler, list[float]]:
        upscaler = UpscalerConfig(**settings).setup()
        pairs = upscaling_pairs(upscaler, photos, "a photo of a sks dog", 16)
        return upscaler, tune_upscaler(upscaler, pairs, config, seed=0)

    upscaler, losses = tuned()
    assert len(losses) == 30 and sum(losses[-10:]) < 0.8 * sum(losses[:10])
    assert tuned()[1] == losses
    upscaler.save(tmp_path)
    again = UpscalerConfig(**settings).setup()
    small = torch.nn.functional.interpolate(photos, (16, 16), mode="bilinear", antialias=True)
    assert not torch.equal(upscaled(again, small), upscaled(upscaler, small))
    again.load(tmp_path)
    assert torch.equal(upscaled(again, small), upscaled(upscaler, small))


def test_pairs_are_drawn_as_before_the_loops_were_one(folder: Path) -> None:
    """The first loss by hand: index, noise of the small image, timestep, noise of the large one."""
    upscaler = UpscalerConfig(model=str(folder), max_train_steps=1).setup()
    photos, config = torch.rand(2, 3, 32, 32, generator=seeded(2)), DreamBoothConfig(batch_size=3)
    (loss,) = tune_upscaler(upscaler, upscaling_pairs(upscaler, photos, "a dog", 16), config, seed=7)
    again, draws = UpscalerConfig(model=str(folder)).setup(), seeded(7)
    index = torch.randint(2, (3,), generator=draws)
    again.show(resize(photos, 16)[index], draws)
    t = torch.randint(1000, (3,), generator=draws)
    eps = torch.randn(3, 3, 32, 32, generator=draws)
    z_t = add_noise(again, again.encode(photos)[index], t, eps)
    errors = (again.predict_noise(z_t, t, again.embed(["a dog"] * 3)) - eps).square().mean((1, 2, 3))
    weights = noise_weights(again.alphas_cumprod[t], again.prediction_type, config.snr_gamma)
    assert loss == pytest.approx((weights * errors).mean().item(), rel=1e-5)


def test_first_stage_of_the_same_family_reads_the_prompts(folder: Path, tmp_path: Path) -> None:
    first = DeepFloydGuideConfig(model=str(tiny_if_folder(tmp_path))).setup()
    upscaler = UpscalerConfig(model=str(folder), text_encoder_memory="free").setup(first_stage=first)
    first._embeddings["a dog"] = torch.full_like(first.embed(["a cat"])[0], 0.5)
    assert torch.equal(upscaler.embed(["a dog"]), first.embed(["a dog"]))
    other = UpscalerConfig(model=str(folder)).setup(first_stage=GaussianGuideConfig().setup())
    assert other.embed(["a dog"]).shape[1:] == upscaler.embed(["a cat"]).shape[1:]


def test_nothing_shown_is_an_error(folder: Path) -> None:
    guide = UpscalerConfig(model=str(folder)).setup()
    with pytest.raises(ValueError, match=r"call show\(\)"):
        guide.predict_noise(torch.zeros(1, 3, 32, 32), torch.tensor([5]), guide.embed(["a dog"]))
