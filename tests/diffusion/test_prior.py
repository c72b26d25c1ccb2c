"""Images of the class: made once, by the untouched guide, and again when anything about them changes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import WORDS, tiny_toybox_folder
from torch import Tensor

from db3d_nerfstudio.diffusion.dreambooth import DreamBoothConfig
from db3d_nerfstudio.diffusion.prior import MANIFEST, class_images
from db3d_nerfstudio.guides.base import DiffusionGuide
from db3d_nerfstudio.toybox.guide import ToyboxGuide, ToyboxGuideConfig

CLASS = "a photo of a dog"
QUICK = DreamBoothConfig(num_class_images=3, class_sample_steps=2)


@pytest.fixture(scope="module")
def toybox_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_toybox_folder(tmp_path_factory.mktemp("toybox"))


@pytest.fixture
def toybox(toybox_folder: Path) -> ToyboxGuide:
    return ToyboxGuideConfig(model=toybox_folder).setup()


def sampled(
    guide: DiffusionGuide, path: Path, config: DreamBoothConfig = QUICK, prompt: str = CLASS
) -> tuple[Tensor, int]:
    """The class images, and how many of them had to be made."""
    made = [0]
    return class_images(guide, prompt, config, path, progress=made.append).images, made[-1]


def test_class_images_are_made_once(toybox: ToyboxGuide, tmp_path: Path) -> None:
    first, made = sampled(toybox, tmp_path / "class")
    assert first.shape == (3, 3, 16, 16) and made == 3
    again, made = sampled(toybox, tmp_path / "class")
    assert torch.equal(first, again) and made == 0
    assert sorted(file.name for file in tmp_path.rglob("*.*")) == ["0000.png", "0001.png", "0002.png", MANIFEST]


@pytest.mark.parametrize(
    "change", [{"class_seed": 1}, {"num_class_images": 2}, {"class_sample_steps": 3}, {"class_guidance_scale": 2.0}]
)
def test_class_images_are_made_again_for_another_recipe(toybox: ToyboxGuide, tmp_path: Path, change: dict) -> None:
    first, _ = sampled(toybox, tmp_path / "class")
    config = replace(QUICK, **change)
    changed, made = sampled(toybox, tmp_path / "class", config)
    assert made == len(changed) == config.num_class_images
    assert not torch.equal(changed, first[: len(changed)]) or len(changed) < len(first)
    assert len(list((tmp_path / "class").glob("*.png"))) == made


def test_class_images_are_made_again_for_another_prompt_or_model(toybox: ToyboxGuide, tmp_path: Path) -> None:
    sampled(toybox, tmp_path / "class")
    assert sampled(toybox, tmp_path / "class", prompt="a photo of a duck")[1] == 3
    manifest = json.loads((tmp_path / "class" / MANIFEST).read_text())
    (tmp_path / "class" / MANIFEST).write_text(json.dumps(manifest | {"model": "another"}))
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
    images, prompts = class_images(guide, CLASS, config, tmp_path / "class")
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
        class_images(toybox, CLASS, QUICK, tmp_path / "class", progress=killed)
    assert not (tmp_path / "class").exists()
    assert sampled(toybox, tmp_path / "class")[1] == 3
