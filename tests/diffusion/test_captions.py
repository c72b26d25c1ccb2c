from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import GaussianGuide, GaussianGuideConfig

from db3d_nerfstudio.diffusion.captions import front_half, guess_views, named_view, photo_captions
from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.photos import load_photos
from db3d_nerfstudio.toybox.examples import DEFAULT_SEED, casual_shots, default_subject
from db3d_nerfstudio.toybox.guide import ToyboxGuideConfig
from db3d_nerfstudio.words import DIRECTIONS, Subject
from db3d_nerfstudio.workspace import Workspace

SUBJECT = Subject("a photo of a sks dog", "sks", "dog")


def photographed(folder: Path, *views: tuple[str, int]) -> Path:
    folder.mkdir()
    for name, grey in views:
        Image.new("RGB", (8, 8), (grey, grey, grey)).save(folder / name)
    return folder


def knowing_guide() -> GaussianGuide:
    """To it, fronts are dark and sides bright."""
    means = {"a photo of a dog, front view": 0.1, "a photo of a dog, side view": 0.9}
    return GaussianGuideConfig(means=means).setup()


def captions_of(guide: GaussianGuide, folder: Path, view_words: str, tmp_path: Path) -> list[dict[str, float]]:
    return photo_captions(Workspace(tmp_path / "run"), guide, folder, SUBJECT, view_words, seed=0)


def test_captions_name_the_view_that_the_file_is_named_after(tmp_path: Path) -> None:
    folder = photographed(tmp_path / "photos", ("00_Back.png", 0), ("backpack.png", 0))
    plain = {SUBJECT.instance_prompt: 1.0}
    assert captions_of(knowing_guide(), folder, "none", tmp_path) == [plain, plain]
    named = {"a photo of a sks dog, back view": 1.0}
    assert captions_of(knowing_guide(), folder, "file_names", tmp_path) == [named, plain]


@pytest.mark.parametrize(
    ("file", "eight", "four"),
    [
        ("2-overhead.jpg", "overhead", "overhead"),
        ("3_front_left.jpg", "front left", "front"),
        ("left-front 02.jpg", "front left", "front"),
        ("4_left.jpg", "left side", "side"),
        ("right_side.jpg", "right side", "side"),
        ("Back Right.png", "back right", "back"),
        ("overhead_left.png", "overhead left side", "overhead"),
        ("5_side.jpg", "side", "side"),
        ("confrontation.jpg", None, None),
        ("IMG_2031.jpg", None, None),
    ],
)
def test_all_eight_directions_can_be_named(file: str, eight: str | None, four: str | None) -> None:
    assert named_view(Path(file), tells_sides=True) == eight
    assert named_view(Path(file), tells_sides=False) == four


@pytest.mark.parametrize("name", DIRECTIONS)
def test_directions_are_named_as_prompts_name_them(name: str) -> None:
    assert named_view(Path(f"{name}.jpg"), tells_sides=True) == name


def test_file_names_that_name_nothing_are_an_error_with_the_fix(tmp_path: Path) -> None:
    folder = photographed(tmp_path / "photos", ("00.png", 0))
    with pytest.raises(UserError, match="view_words to guess or none"):
        captions_of(knowing_guide(), folder, "file_names", tmp_path)


def test_guide_guesses_what_it_denoises_best_and_file_names_know_better(tmp_path: Path) -> None:
    folder = photographed(tmp_path / "photos", ("0.png", 30), ("1.png", 220), ("2_back.png", 30), ("3.png", 128))
    dark, bright, named, between = captions_of(knowing_guide(), folder, "guess", tmp_path)
    assert dark["a photo of a sks dog, front view"] > 0.99
    assert bright["a photo of a sks dog, side view"] > 0.99
    assert named == {"a photo of a sks dog, back view": 1.0}
    assert 0.3 < between["a photo of a sks dog, side view"] < 0.7, "it is either"
    assert sum(between.values()) == pytest.approx(1)


def test_guesses_are_the_untouched_guide_s_and_made_once(tmp_path: Path) -> None:
    folder, guide = photographed(tmp_path / "photos", ("0.png", 30)), knowing_guide()
    with torch.no_grad():
        guide.shift.fill_(-0.8)  # Now sides are dark to it.
    first = captions_of(guide, folder, "guess", tmp_path)
    assert max(first[0], key=first[0].get) == "a photo of a sks dog, front view"
    assert (tmp_path / "run" / "photo_views" / "views.json").exists()
    guide.predict_noise = None  # A second guess would fail.
    assert captions_of(guide, folder, "guess", tmp_path) == first
    (folder / "1.png").write_bytes((folder / "0.png").read_bytes())
    with pytest.raises(UserError, match="photos"):
        captions_of(guide, folder, "guess", tmp_path)


def test_only_fronts_and_sides_are_guessed() -> None:
    assert front_half(tells_sides=False) == ["front", "side"]
    assert front_half(tells_sides=True) == ["front", "front left", "left side", "right side", "front right"]


@pytest.mark.slow
def test_embedded_guide_knows_from_which_side_the_bundled_photos_are_taken() -> None:
    guide = ToyboxGuideConfig().setup()
    photos = load_photos(default_subject()[0], guide.resolution)
    guesses = guess_views(guide, photos, "a photo of a duck", seed=0)
    for guess, shot in zip(guesses, casual_shots(DEFAULT_SEED), strict=True):
        azimuth = 45 * DIRECTIONS.index(max(guess, key=guess.get))
        assert abs((azimuth - shot.azimuth + 180) % 360 - 180) <= 45
    to_the_left = [sum(guess[view] for view in ("front left", "left side")) for guess in guesses]
    to_the_right = [sum(guess[view] for view in ("front right", "right side")) for guess in guesses]
    assert to_the_right[0] > 3 * to_the_left[0], "65 degrees to its right"
    assert to_the_left[-1] > 3 * to_the_right[-1], "66 degrees to its left"
