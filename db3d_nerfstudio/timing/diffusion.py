"""Time and memory of Stable Diffusion 1.5 as a guide: `python -m db3d_nerfstudio.timing.step --stable-diffusion`.

Weights are random, so that nothing is downloaded; time and memory do not depend on their values.
"""

from __future__ import annotations

import resource
import time

import torch

from db3d_nerfstudio.diffusion.dreambooth import Batch, DreamBoothConfig, dreambooth_loss
from db3d_nerfstudio.diffusion.guidance import Conditioning
from db3d_nerfstudio.diffusion.sampling import TranslationConfig, translate
from db3d_nerfstudio.diffusion.sds import SDSConfig, sds_loss
from db3d_nerfstudio.guides.base import DiffusionGuide
from db3d_nerfstudio.guides.shapes import SHAPES, Shapes
from db3d_nerfstudio.guides.skeleton import skeleton
from db3d_nerfstudio.guides.unet.stable_diffusion import StableDiffusionGuideConfig


def time_stable_diffusion(device: str, shapes: Shapes = SHAPES["sd15"]) -> None:
    """Print seconds and peak memory of a step of distillation, a LoRA step on one image, and a translation of one."""
    config = skeleton(StableDiffusionGuideConfig(tuning="lora", gradient_checkpointing=True), shapes)
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
