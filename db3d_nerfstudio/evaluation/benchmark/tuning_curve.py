"""Why three stages: a figure of what a guide gains and loses with every DreamBooth iteration.

    python -m db3d_nerfstudio.evaluation.benchmark.tuning_curve --output outputs/tuning_curve

DreamBooth3D (2303.13508, section 3.1) rests on this: a guide that is tuned a little draws the subject roughly but from
the right sides; one that is tuned for long draws the subject from the photos' sides, whatever the prompt. With the true
toy, this is measured without samples: how well does the guide denoise views from seen and from unseen sides?
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from db3d_nerfstudio.cameras import Views, wrap_degrees
from db3d_nerfstudio.diffusion.denoising import NoiseLevels, denoising_errors
from db3d_nerfstudio.diffusion.dreambooth import DreamBoothConfig, finetune
from db3d_nerfstudio.diffusion.sampling import SamplingConfig, draw
from db3d_nerfstudio.diffusion.tuner import SubjectTuner
from db3d_nerfstudio.evaluation.benchmark.subjects import FIRST_TOY, BenchmarkSubject, toybox_subject
from db3d_nerfstudio.evaluation.metrics.bootstrap import bootstrap
from db3d_nerfstudio.evaluation.metrics.similarity import mean_pairwise
from db3d_nerfstudio.evaluation.personalisation import (
    diversity,
    prompts_of_all_views,
    view_diversity,
)
from db3d_nerfstudio.ranges import Count, Natural
from db3d_nerfstudio.toybox.guide import ToyboxGuideConfig
from db3d_nerfstudio.words import VIEW_NAMES, Subject, nearest_prompts

if TYPE_CHECKING:
    from collections.abc import Callable

    from db3d_nerfstudio.guides.base import DiffusionGuide
    from db3d_nerfstudio.toybox.judge import Judge

LEVELS = NoiseLevels((0.4, 0.6, 0.7, 0.8, 0.9), draws=3)
"""At which true views are denoised."""


@dataclass
class TuningCurveConfig:
    """DreamBooth iterations against likeness of the subject and diversity of the views, on toys never trained on."""

    output: Path = Path("outputs/tuning_curve")
    """Folder for the figure, its numbers and the samples."""
    iterations: tuple[Natural, ...] = (0, 50, 150, 400, 800, 1600)
    """Iterations at which to measure; each guide is tuned up to the last."""
    classes: tuple[str, ...] = ("dog", "duck", "car", "chair")
    """Kinds of toys, with one toy each."""
    first_toy: int = FIRST_TOY
    """Seed of the first toy."""
    per_view: Count = 8
    """Samples per view."""
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(guidance_scale=4.0))
    """How samples are drawn."""
    seed: int = 0
    """Seed of fine-tuning and samples."""
    guide: ToyboxGuideConfig = field(default_factory=ToyboxGuideConfig)
    """The guide."""
    dreambooth: DreamBoothConfig = field(default_factory=lambda: DreamBoothConfig(num_class_images=32))
    """Settings of the fine-tuning."""


@dataclass(frozen=True)
class Point:
    """Measures of a guide after some iterations."""

    iterations: int
    """Number of iterations so far."""
    subject_similarity: float
    """Mean cosine between samples of the subject's prompts and photos; higher is better."""
    view_diversity: float
    """Normalised entropy of the sides that they show, 1 if all four equally; higher is better."""
    views_right: float
    """Share of samples that show the side in their prompt."""
    preservation: float
    """PRES: mean cosine between samples of the class's prompt and photos of the subject; lower is better."""
    diversity: float
    """DIV: mean distance (1 - cosine) of samples of the subject's front; higher is better."""
    error_seen: float
    """Error of denoising true views from the half that the photos show, with the side in the caption; lower is better.

    It is relative to the untouched guide's with the class in the caption: below 1, the guide has gained something."""
    error_unseen: float
    """The same for true views from behind: above 1, the guide has lost more of the class than it has gained."""


class Truth(NamedTuple):
    """Views of the true toy all round, and how well the untouched guide denoises them."""

    z: Float[Tensor, "v c hz wz"]
    mask: Float[Tensor, "v 1 hz wz"]
    views: Views
    untouched: Float[Tensor, "t v"]


def main(config: TuningCurveConfig) -> None:
    """Tune a guide on each toy, measure it on the way, and draw the figure; finished toys are kept."""
    from db3d_nerfstudio.console import announce
    from db3d_nerfstudio.toybox.judge import load_judge
    from db3d_nerfstudio.workspace import Workspace

    root = config.output.absolute()
    guide, judge, curves = config.guide.setup(device="cpu"), load_judge(), {}
    for place, noun in enumerate(config.classes):
        toy = toybox_subject(config.first_toy + place, noun, root / "subjects")

        def follow(path: Path, toy: BenchmarkSubject = toy) -> None:
            points = tuning_curve(guide, judge, toy, config, root, path)
            (path / "points.json").write_text(json.dumps([asdict(point) for point in points], indent=2) + "\n", "utf8")

        settings = {key: value for key, value in asdict(config).items() if key not in ("output", "classes")}
        guide.load(None)
        recipe = {"settings": settings, "guide": guide.fingerprint(), "toy": toy.name}
        path = Workspace(root).once(f"curves/{toy.name}", recipe, follow)
        curves[toy.name] = [Point(**point) for point in json.loads((path / "points.json").read_text("utf8"))]
        announce(f"{toy.name}: likeness {[round(point.subject_similarity, 3) for point in curves[toy.name]]}")
    table = {name: [asdict(point) for point in points] for name, points in curves.items()}
    (root / "tuning_curve.json").write_text(json.dumps(table, indent=2) + "\n", "utf8")
    plot(list(curves.values()), root / "tuning_curve.png")
    announce(f"Look at {root / 'tuning_curve.png'}; the samples are in {root / 'curves'}.")


def tuning_curve(
    guide: DiffusionGuide, judge: Judge, toy: BenchmarkSubject, config: TuningCurveConfig, root: Path, sheets: Path
) -> list[Point]:
    """One fine-tuning, looked at after the configured iterations; a sheet of samples for each goes to `sheets`."""
    from rich.progress import Progress

    from db3d_nerfstudio.images import contact_sheet, tensor_to_image
    from db3d_nerfstudio.workspace import Workspace

    subject = Subject(toy.prompt(toy.templates[0], "sks"), "sks", toy.class_noun)
    workspace, points = Workspace(root / "dreambooth" / toy.name), []
    tuner = SubjectTuner(guide, toy.photos, subject, config.dreambooth, workspace, config.seed)
    data = tuner.data
    if tuner.needs_prior:
        data = replace(data, prior=tuner.class_images())
    guide.load(None)
    truth = true_views(guide, toy, subject.class_prompt)
    with Progress() as bar:
        task = bar.add_task(toy.name, total=max(config.iterations))

        def look(done: int, loss: float | None = None) -> None:
            bar.update(task, completed=done)
            if done in config.iterations:
                prompts = prompts_of_all_views(subject.instance_prompt, config.per_view)
                samples = draw(guide, prompts, config.sampling, config.seed)
                of_class = draw(guide, [subject.class_prompt] * config.per_view, config.sampling, config.seed)
                rows = [data.images, *samples.split(config.per_view)]
                tensor_to_image(contact_sheet(rows, guide.resolution)).save(sheets / f"{done:05d}.png")
                seen, unseen = errors_of(guide, truth, subject.instance_prompt)
                judged = judge_samples(judge, data.images, samples, of_class)
                points.append(Point(iterations=done, **judged, error_seen=seen, error_unseen=unseen))

        look(0)
        finetune(guide, data, config.dreambooth, max(config.iterations), config.seed, look)
    return points


def true_views(guide: DiffusionGuide, toy: BenchmarkSubject, class_prompt: str) -> Truth:
    """Every other view of the evaluation, and the guide's errors, with class and side in the captions."""
    from db3d_nerfstudio.evaluation.metrics.fidelity import photograph_truth
    from db3d_nerfstudio.evaluation.metrics.renders import NUM_VIEWS, evaluation_orbit
    from db3d_nerfstudio.toybox.scene import Studio
    from db3d_nerfstudio.toybox.subjects import make_subject

    if toy.toy is None:
        raise ValueError(f"{toy.name} is not a toy, so its true views are not known")
    images, masks = (part[::2] for part in photograph_truth(Studio(make_subject(toy.toy, toy.class_noun))))
    _, views = evaluation_orbit(guide.resolution, NUM_VIEWS // 2)
    z = guide.encode(images.permute(0, 3, 1, 2).to(guide.device))
    mask = interpolate(masks[:, None].to(z), z.shape[2:], mode="area")
    return Truth(z, mask, views, _errors(guide, z, mask, views, class_prompt))


def errors_of(guide: DiffusionGuide, truth: Truth, prompt: str) -> tuple[float, float]:
    """`Point.error_seen` and `Point.error_unseen` of the guide, with prompt and side in the captions."""
    relative = (_errors(guide, truth.z, truth.mask, truth.views, prompt) / truth.untouched).mean(0)
    behind = wrap_degrees(truth.views.azimuth).abs() > 90
    return relative[~behind].mean().item(), relative[behind].mean().item()


def _errors(guide: DiffusionGuide, z: Tensor, mask: Tensor, views: Views, prompt: str) -> Float[Tensor, "t v"]:
    with torch.no_grad():
        text = guide.embed(nearest_prompts(prompt, views, guide.tells_sides))
    generator = torch.Generator().manual_seed(0)
    return denoising_errors(guide, z, text, LEVELS, generator, mask)


@torch.no_grad()
def judge_samples(
    judge: Judge, photos: torch.Tensor, samples: torch.Tensor, of_class: torch.Tensor
) -> dict[str, float]:
    """The fields of `Point` that the judge measures.

    Args:
        samples: Equally many for each view, in the order of `prompts_of_all_views`.
        of_class: As many samples of the class's prompt as there are of one view.
    """
    per_view = len(of_class)
    opinion, real = judge.look(samples), judge.look(photos).embedding
    shown = [VIEW_NAMES[index] for index in opinion.view.argmax(-1).tolist()]
    asked = [name for name in VIEW_NAMES for _ in range(per_view)]
    return {
        "subject_similarity": mean_pairwise(opinion.embedding, real),
        "view_diversity": view_diversity(shown),
        "views_right": sum(one == other for one, other in zip(shown, asked, strict=True)) / len(asked),
        "preservation": mean_pairwise(judge.look(of_class).embedding, real),
        "diversity": diversity(samples[:per_view], unlikeness(judge)),
    }


def unlikeness(judge: Judge) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """1 - cosine of the judge's embeddings, used in place of LPIPS, which is made for photos."""

    def distance(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return 1 - (judge.look(one).embedding * judge.look(other).embedding).sum(-1)

    return distance


def plot(curves: list[list[Point]], path: Path) -> None:
    """Mean over toys, with bootstrap intervals, over the iterations: what samples show, errors of true views."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    iterations = [point.iterations for point in curves[0]]
    of_samples = {
        "subject_similarity": "likeness of the subject",
        "view_diversity": "diversity of the views",
        "views_right": "shows the side in the prompt",
    }
    of_truth = {"error_seen": "sides that photos show", "error_unseen": "other sides"}
    figure, panels = pyplot.subplots(1, 2, figsize=(10.0, 4.0), layout="constrained")
    for axes, labels in zip(panels, (of_samples, of_truth), strict=True):
        for name, label in labels.items():
            estimates = [bootstrap([getattr(points[i], name) for points in curves]) for i in range(len(iterations))]
            (line,) = axes.plot(range(len(iterations)), [each.mean for each in estimates], "o-", label=label)
            if len(curves) > 1:
                low, high = ([each[end] for each in estimates] for end in (1, 2))
                axes.fill_between(range(len(iterations)), low, high, alpha=0.15, color=line.get_color())
        axes.set_xticks(range(len(iterations)), [str(number) for number in iterations])
        axes.set(xlabel="DreamBooth iterations")
        axes.legend()
    panels[0].set(title="samples", ylim=(0, 1.02))
    panels[1].axhline(1, color="grey", linestyle=":")
    panels[1].set(title="error of denoising true views / the untouched guide's")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(TuningCurveConfig))
