"""Ways of tuning a guide and their files: plain diffusers makes the same images of them as the guide does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tiny import tiny_stable_diffusion_folder, tiny_toybox_folder
from torch import Tensor

from db3d_nerfstudio.diffusion.dreambooth import DreamBoothConfig, finetune
from db3d_nerfstudio.diffusion.guidance import Conditioning
from db3d_nerfstudio.diffusion.sampling import SamplingConfig, sample
from db3d_nerfstudio.diffusion.training_set import TrainingSet
from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.guides.record import RECORD_FILE, read_record
from db3d_nerfstudio.guides.tuning.lora_file import ADAPTER_FILE
from db3d_nerfstudio.guides.tuning.word import EMBEDDING_FILE
from db3d_nerfstudio.guides.unet.stable_diffusion import StableDiffusionGuide, StableDiffusionGuideConfig
from db3d_nerfstudio.toybox.guide import ToyboxGuide, ToyboxGuideConfig

STEPS, SCALE = 3, 4.0
WORD = {"tuning": "textual_inversion", "new_token_like": "a"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_stable_diffusion_folder(tmp_path_factory.mktemp("sd") / "model")


@pytest.fixture(scope="module")
def toybox_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_toybox_folder(tmp_path_factory.mktemp("toybox"))


def guided(model: Path, **settings) -> StableDiffusionGuide:
    return StableDiffusionGuideConfig(model=str(model), **settings).setup()


def tune(guide: StableDiffusionGuide | ToyboxGuide, prompt: str = "a <sks> dog", steps: int = 3) -> None:
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    config = DreamBoothConfig(prior_loss_weight=0.0, learning_rate=0.05)
    finetune(guide, TrainingSet(images, [{prompt: 1.0}] * 2), config, steps, seed=0)


@torch.no_grad()
def drawn(guide: StableDiffusionGuide, prompt: str) -> Tensor:
    noise = torch.Generator().manual_seed(5)
    return sample(guide, Conditioning.of(guide, [prompt]), SamplingConfig(STEPS, SCALE), noise)


@torch.no_grad()
def drawn_by_diffusers(pipeline: StableDiffusionPipeline, prompt: str) -> Tensor:
    """The same image by diffusers' own pipeline from the same noise."""
    ours = {"timestep_spacing": "trailing", "set_alpha_to_one": True, "steps_offset": 0}
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, **ours)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    return pipeline(
        prompt, latents=noise, num_inference_steps=STEPS, guidance_scale=SCALE, height=16, width=16, output_type="pt"
    ).images


@pytest.mark.parametrize(
    "settings",
    [
        {"tuning": "full"},
        {"tuning": "full", "train_text_encoder": True},
        {"tuning": "lora", "lora_rank": 2, "lora_alpha": 8.0, "lora_targets": ("to_q", "conv1")},
        {"tuning": "lora", "train_text_encoder": True},
        WORD,
    ],
)
def test_plain_diffusers_makes_the_same_images_of_the_folder(model: Path, tmp_path: Path, settings: dict) -> None:
    prompt = "a <sks> dog"
    guide = guided(model, **settings)
    base = drawn(guide, prompt)
    tune(guide, prompt)
    guide.save(tmp_path)
    ours = drawn(guide, prompt)
    assert (ours - base).abs().max() > 0.01

    pipeline = StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
    match settings["tuning"]:
        case "full":
            pipeline.unet = UNet2DConditionModel.from_pretrained(tmp_path, subfolder="unet")
            if "train_text_encoder" in settings:
                pipeline.text_encoder = type(pipeline.text_encoder).from_pretrained(tmp_path, subfolder="text_encoder")
        case "lora":
            pipeline.load_lora_weights(tmp_path, weight_name=ADAPTER_FILE)
        case "textual_inversion":
            pipeline.load_textual_inversion(tmp_path / EMBEDDING_FILE)
    theirs = drawn_by_diffusers(pipeline, prompt)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)

    again = guided(model, **settings)
    again.load(tmp_path)
    assert torch.equal(drawn(again, prompt), ours)


def test_weights_that_are_in_place_are_not_read_again(model: Path, tmp_path: Path) -> None:
    guide, reads = guided(model), []
    read = UNet2DConditionModel.load_state_dict
    guide.unet.load_state_dict = lambda state: reads.append(len(state)) or read(guide.unet, state)
    base = guide.fingerprint()
    guide.load(None)
    guide.load(None)
    assert len(reads) == 1
    tune(guide, "a dog")
    tuned = guide.fingerprint()
    guide.save(tmp_path / "a")
    guide.load(None)
    assert guide.fingerprint() == base != tuned and len(reads) == 2, "fused optimizers leave no trace but the values"
    guide.load(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    guide.load(tmp_path / "b")
    assert guide.fingerprint() == tuned and len(reads) == 3, "the same files under another name"


def test_adapter_says_what_it_is(model: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    guided(model, tuning="lora", lora_rank=2, lora_alpha=8.0, lora_targets=("to_q", "to_k")).save(tmp_path)
    with safe_open(tmp_path / ADAPTER_FILE, "pt") as file:
        settings = json.loads(file.metadata()["lora_adapter_metadata"])
    assert settings["unet.r"] == 2 and settings["unet.lora_alpha"] == 2
    assert set(settings["unet.target_modules"]) == {"to_q", "to_k"}
    assert settings["unet.base_model_name_or_path"] == str(model)


def test_rank_alpha_and_targets_decide_what_moves(model: Path) -> None:
    numbers, images = [], []
    for settings in ({}, {"lora_rank": 8}, {"lora_alpha": 16.0}, {"lora_targets": ("to_q",)}):
        guide = guided(model, tuning="lora", **settings)
        tune(guide, "a sks dog", steps=2)
        numbers.append(sum(parameter.numel() for parameter in guide.parameters()))
        images.append(drawn(guide, "a sks dog"))
    assert numbers[1] == 2 * numbers[0] and numbers[2] == numbers[0] and numbers[3] < numbers[0] / 3
    assert all(not torch.equal(image, images[0]) for image in images[1:])
    with pytest.raises(UserError, match='"to_w": remove it from lora_targets'):
        guided(model, tuning="lora", lora_targets=("to_q", "to_w"))


def test_fine_tune_of_another_base_is_refused(model: Path, tmp_path: Path) -> None:
    other = tiny_stable_diffusion_folder(tmp_path / "other")
    unet = UNet2DConditionModel.from_pretrained(other, subfolder="unet")
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.mul_(1.01)
    unet.save_pretrained(other / "unet")
    for name, settings in (("lora", {"tuning": "lora"}), ("word", WORD)):
        guided(other, **settings).save(tmp_path / name)
        with pytest.raises(UserError, match=rf"another base model \(.*{other}\).*set the guide's model"):
            guided(model, **settings).load(tmp_path / name)

    (tmp_path / "lora" / RECORD_FILE).unlink()  # A folder of another tool: its adapter fits.
    guided(model, tuning="lora").load(tmp_path / "lora")


@pytest.mark.parametrize("text", ["", "{", "{}", "[]"])
def test_record_that_cannot_be_read_is_an_error(tmp_path: Path, text: str) -> None:
    assert read_record(tmp_path) is None
    (tmp_path / RECORD_FILE).write_text(text)
    with pytest.raises(UserError, match=rf"{RECORD_FILE} cannot be read.*delete it"):
        read_record(tmp_path)


def test_the_same_base_in_another_precision_is_no_other_base(model: Path, tmp_path: Path) -> None:
    guided(model, tuning="lora").save(tmp_path)
    guided(model, tuning="lora", dtype="bfloat16").load(tmp_path)


def test_adapter_of_another_architecture_is_refused_without_a_record(
    model: Path, toybox_model: Path, tmp_path: Path
) -> None:
    guided(model, tuning="lora", lora_targets=("conv_in",)).save(tmp_path)
    (tmp_path / RECORD_FILE).unlink()
    with pytest.raises(UserError, match=rf"differs in shape. Set the guide's model \({model}\)"):
        ToyboxGuideConfig(model=toybox_model, tuning="lora", lora_targets=("conv_in",)).setup().load(tmp_path)


def test_only_the_new_word_moves(toybox_model: Path) -> None:
    guide = ToyboxGuideConfig(model=toybox_model, tuning="textual_inversion", new_token_like="dog").setup()
    (word,) = guide.parameters()
    prompts = ["a photo of a red dog", "a photo of a <sks> dog", "a photo of a dog dog"]
    before = guide.embed(prompts).detach()
    assert not guide.can_forget and torch.equal(before[1], before[2])  # The word begins as "dog".
    weights = {key: value.clone() for key, value in guide.unet.state_dict().items()}
    base = guide.fingerprint()
    tune(guide, "a photo of a <sks> dog")
    after = guide.embed(prompts).detach()
    assert torch.equal(after[0], before[0]) and not torch.equal(after[1], before[1])
    assert all(torch.equal(value, weights[key]) for key, value in guide.unet.state_dict().items())
    assert guide.fingerprint() != base
    guide.load(None)
    assert torch.equal(guide.embed(prompts), before) and guide.fingerprint() == base and guide.parameters()[0] is word


def test_prompt_without_the_new_word_teaches_nothing(toybox_model: Path) -> None:
    guide = ToyboxGuideConfig(model=toybox_model, tuning="textual_inversion").setup()
    with pytest.raises(UserError, match="a photo of a sks dog.*identifier"):
        tune(guide, "a photo of a sks dog")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"new_token": "sks"}, 'already has the token "sks".*"<sks>"'),
        ({"new_token_like": "a dog"}, '"a dog" is 2'),
        ({"new_token_like": "zzz"}, '"zzz" is not in the vocabulary'),
        ({"train_text_encoder": True}, "train_text_encoder to False"),
    ],
)
def test_word_that_cannot_be_learned_is_an_error(toybox_model: Path, settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ToyboxGuideConfig(model=toybox_model, tuning="textual_inversion", **settings).setup()


@pytest.mark.parametrize("tuning", ["full", "textual_inversion"])
def test_weights_that_are_damaged_are_named(toybox_model: Path, tmp_path: Path, tuning: str) -> None:
    guide = ToyboxGuideConfig(model=toybox_model, tuning=tuning).setup()
    guide.save(tmp_path)
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(b"")
    with pytest.raises((UserError, OSError), match=r"unet cannot be read|embeds.safetensors is not a .* file"):
        guide.load(tmp_path)


def test_word_by_another_name_is_refused(toybox_model: Path, tmp_path: Path) -> None:
    config = {"model": toybox_model, "tuning": "textual_inversion"}
    ToyboxGuideConfig(**config).setup().save(tmp_path)
    with pytest.raises(UserError, match='has the word "<sks>", not "<my>": set new_token'):
        ToyboxGuideConfig(**config, new_token="<my>").setup().load(tmp_path)
