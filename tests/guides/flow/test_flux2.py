"""FLUX.2 klein on tiny random weights, against diffusers' own pipeline and training script."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_pipelines import tiny_flux2_folder
from torch import Tensor

from db3d_nerfstudio.diffusion.dreambooth import DreamBoothConfig, finetune
from db3d_nerfstudio.diffusion.guidance import Conditioning
from db3d_nerfstudio.diffusion.sampling import SamplingConfig, TranslationConfig, sample, translate
from db3d_nerfstudio.diffusion.sds import SDSConfig, sds_loss
from db3d_nerfstudio.diffusion.training_set import Prior, TrainingSet
from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.guides.flow.flux2 import MAX_TOKENS, Flux2Guide, Flux2GuideConfig
from db3d_nerfstudio.images import image_to_tensor

PROMPT, SUBJECT, CLASS, BATCH, SEED = "a photo of a dog", "a sks dog", "a dog", 3, 7
RGB = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_flux2_folder(tmp_path_factory.mktemp("flux2") / "model")


def configured(folder: Path, **settings) -> Flux2Guide:
    return Flux2GuideConfig(model=str(folder), **{"resolution": 16, **settings}).setup()


@pytest.fixture
def guide(folder: Path) -> Flux2Guide:
    return configured(folder)


@torch.no_grad()
def disturb(guide: Flux2Guide) -> None:
    for parameter in guide.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))


def pipeline_of(folder: Path):
    from diffusers import Flux2KleinPipeline

    pipeline = Flux2KleinPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


SIDE = 64
"""Pixels of the smallest image that the pipeline takes as a reference."""


def photos(num: int) -> list[Image.Image]:
    pixels = np.random.default_rng(0).integers(0, 255, (num, SIDE, SIDE, 3), np.uint8)
    return [Image.fromarray(each) for each in pixels]


@pytest.mark.parametrize("shown", [0, 2])
def test_translation_equals_diffusers(folder: Path, shown: int) -> None:
    """The pipeline begins with noise; given what we begin with, and the last of its sigmas, it goes on as we do."""
    from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

    guide, pipeline, references = configured(folder, resolution=SIDE), pipeline_of(folder), photos(shown)
    steps, taken, rgb = 8, 4, torch.rand(1, 3, SIDE, SIDE)
    sigmas, mu = np.linspace(1.0, 1 / steps, steps), compute_empirical_mu((SIDE // 4) ** 2, steps)
    pipeline.scheduler.set_timesteps(sigmas=sigmas, mu=mu)
    s, z = pipeline.scheduler.sigmas[-1 - taken], guide.encode(rgb)
    eps = torch.randn(z.shape, generator=torch.Generator().manual_seed(SEED))
    set_timesteps = pipeline.scheduler.set_timesteps

    def given(sigmas: np.ndarray, device: torch.device) -> None:
        set_timesteps(sigmas=sigmas, mu=mu, device=device)  # That of all steps.

    pipeline.scheduler.set_timesteps = lambda sigmas, mu, device: given(sigmas, device)
    theirs = pipeline(
        image=references or None,
        prompt=PROMPT,
        height=SIDE,
        width=SIDE,
        latents=(1 - s) * z + s * eps,
        num_inference_steps=taken,
        sigmas=sigmas[-taken:],
        guidance_scale=4.0,
        output_type="pt",
    ).images
    conditioning, config = Conditioning.of(guide, [PROMPT]), TranslationConfig(steps, 4.0, strength=taken / steps)

    def ours() -> Tensor:
        return translate(guide, rgb, conditioning, config, torch.Generator().manual_seed(SEED))

    if not references:
        torch.testing.assert_close(ours(), theirs, atol=1e-4, rtol=0)
        return
    with guide.references(torch.stack([image_to_tensor(image) for image in references])):
        torch.testing.assert_close(ours(), theirs, atol=1e-4, rtol=0)
    assert not torch.allclose(ours(), theirs, atol=1e-3)


def published(guide: Flux2Guide, z: Tensor, prompts: list[str], t: Tensor, eps: Tensor, prior: float) -> Tensor:
    """The loss of train_dreambooth_lora_flux2_klein.py, by what it is made of; subject first, then class."""
    from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline
    from diffusers.training_utils import compute_loss_weighting_for_sd3

    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(guide.source, subfolder="scheduler")
    indices = len(scheduler.timesteps) - 1 - t
    timesteps, sigmas = scheduler.timesteps[indices], scheduler.sigmas[indices][:, None, None, None]
    text, ids = guide.embed(prompts), Flux2KleinPipeline._prepare_latent_ids(z)
    output = guide.network(
        hidden_states=Flux2KleinPipeline._pack_latents((1 - sigmas) * z + sigmas * eps),
        timestep=timesteps / 1000,
        encoder_hidden_states=text,
        txt_ids=Flux2KleinPipeline._prepare_text_ids(text),
        img_ids=ids,
    ).sample
    output = Flux2KleinPipeline._unpack_latents_with_ids(output, ids)
    weighting = compute_loss_weighting_for_sd3("none", sigmas)
    mine, others = (weighting * (output - (eps - z)).square()).chunk(2)
    return mine.mean() + prior * others.mean()


def test_first_loss_of_a_fine_tuning_is_the_published_one(guide: Flux2Guide) -> None:
    disturb(guide)
    config = DreamBoothConfig(
        learning_rate=0.0, batch_size=BATCH, snr_gamma=None, prior_loss_weight=0.5, prior_snr_gamma=None
    )
    subject, others = (value + 0.1 * torch.randn(2, 3, 16, 16) for value in (0.8, 0.3))
    data = TrainingSet(subject, [{SUBJECT: 1.0}] * 2, prior=Prior(others, [CLASS] * 2))
    (ours,) = finetune(guide, data, config, max_train_steps=1, seed=SEED)

    draw = torch.Generator().manual_seed(SEED)  # The batch that `finetune` drew.
    z = torch.cat([guide.encode(images)[torch.randint(2, (BATCH,), generator=draw)] for images in (subject, others)])
    t = torch.randint(999, (2 * BATCH,), generator=draw)
    eps = torch.randn(z.shape, generator=draw)
    theirs = published(guide, z, [SUBJECT] * BATCH + [CLASS] * BATCH, t, eps, 0.5)
    assert ours == pytest.approx(theirs.item(), rel=1e-5)


def test_distillation_is_the_difference_of_velocities(guide: Flux2Guide) -> None:
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


def test_codec_is_that_of_the_pipeline(folder: Path, guide: Flux2Guide) -> None:
    z = guide.encode(RGB)
    torch.testing.assert_close(z, pipeline_of(folder)._encode_vae_image(RGB * 2 - 1, None))
    assert z.shape == (1, *guide.z_shape) == (1, 16, 4, 4)
    torch.testing.assert_close(guide.decode(z), (guide.vae(RGB * 2 - 1).sample / 2 + 0.5).clamp(0, 1))


def test_text_is_that_of_the_pipeline(folder: Path, guide: Flux2Guide) -> None:
    torch.testing.assert_close(guide.embed([PROMPT]), pipeline_of(folder).encode_prompt(PROMPT)[0])
    with pytest.raises(UserError, match=f"but the model reads {MAX_TOKENS}: shorten it"):
        guide.embed(["a" * MAX_TOKENS])


def test_pictures_from_noise_are_a_function_of_the_seed(guide: Flux2Guide) -> None:
    first, again, other = (
        sample(guide, Conditioning.of(guide, [PROMPT]), SamplingConfig(3, 4.0), torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    )
    assert first.shape == (1, 3, 16, 16) and torch.equal(first, again) and not torch.equal(first, other)


def test_adapters_have_the_layers_of_the_script_and_load_into_diffusers(folder: Path, tmp_path: Path) -> None:
    guide = configured(folder, lora_rank=2)
    layers = {name.split(".lora_")[0] for name, p in guide.network.named_parameters() if p.requires_grad}
    double = {f"transformer_blocks.0.attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")}
    single = {f"single_transformer_blocks.{i}.attn.{name}" for i in (0, 1) for name in ("to_qkv_mlp_proj", "to_out")}
    assert layers == double | single
    z_t, t, text = torch.randn(1, 16, 4, 4), torch.tensor([400]), guide.embed([PROMPT])
    with torch.no_grad():
        base = guide.predict_noise(z_t, t, text)
        disturb(guide)
        tuned = guide.predict_noise(z_t, t, text)
        guide.save(tmp_path)
        guide.load(None)
        assert torch.equal(guide.predict_noise(z_t, t, text), base) and not torch.equal(tuned, base)
        guide.load(tmp_path)
        torch.testing.assert_close(guide.predict_noise(z_t, t, text), tuned)
        pipeline = pipeline_of(folder)
        pipeline.load_lora_weights(tmp_path)
        guide.network = pipeline.transformer
        torch.testing.assert_close(guide.predict_noise(z_t, t, text), tuned)


def test_distilled_model_is_refused(folder: Path, tmp_path: Path) -> None:
    model = shutil.copytree(folder, tmp_path / "model")
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps({**index, "is_distilled": True}))
    with pytest.raises(UserError, match="is distilled: .* without classifier-free guidance"):
        configured(model)
