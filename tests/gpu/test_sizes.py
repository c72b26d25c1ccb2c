"""Guides of the real models' sizes with random weights: every task of a run, its seconds, and its memory as counted."""

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from db3d_nerfstudio.diffusion.dreambooth import DreamBoothConfig, finetune
from db3d_nerfstudio.diffusion.footprint import Footprint, Work, footprint
from db3d_nerfstudio.diffusion.guidance import Conditioning
from db3d_nerfstudio.diffusion.prior import class_images
from db3d_nerfstudio.diffusion.sampling import SamplingConfig, TranslationConfig, translate
from db3d_nerfstudio.diffusion.sds import SDSConfig, sds_loss
from db3d_nerfstudio.diffusion.training_set import Prior, TrainingSet
from db3d_nerfstudio.guides.config import DiffusersGuideConfig
from db3d_nerfstudio.guides.diffusers_guide import DiffusersGuide, choose_dtype
from db3d_nerfstudio.guides.shapes import SHAPES
from db3d_nerfstudio.guides.skeleton import skeleton
from db3d_nerfstudio.method_configs import (
    dreambooth3d,
    dreambooth3d_flux2,
    dreambooth3d_if,
    dreambooth3d_sd3,
    dreambooth3d_sdxl,
)
from db3d_nerfstudio.workspace import Workspace

PRESETS = {
    "sd15": dreambooth3d,
    "sdxl": dreambooth3d_sdxl,
    "if": dreambooth3d_if,
    "sd3": dreambooth3d_sd3,
    "flux2": dreambooth3d_flux2,
}
TUNED = {"sd15": ("full", "lora"), "sdxl": ("lora",), "if": ("lora",), "sd3": ("lora",), "flux2": ("lora",)}
CUDA = torch.device("cuda")


def guide_config(family: str) -> DiffusersGuideConfig:
    return PRESETS[family].method.config.pipeline.model.guide


@pytest.fixture(params=SHAPES)
def family(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param
    gc.collect()
    torch.cuda.empty_cache()


@pytest.fixture
def counted(family: str) -> Footprint:
    config = guide_config(family)
    return footprint(config, choose_dtype(config.dtype, CUDA), shapes=SHAPES[family])


@pytest.fixture
def guide(family: str) -> DiffusersGuide:
    return skeleton(guide_config(family), SHAPES[family]).setup(device="cuda")


def pictures(guide: DiffusersGuide, num: int, side: int | None = None) -> torch.Tensor:
    return torch.rand(num, 3, side or guide.resolution, side or guide.resolution, device=guide.device)


def test_every_task_takes_what_is_counted(
    family: str, guide: DiffusersGuide, counted: Footprint, measured: Callable, tmp_path: Path
) -> None:
    view = pictures(guide, 1, 64).requires_grad_()
    text = Conditioning.of(guide, ["a"])
    t = torch.tensor([500], device=guide.device)
    sds_loss(guide, view, text, t, SDSConfig()).backward()  # Kernels are chosen the first time.
    with measured(f"{family}: score distillation, one view", counted.tasks["score distillation"]):
        sds_loss(guide, view, text, t, SDSConfig()).backward()
    with measured(f"{family}: encode and decode one image"), torch.no_grad():
        guide.decode(guide.encode(pictures(guide, 1)))
    four = Conditioning.of(guide, ["a"] * 4)
    with measured(f"{family}: translation of four, 2 of 4 steps", counted.tasks["translation"]):
        translate(guide, pictures(guide, 4, 64), four, TranslationConfig(steps=4, strength=0.5))
    guide.load(None)  # Draws weights again, beside the old ones.
    config = DreamBoothConfig(num_class_images=8, class_sampling=SamplingConfig(2))
    with measured(f"{family}: 8 class images, 2 steps", counted.tasks["class images"]):
        prior = class_images(guide, "a", config, Workspace(tmp_path))
    assert prior.images.device.type == "cpu" and prior.images.isfinite().all()
    assert view.grad.isfinite().all() and view.grad.abs().sum() > 0


@pytest.mark.parametrize(("family", "tuning"), [(f, tuning) for f, kinds in TUNED.items() for tuning in kinds])
def test_fine_tuning(family: str, tuning: str, measured: Callable) -> None:
    config = replace(guide_config(family), tuning=tuning)
    dtype = choose_dtype(config.dtype, CUDA)
    expected = footprint(config, dtype, Work(), SHAPES[family]).tasks["fine-tuning"]
    guide = skeleton(config, SHAPES[family]).setup(device="cuda")
    photos, prior = pictures(guide, 2).cpu(), Prior(pictures(guide, 2).cpu(), ["a", "a"])
    data = TrainingSet(photos, [{"a": 1.0}] * 2, prior=prior)
    finetune(guide, data, DreamBoothConfig(), max_train_steps=1, seed=0)
    with measured(f"{family}: 2 iterations of {tuning} tuning, 2 + 2 images", expected):
        losses = finetune(guide, data, DreamBoothConfig(), max_train_steps=2, seed=0)
    assert len(losses) == 2
    measured_peak = torch.cuda.max_memory_allocated()
    assert expected / 1.15 < measured_peak < expected * 1.15
