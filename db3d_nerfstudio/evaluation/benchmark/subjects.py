"""Subjects to compare methods on: toys, whose truth is known, or a folder in the DreamBooth data set's layout."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.evaluation.metrics.r_precision import prompt_pool
from db3d_nerfstudio.workspace import Workspace

PLAIN = "a photo of a {}"
"""The prompt of nothing but the subject."""
CATALOGUE = "prompts_and_classes.txt"
"""The file of the DreamBooth data set that names classes and prompts."""
LIVE_CLASSES = ("cat", "dog")
"""Classes that the data set's prompts for live subjects are meant for."""
FIRST_TOY = 30_000_000
"""Seed of the first toy: neither guide nor judge has seen these in training."""


@dataclass(frozen=True)
class BenchmarkSubject:
    """A subject, its photos and its prompts."""

    name: str
    """Name of its folder."""
    class_noun: str
    """What kind of thing it is."""
    photos: Path
    """Folder of its photos."""
    cutouts: Path | None
    """Folder of the photos with everything else transparent, if there is one."""
    templates: tuple[str, ...]
    """Prompts, with "{}" where the subject goes; the first is the plain one."""
    pool: tuple[str, ...]
    """Prompts without identifier that R-precision retrieves from."""
    toy: int | None = None
    """The toy's seed."""
    others: tuple[Path, ...] = ()
    """Folders with photos of other subjects of its class."""
    truth: Path | None = None
    """Folder of what the oracles take from the toy; None if they are not used."""

    def asked(self, templates: tuple[str, ...]) -> BenchmarkSubject:
        """The subject with other prompts, which join the pool for its class.

        Raises:
            UserError: a template has no place for the subject.
        """
        for template in templates:
            if template.count("{}") != 1:
                raise UserError(f'the template "{template}" needs {{}} once, where the subject goes')
        pool = dict.fromkeys([*self.pool, *prompt_pool(templates, [self.class_noun])])
        return replace(self, templates=templates, pool=tuple(pool))

    def prompt(self, template: str, identifier: str | None) -> str:
        """The prompt of a template; without an identifier it names the class."""
        return template.format(f"{identifier} {self.class_noun}" if identifier else self.class_noun)


def toybox_templates() -> tuple[str, ...]:
    """The plain prompt and every context that the judge distinguishes from it.

    Snow is left out, because the judge takes any toy in front of white to be in it.
    """
    from db3d_nerfstudio.toybox.scene import CONTEXTS

    return (PLAIN, *(f"{PLAIN} {context}" for context in CONTEXTS if "snow" not in context))


def toybox_pool() -> tuple[str, ...]:
    """The templates for every class of toys."""
    from db3d_nerfstudio.toybox.subjects import CLASS_NOUNS

    return tuple(prompt_pool(toybox_templates(), CLASS_NOUNS))


def toybox_subject(seed: int, class_noun: str, folder: Path) -> BenchmarkSubject:
    """A toy, photographed into a folder of its own in `folder` if it is not there; the same seed gives the same photos.

    Raises:
        ValueError: unknown class noun.
    """
    import numpy as np
    from PIL import Image

    from db3d_nerfstudio.toybox.examples import PHOTO_SIZE, casual_shots
    from db3d_nerfstudio.toybox.scene import Studio
    from db3d_nerfstudio.toybox.subjects import make_subject

    def photograph(path: Path) -> None:
        studio = Studio(make_subject(seed, class_noun))
        for name in ("photos", "cutouts"):
            (path / name).mkdir()
        for index, shot in enumerate(casual_shots(seed)):
            rgb, coverage = studio.render(shot, PHOTO_SIZE)
            rgba = (np.dstack([rgb.clip(0, 1), coverage]) * 255).round().astype(np.uint8)
            Image.fromarray(rgba[..., :3]).save(path / "photos" / f"{index:02d}.png")
            Image.fromarray(rgba).save(path / "cutouts" / f"{index:02d}.png")

    name = f"{class_noun}-{seed}"
    path = Workspace(folder).once(name, {"toy": seed, "class_noun": class_noun}, photograph)
    photos, cutouts = path / "photos", path / "cutouts"
    return BenchmarkSubject(name, class_noun, photos, cutouts, toybox_templates(), toybox_pool(), seed)


@dataclass(frozen=True)
class Catalogue:
    """What the DreamBooth data set lists about its subjects."""

    classes: dict[str, str]
    """Class noun of every subject."""
    object_templates: tuple[str, ...]
    """Prompts for things."""
    live_templates: tuple[str, ...]
    """Prompts for animals."""


def read_catalogue(text: str) -> Catalogue:
    """The contents of `prompts_and_classes.txt`.

    Raises:
        UserError: the file does not have the data set's layout.
    """
    classes = dict(re.findall(r"^(\w+),([\w ]+?)\s*$", text, re.MULTILINE))
    classes.pop("subject_name", None)
    lists = [
        tuple(line.replace("{0} {1}", "{}") for line in re.findall(r"'([^']*\{0\} \{1\}[^']*)'\.format", part))
        for part in text.split("prompt_list = [")[1:]
    ]
    if not classes or len(lists) != 2 or not all(lists):
        raise UserError(f"{CATALOGUE} needs the DreamBooth data set's layout: lines subject,class, then two lists")
    return Catalogue(classes, *lists)


def dreambooth_subjects(root: Path) -> list[BenchmarkSubject]:
    """The subjects of a folder in the DreamBooth data set's layout: those it lists that have a folder.

    Raises:
        UserError: the folder has no catalogue, or none of its subjects.
    """
    if not (root / CATALOGUE).is_file():
        raise UserError(f"{root} has no {CATALOGUE}: give a folder in the layout of google/dreambooth's dataset/")
    catalogue = read_catalogue((root / CATALOGUE).read_text("utf8"))
    nouns = sorted(set(catalogue.classes.values()))
    subjects: list[BenchmarkSubject] = []
    for name, class_noun in catalogue.classes.items():
        if not (root / name).is_dir():
            continue
        live = class_noun in LIVE_CLASSES
        templates = (PLAIN, *(catalogue.live_templates if live else catalogue.object_templates))
        pool = tuple(prompt_pool(templates, nouns))
        others = [root / other for other, noun in catalogue.classes.items() if noun == class_noun and other != name]
        others = tuple(folder for folder in others if folder.is_dir())
        subjects.append(BenchmarkSubject(name, class_noun, root / name, None, templates, pool, others=others))
    if not subjects:
        raise UserError(f"{root} has none of the subjects that its {CATALOGUE} names")
    return subjects
