"""Images of the class for prior preservation: made once by the untouched guide (2208.12242, section 3.3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from PIL import Image

from db3d_nerfstudio.diffusion.dreambooth import DreamBoothConfig
from db3d_nerfstudio.diffusion.sampling import draw_batches
from db3d_nerfstudio.diffusion.training_set import Prior
from db3d_nerfstudio.guides.base import DiffusionGuide
from db3d_nerfstudio.words import direction_names, seen_from
from db3d_nerfstudio.workspace import Workspace


def class_prompts(guide: DiffusionGuide, prompt: str, config: DreamBoothConfig) -> list[str]:
    """The prompt of every image of the class."""
    if not config.class_views:
        return [prompt] * config.num_class_images
    sides = list(dict.fromkeys(direction_names(guide.tells_sides)))
    return [seen_from(prompt, sides[i % len(sides)]) for i in range(config.num_class_images)]


def class_images(
    guide: DiffusionGuide,
    prompt: str,
    config: DreamBoothConfig,
    workspace: Workspace,
    progress: Callable[[int], None] | None = None,
) -> Prior:
    """Images of the class, drawn by the guide's base model, which this restores.

    They are kept in the workspace's `class_images`, and made again for another model, prompts, seed or sampling.

    Args:
        progress: Called after every batch with the number of images so far.
    """
    from torchvision.transforms.functional import to_pil_image, to_tensor

    guide.load(None)
    prompts = class_prompts(guide, prompt, config)

    def make(path: Path) -> None:
        made = 0
        for batch in draw_batches(guide, prompts, config.class_sampling, config.class_seed):
            for image in batch:
                to_pil_image(image.cpu()).save(path / f"{made:04d}.png")
                made += 1
            if progress is not None:
                progress(made)

    recipe = {
        "model": guide.fingerprint(),
        "prompts": prompts,
        "seed": config.class_seed,
        "sampling": asdict(config.class_sampling),
    }
    path = workspace.once("class_images", recipe, make, stale="replace")
    files = [path / f"{i:04d}.png" for i in range(len(prompts))]
    images = torch.stack([to_tensor(Image.open(file).convert("RGB")) for file in files])
    return Prior(images, prompts)
