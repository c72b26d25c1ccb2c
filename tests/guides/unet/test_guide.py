"""The guides in diffusers' layout, on tiny random models saved in the folders that the real ones come in."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from tiny import tiny_stable_diffusion_folder, tiny_toybox_folder

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.guides import diffusers_guide
from db3d_nerfstudio.guides.config import DiffusersGuideConfig
from db3d_nerfstudio.guides.diffusers_guide import DiffusersGuide
from db3d_nerfstudio.guides.tuning.lora_file import ADAPTER_FILE
from db3d_nerfstudio.guides.unet.stable_diffusion import StableDiffusionGuideConfig
from db3d_nerfstudio.toybox.guide import ToyboxGuideConfig

TUNINGS = [
    {"tuning": "full"},
    {"tuning": "lora"},
    {"tuning": "lora", "lora_alpha": 16.0, "train_text_encoder": True},
    {"tuning": "full", "train_text_encoder": True},
]


@pytest.fixture(scope="module")
def toybox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_toybox_folder(tmp_path_factory.mktemp("toybox"))


@pytest.fixture(scope="module")
def stable_diffusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_stable_diffusion_folder(tmp_path_factory.mktemp("stable_diffusion"))


@pytest.fixture(params=["toybox", "stable_diffusion"])
def config(request: pytest.FixtureRequest, toybox: Path, stable_diffusion: Path) -> DiffusersGuideConfig:
    if request.param == "toybox":
        return ToyboxGuideConfig(model=toybox)
    return StableDiffusionGuideConfig(model=str(stable_diffusion))


def configured(config: DiffusersGuideConfig, settings: dict) -> DiffusersGuide:
    return type(config)(model=config.model, **settings).setup()


@torch.no_grad()
def answer(guide: DiffusersGuide) -> torch.Tensor:
    """What the guide says about a fixed z_t and prompt: any change of UNet or text encoder shows."""
    z_t = torch.randn(1, *guide.z_shape, generator=torch.Generator().manual_seed(0))
    return guide.predict_noise(z_t, torch.tensor([400]), guide.embed(["a photo of a sks dog"]))


@torch.no_grad()
def disturb(guide: DiffusersGuide, amount: float = 0.1) -> None:
    for parameter in guide.parameters():
        parameter.add_(amount * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))


def test_codec_is_differentiable_and_resizes(config: DiffusersGuideConfig) -> None:
    guide = config.setup()
    rgb = torch.rand(1, 3, 8, 8, requires_grad=True)
    z = guide.encode(rgb)
    z.square().sum().backward()
    assert z.shape == guide.encode(torch.rand(1, 3, guide.resolution, guide.resolution)).shape == (1, *guide.z_shape)
    assert (rgb.grad != 0).all()
    decoded = guide.decode(10 * z)
    assert decoded.shape == (1, 3, 16, 16) and decoded.min() >= 0 and decoded.max() <= 1


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_every_kind_of_prediction_becomes_noise(tmp_path: Path, prediction_type: str) -> None:
    """Consistent with z_t = a z + s eps and v = a eps - s z, whatever the network calls its output."""
    folder = tiny_stable_diffusion_folder(tmp_path, prediction_type)
    guide = StableDiffusionGuideConfig(model=str(folder)).setup()
    z_t, t, text = torch.randn(2, 4, 8, 8), torch.tensor([100, 800]), guide.embed(["a dog", "a cat"])
    with torch.no_grad():
        eps, output = guide.predict_noise(z_t, t, text), guide.unet(z_t, t, text).sample
    abar = guide.alphas_cumprod[t][:, None, None, None]
    a, s = abar.sqrt(), (1 - abar).sqrt()
    z = (z_t - s * eps) / a
    torch.testing.assert_close({"epsilon": eps, "v_prediction": a * eps - s * z, "sample": z}[prediction_type], output)


@pytest.mark.parametrize("settings", TUNINGS)
def test_base_weights_and_fine_tunes_come_back_exactly(
    config: DiffusersGuideConfig, settings: dict, tmp_path: Path
) -> None:
    guide = configured(config, settings)
    parameters, base = guide.parameters(), answer(guide)
    disturb(guide)
    partial = answer(guide)
    guide.save(tmp_path / "partial")
    disturb(guide)
    guide.save(tmp_path / "full")
    assert not torch.equal(partial, base) and not torch.equal(answer(guide), partial)

    guide.load(tmp_path / "partial")
    assert torch.equal(answer(guide), partial)
    guide.load(None)
    assert torch.equal(answer(guide), base)
    assert all(now is then for now, then in zip(guide.parameters(), parameters, strict=True))

    other = configured(config, settings)
    other.load(tmp_path / "partial")
    assert torch.equal(answer(other), partial)


@pytest.mark.parametrize("settings", TUNINGS)
def test_only_what_is_tuned_may_move(config: DiffusersGuideConfig, settings: dict) -> None:
    guide = configured(config, settings)
    free = {id(parameter) for parameter in guide.parameters()}
    for name, module in guide.modules().items():
        tuned = name == "unet" or (name == "text_encoder" and settings.get("train_text_encoder", False))
        for key, parameter in module.named_parameters():
            assert (id(parameter) in free) == (tuned and (settings["tuning"] == "full" or "lora_" in key))
            assert parameter.requires_grad == (id(parameter) in free)
    assert guide.embed(["a dog"]).requires_grad == settings.get("train_text_encoder", False)


def test_whole_weights_are_saved_for_diffusers(config: DiffusersGuideConfig, tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    guide = config.setup()
    disturb(guide)
    guide.save(tmp_path)
    assert [file.suffix for file in tmp_path.rglob("*") if file.is_file() and file.suffix != ".json"] == [
        ".safetensors"
    ]
    again = UNet2DConditionModel.from_pretrained(tmp_path, subfolder="unet").state_dict()
    assert all(torch.equal(again[key], value) for key, value in guide.unet.state_dict().items())


def test_adapters_are_saved_for_diffusers_with_their_strength(stable_diffusion: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    guide = StableDiffusionGuideConfig(
        model=str(stable_diffusion), tuning="lora", lora_rank=2, lora_alpha=8.0, train_text_encoder=True
    ).setup()
    disturb(guide)
    guide.save(tmp_path)
    pipeline = StableDiffusionPipeline.from_pretrained(stable_diffusion, safety_checker=None)
    pipeline.load_lora_weights(tmp_path, weight_name=ADAPTER_FILE)
    pipeline.unet.to(memory_format=torch.channels_last)  # As the guide has it: else sums round differently.
    z_t, t = torch.randn(1, 4, 8, 8), torch.tensor([400])
    with torch.no_grad():
        text = guide.embed(["a dog"])
        torch.testing.assert_close(pipeline.encode_prompt("a dog", "cpu", 1, False)[0], text)
        torch.testing.assert_close(pipeline.unet(z_t, t, text).sample, guide.predict_noise(z_t, t, text))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tuning": "full"}, "another tuning"),
        ({"tuning": "lora", "lora_rank": 2}, "rank 4, the guide 2.*lora_rank"),
        ({"tuning": "lora", "train_text_encoder": True}, "train_text_encoder"),
    ],
)
def test_adapter_of_another_kind_is_refused(toybox: Path, tmp_path: Path, settings: dict, message: str) -> None:
    ToyboxGuideConfig(model=toybox, tuning="lora").setup().save(tmp_path)
    with pytest.raises((ValueError, OSError), match=message):
        ToyboxGuideConfig(model=toybox, **settings).setup().load(tmp_path)


def test_half_precision_keeps_trained_weights_and_answers_in_float32(stable_diffusion: Path) -> None:
    exact = answer(StableDiffusionGuideConfig(model=str(stable_diffusion)).setup())
    for tuning, stored in (("full", torch.float32), ("lora", torch.bfloat16)):
        guide = StableDiffusionGuideConfig(model=str(stable_diffusion), tuning=tuning, dtype="bfloat16").setup()
        assert guide.unet.conv_in.weight.dtype == stored
        assert {parameter.dtype for parameter in guide.parameters()} == {torch.float32}
        rounded = answer(guide)
        assert rounded.dtype == torch.float32 and not torch.equal(rounded, exact)
        torch.testing.assert_close(rounded, exact, atol=0.05, rtol=0.05)
    guide = StableDiffusionGuideConfig(model=str(stable_diffusion), vae_dtype="bfloat16").setup()
    assert guide.vae.dtype == torch.bfloat16 and guide.encode(torch.rand(1, 3, 16, 16)).dtype == torch.float32


def test_fingerprint_tells_models_apart(config: DiffusersGuideConfig) -> None:
    guide = config.setup()
    base = guide.fingerprint()
    assert base == config.setup().fingerprint()
    disturb(guide, amount=1e-6)
    assert guide.fingerprint() != base
    guide.load(None)
    assert guide.fingerprint() == base


def test_model_that_is_told_no_sides_is_refused_in_one_line(toybox: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(toybox, tmp_path / "old")
    unet = UNet2DConditionModel.from_pretrained(toybox, subfolder="unet")
    UNet2DConditionModel.from_config({**unet.config, "in_channels": 4}).save_pretrained(folder / "unet")
    with pytest.raises(UserError, match="4 channels and not 9.*train it again"):
        ToyboxGuideConfig(model=folder).setup()


def test_unknown_words_are_named_with_close_ones(toybox: Path) -> None:
    guide = ToyboxGuideConfig(model=toybox).setup()
    with pytest.raises(ValueError, match='the word "robbot" in "a sks robbot, front view".*robot'):
        guide.embed(["a dog", "a sks robbot, front view"])
    with pytest.raises(ValueError, match='"zzz".*dog.*robot'):  # Nothing close: all words.
        guide.embed(["zzz"])


def test_prompt_that_would_lose_its_end_is_an_error(config: DiffusersGuideConfig) -> None:
    with pytest.raises(ValueError, match="shorten"):
        config.setup().embed(["a photo of a " + "red " * 80 + "dog, side view"])


def test_dtype_follows_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    choose = diffusers_guide.choose_dtype
    assert choose("auto", torch.device("cpu")) == torch.float32
    assert choose("bfloat16", torch.device("cpu")) == torch.bfloat16
    assert choose("float16", torch.device("cuda")) == torch.float16
    with pytest.raises(ValueError, match="float16: set the guide's dtype to float32 or bfloat16"):
        choose("float16", torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert choose("auto", torch.device("cuda")) == torch.bfloat16
    # What a Turing card answers.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert choose("auto", torch.device("cuda")) == torch.float16


@pytest.mark.parametrize("memory", ["offload", "free"])
def test_text_encoder_that_is_not_kept_says_the_same(config: DiffusersGuideConfig, memory: str) -> None:
    kept, guide = config.setup(), configured(config, {"text_encoder_memory": memory})
    assert guide.fingerprint() == kept.fingerprint()
    assert ("text_encoder" in guide.modules()) == (memory == "offload")
    prompts = ["a photo of a dog", "a dog, side view"]
    assert torch.equal(guide.embed(prompts), kept.embed(prompts))
    assert ("text_encoder" in guide.modules()) == (memory == "offload")
    with pytest.raises(ValueError, match='trained must stay: set text_encoder_memory to "keep"'):
        configured(config, {"text_encoder_memory": memory, "train_text_encoder": True})


def test_prompt_means_the_same_in_any_company(config: DiffusersGuideConfig) -> None:
    alone = config.setup().embed(["a dog"])[0]
    guide = config.setup()
    assert torch.equal(guide.embed(["a duck", "a red dog", "a dog"])[2], alone)
    guide.text_encoder.forward = None  # Known prompts are not read again.
    assert torch.equal(guide.embed(["a dog"])[0], alone)


def test_importing_guides_loads_no_diffusion_library() -> None:
    code = (
        "import sys\n"
        "import db3d_nerfstudio.toybox.guide, db3d_nerfstudio.guides.unet.sdxl, db3d_nerfstudio.guides.unet.deepfloyd\n"
        "import db3d_nerfstudio.diffusion.dreambooth\n"
        "assert not {'diffusers', 'transformers', 'peft'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
