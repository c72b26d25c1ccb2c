"""What is particular to SDXL and to DeepFloyd IF; what they share with all guides is in test_guides.py."""

import json
from pathlib import Path

import pytest
import torch
from tiny import tiny_stable_diffusion_folder
from tiny_pipelines import tiny_if_folder, tiny_sdxl_folder

from db3d_nerfstudio.diffusion.guidance import Conditioning
from db3d_nerfstudio.diffusion.sampling import SamplingConfig, sample
from db3d_nerfstudio.diffusion.upscaler import UpscalerConfig
from db3d_nerfstudio.guides.unet.deepfloyd import DeepFloydGuideConfig
from db3d_nerfstudio.guides.unet.sdxl import SDXLGuideConfig
from db3d_nerfstudio.guides.unet.stable_diffusion import StableDiffusionGuideConfig

CONFIGS = {"sdxl": (tiny_sdxl_folder, SDXLGuideConfig), "if": (tiny_if_folder, DeepFloydGuideConfig)}


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sdxl_folder(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="module")
def deepfloyd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_if_folder(tmp_path_factory.mktemp("if"))


def test_sdxl_packs_its_pooled_text(sdxl: Path) -> None:
    guide = SDXLGuideConfig(model=str(sdxl)).setup()
    text = guide.embed(["a dog", ""])
    assert text.shape == (2, 77 + 1, 16 + 32)
    conditions = guide._conditions(text)
    assert conditions["encoder_hidden_states"].shape == (2, 77, 48)
    assert conditions["added_cond_kwargs"]["text_embeds"].shape == (2, 24)
    assert (text[0, -1, :24] != 0).all() and not text[0, -1, 24:].any()
    assert conditions["added_cond_kwargs"]["time_ids"].tolist() == [[16, 16, 0, 0, 16, 16]] * 2


def test_sdxl_answers_to_its_pooled_text(sdxl: Path) -> None:
    guide = SDXLGuideConfig(model=str(sdxl)).setup()
    text = guide.embed(["a dog"])
    other = text.clone()
    other[:, -1] = guide.embed(["a cat"])[:, -1]
    z_t, t = torch.randn(1, 4, 8, 8), torch.tensor([500])
    assert not torch.allclose(guide.predict_noise(z_t, t, text), guide.predict_noise(z_t, t, other), atol=1e-6)


def test_sdxl_takes_the_empty_prompt_as_its_pipeline_does(tmp_path: Path) -> None:
    folder = tiny_sdxl_folder(tmp_path)
    assert not SDXLGuideConfig(model=str(folder)).setup().embed([""]).any()
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "force_zeros_for_empty_prompt": False}))
    assert SDXLGuideConfig(model=str(folder)).setup().embed([""]).any()


def test_if_reads_its_t5_when_asked_and_frees_it(deepfloyd: Path) -> None:
    guide = DeepFloydGuideConfig(model=str(deepfloyd)).setup()
    assert list(guide.modules()) == ["unet"]
    text = guide.embed(["A Dog "])
    assert list(guide.modules()) == ["unet"] and text.shape == (1, 77, 32)
    assert torch.equal(text, guide.embed(["a dog"]))  # As IF was trained: in lower case.
    fingerprint = guide.fingerprint()
    assert fingerprint == DeepFloydGuideConfig(model=str(deepfloyd), text_encoder_memory="keep").setup().fingerprint()


def test_if_ignores_the_variance_that_its_network_predicts(deepfloyd: Path) -> None:
    guide = DeepFloydGuideConfig(model=str(deepfloyd)).setup()
    z_t, t, text = torch.randn(1, 3, 16, 16), torch.tensor([500]), guide.embed(["a dog"])
    before = guide.predict_noise(z_t, t, text)
    guide.unet.conv_out.weight.data[3:] += 1
    assert torch.equal(guide.predict_noise(z_t, t, text), before)
    guide.unet.conv_out.weight.data[:3] += 1
    assert not torch.equal(guide.predict_noise(z_t, t, text), before)


def test_if_adapters_reach_the_text_of_its_attention(deepfloyd: Path) -> None:
    guide = DeepFloydGuideConfig(model=str(deepfloyd)).setup()
    names = {name for name, parameter in guide.unet.named_parameters() if parameter.requires_grad}
    assert any("add_k_proj.lora_A" in name for name in names) and any("to_q.lora_A" in name for name in names)


def test_if_draws_with_a_variance_of_its_own_schedule(deepfloyd: Path) -> None:
    guide = DeepFloydGuideConfig(model=str(deepfloyd)).setup()
    conditioning = Conditioning.of(guide, ["a dog"])
    first, again, other = (
        sample(guide, conditioning, SamplingConfig(3, 4.0), torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert guide.sampler(3).config.variance_type == "fixed_small" and guide.sampler(3).config.thresholding


@pytest.mark.parametrize("family", CONFIGS)
def test_text_encoders_of_the_large_are_not_trained(family: str) -> None:
    with pytest.raises(ValueError, match="not trained: set train_text_encoder to False"):
        CONFIGS[family][1](train_text_encoder=True).setup()


@pytest.mark.parametrize(
    ("settings", "rate"),
    [({}, 5e-6), ({"train_text_encoder": True}, 2e-6), ({"tuning": "lora", "train_text_encoder": True}, 1e-4)],
)
def test_the_learning_rate_is_that_of_what_is_trained(tmp_path: Path, settings: dict, rate: float) -> None:
    model = str(tiny_stable_diffusion_folder(tmp_path))
    assert StableDiffusionGuideConfig(model=model, **settings).setup().learning_rate == rate


def test_adapters_of_if_learn_slowly(deepfloyd: Path, tmp_path: Path) -> None:
    assert DeepFloydGuideConfig(model=str(deepfloyd)).setup().learning_rate == 2e-5
    assert UpscalerConfig(model=str(tiny_if_folder(tmp_path, stage=2))).setup().learning_rate == 1e-6
