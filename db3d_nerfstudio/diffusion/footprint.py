"""What a guide takes of a GPU's memory, counted task by task on fake tensors before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from db3d_nerfstudio.console import announce
from db3d_nerfstudio.diffusion.dreambooth import Batch, DreamBoothConfig, dreambooth_loss, needs_prior
from db3d_nerfstudio.diffusion.guidance import Conditioning, PerpNeg, guided_noise
from db3d_nerfstudio.diffusion.sampling import BATCH_SIZE
from db3d_nerfstudio.diffusion.upscaler import UpscalerConfig
from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.guides.base import DiffusionGuideConfig
from db3d_nerfstudio.guides.config import DiffusersGuideConfig
from db3d_nerfstudio.guides.counting import DEVICE, GIB, Backward, Memory, fake_cuda
from db3d_nerfstudio.guides.diffusers_guide import choose_dtype
from db3d_nerfstudio.guides.shapes import Shapes
from db3d_nerfstudio.guides.skeleton import skeleton

if TYPE_CHECKING:
    from db3d_nerfstudio.guides.diffusers_guide import DiffusersGuide

RESERVE = round(1.2 * GIB)
"""Bytes that no tensor holds: the CUDA context, workspaces of cuDNN, gaps between blocks."""
SUGGESTIONS: tuple[tuple[str, object], ...] = (
    ("gradient_checkpointing", True),
    ("tuning", "lora"),
    ("dtype", "bfloat16"),
    ("text_encoder_memory", "offload"),
    ("vae_dtype", "bfloat16"),
    ("t5", False),
)
"""What to change, the least harmful first, if a guide does not fit."""


@dataclass(frozen=True)
class Work:
    """What a run asks of its guide."""

    dreambooth: DreamBoothConfig = field(default_factory=DreamBoothConfig)
    tuned: bool = True
    """Whether the guide is fine-tuned at all."""
    views: int = 1
    """Views in a step of score distillation."""
    nerf: int = 0
    """Bytes that the NeRF holds during that step."""
    perp_neg: bool = False
    """Whether guidance also avoids two other prompts for each view."""
    chunk: int = 4
    """Renders translated at a time."""
    references: int = 0
    """Images that the guide sees while it translates."""
    upscaler: UpscalerConfig | None = None
    """The model that enlarges pseudo views, which is loaded beside the guide."""


@dataclass(frozen=True)
class Footprint:
    """Bytes on the guide's device."""

    weights: int
    """Of all networks that stay there."""
    training: int
    """Gradients, the optimizer's moments and running means while DreamBooth tunes."""
    kept: int
    """Values that a step of DreamBooth keeps for its backward pass, half-precision copies of weights among them."""
    tasks: dict[str, int]
    """The peak of each task, everything included."""

    @property
    def peak(self) -> int:
        """The worst moment, with a reserve for what no tensor holds."""
        return max(self.tasks.values()) + RESERVE

    def __str__(self) -> str:
        worst = max(self.tasks, key=lambda task: self.tasks[task])
        return f"{self.peak / GIB:.1f} GiB (weights {self.weights / GIB:.1f}, most for {worst})"


def footprint(
    config: DiffusersGuideConfig, dtype: torch.dtype, work: Work | None = None, shapes: Shapes | None = None
) -> Footprint:
    """The memory that the guide of a config takes for some work, computing in `dtype`.

    Args:
        shapes: The networks' arguments; None for those in the files of `config.source`.
    """
    work = Work() if work is None else work
    config = replace(config, dtype=str(dtype).removeprefix("torch."), device=None)
    with fake_cuda() as memory:
        guide = skeleton(config, shapes).setup(device=DEVICE)
        weights, tasks = memory.now, {}
        tasks["reading prompts"] = _peak(memory, lambda: _text(guide))
        tasks["translation"] = _peak(memory, lambda: _translate(guide, work))
        tasks["score distillation"] = _distil(guide, work, memory) + work.nerf
        training = kept = 0
        if work.tuned:
            if needs_prior(guide, work.dreambooth):
                tasks["class images"] = _peak(memory, lambda: _draw(guide, BATCH_SIZE))
            training, kept, tasks["fine-tuning"] = _tune(guide, work.dreambooth, memory)
        if work.upscaler is not None:
            tasks |= _upscale(guide, work.upscaler, work, memory)
    return Footprint(weights, training, kept, tasks)


def announce_needs(config: DiffusionGuideConfig, device: torch.device | str, work: Work) -> None:
    """Print how much of a GPU's memory a large guide will take, before it is loaded.

    Args:
        device: Where it is loaded to, unless its config names another device.

    Raises:
        UserError: It is more than is free.
    """
    device = torch.device(getattr(config, "device", None) or device)
    if device.type == "cuda" and isinstance(config, DiffusersGuideConfig) and config._target.needs_gpu:
        free = torch.cuda.mem_get_info(device)[0]
        announce(check_fits(config, choose_dtype(config.dtype, device), free, work))


def check_fits(
    config: DiffusersGuideConfig, dtype: torch.dtype, free: int, work: Work, shapes: Shapes | None = None
) -> str:
    """A line on how much memory the guide needs; if that exceeds the `free` bytes, on what to change.

    Raises:
        UserError: If what is certain, tensors without a reserve, does not fit.
    """
    needed = footprint(config, dtype, work, shapes)
    line = f"The guide needs about {needed} of the GPU's memory; {free / GIB:.1f} GiB are free."
    if needed.peak <= free:
        return line
    line += f" {advice(config, dtype, free, work, shapes)}"
    if needed.peak - RESERVE > free:
        raise UserError(line)
    return line


def advice(
    config: DiffusersGuideConfig, dtype: torch.dtype, free: int, work: Work, shapes: Shapes | None = None
) -> str:
    """The first settings, one more at a time, with which the guide would fit into `free` bytes."""
    changes: list[str] = []
    for name, value in SUGGESTIONS:
        saved = (name, getattr(config, name, value)) in (
            ("tuning", "textual_inversion"),
            ("text_encoder_memory", "free"),
        )
        if getattr(config, name, value) == value or saved or (name == "dtype" and dtype != torch.float32):
            continue
        config = replace(config, **{name: value})
        if name == "dtype":
            dtype = torch.bfloat16
        changes.append(f"--pipeline.model.guide.{name.replace('_', '-')} {value}")
        needed = footprint(config, dtype, work, shapes)
        if needed.peak <= free:
            return f"Set {' '.join(changes)}: that takes {needed.peak / GIB:.1f} GiB."
    return "Take a smaller model, or another device for it (--pipeline.model.guide.device cuda:1)."


def _peak(memory: Memory, work: Callable[[], object]) -> int:
    memory.restart()
    work()
    return memory.peak


@torch.no_grad()
def _text(guide: DiffusersGuide, num: int = 1) -> Tensor:
    return guide.embed(["a"])[:1].expand(num, -1, -1)


def _noise(guide: DiffusersGuide, num: int, avoided: int = 0) -> Tensor:
    z = torch.empty(num, *guide.z_shape, device=DEVICE)
    text, t = _text(guide, num), torch.zeros(num, dtype=torch.long, device=DEVICE)
    away = PerpNeg(text[:, None].expand(-1, avoided, -1, -1), z.new_ones(num, avoided)) if avoided else None
    with torch.no_grad():
        return guided_noise(guide, z, t, Conditioning(text, text, away), 7.5)


def _draw(guide: DiffusersGuide, num: int) -> None:
    z = _noise(guide, num)
    with torch.no_grad():
        guide.decode(z)


def _translate(guide: DiffusersGuide, work: Work) -> None:
    rgb = torch.empty(work.chunk, 3, guide.resolution, guide.resolution, device=DEVICE)
    with torch.no_grad():
        guide.encode(rgb)
    with guide.references(rgb[:1].expand(work.references, -1, -1, -1)) if work.references else nullcontext():
        _draw(guide, work.chunk)


def _upscale(guide: DiffusersGuide, config: UpscalerConfig, work: Work, memory: Memory) -> dict[str, int]:
    """The peaks of what an upscaler does while the guide is there; its shapes are those in its model's files."""
    dtype = guide.config.dtype if config.dtype == "auto" else config.dtype
    upscaler = skeleton(replace(config, dtype=dtype, device=None)).setup(device=DEVICE, first_stage=guide)
    side = guide.resolution

    def draw() -> None:
        upscaler.show(torch.empty(work.chunk, 3, side, side, device=DEVICE))
        _draw(upscaler, work.chunk)

    tasks = {"reading prompts for upscaling": _peak(memory, lambda: _text(upscaler))}
    tasks["upscaling"] = _peak(memory, draw)
    if config.max_train_steps > 0:
        dreambooth = replace(work.dreambooth, prior_loss_weight=0.0)
        upscaler.show(torch.empty(dreambooth.batch_size, 3, side, side, device=DEVICE))
        tasks["tuning the upscaler"] = _tune(upscaler, dreambooth, memory)[2]
    return tasks


def _distil(guide: DiffusersGuide, work: Work, memory: Memory) -> int:
    """The peak of a step: the codec's values are kept while the network answers."""
    rgb = torch.empty(work.views, 3, 64, 64, device=DEVICE, requires_grad=True)
    backward = Backward(guide.modules().values())
    memory.restart()
    before = memory.now
    kept, z = backward.kept(lambda: guide.encode(rgb))
    encoded = max(memory.now, before + kept)
    unseen = encoded - memory.now  # What checkpoints keep.
    _noise(guide, work.views, 2 if work.perp_neg else 0)
    del z
    return max(memory.peak + unseen, encoded + backward.again)


def _tune(guide: DiffusersGuide, config: DreamBoothConfig, memory: Memory) -> tuple[int, int, int]:
    """One iteration: bytes of gradients, moments and means; of what the backward pass needs; and the peak."""
    memory.restart()
    before, parameters = memory.now, guide.parameters()
    moment = torch.uint8 if config.optimizer == "adamw8bit" else torch.float32
    held = [torch.empty_like(p, dtype=moment) for p in parameters for _ in range(2)]
    if config.ema_decay is not None:
        held += [torch.empty_like(p) for p in parameters]
    gradients = sum(p.numel() * p.element_size() for p in parameters)
    num = config.batch_size * (2 if needs_prior(guide, config) else 1)
    z = torch.empty(num, *guide.z_shape, device=DEVICE)
    t = torch.zeros(num, dtype=torch.long, device=DEVICE)
    backward = Backward(guide.modules().values())
    start = memory.now

    def loss(z: Tensor) -> Tensor:
        text = guide.embed(["a"]).expand(num, -1, -1)
        batch = Batch(z, text, t, torch.empty_like(z), z[:, :1], config.batch_size)
        return dreambooth_loss(guide, batch, config)

    memory.restart()
    kept, _ = backward.kept(lambda: loss(z))
    # Values are freed while gradients come: of those two, the larger is there at once.
    peak = max(memory.peak, start + max(kept, gradients) + backward.again)
    training = start - before + gradients
    del held
    return training, kept, peak
