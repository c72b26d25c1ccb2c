"""Oracles: a method with a part of what it makes replaced by the truth about a toy, to see what that part costs.

TRUTH/orbit/000.png              true pseudo views, transparent around the toy
TRUTH/all_round/0_front.png      casual photos from all eight sides, named after them
TRUTH/mesh.glb                   the toy
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from PIL import Image

from db3d_nerfstudio.evaluation.benchmark.subjects import BenchmarkSubject
from db3d_nerfstudio.evaluation.redrawing import cut_outs
from db3d_nerfstudio.words import DIRECTIONS
from db3d_nerfstudio.workspace import Workspace

if TYPE_CHECKING:
    from db3d_nerfstudio.toybox.subjects import Subject

TRUTH = "{truth}"
"""What stands for the folder in the options of an oracle."""
ORACLES = {
    "true initial NeRF": f"--pipeline.phases.initial.mesh {TRUTH}/mesh.glb --pipeline.phases.initial.mesh-front 0",
    "true pseudo views": f"--pipeline.phases.pseudo-views.images {TRUTH}/orbit",
    "photos from all round": f"--data {TRUTH}/all_round --pipeline.phases.dreambooth.view-words file_names",
}
"""What is true, and the options that make it so."""


def oracles_of(method: str) -> list[str]:
    """The method with each oracle in turn."""
    return [f"{method} {options}" for options in ORACLES.values()]


def truth_of(subject: BenchmarkSubject, folder: Path) -> Path:
    """The folder of what the oracles take from a toy, made if it is not there."""
    from db3d_nerfstudio.toybox.subjects import make_subject

    seed, noun = cast(int, subject.toy), subject.class_noun
    recipe = {"toy": seed, "class_noun": noun}
    return Workspace(folder).once(subject.name, recipe, lambda path: save_truth(make_subject(seed, noun), seed, path))


def save_truth(subject: Subject, seed: int, folder: Path) -> None:
    """Write the files that the oracles read into an empty folder.

    Args:
        seed: Decides light, height and background of the photos.
    """
    from db3d_nerfstudio.toybox.examples import photograph
    from db3d_nerfstudio.training.dataparser import DreamBooth3DDataParserConfig

    for name in ("orbit", "all_round"):
        (folder / name).mkdir()
    for index, pixels in enumerate(cut_outs(subject, DreamBooth3DDataParserConfig())):
        Image.fromarray(pixels).save(folder / "orbit" / f"{index:03d}.png")
    (folder / "mesh.glb").write_bytes(subject.glb())
    azimuths = tuple(360.0 / len(DIRECTIONS) * step for step in range(len(DIRECTIONS)))
    for index, photo in enumerate(photograph(subject, seed, azimuths)):
        photo.save(folder / "all_round" / f"{index}_{DIRECTIONS[index].replace(' ', '_')}.png")
