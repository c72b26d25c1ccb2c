"""The training pictures: shards of photographed subjects on disk, with captions and labels; never half-written."""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from numpy import ndarray

from db3d_nerfstudio.toybox.captions import draw_caption, is_clear_view, view_word
from db3d_nerfstudio.toybox.scene import Shot, Studio, draw_shot
from db3d_nerfstudio.toybox.subjects import CLASS_NOUNS, Traits, decorate, draw_traits, make_subject
from db3d_nerfstudio.toybox.toys import PALETTE
from db3d_nerfstudio.words import VIEW_NAMES

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
    """Number of subjects, each with a seed of its own."""
    views_per_subject: int = 4
    """Photos per subject."""
    subjects_per_shard: int = 250
    """Subjects per file."""
    first_seed: int = 0
    """Seed of the first subject. The guide, the judge and the tests use ranges that do not overlap."""
    toy_share: float = 0.0
    """Share of the subjects that are none of the known kinds, but a "toy"."""
    decorated_share: float = 0.0
    """Share of the subjects that get a pattern, and an accessory if their kind wears any; of the others few do."""
    workers: int = 2
    """Number of processes that photograph."""


@dataclass(frozen=True)
class Pictures:
    """A data set in memory."""

    images: UInt8[ndarray, "n h w 3"]
    captions: list[list[str]]
    """`CAPTIONS_PER_IMAGE` captions of every image."""
    labels: Int[ndarray, "n 3"]
    """Index of class noun, colour and view in `CLASS_NOUNS`, `PALETTE`, `VIEW_NAMES`; -1 where it cannot be seen: a
    view on the border of two, a colour that hardly shows (a house from above is all roof), no known kind."""


@dataclass(frozen=True)
class Scene:
    """What the captions of a photo are drawn from."""

    traits: Traits
    shot: Shot
    """Where from and in what context; light and colours of the background are forgotten."""


def photograph_subject(
    seed: int, views: int, toy_share: float = 0.0, decorated_share: float = 0.0
) -> tuple[list, list, list, list]:
    """Photos (UInt8[ndarray, "h w 3"]), captions, labels and scenes of the subject of a seed."""
    rng = np.random.default_rng((seed, 1))
    is_toy = np.random.default_rng((seed, 2)).random() < toy_share
    traits, dice = None, np.random.default_rng((seed, 3))
    if dice.random() < decorated_share:
        traits = decorate(draw_traits(dice, "toy" if is_toy else None), dice)
    studio = Studio(make_subject(seed, "toy" if is_toy else None, traits))
    traits = studio.subject.traits
    noun = -1 if is_toy else CLASS_NOUNS.index(traits.class_noun)
    images, captions, labels, scenes = [], [], [], []
    for _ in range(views):
        shot = draw_shot(rng)
        view = VIEW_NAMES.index(view_word(shot.azimuth, shot.elevation)) if is_clear_view(shot) else -1
        images.append(studio.photograph(shot))
        captions.append([draw_caption(rng, traits, shot) for _ in range(CAPTIONS_PER_IMAGE)])
        color = list(PALETTE).index(traits.main_color) if studio.main_share(shot) > LEAST_MAIN_SHARE else -1
        labels.append([noun, color, view])
        scenes.append([astuple(traits), (shot.azimuth, shot.elevation, shot.context)])
    return images, captions, labels, scenes


def write_arrays(path: Path, **arrays: ndarray) -> Path:
    """An .npz file that appears whole or not at all."""
    temporary = path.with_suffix(".tmp")
    with open(temporary, "wb") as file:
        np.savez(file, **arrays)
    os.replace(temporary, path)
    return path


def _make_shard(path: Path, seeds: range, views: int, toy_share: float, decorated_share: float) -> Path:
    images, captions, labels, scenes = [], [], [], []
    for seed in seeds:
        parts = photograph_subject(seed, views, toy_share, decorated_share)
        for total, part in zip((images, captions, labels, scenes), parts, strict=True):
            total.extend(part)
    texts = {"captions": np.array(json.dumps(captions)), "scenes": np.array(json.dumps(scenes))}
    return write_arrays(path, images=np.stack(images), labels=np.array(labels), **texts)


def make_dataset(config: DatasetConfig) -> list[Path]:
    """Photograph what is not on disk yet; an interrupted run continues with the shard that it was at.

    Returns:
        The shard files, in the order of their seeds.
    """
    from rich.progress import track

    config.root.mkdir(parents=True, exist_ok=True)
    tasks = {}
    for seed in range(config.first_seed, config.first_seed + config.num_subjects, config.subjects_per_shard):
        shares = {"toys": config.toy_share, "decorated": config.decorated_share}
        kinds = "".join(f"_{share:g}{kind}" for kind, share in shares.items() if share)
        name = f"subjects_{seed:08d}_{config.subjects_per_shard}x{config.views_per_subject}{kinds}.npz"
        tasks[config.root / name] = range(seed, seed + config.subjects_per_shard)
    missing = {path: seeds for path, seeds in tasks.items() if not path.exists()}
    with ProcessPoolExecutor(config.workers) as pool:
        more = config.views_per_subject, config.toy_share, config.decorated_share
        jobs = [pool.submit(_make_shard, path, seeds, *more) for path, seeds in missing.items()]
        for job in track(jobs, "Photographing toys", disable=not jobs):
            job.result()
    return list(tasks)


def load_images(paths: list[Path]) -> UInt8[ndarray, "n h w 3"]:
    """The images of all shards, in memory."""
    return np.concatenate([np.load(path)["images"] for path in paths])


def load_scenes(paths: list[Path]) -> list[Scene]:
    """What the captions of all images are drawn from, in the order of `load_images`."""
    records = [record for path in paths for record in json.loads(str(np.load(path)["scenes"]))]
    return [Scene(Traits(*traits), Shot(*pose, context=context)) for traits, (*pose, context) in records]


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
