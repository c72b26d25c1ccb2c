"""Subjects of a benchmark: toys with their cut-outs, and the layout of the DreamBooth data set."""

import pytest

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.evaluation.benchmark.subjects import (
    CATALOGUE,
    dreambooth_subjects,
    read_catalogue,
    toybox_pool,
    toybox_subject,
)
from db3d_nerfstudio.photos import load_masks, load_photos
from db3d_nerfstudio.toybox import examples

TEXT = """Classes

subject_name,class
backpack_dog,backpack
bear_plushie,stuffed animal
dog6,dog

Prompts

Object Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
'a cube shaped {0} {1}'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} wearing a red hat'.format(unique_token, class_token)
]
"""


def test_catalogue_is_read():
    catalogue = read_catalogue(TEXT)
    assert catalogue.classes == {"backpack_dog": "backpack", "bear_plushie": "stuffed animal", "dog6": "dog"}
    assert catalogue.object_templates == ("a {} in the jungle", "a cube shaped {}")
    assert catalogue.live_templates == ("a {} wearing a red hat",)
    with pytest.raises(UserError, match="data set's layout"):
        read_catalogue("Classes\n\ndog,dog\n")


def test_subjects_of_a_folder_in_the_data_sets_layout(tmp_path):
    (tmp_path / CATALOGUE).write_text(TEXT)
    with pytest.raises(UserError, match="none of the subjects"):
        dreambooth_subjects(tmp_path)
    for name in ("dog6", "bear_plushie"):
        (tmp_path / name).mkdir()
    bear, dog = dreambooth_subjects(tmp_path)
    assert (bear.name, dog.name, dog.photos) == ("bear_plushie", "dog6", tmp_path / "dog6")
    assert dog.templates == ("a photo of a {}", "a {} wearing a red hat") and "a {} in the jungle" in bear.templates
    assert bear.prompt(bear.templates[1], "sks") == "a sks stuffed animal in the jungle"
    assert bear.prompt(bear.templates[1], None) == "a stuffed animal in the jungle"
    assert {"a photo of a dog", "a backpack wearing a red hat"} < set(dog.pool) and len(dog.pool) == 6
    with pytest.raises(UserError, match=CATALOGUE):
        dreambooth_subjects(tmp_path / "dog6")


def test_others_are_those_of_the_same_class_that_are_there(tmp_path):
    (tmp_path / CATALOGUE).write_text(TEXT.replace("dog6,dog", "dog6,dog\ndog7,dog\ndog8,dog"))
    for name in ("dog6", "dog7", "bear_plushie"):
        (tmp_path / name).mkdir()
    others = {subject.name: subject.others for subject in dreambooth_subjects(tmp_path)}
    assert others == {"dog6": (tmp_path / "dog7",), "dog7": (tmp_path / "dog6",), "bear_plushie": ()}


def test_toys_are_photographed_once_and_cut_out(tmp_path, monkeypatch):
    monkeypatch.setattr(examples, "PHOTO_SIZE", 64)
    toy = toybox_subject(5, "mug", tmp_path)
    assert toy.name == "mug-5" and toy.toy == 5
    photos, alone = load_photos(toy.photos, 64), load_photos(toy.cutouts, 64)
    masks = load_masks(toy.cutouts, 64)
    assert len(photos) == 5 and 0.05 < masks.mean() < 0.6
    inside, outside = (masks > 0.99).expand_as(photos), (masks < 0.01).expand_as(photos)
    assert (photos - alone)[inside].abs().max() < 0.01 and (alone[outside] == 1).all()
    taken = (toy.photos / "00.png").stat()
    toybox_subject(5, "mug", tmp_path)
    assert (toy.photos / "00.png").stat().st_mtime_ns == taken.st_mtime_ns, "they are not taken again"


def test_the_pool_holds_every_class_in_every_context_once():
    pool = toybox_pool()
    assert len(pool) == len(set(pool)) == 12 * 5
    assert {"a photo of a duck", "a photo of a duck at night", "a photo of a car on grass"} < set(pool)
