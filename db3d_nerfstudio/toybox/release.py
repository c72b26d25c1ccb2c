"""Put a trained guide, judge or examiner into the package at half precision.

python -m db3d_nerfstudio.toybox.release --guide outputs/toybox/guide
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"


@dataclass(kw_only=True)
class ReleaseConfig:
    """Files to release."""

    guide: Path | None = None
    """Folder of a trained guide."""
    judge: Path | None = None
    """File of a trained judge."""
    examiner: Path | None = None
    """File of a trained examiner."""
    weights: Path = WEIGHTS
    """Folder of the package's weights."""


def release_guide(guide: Path, weights: Path) -> None:
    """Convert a guide's networks to half precision, and copy its words and its schedule."""
    import torch
    from diffusers import AutoencoderDC, UNet2DConditionModel
    from transformers import CLIPTextModel

    for folder, part in {"unet": UNet2DConditionModel, "text_encoder": CLIPTextModel, "vae": AutoencoderDC}.items():
        network = part.from_pretrained(guide / folder, dtype=torch.float16)
        if folder != "text_encoder":  # diffusers would write the folder that it was read from.
            network.register_to_config(_name_or_path="toybox")
        network.save_pretrained(weights / folder)
    for folder in ("tokenizer", "scheduler"):
        shutil.copytree(guide / folder, weights / folder, dirs_exist_ok=True)


def main(config: ReleaseConfig) -> None:
    """Convert to half precision and copy."""
    from safetensors.torch import load_file, save_file

    if config.guide is not None:
        release_guide(config.guide, config.weights / "guide")
    for name in ("judge", "examiner"):
        file = getattr(config, name)
        if file is not None:
            state = {
                key: value.half() if value.is_floating_point() else value for key, value in load_file(file).items()
            }
            (config.weights / name).mkdir(parents=True, exist_ok=True)
            save_file(state, config.weights / name / "model.safetensors")


if __name__ == "__main__":
    import tyro

    main(tyro.cli(ReleaseConfig))
