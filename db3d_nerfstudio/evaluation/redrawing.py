"""How much of the true toy survives stage 2: photos of it, translated as renders of the initial NeRF are.

It takes seconds, and tests what the pseudo views rest on: the guide, DreamBooth and the translation.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from db3d_nerfstudio.evaluation.metrics.fidelity import masked_psnr

if TYPE_CHECKING:
    from db3d_nerfstudio.toybox.subjects import Subject
    from db3d_nerfstudio.training.pipeline import DreamBooth3DPipelineConfig

BATCH_SIZE = 8
"""Views translated at a time."""

Views = Float[Tensor, "v h w 3"]


def full_of(run: Path) -> Path:
    """The folder of a run's D_full, which a run may have done without, or deleted."""
    return run / "dreambooth" / "full"


def true_views(subject: Subject, settings: DreamBooth3DPipelineConfig) -> tuple[Views, Float[Tensor, "v h w"]]:
    """The toy from the cameras of the pseudo views in front of the NeRF's background, and its silhouettes."""
    from db3d_nerfstudio.toybox.scene import Shot, Studio

    cameras, views = settings.datamanager.dataparser.orbit()
    background, studio = np.array(settings.model.background.color), Studio(subject)
    cut_outs = [
        studio.cut_out(Shot(*place), int(cameras[0].width)) / 255
        for place in torch.stack([views.azimuth, views.elevation, views.radius], -1).tolist()
    ]
    color, alpha = np.split(np.stack(cut_outs), [3], -1)
    images = torch.from_numpy(color * alpha + (1 - alpha) * background).float()
    return images, torch.from_numpy(alpha[..., 0]).float()


@torch.no_grad()
def redraw(run: Path, settings: DreamBooth3DPipelineConfig, subject: Subject, seed: int) -> tuple[float, Views, Views]:
    """PSNR in dB over the toy's silhouettes of its true views after translation by a run's D_full, and both."""
    from db3d_nerfstudio.diffusion.prompt_bank import PromptBank
    from db3d_nerfstudio.diffusion.sampling import translate

    guide = settings.model.guide.setup()
    guide.load(full_of(run))
    truth, masks = true_views(subject, settings)
    _, views = settings.datamanager.dataparser.orbit()
    conditioning = PromptBank(guide, str(settings.model.prompt), settings.model.sds.negative_prompt)(views)
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for start in range(0, len(truth), BATCH_SIZE):
        part = slice(start, start + BATCH_SIZE)
        images = truth[part].permute(0, 3, 1, 2).to(guide.device)
        drawn.append(translate(guide, images, conditioning[part], settings.phases.pseudo_views, generator).cpu())
    redrawn = torch.nn.functional.interpolate(torch.cat(drawn), truth.shape[1:3], mode="area").permute(0, 2, 3, 1)
    return masked_psnr(redrawn, truth, masks), truth, redrawn
