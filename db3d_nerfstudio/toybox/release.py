"""Put a trained guide, judge or examiner into the package at half precision.

python -m db3d_nerfstudio.toybox.release --guide outputs/toybox/guide
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from db3d_nerfstudio.toybox import network
from db3d_nerfstudio.toybox.network import read_vae
from db3d_nerfstudio.toybox.train import read_guide

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


def main(config: ReleaseConfig) -> None:
    """Convert to half precision and copy."""
    from safetensors.torch import load_file, save_file

    if config.guide is not None:
        unet, text_encoder = read_guide(config.guide)
        vae = read_vae(config.guide)
        for part in (unet, vae):  # diffusers would write the folder that they were read from.
            if part is not None:
                part.half().register_to_config(_name_or_path="toybox")
        network.save_guide(config.weights / "guide", unet, text_encoder.half(), vae)
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
