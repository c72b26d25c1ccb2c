"""Stable Diffusion 3 on tiny random weights, against diffusers' own pipeline and training script."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_pipelines import tiny_sd3_folder
from torch import Tensor

from db3d_nerfstudio.diffusion.dreambooth import DreamBoothConfig, finetune
from db3d_nerfstudio.diffusion.guidance import Conditioning, add_noise
from db3d_nerfstudio.diffusion.sampling import SamplingConfig, TranslationConfig, sample, translate
from db3d_nerfstudio.diffusion.sds import SDSConfig, sds_loss
from db3d_nerfstudio.diffusion.training_set import Prior, TrainingSet
from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.guides.flow.sd3 import T5_TOKENS, SD3Guide, SD3GuideConfig

PROMPT, SUBJECT, CLASS, BATCH, SEED = "a photo of a dog", "a sks dog", "a dog", 3, 7
RGB = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd3_folder(tmp_path_factory.mktemp("sd3") / "model")


def configured(folder: Path, **settings) -> SD3Guide:
    return SD3GuideConfig(model=str(folder), **{"resolution": 16, **settings}).setup()


@pytest.fixture
def guide(folder: Path) -> SD3Guide:
    return configured(folder)


@torch.no_grad()
def disturb(guide: SD3Guide) -> None:
    for parameter in guide.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))


def img2img(folder: Path, **parts):
    from diffusers import StableDiffusion3Img2ImgPipeline

    pipeline = StableDiffusion3Img2ImgPipeline.from_pretrained(folder, dtype=torch.float32, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize(("t5", "negative"), [(True, "a red dog"), (False, "")])
def test_translation_equals_diffusers(folder: Path, t5: bool, negative: str) -> None:
    guide = configured(folder, t5=t5)
    pipeline = img2img(folder, **({} if t5 else {"text_encoder_3": None, "tokenizer_3": None}))
    settings = {"strength": 0.5, "num_inference_steps": 8, "guidance_scale": 4.0, "output_type": "pt"}
    # Latents as the image: the pipeline would draw from the posterior of which our codec takes the mode.
    theirs = pipeline(
        prompt=PROMPT,
        negative_prompt=negative,
        image=guide.encode(RGB),
        height=16,
        width=16,
        generator=torch.Generator().manual_seed(SEED),
        **settings,
    ).images
    conditioning = Conditioning.of(guide, [PROMPT], negative)
    config = TranslationConfig(8, 4.0, strength=0.5)
    ours = translate(guide, RGB, conditioning, config, torch.Generator().manual_seed(SEED))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def published(guide: SD3Guide, z: Tensor, prompts: list[str], u: Tensor, eps: Tensor, prior: float) -> Tensor:
    """The loss of train_dreambooth_lora_sd3.py, by what it is made of; subject first, then class."""
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.training_utils import compute_loss_weighting_for_sd3

    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(guide.source, subfolder="scheduler")
    indices = (u * scheduler.config.num_train_timesteps).long()
    timesteps, sigmas = scheduler.timesteps[indices], scheduler.sigmas[indices][:, None, None, None]
    text = guide.embed(prompts)
    output = guide.network(
        hidden_states=(1 - sigmas) * z + sigmas * eps,
        timestep=timesteps,
        encoder_hidden_states=text[:, :-1],
        pooled_projections=text[:, -1, : 16 + 24],
    ).sample
    weighting = compute_loss_weighting_for_sd3("logit_normal", sigmas)
    mine, others = (weighting * (output - (eps - z)).square()).chunk(2)
    return mine.mean() + prior * others.mean()


@pytest.mark.parametrize("prior", [1.0, 0.3])
def test_first_loss_of_a_fine_tuning_is_the_published_one(guide: SD3Guide, prior: float) -> None:
    from diffusers.training_utils import compute_density_for_timestep_sampling

    disturb(guide)
    config = DreamBoothConfig(
        learning_rate=0.0, batch_size=BATCH, snr_gamma=None, prior_loss_weight=prior, prior_snr_gamma=None
    )
    subject, others = (value + 0.1 * torch.randn(2, 3, 16, 16) for value in (0.8, 0.3))
    data = TrainingSet(subject, [{SUBJECT: 1.0}] * 2, prior=Prior(others, [CLASS] * 2))
    (ours,) = finetune(guide, data, config, max_train_steps=1, seed=SEED)

    draw = torch.Generator().manual_seed(SEED)  # The batch that `finetune` drew.
    z = torch.cat([guide.encode(images)[torch.randint(2, (BATCH,), generator=draw)] for images in (subject, others)])
    u = compute_density_for_timestep_sampling("logit_normal", 2 * BATCH, 0.0, 1.0, generator=draw)
    eps = torch.randn(z.shape, generator=draw)
    theirs = published(guide, z, [SUBJECT] * BATCH + [CLASS] * BATCH, u, eps, prior)
    assert ours == pytest.approx(theirs.item(), rel=1e-5)


def test_distillation_is_the_difference_of_velocities(guide: SD3Guide) -> None:
    """RFDS: mean over b of (v_hat - (eps - z)) dz/drgb, the network's Jacobian left out."""
    rgb, t = torch.rand(2, 3, 16, 16, requires_grad=True), torch.tensor([200, 600])
    conditioning, scale = Conditioning.of(guide, [PROMPT] * 2), 5.0
    config = SDSConfig(guidance_scale=scale, weighting="flow")
    sds_loss(guide, rgb, conditioning, t, config, torch.Generator().manual_seed(3)).backward()

    s = guide.schedule.time(t)[:, None, None, None]
    z = guide.encode(rgb.detach())
    eps = torch.randn(z.shape, generator=torch.Generator().manual_seed(3))
    x = (1 - s) * z + s * eps
    with torch.no_grad():
        v, v_uncond = (guide._velocity(x, s.flatten(), text) for text in (conditioning.text, conditioning.uncond))
    pulled = (v_uncond + scale * (v - v_uncond) - (eps - z)) / 2
    expected = torch.autograd.grad(guide.encode(rgb), rgb, pulled)[0]
    torch.testing.assert_close(rgb.grad, expected, atol=1e-5, rtol=1e-3)


def test_noise_is_the_velocitys(guide: SD3Guide) -> None:
    """At whole timesteps and between: x_s = r z_t, eps = x_s + (1 - s) v."""
    z, eps, text = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), guide.embed([PROMPT] * 2)
    for t in (torch.tensor([300, 900]), torch.tensor([300.4, 900.7])):
        s = guide.schedule.time(t)[:, None, None, None]
        z_t = add_noise(guide, z, t, eps)
        torch.testing.assert_close(z_t * ((1 - s) ** 2 + s**2).sqrt(), (1 - s) * z + s * eps, atol=1e-4, rtol=0)
        with torch.no_grad():
            velocity = guide._velocity((1 - s) * z + s * eps, s.flatten(), text)
            answer = guide.predict_noise(z_t, t, text)
        torch.testing.assert_close(answer, (1 - s) * z + s * eps + (1 - s) * velocity, atol=1e-4, rtol=0)


def test_text_is_clip_then_t5_then_the_pooled_row(folder: Path, guide: SD3Guide) -> None:
    text = guide.embed([PROMPT, ""])
    assert text.shape == (2, 77 + T5_TOKENS + 1, 64)
    assert not text[:, :77, 48:].any() and not text[:, -1, 16 + 24 :].any() and text[0, 77:-1].any()
    assert not configured(folder, t5=False).embed([PROMPT])[0, 77:-1].any()
    other = text.clone()
    other[:, -1] = guide.embed(["a red cat"])[0, -1]
    z_t, t = torch.randn(2, 4, 8, 8), torch.tensor([500, 500])
    assert not torch.allclose(guide.predict_noise(z_t, t, text), guide.predict_noise(z_t, t, other), atol=1e-6)


def test_pictures_from_noise_are_a_function_of_the_seed(guide: SD3Guide) -> None:
    first, again, other = (
        sample(guide, Conditioning.of(guide, [PROMPT]), SamplingConfig(3, 4.0), torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    )
    assert first.shape == (1, 3, 16, 16) and torch.equal(first, again) and not torch.equal(first, other)


def test_adapters_have_the_layers_of_the_script_and_load_into_diffusers(folder: Path, tmp_path: Path) -> None:
    guide = configured(folder, lora_rank=2, lora_alpha=8.0)
    layers = {name.split(".lora_")[0] for name, p in guide.network.named_parameters() if p.requires_grad}
    ends = {name.split(".attn.")[1] for name in layers}
    assert ends == {*("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")}
    z_t, t, text = torch.randn(1, 4, 8, 8), torch.tensor([400]), guide.embed([PROMPT])
    with torch.no_grad():
        base = guide.predict_noise(z_t, t, text)
        disturb(guide)
        tuned = guide.predict_noise(z_t, t, text)
        with guide.untuned():
            assert torch.equal(guide.predict_noise(z_t, t, text), base)
        guide.save(tmp_path)
        guide.load(None)
        assert torch.equal(guide.predict_noise(z_t, t, text), base) and not torch.equal(tuned, base)
        guide.load(tmp_path)
        torch.testing.assert_close(guide.predict_noise(z_t, t, text), tuned)
        pipeline = img2img(folder)
        pipeline.load_lora_weights(tmp_path)
        guide.network = pipeline.transformer
        torch.testing.assert_close(guide.predict_noise(z_t, t, text), tuned)


def test_whole_weights_come_back(folder: Path, tmp_path: Path) -> None:
    guide = configured(folder, tuning="full")
    base = guide.fingerprint()
    disturb(guide)
    tuned = guide.fingerprint()
    guide.save(tmp_path)
    guide.load(None)
    assert guide.fingerprint() == base != tuned
    guide.load(tmp_path)
    assert guide.fingerprint() == tuned


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"resolution": 18}, "resolution is 18: it must be a multiple of 4"),
        ({"resolution": 64}, "positions for 32 pixels: set the guide's resolution to that or less"),
    ],
)
def test_settings_that_do_not_fit(folder: Path, settings: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        configured(folder, **settings)


def test_sizes_are_resized_to_the_guides(folder: Path) -> None:
    guide = configured(folder, resolution=8, vae_dtype="bfloat16")
    z = guide.encode(RGB)
    assert z.shape == (1, *guide.z_shape) == (1, 4, 4, 4) and guide.vae.dtype == torch.bfloat16
    assert guide.decode(z).shape == (1, 3, 8, 8)
