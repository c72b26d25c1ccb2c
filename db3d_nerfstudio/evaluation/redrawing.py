"""How much of the true toy survives stage 2: photos of it, translated as renders of the initial NeRF are.

It takes seconds, and tests what the pseudo views rest on: the guide, DreamBooth and the translation.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor

from db3d_nerfstudio.evaluation.metrics.fidelity import masked_psnr
from db3d_nerfstudio.run.interventions import guidance_at, read_changes, stage_ends

if TYPE_CHECKING:
    from db3d_nerfstudio.toybox.subjects import Subject
    from db3d_nerfstudio.training.dataparser import DreamBooth3DDataParserConfig
    from db3d_nerfstudio.training.pipeline import DreamBooth3DPipelineConfig

BATCH_SIZE = 8
"""Views translated at a time."""

Views = Float[Tensor, "v h w 3"]


def full_of(run: Path) -> Path:
    """The folder of a run's D_full, which a run may have done without, or deleted."""
    return run / "dreambooth" / "full"


def cut_outs(subject: Subject, orbit: DreamBooth3DDataParserConfig) -> UInt8[ndarray, "v h w 4"]:
    """The toy from the cameras of the pseudo views, transparent around it."""
    from db3d_nerfstudio.toybox.scene import Shot, Studio

    (cameras, views), studio = orbit.orbit(), Studio(subject)
    places = torch.stack([views.azimuth, views.elevation, views.radius], -1).tolist()
    return np.stack([studio.cut_out(Shot(*place), int(cameras[0].width)) for place in places])


def true_views(subject: Subject, settings: DreamBooth3DPipelineConfig) -> tuple[Views, Float[Tensor, "v h w"]]:
    """The toy from the cameras of the pseudo views in front of the NeRF's background, and its silhouettes."""
    color, alpha = np.split(cut_outs(subject, settings.datamanager.dataparser) / 255, [3], -1)
    images = torch.from_numpy(color * alpha + (1 - alpha) * np.array(settings.model.background.color)).float()
    return images, torch.from_numpy(alpha[..., 0]).float()


@torch.no_grad()
def redraw(run: Path, settings: DreamBooth3DPipelineConfig, subject: Subject, seed: int) -> tuple[float, Views, Views]:
    """PSNR in dB over the toy's silhouettes of its true views after translation by a run's D_full, and both."""
    from db3d_nerfstudio.diffusion.prompt_bank import PromptBank
    from db3d_nerfstudio.diffusion.sampling import translate
    from db3d_nerfstudio.training.pseudo_views import dilate

    guide = settings.model.guide.setup()
    guide.load(full_of(run))
    truth, masks = true_views(subject, settings)
    _, views = settings.datamanager.dataparser.orbit()
    changes = read_changes(run)
    end = stage_ends(changes).get("initial", settings.phases.initial.length)
    prompt, _ = guidance_at(changes, end, str(settings.model.prompt), 0.0)
    conditioning = PromptBank(guide, prompt, settings.model.sds.negative_prompt)(views)
    config, generator, drawn = settings.phases.pseudo_views, torch.Generator().manual_seed(seed), []
    mask = None if config.margin is None else dilate(masks[:, None], config.margin).to(guide.device)
    for start in range(0, len(truth), BATCH_SIZE):
        part = slice(start, start + BATCH_SIZE)
        images = truth[part].permute(0, 3, 1, 2).to(guide.device)
        inside = None if mask is None else mask[part]
        drawn.append(translate(guide, images, conditioning[part], config, generator, inside).cpu())
    redrawn = torch.nn.functional.interpolate(torch.cat(drawn), truth.shape[1:3], mode="area").permute(0, 2, 3, 1)
    return masked_psnr(redrawn, truth, masks), truth, redrawn
