"""How long a guide computes in a run: operations counted on fake tensors, over a share of what a card can do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from db3d_nerfstudio.console import announce
from db3d_nerfstudio.guides.config import DiffusersGuideConfig
from db3d_nerfstudio.guides.counting import DEVICE, fake_cuda
from db3d_nerfstudio.guides.diffusers_guide import choose_dtype
from db3d_nerfstudio.guides.skeleton import skeleton
from db3d_nerfstudio.training.machine import work_of
from db3d_nerfstudio.training.tasks import CLASS_IMAGES, run_tasks

if TYPE_CHECKING:
    from db3d_nerfstudio.diffusion.footprint import Work
    from db3d_nerfstudio.guides.shapes import Shapes
    from db3d_nerfstudio.training.context import RunContext
    from db3d_nerfstudio.training.phases import PhasesConfig

PEAKS = {
    "NVIDIA GeForce RTX 3090": 71e12,
    "NVIDIA GeForce RTX 3090 Ti": 80e12,
    "NVIDIA GeForce RTX 4090": 165e12,
    "NVIDIA GeForce RTX 5090": 209e12,
    "NVIDIA RTX A5000": 111e12,
    "NVIDIA RTX A6000": 155e12,
}
"""Operations per second in bfloat16 with sums in float32, by NVIDIA's data sheets; in TF32 there are half as many.
Faster cards than these wait for the CPU between kernels, which no count of operations shows."""
SHARES = (0.5, 0.2)
"""Of the peak that is reached: the best and the worst case, assumed."""


@dataclass(frozen=True)
class Passes:
    """Operations, additions and multiplications, of a forward pass of one image; in float32 each counts as two."""

    network: int
    encode: int
    decode: int


def passes_of(config: DiffusersGuideConfig, dtype: torch.dtype, shapes: Shapes | None = None) -> Passes:
    """Count the passes of a guide.

    Args:
        dtype: What the network computes in.
        shapes: The networks' arguments; None for those in the files of `config.source`.
    """
    config = replace(config, dtype=str(dtype).removeprefix("torch."), device=None)
    network = 2 if dtype == torch.float32 else 1
    codec = 2 if getattr(config, "vae_dtype", None) == "float32" else 1
    with fake_cuda(), torch.no_grad():
        guide = skeleton(config, shapes).setup(device=DEVICE)
        text, t = guide.embed(["a"])[:1], torch.zeros(1, dtype=torch.long, device=DEVICE)
        z = torch.empty(1, *guide.z_shape, device=DEVICE)
        rgb = torch.empty(1, 3, guide.resolution, guide.resolution, device=DEVICE)
        return Passes(
            network * _count(lambda: guide.predict_noise(z, t, text)),
            codec * _count(lambda: guide.encode(rgb)),
            codec * _count(lambda: guide.decode(z)),
        )


def operations(
    passes: Passes, config: DiffusersGuideConfig, work: Work, phases: PhasesConfig, num_views: int
) -> dict[str, int]:
    """Operations of the guide in each task of a run, in the units of `Passes`.

    A backward pass through frozen weights takes as many as a forward pass, and one that trains them twice as many.

    Args:
        num_views: Number of pseudo views.
    """
    tasks = run_tasks(phases, num_views)
    again = int(config.gradient_checkpointing)
    images = work.dreambooth.batch_size * (1 + any(task.name == CLASS_IMAGES for task in tasks))
    distilled = work.views * ((4 if work.perp_neg else 2) * passes.network + (2 + again) * passes.encode)
    found: dict[str, int] = {}
    for task in tasks:
        match task.kind:
            case "images":
                found[task.name] = task.total * (task.units * 2 * passes.network + passes.decode)
            case "tuning":
                backward = 2 if config.tuning == "full" else 1
                found[task.name] = task.total * images * (1 + again + backward) * passes.network
            case "initial NeRF" if phases.initial.mesh is None:
                found[task.name] = task.total * distilled
            case "final NeRF":
                found[task.name] = task.total * distilled // 2  # The other half reconstructs.
    return found


def announce_duration(context: RunContext, phases: PhasesConfig) -> None:
    """Print about how long the guide of a whole run computes, if it is a large one on a card that is listed."""
    config, data = context.model.config.guide, context.datamanager.config
    device = torch.device(getattr(config, "device", None) or context.model.device)
    if device.type != "cuda" or not isinstance(config, DiffusersGuideConfig) or not config._target.needs_gpu:
        return
    card = torch.cuda.get_device_name(device)
    if card in PEAKS:
        passes = passes_of(config, choose_dtype(config.dtype, device))
        work = work_of(phases, context.model.config, data)
        found = operations(passes, config, work, phases, data.dataparser.num_views)
        announce(line(card, sum(found.values())))


def line(card: str, number: int) -> str:
    """How long a card takes for a number of operations."""
    fast, slow = (number / PEAKS[card] / share / 3600 for share in SHARES)
    best, worst = (f"{100 * share:.0f}" for share in SHARES)
    return (
        f"In a whole run the guide computes for about {fast:.1f} to {slow:.1f} hours; the NeRF comes on top. This is "
        f"counted, not measured, at {best} to {worst} % of the peak of an {card}."
    )


def _count(work: Callable[[], object]) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()
