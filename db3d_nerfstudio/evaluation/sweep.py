"""`db3d sweep`: the first hour on a GPU. One subject, scales of guidance with and without rescaling, and contrast.

It is a benchmark whose methods are one method with other options; it ends in OUTPUT/views.png and OUTPUT/table.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path

from db3d_nerfstudio.evaluation.benchmark.benchmark import BenchmarkConfig
from db3d_nerfstudio.evaluation.benchmark.benchmark import main as run_benchmark
from db3d_nerfstudio.ranges import Count, NonNegative

REFERENCE_SCALE, REFERENCE_RECON = 8.0, 10.0
"""A guidance scale, in which the gradient of distillation is linear, and the weight of reconstruction beside it."""


@dataclass
class SweepConfig:
    """Train one subject at several guidance scales and by contrast; ends in one picture and one table."""

    output: Path = Path("outputs/sweep")
    """Folder for all results. If the sweep is interrupted, the same command continues it."""
    method: str = "dreambooth3d"
    """The method; "dreamfusion" asks the guide alone, with no photos in between."""
    scales: tuple[float, ...] = (8.0, 25.0, 50.0, 100.0)
    """Guidance scales. Reconstruction keeps its share: its weight is in proportion."""
    rescales: tuple[float, ...] = (0.0, 0.5)
    """Amounts of rescaling, at each scale."""
    contrast: bool = True
    """Whether the contrast gradient is tried too, with adapters; a method without photos has none."""
    photos: Path | None = None
    """Folder in the layout of the DreamBooth data set; unset, a toy's photos."""
    subject: str | None = None
    """The subject to use; unset, the first."""
    steps: Count | None = 2000
    """NeRF micro-steps of each run."""
    gpus: NonNegative = 1.0
    """GPUs for each run; 0 trains on the CPU."""
    address: str | None = None
    """Ray cluster on which runs go side by side, see `db3d benchmark`; by default they run here, one by one."""
    train_args: str = ""
    """More arguments for every `ns-train`, after an equals sign."""


def methods_of(config: SweepConfig) -> tuple[str, ...]:
    """The method with the options of each run."""
    runs = []
    for scale, rescale in product(config.scales, config.rescales):
        recon = REFERENCE_RECON * scale / REFERENCE_SCALE
        runs.append(
            f"{config.method} --pipeline.model.sds.guidance-scale {scale:g} --pipeline.model.sds.guidance-rescale "
            f"{rescale:g} --pipeline.model.recon-loss-mult {recon:g}"
        )
    if config.contrast:
        adapters = "--pipeline.model.guide.tuning lora --pipeline.model.guide.lora-rank 16"
        frozen = "--pipeline.model.guide.train-text-encoder False --pipeline.phases.dreambooth.learning-rate None"
        runs.append(f"{config.method} --pipeline.model.sds.gradient contrast {adapters} {frozen}")
    return tuple(runs)


def main(config: SweepConfig) -> None:
    """Train and measure every run that is not finished, and write picture and table."""
    subjects = () if config.subject is None else (config.subject,)
    run_benchmark(
        BenchmarkConfig(
            output=config.output,
            methods=methods_of(config),
            classes=("dog",),
            photos=config.photos,
            subjects=subjects,
            steps=config.steps,
            gpus=config.gpus,
            address=config.address,
            train_args=config.train_args,
        )
    )
