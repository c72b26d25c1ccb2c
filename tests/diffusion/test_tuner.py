"""From a folder of photos to a saved fine-tune, and the check of what was saved."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from tiny import GaussianGuide, GaussianGuideConfig

from db3d_nerfstudio.diffusion.dreambooth import DreamBoothConfig
from db3d_nerfstudio.diffusion.sampling import SamplingConfig
from db3d_nerfstudio.diffusion.tuner import SubjectTuner, save_checked
from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.words import Subject, parse_subject
from db3d_nerfstudio.workspace import Workspace

SUBJECT = parse_subject("a photo of a sks dog on a table")
CONFIG = DreamBoothConfig(num_class_images=2, class_sampling=SamplingConfig(2), view_words="file_names")


@pytest.fixture
def tuner(tmp_path: Path) -> SubjectTuner:
    """Photos of 0.9 of a subject whose class the guide takes for 0.5."""
    (tmp_path / "photos").mkdir()
    for name in ("0_front", "1"):
        photo = Image.new("RGBA", (16, 16), (230, 230, 230, 255))
        photo.putpixel((0, 0), (230, 230, 230, 0))
        photo.save(tmp_path / "photos" / f"{name}.png")
    guide = GaussianGuideConfig(mean=0.5, resolution=16).setup()
    return SubjectTuner(guide, tmp_path / "photos", SUBJECT, CONFIG, Workspace(tmp_path / "run"), seed=3)


def test_data_are_the_photos_their_captions_and_masks(tuner: SubjectTuner) -> None:
    assert tuner.data.images.mean().item() == pytest.approx(0.9, abs=0.01) and tuner.data.masks is None
    assert tuner.data.captions == [{"a photo of a sks dog, front view": 1.0}, {"a photo of a sks dog": 1.0}]
    masked = replace(tuner, config=replace(CONFIG, masked_loss=True))
    assert masked.data.masks.shape == (2, 1, 16, 16)


def test_fine_tune_is_saved_with_its_losses(tuner: SubjectTuner, tmp_path: Path) -> None:
    data = replace(tuner.data, prior=tuner.class_images())
    told = []
    losses, change = tuner.tune(tmp_path / "tuned", 4, data, progress=lambda done, loss: told.append(done))
    assert json.loads((tmp_path / "tuned" / "losses.json").read_text()) == losses and len(losses) == 4
    assert told == [1, 2, 3, 4] and change > 0 and tuner.guide.shift.item() > 0


def test_fine_tune_starts_where_it_is_asked_to(tuner: SubjectTuner, tmp_path: Path) -> None:
    data = replace(tuner.data, prior=tuner.class_images())
    shifts = []
    for name, start in (("first", None), ("again", None), ("further", tmp_path / "first")):
        tuner.tune(tmp_path / name, 3, data, start)
        shifts.append(tuner.guide.shift.item())
    assert shifts[0] == shifts[1] < shifts[2]


def test_recipe_names_the_base_model_whatever_is_loaded(tuner: SubjectTuner) -> None:
    base = tuner.recipe()
    tuner.guide.shift.data.add_(1.0)
    again = SubjectTuner(tuner.guide, tuner.photos, SUBJECT, CONFIG, tuner.workspace, seed=3)
    assert again.recipe() == base
    for change in ({"seed": 4}, {"subject": Subject("", "sks", "cat")}, {"config": replace(CONFIG, batch_size=1)}):
        assert replace(again, **change).recipe() != base


def test_fine_tune_is_loaded_again_after_saving(tmp_path: Path) -> None:
    guide = GaussianGuideConfig(mean=0.5).setup()
    with pytest.raises(UserError, match="learning rate"):  # Nothing was learned.
        save_checked(guide, tmp_path / "nothing", SUBJECT.prompt)
    guide.shift.data.add_(0.3)
    learned = guide.shift.item()
    assert save_checked(guide, tmp_path / "faithful", SUBJECT.prompt) > 0
    assert guide.shift.item() == pytest.approx(learned)

    guide.save = lambda path: (guide.shift.data.mul_(2), GaussianGuide.save(guide, path))
    with pytest.raises(RuntimeError, match="not saved faithfully"):
        save_checked(guide, tmp_path / "doubled", SUBJECT.prompt)
