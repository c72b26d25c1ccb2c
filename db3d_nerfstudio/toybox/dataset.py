"""The training pictures: shards of photographed subjects on disk, with captions and labels; never half-written."""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from numpy import ndarray

from db3d_nerfstudio.toybox.captions import VIEWS, draw_caption, is_clear_view, view_word
from db3d_nerfstudio.toybox.scene import Studio, draw_shot
from db3d_nerfstudio.toybox.subjects import CLASS_NOUNS, make_subject
from db3d_nerfstudio.toybox.toys import PALETTE

CAPTIONS_PER_IMAGE = 4
"""Captions drawn for every image; an epoch uses one of them."""
LEAST_MAIN_SHARE = 0.1
"""A photo shows its toy's main colour if that covers more than this share of what is seen of the toy."""


@dataclass
class DatasetConfig:
    """Which subjects to photograph, and where to keep the pictures."""

    root: Path = Path("outputs/toybox/data")
    """Folder of the shards."""
    num_subjects: int = 16_000
    """Subjects, each a seed of its own."""
    views_per_subject: int = 4
    """Photos of every subject."""
    subjects_per_shard: int = 250
    """Subjects in one file."""
    first_seed: int = 0
    """Seed of the first subject. The guide, the judge and the tests use ranges that do not meet."""
    workers: int = 2
    """Processes that photograph."""


@dataclass(frozen=True)
class Pictures:
    """A data set in memory."""

    images: UInt8[ndarray, "n h w 3"]
    captions: list[list[str]]
    """`CAPTIONS_PER_IMAGE` captions of every image."""
    labels: Int[ndarray, "n 3"]
    """Index of class noun, main colour and view in `CLASS_NOUNS`, `PALETTE`, `VIEWS`; -1 where it cannot be seen: a
    view on the border of two, a colour that hardly shows (a house from above is all roof)."""


def photograph_subject(seed: int, views: int) -> tuple[list[ndarray], list[list[str]], list[list[int]]]:
    """Photos, captions and labels of the subject of a seed."""
    rng = np.random.default_rng((seed, 1))
    studio = Studio(make_subject(seed))
    traits = studio.subject.traits
    images, captions, labels = [], [], []
    for _ in range(views):
        shot = draw_shot(rng)
        view = VIEWS.index(view_word(shot.azimuth, shot.elevation)) if is_clear_view(shot) else -1
        images.append(studio.photograph(shot))
        captions.append([draw_caption(rng, traits, shot) for _ in range(CAPTIONS_PER_IMAGE)])
        color = list(PALETTE).index(traits.main_color) if studio.main_share(shot) > LEAST_MAIN_SHARE else -1
        labels.append([CLASS_NOUNS.index(traits.class_noun), color, view])
    return images, captions, labels


def _make_shard(path: Path, seeds: range, views: int) -> Path:
    images, captions, labels = [], [], []
    for seed in seeds:
        for total, part in zip((images, captions, labels), photograph_subject(seed, views), strict=True):
            total.extend(part)
    temporary = path.with_suffix(".tmp")
    with open(temporary, "wb") as file:
        np.savez(file, images=np.stack(images), labels=np.array(labels), captions=np.array(json.dumps(captions)))
    os.replace(temporary, path)
    return path


def make_dataset(config: DatasetConfig) -> list[Path]:
    """Photograph what is not on disk yet; a killed run goes on at the shard it was at.

    Returns:
        The shard files, in the order of their seeds.
    """
    from rich.progress import track

    config.root.mkdir(parents=True, exist_ok=True)
    tasks = {}
    for seed in range(config.first_seed, config.first_seed + config.num_subjects, config.subjects_per_shard):
        name = f"subjects_{seed:08d}_{config.subjects_per_shard}x{config.views_per_subject}.npz"
        tasks[config.root / name] = range(seed, seed + config.subjects_per_shard)
    missing = {path: seeds for path, seeds in tasks.items() if not path.exists()}
    with ProcessPoolExecutor(config.workers) as pool:
        jobs = [pool.submit(_make_shard, path, seeds, config.views_per_subject) for path, seeds in missing.items()]
        for job in track(jobs, "Photographing toys", disable=not jobs):
            job.result()
    return list(tasks)


def load_dataset(paths: list[Path]) -> Pictures:
    """All shards, in memory."""
    shards = [np.load(path) for path in paths]
    captions = [text for shard in shards for text in json.loads(str(shard["captions"]))]
    return Pictures(
        np.concatenate([shard["images"] for shard in shards]), captions, np.concatenate([s["labels"] for s in shards])
    )


if __name__ == "__main__":
    import tyro

    make_dataset(tyro.cli(DatasetConfig))
