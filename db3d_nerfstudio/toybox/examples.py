"""Example subjects: casual photos of a toy whose true shape is known.

`python -m db3d_nerfstudio.toybox.examples --seed 7 --output photos/7` photographs any subject; the bundled one is in
`examples/duck`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from db3d_nerfstudio.toybox.scene import Shot, Studio, draw_shot
from db3d_nerfstudio.toybox.subjects import Subject, Traits, make_subject

EXAMPLES = Path(__file__).parent / "examples"
PHOTO_SIZE = 256
"""Pixels of a photo's side: enough for a person to look at; the guide reads 64."""
AZIMUTHS = (-62.0, -30.0, 4.0, 33.0, 60.0)
"""Photos come from the front half only, as casual photos do; degrees."""
DEFAULT_SEED = 20_000_001
DEFAULT_TRAITS = Traits("duck", "blue", "yellow", "wings", accessory="hat", accessory_color="red")


def default_subject() -> tuple[Path, str]:
    """The bundled subject: the folder of its photos, and its prompt."""
    return EXAMPLES / "duck", "a photo of a sks duck"


def default_truth() -> Subject:
    """The toy that the bundled photos show."""
    return make_subject(DEFAULT_SEED, traits=DEFAULT_TRAITS)


def casual_shots(seed: int, azimuths: tuple[float, ...] = AZIMUTHS) -> list[Shot]:
    """The shots of a seed's casual photos, each with a background, light and height of its own."""
    rng = np.random.default_rng((seed, 3))
    return [draw_shot(rng, azimuth + rng.uniform(-6, 6), float(rng.uniform(2, 35))) for azimuth in azimuths]


def photograph(subject: Subject, seed: int, azimuths: tuple[float, ...] = AZIMUTHS) -> list[Image.Image]:
    """Casual photos of a subject."""
    studio = Studio(subject)
    return [Image.fromarray(studio.photograph(shot, PHOTO_SIZE)) for shot in casual_shots(seed, azimuths)]


@dataclass
class PhotographConfig:
    """Photograph the toy of a seed."""

    output: Path
    """Folder for the photos; made if needed."""
    seed: int | None = None
    """Seed of the toy; by default the bundled toy."""
    class_noun: str | None = None
    """Kind of toy; by default the seed decides."""
    mesh: Path | None = None
    """File for its true mesh too, a GLB with colours at the vertices."""


def main(config: PhotographConfig) -> None:
    """Write the photos and print the command that uses them."""
    seed = DEFAULT_SEED if config.seed is None else config.seed
    subject = default_truth() if config.seed is None else make_subject(seed, config.class_noun)
    config.output.mkdir(parents=True, exist_ok=True)
    for index, photo in enumerate(photograph(subject, seed)):
        photo.save(config.output / f"{index:02d}.png", optimize=True)
    if config.mesh is not None:
        config.mesh.write_bytes(subject.glb())
    prompt = f"a photo of a sks {subject.traits.class_noun}"
    print(f'ns-train dreambooth3d-toybox --data {config.output} --prompt "{prompt}"')


if __name__ == "__main__":
    import tyro

    main(tyro.cli(PhotographConfig))
