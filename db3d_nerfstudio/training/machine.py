"""What a run needs of the machine, said or refused before anything is loaded: a GPU's memory, days on a CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from nerfstudio.configs.base_config import MachineConfig

from db3d_nerfstudio.diffusion.footprint import Work, announce_needs
from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.guides.counting import GIB

if TYPE_CHECKING:
    from db3d_nerfstudio.guides.base import DiffusionGuideConfig
    from db3d_nerfstudio.training.context import RunContext
    from db3d_nerfstudio.training.phases import PhasesConfig

NERF_RESERVE = round(1.0 * GIB)
"""Bytes of the NeRF's rays in training or in the viewer, whichever is more."""
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
        guided = phases.initial.steps + phases.final.steps / 2
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


def work_of(phases: PhasesConfig, views: int, perp_neg: float) -> Work:
    """What a run asks of its guide."""
    return Work(phases.dreambooth, phases.needs_photos, views, perp_neg > 0, phases.pseudo_views.chunk)


def announce_memory(context: RunContext, phases: PhasesConfig) -> None:
    """Say how much of a GPU's memory the run will take, before the guide is loaded.

    Raises:
        UserError: It is more than is free.
    """
    model = context.model.config
    work = work_of(phases, context.datamanager.config.views_per_step, model.sds.perp_neg)
    announce_needs(model.guide, context.model.device, work, NERF_RESERVE)
