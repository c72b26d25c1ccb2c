"""The guide's exam: `python -m db3d_nerfstudio.toybox.exam`.

How often does the judge find in the guide's samples what their unseen captions ask for? With `--truth` it judges true
photos of other toys in their place, which is the ceiling for any guide.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from db3d_nerfstudio.diffusion.sampling import SamplingConfig, draw
from db3d_nerfstudio.toybox import examiner
from db3d_nerfstudio.toybox.guide import ToyboxGuideConfig
from db3d_nerfstudio.toybox.judge import HEADS, SHIPPED_JUDGE, Judge, load_judge
from db3d_nerfstudio.toybox.questions import (
    FIRST_EXAM_SEED,
    FIRST_TRUE_SEED,
    Question,
    draw_question,
    true_photo,
)

BATCH = 32
"""Images judged at once."""


@dataclass
class ExamConfig:
    """Settings of the exam."""

    guide: ToyboxGuideConfig = field(default_factory=ToyboxGuideConfig)
    """The guide."""
    judge: Path = SHIPPED_JUDGE
    """The judge's weights."""
    truth: bool = False
    """Show the judge true photos in place of samples."""
    num_captions: int = 1000
    """Number of captions, with one sample each."""
    photos_per_caption: int = 2
    """True photos a caption that the samples' distribution is compared with."""
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(guidance_scale=4.0))
    """How samples are drawn."""
    sheet: Path | None = None
    """File for a picture of the first 64 samples."""
    samples: Path | None = None
    """File (.npy) for the samples; if it is there, they are read and not drawn again."""


def frechet_distance(one: Float[Tensor, "n d"], other: Float[Tensor, "m d"]) -> float:
    """Distance of the two normal distributions that fit the rows best (FID: Heusel et al. 2017, arXiv 1706.08500)."""
    one, other = one.double(), other.double()
    a, b = torch.cov(one.T), torch.cov(other.T)
    cross = torch.linalg.eigvals(a @ b).real.clamp(min=0).sqrt().sum()
    return ((one.mean(0) - other.mean(0)).square().sum() + a.trace() + b.trace() - 2 * cross).item()


def true_photos(questions: list[Question], round: int) -> Float[Tensor, "b 3 h w"]:
    """A true photo for every question, in [0, 1]; every round shows other toys."""
    seeds = range(FIRST_TRUE_SEED + round * 100_000, FIRST_TRUE_SEED + (round + 1) * 100_000)
    photos = np.stack([true_photo(question, seed) for question, seed in zip(questions, seeds, strict=False)])
    return torch.from_numpy(photos).permute(0, 3, 1, 2).float() / 255


def sample_answers(config: ExamConfig, questions: list[Question]) -> Float[Tensor, "b 3 h w"]:
    """What the guide draws for every question."""
    from rich.progress import Progress

    if config.samples is not None and config.samples.exists():
        return torch.from_numpy(np.load(config.samples)).float() / 255
    guide, prompts = config.guide.setup(device="cpu"), [question.text for question in questions]
    with Progress() as bar:
        task = bar.add_task("Exam", total=len(prompts))
        images = draw(guide, prompts, config.sampling, 0, progress=lambda done: bar.update(task, completed=done))
    if config.samples is not None:
        np.save(config.samples, (images * 255).round().byte().numpy())
    return images


def finest_band(images: Float[Tensor, "b 3 h w"]) -> float:
    """Mean square of the finest band of a Laplacian pyramid: what blur takes away, and noise adds."""
    coarse = interpolate(avg_pool2d(images, 2), scale_factor=2, mode="bilinear")
    return (images - coarse).square().mean().item()


@torch.no_grad()
def grade(judge: Judge, questions: list[Question], images: Float[Tensor, "b 3 h w"]) -> dict[str, list[bool]]:
    """Whether each image shows what its caption says.

    The judge names class, main colour and view; the examiner the details, where a caption asks for them.
    """
    right: dict[str, list[bool]] = {name: [] for name in (*HEADS, *examiner.HEADS)}
    opinions = [judge.look(part) for part in images.split(BATCH)]
    for name, names in HEADS.items():
        said = torch.cat([getattr(opinion, name) for opinion in opinions]).argmax(-1).tolist()
        for question, index in zip(questions, said, strict=True):
            wanted = question.view if name == "view" else getattr(question.traits, name)
            right[name].append(names[index] == wanted)
    details = examiner.load_examiner()
    looks = [details.look(part) for part in images.split(BATCH)]
    for name in examiner.HEADS:
        found = examiner.names(torch.cat([look[name] for look in looks]), name)
        asked = [(question.details[name], seen) for question, seen in zip(questions, found, strict=True)]
        right[name] += [wanted == seen for wanted, seen in asked if wanted is not None]
    return right


@torch.no_grad()
def embed_images(judge: Judge, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
    """The judge's embeddings."""
    return torch.cat([judge.look(part).embedding for part in images.split(BATCH)])


def main(config: ExamConfig) -> dict[str, float]:
    """Sample, judge, and print shares that are right, with standard errors.

    The Frechet distance and the finest band are printed times 1000.
    """
    from torchvision.utils import save_image

    judge = load_judge(config.judge)
    questions = [draw_question(FIRST_EXAM_SEED + index) for index in range(config.num_captions)]
    images = true_photos(questions, 0) if config.truth else sample_answers(config, questions)
    if config.sheet is not None:
        save_image(images[:64], config.sheet, nrow=8, padding=0)
    others = [embed_images(judge, true_photos(questions, 1 + i)) for i in range(config.photos_per_caption)]
    result, errors = {}, {}
    for name, values in grade(judge, questions, images).items():
        share = float(np.mean(values)) if values else float("nan")
        result[name] = round(share, 4)
        errors[name] = round((share * (1 - share) / max(1, len(values))) ** 0.5, 4)
    result["frechet"] = round(1000 * frechet_distance(embed_images(judge, images), torch.cat(others)), 1)
    result["finest_band"] = round(1000 * finest_band(images), 3)
    print(json.dumps({**result, "standard_errors": errors}))
    return result


if __name__ == "__main__":
    import tyro

    main(tyro.cli(ExamConfig))
