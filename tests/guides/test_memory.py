"""The estimate of a guide's memory: exact for weights, near for activations, and a line that helps when too large."""

from pathlib import Path

import pytest
import torch
from tiny import tiny_stable_diffusion_folder, tiny_toybox_folder
from tiny_pipelines import tiny_if_folder, tiny_sdxl_folder

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.guides.memory import BATCH, GIB, Parts, check_fits, estimate, read_parts
from db3d_nerfstudio.guides.unet.deepfloyd import DeepFloydGuideConfig
from db3d_nerfstudio.guides.unet.guide import DiffusersGuide
from db3d_nerfstudio.guides.unet.sdxl import SDXLGuideConfig
from db3d_nerfstudio.guides.unet.stable_diffusion import StableDiffusionGuideConfig
from db3d_nerfstudio.toybox.guide import ToyboxGuideConfig

CUDA = torch.device("cuda")


@pytest.fixture(scope="module")
def sd15() -> Parts:
    """Stable Diffusion 1.5, whose numbers of parameters are known."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        widths = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
        text_encoder = CLIPTextModel(CLIPTextConfig(vocab_size=49408, **widths))
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
        )
    return Parts(unet, (text_encoder,), 4, vae)


UNET, TEXT, VAE, LORA = 859_520_964, 123_060_480, 83_653_863, 797_184


@pytest.mark.slow
def test_weights_gradients_and_moments_are_counted(sd15: Parts) -> None:
    full = estimate(StableDiffusionGuideConfig(), sd15, torch.float32)
    assert full.weights == 4 * (UNET + TEXT + VAE) and full.training == 12 * UNET
    lora = estimate(StableDiffusionGuideConfig(tuning="lora"), sd15, torch.bfloat16)
    assert lora.weights == 2 * UNET + 4 * (TEXT + VAE + LORA) and lora.training == 12 * LORA
    text = estimate(StableDiffusionGuideConfig(train_text_encoder=True), sd15, torch.float32)
    assert text.training == 12 * (UNET + TEXT)
    word = estimate(StableDiffusionGuideConfig(tuning="textual_inversion"), sd15, torch.float32)
    assert word.training == 0 and word.weights == full.weights
    offloaded = estimate(StableDiffusionGuideConfig(text_encoder_memory="offload"), sd15, torch.float32)
    assert offloaded.weights == full.weights - 4 * TEXT
    half = estimate(StableDiffusionGuideConfig(vae_dtype="bfloat16"), sd15, torch.float32)
    assert half.weights == full.weights - 2 * VAE
    checkpointed = estimate(StableDiffusionGuideConfig(gradient_checkpointing=True), sd15, torch.float32)
    assert checkpointed.activations < full.activations / 2


def test_adapters_on_other_layers_are_counted(tmp_path: Path) -> None:
    folder = str(tiny_stable_diffusion_folder(tmp_path))
    config = StableDiffusionGuideConfig(model=folder, tuning="lora", lora_rank=3, lora_targets=("to_q", "conv1"))
    guide = config.setup()
    parts = read_parts(folder, guide._text_encoder_classes(), torch.float32, folder)
    moved = sum(parameter.numel() for parameter in guide.parameters())
    assert estimate(config, parts, torch.float32).training == 12 * moved


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_near_what_autograd_keeps(tmp_path: Path, checkpointing: bool) -> None:
    folder = tiny_stable_diffusion_folder(tmp_path)
    config = StableDiffusionGuideConfig(model=str(folder), gradient_checkpointing=checkpointing)
    guide = config.setup()
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {parameter.untyped_storage().data_ptr() for parameter in guide.unet.parameters()}
    text = guide.embed(["a dog"] * BATCH)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        eps = guide.predict_noise(torch.randn(BATCH, 4, 8, 8), torch.full((BATCH,), 5), text)
    assert eps.requires_grad
    measured = sum(size for storage, size in kept.items() if storage not in weights)
    parts = read_parts(str(folder), guide._text_encoder_classes(), torch.float32, str(folder))
    assert 0.5 < estimate(config, parts, torch.float32).activations / measured < 2


@pytest.mark.slow
def test_what_to_change_is_said_in_one_line(sd15: Parts) -> None:
    config = StableDiffusionGuideConfig(tuning="full")
    needed, advice = check_fits(config, sd15, torch.float32, 80 * GIB, CUDA)
    assert advice == "" and "GiB (weights 4.0, gradients and moments 9.6, activations" in str(needed)
    with pytest.raises(
        UserError, match=r"needs about .* on cuda, where 12.0 are free. Set the guide's tuning lora.*: then"
    ):
        check_fits(config, sd15, torch.float32, 12 * GIB, CUDA)
    _, advice = check_fits(config, sd15, torch.float32, round(needed.total * 0.95), CUDA)
    assert advice.endswith(".") and "\n" not in advice  # Activations are guessed: said, and tried.
    with pytest.raises(UserError, match="smaller model, or set the guide's device"):
        check_fits(config, sd15, torch.float32, GIB // 2, CUDA)


@pytest.mark.parametrize("family", ["toybox", "stable_diffusion", "sdxl", "if"])
def test_it_is_announced_before_anything_is_loaded(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    build, config = {
        "toybox": (tiny_toybox_folder, ToyboxGuideConfig),
        "stable_diffusion": (tiny_stable_diffusion_folder, StableDiffusionGuideConfig),
        "sdxl": (tiny_sdxl_folder, SDXLGuideConfig),
        "if": (tiny_if_folder, DeepFloydGuideConfig),
    }[family]
    folder = build(tmp_path)
    folder = folder if family == "toybox" else str(folder)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (20_000, 0))
    monkeypatch.setattr(DiffusersGuide, "_read", None)  # Nothing is read.
    with pytest.raises(UserError, match="The guide needs about .*smaller model"):
        config(model=folder, dtype="float32").setup(device="cuda")
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (GIB, 0))
    with pytest.raises(TypeError, match="NoneType"):
        config(model=folder, dtype="float32").setup(device="cuda")
    assert "GiB (weights 0.0" in " ".join(capsys.readouterr().out.split())
