"""DreamBooth on the analytic guide, where the best shift is known, and on tiny networks."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import GaussianGuide, GaussianGuideConfig, tiny_toybox_folder
from torch import Tensor

from db3d_nerfstudio.dreambooth import MANIFEST, DreamBoothConfig, class_images, finetune, noise_weights
from db3d_nerfstudio.guides.base import DiffusionGuide
from db3d_nerfstudio.guides.toybox import ToyboxGuide, ToyboxGuideConfig

SUBJECT, CLASS = "a photo of a sks dog", "a photo of a dog"
QUICK = DreamBoothConfig(num_class_images=3, class_sample_steps=2)


@pytest.fixture(scope="module")
def toybox_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_toybox_folder(tmp_path_factory.mktemp("toybox"))


@pytest.fixture
def toybox(toybox_folder: Path) -> ToyboxGuide:
    return ToyboxGuideConfig(model=toybox_folder).setup()


def images(value: float, num: int = 2, resolution: int = 16) -> Tensor:
    noise = torch.randn(num, 3, resolution, resolution, generator=torch.Generator().manual_seed(0))
    return value + 0.1 * noise


def tune(
    guide: DiffusionGuide, config: DreamBoothConfig = QUICK, steps: int = 3, seed: int = 0, **changes
) -> list[float]:
    arguments = {"images": images(0.9), "prompts": [SUBJECT] * 2, "class_images": images(0.5), "class_prompt": CLASS}
    return finetune(guide, **{**arguments, **changes}, steps=steps, config=config, seed=seed)


def weights_of(guide: DiffusionGuide) -> Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in guide.parameters()])


def gaussian_guide() -> GaussianGuide:
    return GaussianGuideConfig(mean=0.5, resolution=16).setup()


@pytest.mark.parametrize(("prior_weight", "shift"), [(0.0, 0.4), (1.0, 0.2), (3.0, 0.1)])
def test_lambda_weighs_the_subject_against_the_class(prior_weight: float, shift: float) -> None:
    """The guide believes 0.5, the subject is 0.9, the class 0.5: least squares put the shift at 0.4 / (1 + lambda)."""
    guide = gaussian_guide()
    tune(guide, DreamBoothConfig(prior_weight=prior_weight, batch_size=4), steps=300)
    assert guide.shift.item() == pytest.approx(shift, abs=0.03)


def test_loss_falls(toybox: ToyboxGuide) -> None:
    losses = tune(toybox, DreamBoothConfig(learning_rate=3e-3), steps=60)
    assert len(losses) == 60
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_half_precision_learns_like_full_precision(toybox_folder: Path, tuning: str, dtype: str) -> None:
    """float16 needs its loss scaled, or the gradients of a mean over an image vanish."""
    moves = []
    for precision in ("float32", dtype):
        guide = ToyboxGuideConfig(model=toybox_folder, tuning=tuning, dtype=precision).setup()
        before = weights_of(guide)
        tune(guide, steps=4)
        moves.append(weights_of(guide) - before)
    assert torch.cosine_similarity(*moves, dim=0) > 0.8


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("train_text_encoder", [False, True])
def test_moves_the_guide_s_parameters_and_nothing_else(
    toybox_folder: Path, tuning: str, train_text_encoder: bool
) -> None:
    guide = ToyboxGuideConfig(model=toybox_folder, tuning=tuning, train_text_encoder=train_text_encoder).setup()
    free = {id(parameter) for parameter in guide.parameters()}
    before = {
        f"{name}.{key}": (parameter, parameter.detach().clone())
        for name, module in guide.modules().items()
        for key, parameter in module.named_parameters()
    }
    tune(guide, steps=2)
    moved = {key for key, (parameter, old) in before.items() if not torch.equal(parameter, old)}
    assert moved and all(id(before[key][0]) in free for key in moved)
    assert any(key.startswith("text_encoder") for key in moved) == train_text_encoder
    assert all(parameter.grad is None for parameter, _ in before.values())


def test_seed_decides_and_the_global_generator_is_left_alone(toybox: ToyboxGuide) -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    results = []
    for seed in (1, 1, 2):
        toybox.load(None)
        losses = tune(toybox, seed=seed)
        results.append((losses, weights_of(toybox)))
    assert results[0][0] == results[1][0] != results[2][0]
    assert torch.equal(results[0][1], results[1][1]) and not torch.equal(results[0][1], results[2][1])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 1e-3},
        {"weight_decay": 10.0},
        {"max_grad_norm": 1e-9},
        {"batch_size": 1},
        {"snr_gamma": None},
        {"prior_weight": 0.5},
    ],
)
def test_every_setting_changes_the_result(toybox: ToyboxGuide, change: dict) -> None:
    tune(toybox)
    plain = weights_of(toybox)
    toybox.load(None)
    tune(toybox, replace(QUICK, **change))
    assert not torch.equal(weights_of(toybox), plain)


def test_learning_rate_is_the_guide_s_own_unless_given(toybox: ToyboxGuide) -> None:
    tune(toybox)
    own = weights_of(toybox)
    toybox.load(None)
    tune(toybox, replace(QUICK, learning_rate=toybox.learning_rate))
    assert torch.equal(weights_of(toybox), own)


def test_frozen_outputs_are_computed_once(toybox: ToyboxGuide, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    for name in ("encode", "embed", "predict_noise"):
        method = getattr(toybox, name)
        monkeypatch.setattr(toybox, name, lambda *a, name=name, method=method: calls.append(name) or method(*a))
    tune(toybox, steps=5)
    assert {name: calls.count(name) for name in calls} == {"encode": 4, "embed": 2, "predict_noise": 5}


def test_each_image_goes_with_its_prompt() -> None:
    """A guide that knows both images without error errs on both as soon as their prompts are swapped."""
    guide = GaussianGuideConfig(means={"dark": 0.1, "bright": 0.9}, std=0.0, resolution=4).setup()
    exact = torch.tensor([0.1, 0.9])[:, None, None, None].expand(2, 3, 4, 4)
    config = DreamBoothConfig(prior_weight=0.0, batch_size=8)
    arguments = {"images": exact, "class_images": None, "config": config, "steps": 1}
    assert max(tune(guide, prompts=["dark", "bright"], **arguments)) < 1e-6
    assert min(tune(guide, prompts=["bright", "dark"], **arguments)) > 0.1


def test_progress_is_told_after_every_iteration() -> None:
    told = []
    losses = tune(gaussian_guide(), steps=4, progress=lambda step, loss: told.append((step, loss)))
    assert told == list(enumerate(losses, start=1))


def test_class_images_are_needed_only_with_a_prior() -> None:
    guide = gaussian_guide()
    tune(guide, replace(QUICK, prior_weight=0.0), class_images=None)
    with pytest.raises(ValueError, match="class_images.*prior_weight"):
        tune(guide, class_images=None)


def test_every_image_needs_its_prompt() -> None:
    with pytest.raises(ValueError, match="2 images, 1 prompts"):
        tune(gaussian_guide(), prompts=[SUBJECT])


def test_loss_that_is_not_finite_stops_before_the_weights_are_touched() -> None:
    guide = gaussian_guide()
    with pytest.raises(FloatingPointError, match="iteration 1 of 3.*learning rate"):
        tune(guide, images=images(math.nan))
    assert guide.shift.item() == 0


@pytest.mark.parametrize(
    ("prediction_type", "gamma", "expected"),
    [
        # Weight on the squared error in z; SNR is 99, 1 and 1/99.
        ("epsilon", None, [99, 1, 1 / 99]),
        ("epsilon", 5.0, [5, 1, 1 / 99]),
        ("sample", 5.0, [5, 2, 100 / 99]),
        ("v_prediction", None, [100, 2, 100 / 99]),
    ],
)
def test_weights_are_those_of_the_guide_s_own_loss(prediction_type: str, gamma: float | None, expected: list) -> None:
    abar = torch.tensor([0.99, 0.5, 0.01], dtype=torch.float64).float()
    in_z = noise_weights(abar, prediction_type, gamma) * abar / (1 - abar)
    torch.testing.assert_close(in_z, torch.tensor(expected), rtol=1e-4, atol=0)


def test_weights_are_finite_where_nothing_is_left_of_the_image() -> None:
    assert noise_weights(torch.tensor([0.0, 1e-9]), "sample", 5.0).isfinite().all()


def sampled(
    guide: DiffusionGuide, path: Path, config: DreamBoothConfig = QUICK, prompt: str = CLASS
) -> tuple[Tensor, int]:
    """The class images, and how many of them had to be made."""
    made = [0]
    return class_images(guide, prompt, config, path, progress=made.append), made[-1]


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


def test_class_images_come_from_the_base_model(toybox: ToyboxGuide, tmp_path: Path) -> None:
    first, _ = sampled(toybox, tmp_path / "before")
    tune(toybox)
    after, _ = sampled(toybox, tmp_path / "after")
    assert torch.equal(first, after)


def test_class_images_half_made_are_no_class_images(toybox: ToyboxGuide, tmp_path: Path) -> None:
    def killed(made: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        class_images(toybox, CLASS, QUICK, tmp_path / "class", progress=killed)
    assert not (tmp_path / "class").exists()
    assert sampled(toybox, tmp_path / "class")[1] == 3
