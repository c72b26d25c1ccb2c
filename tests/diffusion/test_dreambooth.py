"""DreamBooth on the analytic guide, where the best shift is known, and on tiny networks."""

import math
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import GaussianGuide, GaussianGuideConfig
from torch import Tensor

from db3d_nerfstudio.diffusion.dreambooth import DreamBoothConfig, Progress, check_optimizer, finetune, noise_weights
from db3d_nerfstudio.diffusion.training_set import Prior, TrainingSet
from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.guides.base import DiffusionGuide
from db3d_nerfstudio.toybox.guide import ToyboxGuide, ToyboxGuideConfig

SUBJECT, CLASS = "a photo of a sks dog", "a photo of a dog"
QUICK = DreamBoothConfig()


def images(value: float, num: int = 2, resolution: int = 16) -> Tensor:
    noise = torch.randn(num, 3, resolution, resolution, generator=torch.Generator().manual_seed(0))
    return value + 0.1 * noise


def tune(
    guide: DiffusionGuide,
    config: DreamBoothConfig = QUICK,
    steps: int = 3,
    seed: int = 0,
    progress: Progress | None = None,
    **changes,
) -> list[float]:
    data = TrainingSet(images(0.9), [{SUBJECT: 1.0}] * 2, prior=Prior(images(0.5), [CLASS] * 2))
    return finetune(guide, replace(data, **changes), config, steps, seed, progress)


def weights_of(guide: DiffusionGuide) -> Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in guide.parameters()])


def gaussian_guide() -> GaussianGuide:
    return GaussianGuideConfig(mean=0.5, resolution=16).setup()


@pytest.mark.parametrize(("prior_loss_weight", "shift"), [(0.0, 0.4), (1.0, 0.2), (3.0, 0.1)])
def test_lambda_weighs_the_subject_against_the_class(prior_loss_weight: float, shift: float) -> None:
    """The guide believes 0.5, the subject is 0.9, the class 0.5: least squares put the shift at 0.4 / (1 + lambda)."""
    guide = gaussian_guide()
    tune(guide, DreamBoothConfig(prior_loss_weight=prior_loss_weight, batch_size=4), steps=300)
    assert guide.shift.item() == pytest.approx(shift, abs=0.03)


def test_loss_falls(toybox: ToyboxGuide) -> None:
    losses = tune(toybox, DreamBoothConfig(learning_rate=3e-3), steps=60)
    assert len(losses) == 60
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_half_precision_learns_like_full_precision(toybox_folder: Path, tuning: str, dtype: torch.dtype) -> None:
    """float16 needs its loss scaled, or the gradients of a mean over an image vanish."""
    moves = []
    for precision in (torch.float32, dtype):
        guide = ToyboxGuideConfig(model=toybox_folder, tuning=tuning).setup()
        guide.dtype = precision
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
        {"prior_loss_weight": 0.5},
        {"prior_snr_gamma": None},
        {"ema_decay": 0.5},
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
    assert {name: calls.count(name) for name in calls} == {"encode": 4, "embed": 1, "predict_noise": 5}


def test_each_image_goes_with_its_prompt() -> None:
    """A guide that knows both images without error errs on both as soon as their prompts are swapped."""
    guide = GaussianGuideConfig(means={"dark": 0.1, "bright": 0.9}, std=0.0, resolution=4).setup()
    exact = torch.tensor([0.1, 0.9])[:, None, None, None].expand(2, 3, 4, 4)
    config = DreamBoothConfig(prior_loss_weight=0.0, batch_size=8)
    right, swapped = [{"dark": 1.0}, {"bright": 1.0}], [{"bright": 1.0}, {"dark": 1.0}]
    assert max(tune(guide, config, steps=1, images=exact, captions=right)) < 1e-6
    assert min(tune(guide, config, steps=1, images=exact, captions=swapped)) > 0.1


def test_captions_are_drawn_by_their_shares() -> None:
    """The guide knows the image by one of its captions and errs alike whenever it is called by the other."""
    guide = GaussianGuideConfig(means={"right": 0.9, "wrong": 0.1}, std=0.0, resolution=4).setup()
    image = torch.full((1, 3, 4, 4), 0.9)
    config = DreamBoothConfig(prior_loss_weight=0.0, batch_size=1, learning_rate=0.0)
    for share in (0.25, 0.75):
        captions = [{"right": 1 - share, "wrong": share}]
        losses = tune(guide, config, steps=200, images=image, captions=captions, prior=None)
        assert sum(loss > 1e-6 for loss in losses) / 200 == pytest.approx(share, abs=0.1)


def test_progress_is_told_after_every_iteration() -> None:
    told = []
    losses = tune(gaussian_guide(), steps=4, progress=lambda step, loss: told.append((step, loss)))
    assert told == list(enumerate(losses, start=1))


def test_class_images_are_needed_only_with_a_prior() -> None:
    guide = gaussian_guide()
    tune(guide, replace(QUICK, prior_loss_weight=0.0), prior=None)
    with pytest.raises(ValueError, match="class_images.*prior_loss_weight"):
        tune(guide, prior=None)


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
        ("v_prediction", 5.0, [5, 1, 1 / 99]),
    ],
)
def test_weights_are_those_of_the_guide_s_own_loss(prediction_type: str, gamma: float | None, expected: list) -> None:
    abar = torch.tensor([0.99, 0.5, 0.01], dtype=torch.float64).float()
    in_z = noise_weights(abar, prediction_type, gamma) * abar / (1 - abar)
    torch.testing.assert_close(in_z, torch.tensor(expected), rtol=1e-4, atol=0)


def test_weights_are_finite_where_nothing_is_left_of_the_image() -> None:
    assert noise_weights(torch.tensor([0.0, 1e-9]), "sample", 5.0).isfinite().all()


def test_only_what_the_mask_shows_is_learned() -> None:
    """The subject, 0.9, fills a corner of photos that are black elsewhere: unmasked, the mean of both is learned."""
    photos, masks = torch.zeros(2, 3, 16, 16), torch.zeros(2, 1, 16, 16)
    photos[:, :, :4, :4], masks[:, :, :4, :4] = 0.9, 1.0
    config, shifts = DreamBoothConfig(prior_loss_weight=0.0), []
    for seen in (None, masks):
        guide = gaussian_guide()
        tune(guide, config, steps=150, images=photos, prior=None, masks=seen)
        shifts.append(guide.shift.item())
    assert shifts[0] < 0 and shifts[1] == pytest.approx(0.4, abs=0.03)


def test_running_mean_lags_behind_the_weights() -> None:
    """From 0 towards 0.4 in straight steps of the learning rate: a mean is less far."""
    shifts = []
    for decay in (None, 0.9):
        guide = gaussian_guide()
        tune(guide, DreamBoothConfig(prior_loss_weight=0.0, ema_decay=decay), steps=20)
        shifts.append(guide.shift.item())
    assert 0.02 < shifts[1] < 0.95 * shifts[0]


def test_8_bit_optimizer_is_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(QUICK, optimizer="adamw8bit")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"pip install .*8bit.*adamw"):
        tune(gaussian_guide(), config)
    with pytest.raises(UserError, match="8bit"):
        check_optimizer(config)
    check_optimizer(QUICK)
    built = []

    class AdamW8bit(torch.optim.AdamW):
        def __init__(self, *args, **kwargs) -> None:
            built.append(kwargs)
            super().__init__(*args, **kwargs)

    module = types.ModuleType("bitsandbytes.optim")
    module.AdamW8bit = AdamW8bit
    monkeypatch.setitem(sys.modules, "bitsandbytes", types.ModuleType("bitsandbytes"))
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", module)
    tune(gaussian_guide(), config)
    assert built == [{"lr": GaussianGuide.learning_rate, "weight_decay": config.weight_decay}]


def test_hook_gets_every_batch_of_the_subject() -> None:
    seen = []
    tune(gaussian_guide(), steps=2, before_batch=lambda index, generator: seen.append(index.tolist()))
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(2, (2,), generator=generator).tolist()
    assert len(seen) == 2 and seen[0] == first
