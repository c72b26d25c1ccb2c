"""Time and memory of Stable Diffusion 1.5 as a guide: `python -m db3d_nerfstudio.timing.step --stable-diffusion`.

Weights are random, so that nothing is downloaded; time and memory do not depend on their values.
"""

from __future__ import annotations

import resource
import time
from typing import Any

import torch
from torch import Tensor

from db3d_nerfstudio.diffusion.dreambooth import Batch, DreamBoothConfig, dreambooth_loss
from db3d_nerfstudio.diffusion.guidance import Conditioning
from db3d_nerfstudio.diffusion.sampling import TranslationConfig, translate
from db3d_nerfstudio.diffusion.sds import SDSConfig, sds_loss
from db3d_nerfstudio.guides.base import DiffusionGuide
from db3d_nerfstudio.guides.unet.stable_diffusion import StableDiffusionGuide, StableDiffusionGuideConfig


class RandomStableDiffusion(StableDiffusionGuide):
    """Stable Diffusion 1.5's UNet and VAE with random weights; no words."""

    unet_config: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
    vae_config: dict[str, Any] = {
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "latent_channels": 4,
    }

    def _read(self, part: type, folder: str, dtype: torch.dtype = torch.float32, **kwargs: Any) -> Any:
        from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

        if part is DDPMScheduler:
            return part(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
        config = {UNet2DConditionModel: self.unet_config, AutoencoderKL: self.vae_config}[part]
        with torch.device("meta"):  # Drawing the weights once is enough.
            module = part(**config)
        module = module.to(dtype).to_empty(device=self.device)
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        return module

    def _read_tokenizer(self, folder: str) -> None:
        return None

    def _read_text_encoders(self) -> dict[str, torch.nn.Module]:
        return {}

    def _announce_memory(self, free: int) -> None:
        """The benchmark measures it."""

    def embed(self, prompts: list[str]) -> Tensor:
        return torch.randn(len(prompts), 77, self.unet.config.cross_attention_dim, device=self.device)


def time_stable_diffusion(device: str, guide: type[StableDiffusionGuide] = RandomStableDiffusion) -> None:
    """Print seconds and peak memory of a step of distillation, a LoRA step on one image, and a translation of one."""
    config = StableDiffusionGuideConfig(_target=guide, tuning="lora", gradient_checkpointing=True)
    start = time.perf_counter(), time.process_time()
    model = config.setup(device=device)
    weights = sum(parameter.numel() for module in (model.unet, model.vae) for parameter in module.parameters())
    print(f"Stable Diffusion, {weights / 1e6:.0f} million random weights in {model.dtype}, {model.resolution} pixels")
    print("".ljust(34), "seconds".rjust(10), "CPU s".rjust(10), "peak GiB".rjust(10), sep="")
    _report("weights, drawn at random", start, model.device)
    for name, work in {
        "score distillation, one view": _distil,
        "LoRA step, one image": _tune,
        "img2img, one step of two": _translate,
    }.items():
        start = time.perf_counter(), time.process_time()
        work(model)
        _report(name, start, model.device)


def _report(name: str, start: tuple[float, float], device: torch.device) -> None:
    peak = _peak(device)
    row = (time.perf_counter() - start[0], time.process_time() - start[1], peak)
    print(name.ljust(34), *(f"{value:10.1f}" for value in row), sep="", flush=True)


def _distil(guide: DiffusionGuide) -> None:
    rgb = torch.rand(1, 3, 64, 64, device=guide.device, requires_grad=True)
    t = torch.tensor([500], device=guide.device)
    sds_loss(guide, rgb, Conditioning.of(guide, [""]), t, SDSConfig(guidance_scale=7.5)).backward()


def _tune(guide: DiffusionGuide) -> None:
    with torch.no_grad():
        z = guide.encode(torch.rand(1, 3, 512, 512, device=guide.device))
    t = torch.tensor([500], device=guide.device)
    mask = z.new_ones(1, 1, *z.shape[2:])
    batch = Batch(z, guide.embed([""]), t, torch.randn_like(z), mask, num_instance=1)
    dreambooth_loss(guide, batch, DreamBoothConfig()).backward()
    torch.optim.AdamW(guide.parameters()).step()


def _translate(guide: DiffusionGuide) -> None:
    rgb = torch.rand(1, 3, 64, 64, device=guide.device)
    translate(guide, rgb, Conditioning.of(guide, [""]), TranslationConfig(steps=2, strength=0.5))


def _peak(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
