"""Images of the class for prior preservation: made once by the untouched guide (2208.12242, section 3.3)."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torchvision.transforms.functional import to_pil_image, to_tensor

from db3d_nerfstudio.diffusion.dreambooth import DreamBoothConfig, Prior
from db3d_nerfstudio.diffusion.guidance import Conditioning
from db3d_nerfstudio.diffusion.sampling import SamplingConfig, sample
from db3d_nerfstudio.guides.base import DiffusionGuide
from db3d_nerfstudio.words import direction_names

MANIFEST = "manifest.json"


def class_prompts(guide: DiffusionGuide, prompt: str, config: DreamBoothConfig) -> list[str]:
    """The prompt of every image of the class."""
    if not config.class_views:
        return [prompt] * config.num_class_images
    sides = list(dict.fromkeys(direction_names(guide.tells_sides)))
    return [f"{prompt}, {sides[i % len(sides)]} view" for i in range(config.num_class_images)]


def class_images(
    guide: DiffusionGuide,
    prompt: str,
    config: DreamBoothConfig,
    path: Path,
    progress: Callable[[int], None] | None = None,
    batch_size: int = 8,
) -> Prior:
    """Images of the class, made by the guide's base model (to which this returns the guide), kept in the folder `path`.

    They are made again if the folder's manifest tells of another model, prompts, number, seed or sampler.
    `progress` is called with the number of images made so far.
    """
    guide.load(None)
    prompts = class_prompts(guide, prompt, config)
    manifest = {
        "model": guide.fingerprint(),
        "prompts": prompts,
        "seed": config.class_seed,
        "sampler": {"name": "ddim", "steps": config.class_sample_steps, "guidance_scale": config.class_guidance_scale},
    }
    if not _made_by(path, manifest):
        unfinished = path.with_name(path.name + ".tmp")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        _sample_into(unfinished, guide, prompts, config, batch_size, progress)
        (unfinished / MANIFEST).write_text(json.dumps(manifest, indent=2))
        shutil.rmtree(path, ignore_errors=True)
        os.replace(unfinished, path)
    files = sorted(path.glob("*.png"))
    images = torch.stack([to_tensor(Image.open(file).convert("RGB")) for file in files])
    return Prior(images.to(guide.device), prompts)


def _made_by(path: Path, manifest: dict) -> bool:
    file = path / MANIFEST
    return file.exists() and json.loads(file.read_text()) == manifest


def _sample_into(
    folder: Path,
    guide: DiffusionGuide,
    prompts: list[str],
    config: DreamBoothConfig,
    batch_size: int,
    progress: Callable[[int], None] | None,
) -> None:
    generator = torch.Generator().manual_seed(config.class_seed)
    sampling = SamplingConfig(config.class_sample_steps, config.class_guidance_scale)
    made = 0
    while made < len(prompts):
        with torch.no_grad():
            conditioning = Conditioning.of(guide, prompts[made : made + batch_size])
        for image in sample(guide, conditioning, sampling, generator):
            to_pil_image(image.cpu()).save(folder / f"{made:04d}.png")
            made += 1
        if progress is not None:
            progress(made)
