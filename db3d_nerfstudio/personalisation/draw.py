"""`db3d sample`: images of any prompt, by an untuned or a personalised guide."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import tyro

from db3d_nerfstudio.console import announce
from db3d_nerfstudio.diffusion.sampling import SamplingConfig, draw
from db3d_nerfstudio.images import labelled_sheet, tensor_to_image
from db3d_nerfstudio.paths import output_folder
from db3d_nerfstudio.personalisation.choice import GuideChoice, guide_of
from db3d_nerfstudio.ranges import Count, Natural
from db3d_nerfstudio.run.progress import RunProgress, Task, shown
from db3d_nerfstudio.threads import FreeThreads
from db3d_nerfstudio.toybox.guide import ToyboxGuideConfig
from db3d_nerfstudio.words import tidy

COLUMNS = 4
"""Images in a row of a sheet."""


@dataclass
class SampleConfig:
    """Draw images of a prompt."""

    prompt: str
    """What to draw; a personalised subject is named by its identifier and class noun."""
    personalised: Path | None = None
    """Folder that `db3d dreambooth` saved, which records its guide; by default the guide is untuned."""
    negative_prompt: str = ""
    """Prompt that guidance leads away from."""
    num: Count = 8
    """Number of images."""
    sampling: Annotated[SamplingConfig, tyro.conf.arg(name="")] = field(default_factory=SamplingConfig)
    """How images are drawn."""
    seed: Natural = 0
    """Seed of the images' noise."""
    output: Path = Path("outputs/sample")
    """Folder for the images and a sheet of them; older images of the same names are overwritten."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Device to run on."""
    guide: GuideChoice = field(default_factory=ToyboxGuideConfig)
    """The text-to-image model; ignored where the personalised folder records one."""


def main(config: SampleConfig) -> None:
    """Draw and write the images, and print their paths."""
    config.prompt = tidy(config.prompt)
    FreeThreads().begin()
    output_folder(config.output)
    guide = guide_of(config.personalised, config.guide).setup(device=config.device)
    if config.personalised is not None:
        guide.load(config.personalised)
    progress = RunProgress([Task("sample", config.prompt, "images", config.num, config.sampling.steps)])
    with shown(progress), progress.during(config.prompt) as update:
        images = draw(
            guide,
            [config.prompt] * config.num,
            config.sampling,
            config.seed,
            config.negative_prompt,
            update,
        )
    for i, image in enumerate(images):
        tensor_to_image(image).save(config.output / f"{i:03d}.png")
    rows = [("", part) for part in images.split(COLUMNS)]
    labelled_sheet(config.prompt, rows).save(config.output / "sheet.png")
    announce(f"{len(images)} images and a sheet of them: {config.output / 'sheet.png'}")
