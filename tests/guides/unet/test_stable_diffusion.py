"""Stable Diffusion's own parts: its VAE, its checkpointing, and the variants of its files."""

import json
from pathlib import Path

import pytest
import torch
from tiny import tiny_stable_diffusion_folder

from db3d_nerfstudio.guides.unet.stable_diffusion import StableDiffusionGuideConfig


@pytest.fixture(scope="module")
def stable_diffusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_stable_diffusion_folder(tmp_path_factory.mktemp("stable_diffusion"))


def test_gradient_checkpointing_keeps_less_for_the_same_gradient(stable_diffusion: Path) -> None:
    """In the UNet's parameters for DreamBooth, and in the image through the VAE for score distillation."""
    kept, gradients = [], []
    for checkpointing in (False, True):
        guide = StableDiffusionGuideConfig(model=str(stable_diffusion), gradient_checkpointing=checkpointing).setup()
        rgb = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
        sizes: list[int] = []
        keep = lambda tensor, sizes=sizes: sizes.append(tensor.numel()) or tensor  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            z = guide.encode(rgb)
            encoder = sum(sizes)
            guide.predict_noise(z, torch.tensor([400]), guide.embed(["a dog"])).square().sum().backward()
        kept.append((encoder, sum(sizes) - encoder))
        gradients.append([rgb.grad, *(parameter.grad for parameter in guide.parameters())])
    assert kept[1][0] < kept[0][0] / 2 and kept[1][1] < kept[0][1] / 2
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_vae_may_be_another(stable_diffusion: Path, tmp_path: Path) -> None:
    guide = StableDiffusionGuideConfig(model=str(stable_diffusion)).setup()
    rgb = torch.rand(1, 3, 16, 16)
    z = guide.encode(rgb)
    for parameter in guide.vae.parameters():
        parameter.mul_(0.5)
    guide.vae.save_pretrained(tmp_path)
    other = StableDiffusionGuideConfig(model=str(stable_diffusion), vae=str(tmp_path)).setup()
    assert torch.equal(other.encode(rgb), guide.encode(rgb)) and not torch.equal(other.encode(rgb), z)


def test_vae_that_overflows_in_half_precision_is_refused(tmp_path: Path) -> None:
    folder = tiny_stable_diffusion_folder(tmp_path)
    config, file = StableDiffusionGuideConfig(model=str(folder), vae_dtype="float16"), folder / "vae" / "config.json"
    entries = json.loads(file.read_text())
    assert entries["force_upcast"] is True
    with pytest.raises(
        ValueError, match="overflows in float16.*set vae_dtype to bfloat16 or float32.*sdxl-vae-fp16-fix"
    ):
        config.setup()
    file.write_text(json.dumps(entries | {"force_upcast": False}))
    assert config.setup().vae.dtype == torch.float16
    del entries["force_upcast"]  # As in the files of Stable Diffusion 1 and 2.
    file.write_text(json.dumps(entries))
    assert config.setup().vae.dtype == torch.float16


def test_variant_names_the_files(tmp_path: Path) -> None:
    folder = tiny_stable_diffusion_folder(tmp_path)
    for part in ("unet", "text_encoder", "vae"):
        (file,) = (folder / part).glob("*.safetensors")
        file.rename(file.with_suffix(".fp16.safetensors"))
    with pytest.raises(OSError, match="Copy the model again"):
        StableDiffusionGuideConfig(model=str(folder)).setup()
    guide = StableDiffusionGuideConfig(model=str(folder), variant="fp16").setup()
    base = guide.fingerprint()
    with torch.no_grad():
        guide.parameters()[0].add_(1)
    assert guide.fingerprint() != base
    guide.load(None)
    assert guide.fingerprint() == base
