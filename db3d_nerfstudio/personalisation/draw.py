"""`db3d sample`: images of any prompt, by an untuned or a personalised guide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from db3d_nerfstudio.console import announce
from db3d_nerfstudio.diffusion.guidance import Conditioning
from db3d_nerfstudio.diffusion.sampling import SamplingConfig, sample
from db3d_nerfstudio.guides.base import DiffusionGuide
from db3d_nerfstudio.images import labelled_sheet, tensor_to_image
from db3d_nerfstudio.personalisation.choice import GuideChoice, guide_of
from db3d_nerfstudio.run.progress import RunProgress, Task, shown
from db3d_nerfstudio.toybox.guide import ToyboxGuideConfig

BATCH = 4
"""Images drawn at a time."""


@dataclass
class SampleConfig:
    """Draw images of a prompt."""

    prompt: str
    """What to draw; a personalised subject is named by its identifier and class noun."""
    personalised: Path | None = None
    """Folder that `db3d dreambooth` saved, which records its guide; by default the guide is untuned."""
    negative_prompt: str = ""
    """Prompt that guidance leads away from."""
    num: int = 8
    """Number of images."""
    steps: int = 25
    """Sampler steps per image."""
    guidance_scale: float = 5.0
    """Classifier-free guidance scale; 1 is no guidance."""
    seed: int = 0
    """Seed of the images' noise."""
    output: Path = Path("outputs/sample")
    """Folder for the images and a sheet of them; older images of the same names are overwritten."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Device to run on."""
    guide: GuideChoice = field(default_factory=ToyboxGuideConfig)
    """The text-to-image model; ignored where the personalised folder records one."""


def main(config: SampleConfig) -> None:
    """Draw and write the images, and print their paths."""
    guide = guide_of(config.personalised, config.guide).setup(device=config.device)
    if config.personalised is not None:
        guide.load(config.personalised)
    progress = RunProgress([Task("sample", config.prompt, "images", config.num, config.steps)])
    with shown(progress), progress.during(config.prompt) as update:
        images = draw(
            guide,
            [config.prompt] * config.num,
            SamplingConfig(config.steps, config.guidance_scale),
            negative_prompt=config.negative_prompt,
            seed=config.seed,
            progress=update,
        )
    config.output.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        tensor_to_image(image).save(config.output / f"{i:03d}.png")
    rows = [("", part) for part in images.split(BATCH)]
    labelled_sheet(config.prompt, rows).save(config.output / "sheet.png")
    announce(f"{len(images)} images and a sheet of them: {config.output / 'sheet.png'}")


@torch.no_grad()
def draw(
    guide: DiffusionGuide,
    prompts: list[str],
    config: SamplingConfig,
    *,
    seed: int,
    negative_prompt: str = "",
    progress: Callable[[int], None] | None = None,
) -> Float[Tensor, "n 3 h w"]:
    """One image of every prompt, on the CPU; `progress` is told how many there are so far."""
    generator = torch.Generator().manual_seed(seed)
    images: list[Tensor] = []
    for i in range(0, len(prompts), BATCH):
        conditioning = Conditioning.of(guide, prompts[i : i + BATCH], negative_prompt)
        images += sample(guide, conditioning, config, generator).cpu()
        if progress is not None:
            progress(len(images))
    return torch.stack(images)
