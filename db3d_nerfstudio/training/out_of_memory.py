"""What to lower where a run is out of memory, which depends on what it was doing."""

from __future__ import annotations

import traceback
from typing import Any

import torch

from db3d_nerfstudio.run.config import RunConfig
from db3d_nerfstudio.run.folder import FREE_TO_CHANGE
from db3d_nerfstudio.run.progress import Task
from db3d_nerfstudio.training.tasks import PSEUDO_VIEWS

GUIDE, PHASES, MODEL, DATA = "model.guide", "phases", "model", "datamanager"
Remedies = tuple[tuple[str, Any], ...]
"""Options below `pipeline`, the least harmful first, and values that need less memory."""

TEXT: Remedies = ((f"{GUIDE}.text_encoder_memory", "offload"), (f"{GUIDE}.dtype", "bfloat16"))
CODEC: Remedies = ((f"{GUIDE}.vae_dtype", "bfloat16"),)
TUNING: Remedies = (
    (f"{GUIDE}.gradient_checkpointing", True),
    (f"{PHASES}.dreambooth.optimizer", "adamw8bit"),
    (f"{PHASES}.dreambooth.batch_size", 1),
    (f"{GUIDE}.tuning", "lora"),
)
DRAWING: Remedies = ((f"{GUIDE}.text_encoder_memory", "offload"), (f"{GUIDE}.tuning", "lora"))
TRANSLATION: Remedies = ((f"{PHASES}.pseudo_views.chunk", 1), *DRAWING)
UPSCALING: Remedies = (
    (f"{PHASES}.pseudo_views.upscaler.gradient_checkpointing", True),
    (f"{PHASES}.pseudo_views.upscaler.tuning", "lora"),
    (f"{PHASES}.dreambooth.batch_size", 1),
)
NERF: Remedies = (
    (f"{GUIDE}.gradient_checkpointing", True),
    (f"{MODEL}.eval_num_rays_per_chunk", 4096),
    *CODEC,
    (f"{DATA}.random_cameras.resolution", ((0.0, 64),)),
    (f"{MODEL}.sampler.num_samples", 128),
    (f"{DATA}.train_num_rays_per_batch", 1024),
)
PRIMITIVES: dict[str, tuple[str, Remedies]] = {
    "embed": ("reading prompts", TEXT),
    "decode": ("decoding pictures", CODEC),
    "encode": ("encoding pictures", CODEC),
}
"""Members of a guide in which memory may run out, as a task for users, and what helps there."""


def advice(error: torch.OutOfMemoryError, config: RunConfig, task: Task | None) -> str:
    """One line: where the memory ran out, and options that need less, by whether the run can continue with them.

    Args:
        task: What the run was doing; None if it had not begun.
    """
    where, remedies = _place(error, task)
    needed = [(option, value) for option, value in remedies if _lowers(config, option, value)]
    same = [_flag(*each) for each in needed if each[0] in FREE_TO_CHANGE]
    other = [_flag(*each) for each in needed if each[0] not in FREE_TO_CHANGE]
    cause = str(error).partition("\n")[0]
    line = f"{cause} It happened in: {where}. Give this run the device to itself"
    line += f", or add {' or '.join(same)}" if same else ""
    line += ": the same command continues this run."
    if other:
        line += f" With {' or '.join(other)} a new run needs less."
    return line


def _place(error: BaseException, task: Task | None) -> tuple[str, Remedies]:
    called = [frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)]
    name = "loading the guide" if task is None else task.name
    general = _remedies(task)
    for primitive, (what, remedies) in PRIMITIVES.items():
        if primitive in called:
            return f"{name}, {what}", (*remedies, *(each for each in general if each not in remedies))
    return name, general


def _remedies(task: Task | None) -> Remedies:
    if task is None or task.kind == "images":
        return TRANSLATION if task is not None and task.name == PSEUDO_VIEWS else DRAWING
    return {"tuning": TUNING, "upscaling": UPSCALING}.get(task.kind, NERF)


def _lowers(config: RunConfig, option: str, value: Any) -> bool:
    """Whether the config has the option, and its value would need more memory."""
    *parents, name = option.split(".")
    inside: Any = config.pipeline
    for parent in parents:
        inside = getattr(inside, parent, None)
    present = getattr(inside, name, None)
    if present is None or present == value:
        return False
    match name:
        case "text_encoder_memory":
            return present == "keep" and not getattr(inside, "train_text_encoder", False)
        case "dtype" | "vae_dtype":
            return present == "float32"
        case "tuning":
            return present == "full"
        case "train_num_rays_per_batch":
            whole = getattr(config.pipeline.model, "perceptual_loss_mult", 0) > 0  # A perceptual term needs pictures.
            return present > value and not whole
        case "resolution":
            return max(side for _, side in present) > value[0][1]
    return isinstance(value, bool | str) or present > value


def _flag(option: str, value: Any) -> str:
    values = [number for pair in value for number in pair] if isinstance(value, tuple) else [value]
    words = " ".join(f"{each:g}" if isinstance(each, float) else str(each) for each in values)
    return f"--pipeline.{option.replace('_', '-')} {words}"
