"""What a run needs of the machine, announced or refused at its start: a GPU's memory, disk space, days on a CPU."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from nerfstudio.configs.base_config import MachineConfig

from db3d_nerfstudio.console import announce
from db3d_nerfstudio.diffusion.footprint import Work, announce_needs
from db3d_nerfstudio.errors import UserError

if TYPE_CHECKING:
    from db3d_nerfstudio.guides.base import DiffusionGuide, DiffusionGuideConfig
    from db3d_nerfstudio.nerf.model import DreamBooth3DModelConfig
    from db3d_nerfstudio.training.context import RunContext
    from db3d_nerfstudio.training.datamanager import DreamBooth3DDataManagerConfig
    from db3d_nerfstudio.training.phases import PhasesConfig

OCCUPIED = 0.2
"""Share of the samples of a view that lie in occupied cells, of a subject that fills the scene."""
SAMPLE_BYTES = 1000
"""What a sample of a lit view holds at once in a training step: values for the backward pass, and their gradients."""
MOST_PHOTOS = 6
"""Of a subject, as the paper has them."""
CPU_SECONDS = 34.0
"""Of a guided micro-step of Stable Diffusion on two cores."""


@dataclass
class AutoMachineConfig(MachineConfig):
    """nerfstudio's, with a device that is chosen when a run begins."""

    device_type: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where the NeRF and, unless it has a device of its own, the guide live; auto is a GPU if PyTorch finds one."""


def choose_device(machine: MachineConfig, guide: DiffusionGuideConfig, phases: PhasesConfig) -> None:
    """Put a device in the place of "auto".

    Raises:
        UserError: There is no GPU, and the guide is too large for a CPU to be what anybody meant.
    """
    if machine.device_type != "auto":
        return
    if torch.cuda.is_available():
        machine.device_type = "cuda"
        return
    if guide._target.needs_gpu and getattr(guide, "device", None) is None:
        guided = (phases.initial.steps if phases.initial.mesh is None else 0) + phases.final.steps / 2
        raise UserError(
            f"PyTorch finds no GPU, and on a CPU this guide takes {guided * CPU_SECONDS / 86400:.0f} days or more: "
            "check the driver (nvidia-smi) and that this is a CUDA build of PyTorch, try ns-train dreambooth3d-toybox, "
            "or say --machine.device-type cpu"
        )
    machine.device_type = "cpu"


def check_precision(mixed_precision: bool, use_grad_scaler: bool) -> None:
    """Raise a UserError for nerfstudio's mixed precision: the guide has its own, and the NeRF computes in float32."""
    if mixed_precision or use_grad_scaler:
        option = "--mixed-precision" if mixed_precision else "--use-grad-scaler"
        raise UserError(
            f"{option} True has no use here: the NeRF is trained in float32, and the guide computes in "
            "--pipeline.model.guide.dtype. Leave it out"
        )


def work_of(phases: PhasesConfig, model: DreamBooth3DModelConfig, data: DreamBooth3DDataManagerConfig) -> Work:
    """What a run asks of its guide, and what the NeRF takes meanwhile."""
    views, side = data.views_per_step, max(side for _, side in data.random_cameras.resolution)
    translation = phases.pseudo_views
    nerf = nerf_bytes(views, side, model.sampler.num_samples)
    if model.perceptual_loss_mult > 0:  # Of one whole picture.
        nerf = max(nerf, nerf_bytes(1, data.dataparser.resolution, model.sampler.num_samples))
    translates = not phases.one_stage and translation.images is None
    return Work(
        phases.dreambooth,
        tuned=phases.needs_photos,
        views=views,
        nerf=nerf,
        perp_neg=model.sds.perp_neg > 0,
        chunk=translation.chunk,
        upscaler=translation.upscaler if translates else None,
        references=MOST_PHOTOS if translation.references else 0,
    )


def nerf_bytes(views: int, side: int, num_samples: int) -> int:
    """Memory of the NeRF's largest step.

    Args:
        views: Views in a step.
        side: Side of the largest views, in pixels.
        num_samples: Samples along a diameter of the scene.
    """
    return round(views * side**2 * num_samples * OCCUPIED * SAMPLE_BYTES)


def announce_memory(context: RunContext, phases: PhasesConfig) -> None:
    """Say how much of a GPU's memory the run will take, before the guide is loaded.

    Raises:
        UserError: It is more than is free.
    """
    model = context.model.config
    announce_needs(model.guide, context.model.device, work_of(phases, model, context.datamanager.config))


@dataclass(frozen=True)
class DiskNeeds:
    """Bytes of a run folder when it is largest."""

    fine_tunes: int
    """Of the fine-tuned guides that are there at once."""
    images: int
    """Of class images and pseudo views, before compression."""
    checkpoints: int
    """Of the NeRFs: the newest checkpoint with its optimizers, the one being written, and the initial NeRF."""

    @property
    def total(self) -> int:
        """Of the whole folder."""
        return self.fine_tunes + self.images + self.checkpoints

    def __str__(self) -> str:
        return f"{_size(self.total)} (fine-tuned guides {_size(self.fine_tunes)}, images {_size(self.images)})"


def disk_needs(guide: DiffusionGuide, nerf: int, phases: PhasesConfig, views: tuple[int, int]) -> DiskNeeds:
    """What a run writes.

    Args:
        nerf: Bytes of the NeRF's parameters.
        views: Number of pseudo views, and the side of the renders they are made from, in pixels.
    """
    one = sum(p.numel() * p.element_size() for p in guide.parameters())
    full = phases.full_steps > 0 and phases.full_is_used
    tuned = int(full) if phases.one_stage else full + (phases.partial_steps > 0)
    if phases.multiview_steps and not phases.one_stage:
        tuned += phases.keep_full or not full  # Else D_multi takes the place of D_full.
    class_images = phases.dreambooth.num_class_images if phases.dreambooth.prior_loss_weight and tuned else 0
    upscaler = phases.pseudo_views.upscaler
    side = guide.resolution if upscaler is None else 4 * guide.resolution
    pseudo_views = 0 if phases.one_stage else views[0] * 2 * (side**2 + views[1] ** 2)  # Twice, with the sheet.
    pixels = class_images * guide.resolution**2 + pseudo_views
    return DiskNeeds(tuned * one, 3 * pixels, 2 * 3 * nerf + (0 if phases.one_stage else nerf))


def announce_disk(context: RunContext, phases: PhasesConfig) -> None:
    """Print how much disk space the run takes, and how much of that is free; call it when the guide is loaded.

    Raises:
        UserError: The fine-tuned guides alone are more than is free.
    """
    nerf = sum(p.numel() * p.element_size() for p in context.model.parameters())
    orbit = context.datamanager.config.dataparser
    needs = disk_needs(context.guide, nerf, phases, (orbit.num_views, orbit.resolution))
    there = sum(file.stat().st_size for file in context.folder.rglob("*") if file.is_file())
    free = shutil.disk_usage(context.folder).free
    line = f"The run takes up to {needs} of disk space in {context.folder}; {_size(free)} are free."
    if needs.fine_tunes - there > free:
        smaller = "" if phases.one_stage or not phases.keep_full else "--pipeline.phases.keep-full False or "
        raise UserError(
            f"{line} Free some, choose another --output-dir, or set {smaller}--pipeline.model.guide.tuning lora"
        )
    announce(line)


def _size(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"
