"""Images of the class: made once, by the untouched guide, and again when anything about them changes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import WORDS, tiny_toybox_folder
from torch import Tensor

from db3d_nerfstudio.diffusion.dreambooth import DreamBoothConfig
from db3d_nerfstudio.diffusion.prior import class_images
from db3d_nerfstudio.diffusion.sampling import SamplingConfig
from db3d_nerfstudio.guides.base import DiffusionGuide
from db3d_nerfstudio.toybox.guide import ToyboxGuide, ToyboxGuideConfig
from db3d_nerfstudio.workspace import RECIPE, Workspace

CLASS = "a photo of a dog"
QUICK = DreamBoothConfig(num_class_images=3, class_sampling=SamplingConfig(2, 4.0))


def sampled(
    guide: DiffusionGuide, path: Path, config: DreamBoothConfig = QUICK, prompt: str = CLASS
) -> tuple[Tensor, int]:
    """The class images, and how many of them had to be made."""
    made = [0]
    return class_images(guide, prompt, config, Workspace(path), made.append).images, made[-1]


def test_class_images_are_made_once(toybox: ToyboxGuide, tmp_path: Path) -> None:
    first, made = sampled(toybox, tmp_path / "class")
    assert first.shape == (3, 3, 16, 16) and made == 3
    again, made = sampled(toybox, tmp_path / "class")
    assert torch.equal(first, again) and made == 0
    assert sorted(file.name for file in tmp_path.rglob("*.*")) == ["0000.png", "0001.png", "0002.png", RECIPE]


@pytest.mark.parametrize(
    "change",
    [{"class_seed": 1}, {"class_sampling": SamplingConfig(3, 4.0)}, {"class_sampling": SamplingConfig(2, 2.0)}],
)
def test_class_images_are_made_again_for_another_recipe(toybox: ToyboxGuide, tmp_path: Path, change: dict) -> None:
    first, _ = sampled(toybox, tmp_path / "class")
    config = replace(QUICK, **change)
    changed, made = sampled(toybox, tmp_path / "class", config)
    assert made == 3 and not torch.equal(changed, first)


def test_fewer_class_images_leave_none_of_the_others(toybox: ToyboxGuide, tmp_path: Path) -> None:
    first, _ = sampled(toybox, tmp_path / "class")
    fewer, made = sampled(toybox, tmp_path / "class", replace(QUICK, num_class_images=2))
    assert made == len(fewer) == len(list((tmp_path / "class").rglob("*.png"))) == 2
    torch.testing.assert_close(fewer, first[:2], atol=1 / 255, rtol=0)


def test_class_images_are_made_again_for_another_prompt_or_model(toybox: ToyboxGuide, tmp_path: Path) -> None:
    sampled(toybox, tmp_path / "class")
    assert sampled(toybox, tmp_path / "class", prompt="a photo of a duck")[1] == 3
    recipe = tmp_path / "class" / "class_images" / RECIPE
    recipe.write_text(json.dumps(json.loads(recipe.read_text()) | {"model": "another"}))
    assert sampled(toybox, tmp_path / "class", prompt="a photo of a duck")[1] == 3


@pytest.mark.parametrize(
    ("words", "sides"),
    [
        ((), ["front", "side", "back", "overhead", "front"]),
        (("left", "right"), ["front", "front left", "left side", "back left", "back"]),
    ],
)
def test_class_images_show_all_sides_and_say_so(tmp_path: Path, words: tuple[str, ...], sides: list[str]) -> None:
    guide = ToyboxGuideConfig(model=tiny_toybox_folder(tmp_path / "toybox", (*WORDS, *words))).setup()
    config = replace(QUICK, class_views=True, num_class_images=5)
    images, prompts = class_images(guide, CLASS, config, Workspace(tmp_path))
    assert prompts == [f"{CLASS}, {side} view" for side in sides]
    assert not torch.equal(images[:3], sampled(guide, tmp_path / "plain")[0])


def test_class_images_come_from_the_base_model(toybox: ToyboxGuide, tmp_path: Path) -> None:
    first, _ = sampled(toybox, tmp_path / "before")
    with torch.no_grad():
        for parameter in toybox.parameters():
            parameter.add_(0.1)
    after, _ = sampled(toybox, tmp_path / "after")
    assert torch.equal(first, after)


def test_class_images_half_made_are_no_class_images(toybox: ToyboxGuide, tmp_path: Path) -> None:
    def killed(made: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        class_images(toybox, CLASS, QUICK, Workspace(tmp_path / "class"), killed)
    assert not (tmp_path / "class" / "class_images").exists()
    assert sampled(toybox, tmp_path / "class")[1] == 3
