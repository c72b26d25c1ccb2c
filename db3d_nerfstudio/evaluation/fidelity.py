"""How well a run has caught its subject: `python -m db3d_nerfstudio.evaluation.fidelity --run RUN`.

The toybox knows the truth. Sixteen views all round are compared with photos of the true toy taken by the same cameras.
The coordinates of a generated asset are its own, so one turn (of at most a sector's half) and one scale are granted
first, those that fit the silhouettes best.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from db3d_nerfstudio.cameras import orbit_cameras

if TYPE_CHECKING:
    from db3d_nerfstudio.model import DreamBooth3DModel
    from db3d_nerfstudio.toybox.judge import Judge
    from db3d_nerfstudio.toybox.subjects import Subject

NUM_VIEWS = 16
ELEVATION = 20.0
RADIUS = 3.05
FIRST_AZIMUTH = 11.25
"""Half a step, so that no view lies on the border between two view words; degrees."""
TURNS = (-22.5, -15.0, -7.5, 0.0, 7.5, 15.0, 22.5)
"""Turns of the truth that are tried, degrees."""
SCALES = (0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15)
"""Sizes of the truth that are tried."""

Pictures = Float[Tensor, "v h w 3"]
Masks = Float[Tensor, "v h w"]


@dataclass(frozen=True)
class Fidelity:
    """What a run is worth; higher is better everywhere."""

    silhouette_iou: float
    """Intersection over union of the silhouettes, mean over views."""
    psnr: float
    """Peak signal-to-noise ratio of the pixels of the true silhouettes, dB."""
    judge_similarity: float
    """Cosine of the judge's embeddings of rendered and true views, mean over views."""
    views_right: float
    """Share of views that the judge takes for the view they are."""
    turn: float
    """The turn of the truth that fits best, degrees."""
    scale: float
    """The size of the truth that fits best."""


def silhouette_iou(one: Masks, other: Masks) -> Float[Tensor, " v"]:
    """Intersection over union, view by view, of masks thresholded at one half; empty against empty is 1."""
    one, other = one > 0.5, other > 0.5
    union = (one | other).sum((1, 2))
    return torch.where(union > 0, (one & other).sum((1, 2)) / union.clamp_min(1), 1.0)


def masked_psnr(image: Pictures, truth: Pictures, mask: Masks) -> float:
    """-10 log10 of the mean squared error over the pixels of the mask, all views together; in dB.

    Raises:
        ValueError: the mask is empty.
    """
    inside = mask > 0.5
    if not inside.any():
        raise ValueError("the mask of the PSNR is empty: the true subject is in none of the views")
    return float(-10 * (image - truth)[inside].square().mean().clamp_min(1e-10).log10())


def photograph_truth(subject: Subject, turn: float = 0.0, scale: float = 1.0) -> tuple[Pictures, Masks]:
    """The true toy from the cameras of the evaluation, in front of white, and its silhouettes.

    A toy of another size is a toy seen from another distance: it is small against that distance.
    """
    from db3d_nerfstudio.toybox.scene import Shot, Studio

    studio = Studio(subject)
    shot = Shot(0.0, ELEVATION, RADIUS / scale)
    azimuths = FIRST_AZIMUTH + np.arange(NUM_VIEWS) * 360 / NUM_VIEWS
    pairs = [studio.render(replace(shot, azimuth=float(azimuth + turn))) for azimuth in azimuths]
    images, masks = (torch.from_numpy(np.stack(part)).float() for part in zip(*pairs, strict=True))
    return images, masks


@torch.no_grad()
def render_views(model: DreamBooth3DModel, num_views: int = NUM_VIEWS) -> tuple[Pictures, Masks]:
    """The asset from the cameras of the evaluation, in front of white, and its silhouettes."""
    from db3d_nerfstudio.toybox.scene import FOV, RESOLUTION

    model.eval()
    cameras, _ = orbit_cameras(num_views, ELEVATION, RADIUS, FOV, RESOLUTION, FIRST_AZIMUTH)
    outputs = [model.get_outputs_for_camera(cameras[i : i + 1].to(model.device)) for i in range(num_views)]
    rgba = torch.stack([model.get_rgba_image(output) for output in outputs]).cpu()
    return rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:], rgba[..., 3]


@torch.no_grad()
def compare(images: Pictures, masks: Masks, subject: Subject, judge: Judge) -> tuple[Fidelity, Pictures]:
    """Fidelity of rendered views, and the true views they were compared with."""
    from db3d_nerfstudio.toybox.captions import VIEWS, view_word

    fits = {}
    for turn in TURNS:
        for scale in SCALES:
            truth, true_masks = photograph_truth(subject, turn, scale)
            fits[turn, scale] = (float(silhouette_iou(masks, true_masks).mean()), truth, true_masks)
    (turn, scale), (iou, truth, true_masks) = max(fits.items(), key=lambda item: item[1][0])
    opinion, wanted = (judge.look(part.permute(0, 3, 1, 2)) for part in (images, truth))
    azimuths = [FIRST_AZIMUTH + index * 360 / len(images) for index in range(len(images))]
    right = [VIEWS[said] == view_word(azimuth, ELEVATION)
             for said, azimuth in zip(opinion.view.argmax(-1).tolist(), azimuths, strict=True)]  # fmt: skip
    similarity = (opinion.embedding * wanted.embedding).sum(-1).mean()
    psnr = masked_psnr(images, truth, true_masks)
    return Fidelity(iou, psnr, float(similarity), float(np.mean(right)), turn, scale), truth


@dataclass
class FidelityConfig:
    """Measure a finished run of a toybox subject."""

    run: Path
    """The run's folder."""
    seed: int | None = None
    """Seed of the toy in the photos; unset, the bundled one."""
    class_noun: str | None = None
    """Kind of toy; unset, the seed decides."""


def main(config: FidelityConfig) -> None:
    """Compare the initial and the final NeRF with the truth; print a table, save it and a picture in the run folder."""
    from nerfstudio.utils.eval_utils import eval_setup
    from torchvision.utils import save_image

    from db3d_nerfstudio.toybox.examples import default_truth
    from db3d_nerfstudio.toybox.judge import load_judge
    from db3d_nerfstudio.toybox.subjects import make_subject

    subject = default_truth() if config.seed is None else make_subject(config.seed, config.class_noun)
    judge, table, rows = load_judge(), {}, []
    stages = {"initial": config.run / "initial" / "config.yml", "final": config.run / "config.yml"}
    for name, path in stages.items():
        if path.exists():
            model = eval_setup(path, test_mode="inference")[1].model
            images, masks = render_views(model)
            fidelity, truth = compare(images, masks, subject, judge)
            table[name] = asdict(fidelity)
            rows = [truth] if not rows else rows
            rows.append(images)
    (config.run / "fidelity.json").write_text(json.dumps(table, indent=2) + "\n", "utf8")
    save_image(torch.cat(rows).permute(0, 3, 1, 2), config.run / "fidelity.png", nrow=NUM_VIEWS, padding=0)
    print(json.dumps(table, indent=2))
    print(f"Look at {config.run / 'fidelity.png'}: the truth, then {', then '.join(table)}.")


if __name__ == "__main__":
    import tyro

    main(tyro.cli(FidelityConfig))
