"""The sheet of samples that shows a guide in training: a few prompts, each from four sides."""

from __future__ import annotations

from pathlib import Path

from db3d_nerfstudio.diffusion.sampling import SamplingConfig, draw
from db3d_nerfstudio.toybox.guide import ToyboxGuideConfig
from db3d_nerfstudio.words import view_prompts

PROMPTS = ("a photo of a red car", "a photo of a yellow duck", "a photo of a brown dog with white ears",
           "a photo of a blue robot", "a photo of a striped green mug", "a photo of a pink chair")  # fmt: skip


def sample_sheet(guide_folder: Path, path: Path, seed: int = 0, device: str = "cpu") -> None:
    """Write samples of the prompts (rows) from the four views (columns) to `path`."""
    from torchvision.utils import save_image

    guide = ToyboxGuideConfig(model=guide_folder).setup(device=device)
    prompts = [text for prompt in PROMPTS for text in view_prompts(prompt).values()]
    save_image(draw(guide, prompts, SamplingConfig(15, 4.0), seed), path, nrow=4, padding=0)
