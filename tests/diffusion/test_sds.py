"""Score distillation against the analytic guide, whose every expectation has a closed form."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from tiny import GaussianGuide, GaussianGuideConfig, PatternGuideConfig
from torch import Tensor

from db3d_nerfstudio.cameras import orbit_cameras
from db3d_nerfstudio.diffusion.guidance import Conditioning
from db3d_nerfstudio.diffusion.sds import (
    MAX_SKIPPED,
    Distillation,
    SDSConfig,
    annealed_range,
    contrast_loss_of_z,
    noise_level,
    sample_timesteps,
    sds_loss,
    sds_loss_of_z,
    sds_weights,
)
from db3d_nerfstudio.errors import DivergedError

UNGUIDED = SDSConfig(guidance_scale=1.0)


def inputs(guide: GaussianGuide, num: int = 2) -> tuple[Tensor, Conditioning]:
    rgb = torch.rand(num, 3, guide.resolution, guide.resolution, generator=torch.Generator().manual_seed(0))
    return rgb.requires_grad_(), Conditioning.of(guide, ["a dog"] * num)


@pytest.mark.parametrize("scale", [1.0, -2.0])
def test_gradient_is_the_equation(scale: float) -> None:
    """mean over b of (1 - abar) (eps_hat - eps) dz/drgb, with z = scale * rgb and the closed form of eps_hat."""
    guide = GaussianGuideConfig(scale=scale, std=0.2).setup()
    rgb, conditioning = inputs(guide)
    t, s = torch.tensor([100, 700]), 4.0
    config = SDSConfig(guidance_scale=s)
    sds_loss(guide, rgb, conditioning, t, config, torch.Generator().manual_seed(3)).backward()

    eps = torch.randn(rgb.shape, generator=torch.Generator().manual_seed(3))
    abar = guide.alphas_cumprod[t][:, None, None, None]
    z_t = abar.sqrt() * scale * rgb.detach() + (1 - abar).sqrt() * eps
    mean = s * 0.7  # uncond is 0: guidance moves the mean to 0 + s (0.7 - 0)
    eps_hat = (1 - abar).sqrt() * (z_t - abar.sqrt() * mean) / (abar * 0.2**2 + 1 - abar)
    torch.testing.assert_close(rgb.grad, (1 - abar) * (eps_hat - eps) * scale / len(rgb))


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_contrast_enlarges_what_tuning_has_added(scale: float) -> None:
    """Base and tuned estimates in closed form: means 0.4, and 0.7 + 0.1; their difference knows neither z nor noise."""
    guide = GaussianGuideConfig(mean=0.7, means={"a dog": 0.4}, std=0.2).setup()
    guide.shift.data.fill_(0.1)
    z, _ = inputs(guide)
    t = torch.tensor([100, 700])
    conditioning = Conditioning(guide.embed(["a sks dog"] * 2), guide.embed(["a dog"] * 2))
    generator = torch.Generator().manual_seed(3)
    contrast_loss_of_z(guide, z, conditioning, t, SDSConfig(scale), generator).backward()
    plain = z.detach().requires_grad_()
    generator.manual_seed(3)
    sds_loss_of_z(guide, plain, conditioning, t, UNGUIDED, generator).backward()
    abar = guide.alphas_cumprod[t][:, None, None, None]
    added = -((1 - abar) * abar).sqrt() * (0.7 + 0.1 - 0.4) / (abar * 0.2**2 + 1 - abar)
    torch.testing.assert_close(z.grad - plain.grad, ((scale - 1) * (1 - abar) * added / 2).expand_as(z))
    assert guide.shift == 0.1, "the tuning is back"


def test_contrast_is_rescaled_as_guidance_is() -> None:
    guide = PatternGuideConfig().setup()
    guide.shift.data.fill_(0.5)
    z, t = inputs(guide)[0], torch.tensor([100, 700])
    conditioning, norms = Conditioning(guide.embed(["a sks dog"] * 2), guide.embed(["a dog"] * 2)), []
    for rescale in (0.0, 1.0):
        loss = contrast_loss_of_z(guide, z, conditioning, t, SDSConfig(30.0, rescale), torch.Generator().manual_seed(3))
        norms.append(torch.autograd.grad(loss, z)[0].norm())
    assert norms[1] < norms[0] / 2


def test_contrast_asks_the_base_model_without_the_identifier() -> None:
    guide = GaussianGuideConfig(mean=0.7).setup()
    asked, embed = [], guide.embed
    guide.embed = lambda prompts: asked.append((guide.shift.item(), prompts)) or embed(prompts)
    guide.shift.data.fill_(0.5)
    contrast = Distillation(SDSConfig(gradient="contrast"), "a sks dog", lambda: guide)
    contrast.identifier = "sks"
    views = orbit_cameras(2, 10.0, 3.0, 40.0, 8)[1]
    image = torch.rand(2, 3, 8, 8, requires_grad=True)
    contrast.loss(image, views, 0.5, lambda guide, image: image).backward()
    (tuned, with_word), (base, without) = asked
    assert (tuned, base) == (0.5, 0.0) and "a sks dog, front view" in with_word and "a dog, front view" in without
    assert image.grad.mean() < 0, "towards the shift"


def test_an_image_is_graded_as_its_z() -> None:
    guide = GaussianGuideConfig().setup()
    rgb, conditioning = inputs(guide)
    t, config = torch.tensor([100, 700]), SDSConfig(3.0, guidance_rescale=0.5)
    losses = [
        loss(guide, rgb, conditioning, t, config, torch.Generator().manual_seed(3))
        for loss in (sds_loss, sds_loss_of_z)
    ]
    gradients = [torch.autograd.grad(loss, rgb)[0] for loss in losses]
    assert torch.equal(*losses) and torch.equal(*gradients), "the codec is the identity"


def test_value_is_half_the_squared_gradient() -> None:
    guide = GaussianGuideConfig().setup()
    rgb, conditioning = inputs(guide, num=1)
    loss = sds_loss(guide, rgb, conditioning, torch.tensor([500]), UNGUIDED)
    loss.backward()
    torch.testing.assert_close(loss, 0.5 * rgb.grad.square().sum())


def test_gradient_passes_through_resizing() -> None:
    guide = GaussianGuideConfig(resolution=16).setup()
    rgb = torch.rand(1, 3, 4, 4, requires_grad=True)
    sds_loss(guide, rgb, inputs(guide, num=1)[1], torch.tensor([500]), UNGUIDED).backward()
    assert (rgb.grad != 0).all()


def test_distillation_moves_pixels_to_what_the_guide_believes() -> None:
    guide = GaussianGuideConfig(mean=0.7, resolution=4).setup()
    rgb, conditioning = inputs(guide, num=1)
    optimizer = torch.optim.SGD([rgb], lr=0.2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        optimizer.zero_grad()
        t = sample_timesteps(1, (0.12, 0.93), noise_level(guide.alphas_cumprod), generator)
        sds_loss(guide, rgb, conditioning, t, UNGUIDED, generator).backward()
        optimizer.step()
    assert rgb.mean().item() == pytest.approx(0.7, abs=0.01)


def test_guide_is_left_alone() -> None:
    guide = GaussianGuideConfig().setup()
    sds_loss(guide, *inputs(guide), torch.tensor([1, 2]), SDSConfig()).backward()
    assert all(parameter.grad is None for parameter in guide.parameters())


def test_noise_estimate_that_is_not_finite_stops_the_run() -> None:
    guide = GaussianGuideConfig().setup()
    rgb, conditioning = inputs(guide)
    conditioning.text[1] = torch.inf
    with pytest.raises(FloatingPointError, match=r"noise estimate at t = \[700\].*dtype"):
        sds_loss(guide, rgb, conditioning, torch.tensor([3, 700]), SDSConfig())


def test_timesteps_fill_their_range() -> None:
    levels = noise_level(GaussianGuideConfig().setup().alphas_cumprod)
    drawn = sample_timesteps(20_000, (0.12, 0.2), levels, torch.Generator().manual_seed(0)).unique()
    assert drawn.tolist() == ((levels >= 0.12) & (levels < 0.2)).nonzero()[:, 0].tolist()
    assert sample_timesteps(3, (1.0, 1.0), levels).tolist() == [999] * 3
    assert sample_timesteps(3, (0.5, 0.5), levels).unique().tolist() == [int((levels < 0.5).sum())]
    with pytest.raises(ValueError, match="low <= high"):
        sample_timesteps(1, (0.9, 0.1), levels)


def test_a_range_means_the_same_on_every_schedule() -> None:
    """A signal-to-noise ratio of ((1 - s) / s)^2 at s, on Stable Diffusion's schedule and on others."""
    abar = GaussianGuideConfig().setup().alphas_cumprod
    for schedule in (abar, abar.repeat_interleave(2), abar.square()):
        t = sample_timesteps(5000, (0.12, 0.93), noise_level(schedule), torch.Generator().manual_seed(0))
        snr = schedule[t] / (1 - schedule[t])
        assert snr.max().sqrt() == pytest.approx(0.88 / 0.12, rel=0.05)
        assert snr.min().sqrt() == pytest.approx(0.07 / 0.93, rel=0.05)


def test_flow_weights_are_those_of_a_velocity() -> None:
    s = torch.tensor([0.1, 0.5, 0.9, 0.97, 0.98, 0.999])
    abar = (1 - s) ** 2 / ((1 - s) ** 2 + s**2)
    torch.testing.assert_close(noise_level(abar), s)
    torch.testing.assert_close(sds_weights(abar, "flow"), 1 / (1 - s).clamp(min=0.02))
    torch.testing.assert_close(sds_weights(abar, "sigma2"), s**2 / ((1 - s) ** 2 + s**2))


def test_annealing_is_linear_and_stays_in_its_ends() -> None:
    assert annealed_range(0.0) == (0.12, 0.93)
    assert annealed_range(0.5, (0.0, 1.0), (0.2, 0.4)) == pytest.approx((0.1, 0.7))
    assert annealed_range(1.5) == annealed_range(1.0) == pytest.approx((0.12, 0.62))


def distillation(guide: GaussianGuideConfig | None = None, **changes: object) -> Distillation:
    return Distillation(SDSConfig(**changes), "a dog", (guide or GaussianGuideConfig(mean=0.2)).setup)


_, VIEWS = orbit_cameras(2, elevation=10.0, radius=3.0, fov=40.0, resolution=8)


def distilled(distillation: Distillation, progress: float = 0.0, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    rgb = torch.full((2, 3, 8, 8), 0.5)
    return distillation.loss(rgb, VIEWS, progress, lambda guide, image: guide.encode(image))


def test_the_guide_loads_on_first_use() -> None:
    loaded = []
    lazy = Distillation(SDSConfig(), "a dog", lambda: loaded.append(1) or GaussianGuideConfig().setup())
    lazy.set_guidance("a cat", 3.0)
    assert loaded == []
    assert lazy.guide is lazy.guide and loaded == [1]


def test_the_context_surrounds_the_guide() -> None:
    surrounded, entered = distillation(), []

    @contextmanager
    def context() -> Iterator[None]:
        entered.append("in")
        yield
        entered.append("out")

    surrounded.context = context
    distilled(surrounded)
    assert entered == ["in", "out"]


def test_another_prompt_or_scale_counts_from_the_next_loss_on() -> None:
    moving = distillation()
    moving.guide.config.means["a cat, front view"] = 0.9
    losses = [distilled(moving)]
    for prompt, scale in (("a cat", 8.0), ("a cat", 2.0), ("a dog", 8.0)):
        moving.set_guidance(prompt, scale)
        losses.append(distilled(moving))
    assert len({loss.item() for loss in losses[:3]}) == 3 and losses[3] == losses[0]


def test_prompts_follow_the_guides_weights() -> None:
    trained = distillation()
    before = distilled(trained)
    trained.guide.config.means["a dog, front view"] = 0.9
    assert distilled(trained) == before
    trained.embed_prompts()
    assert distilled(trained) != before


class FaultyGuide(GaussianGuide):
    """Overflows at high noise, as half precision may."""

    def predict_noise(self, z_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
        return torch.where(t[:, None, None, None] > 900, torch.inf, super().predict_noise(z_t, t, text))


def faulty(**changes: object) -> Distillation:
    return Distillation(SDSConfig(**changes), "a dog", lambda: FaultyGuide(GaussianGuideConfig()))


def test_a_step_that_is_not_finite_is_skipped_now_and_by_a_run_that_resumes() -> None:
    """Every draw is a function of the step: the resumed run meets the same noise."""
    broken = faulty()
    losses = [distilled(broken, seed=seed).item() for seed in range(40)]
    healthy = [distilled(distillation(GaussianGuideConfig()), seed=seed).item() for seed in range(40)]
    skipped = [seed for seed, loss in enumerate(losses) if loss == 0]
    assert 0 < len(skipped) < 20
    assert all(loss == whole for loss, whole in zip(losses, healthy, strict=True) if loss)
    resumed = faulty()
    assert [distilled(resumed, seed=seed).item() for seed in range(20, 40)] == losses[20:]


def test_a_skipped_step_moves_nothing() -> None:
    rgb = torch.full((2, 3, 8, 8), 0.5, requires_grad=True)
    loss = faulty(noise_range_start=(0.9, 0.93)).loss(rgb, VIEWS, 0.0, lambda guide, image: guide.encode(image))
    assert torch.equal(torch.autograd.grad(loss, rgb)[0], torch.zeros_like(rgb))


def test_many_steps_in_a_row_that_are_not_finite_end_the_run() -> None:
    broken = faulty(noise_range_start=(0.9, 0.93))
    for _ in range(MAX_SKIPPED):
        distilled(broken)
    with pytest.raises(DivergedError, match="11 steps in a row.*dtype to float32"):
        distilled(broken)


@pytest.mark.parametrize(
    "change",
    [
        {"guidance_rescale": 0.7},
        {"negative_prompt": "a cat"},
        {"weighting": "flow"},
        {"noise_range_start": (0.88, 0.93)},
        {"noise_range_end": (0.88, 0.93)},
        {"perp_neg": 1.0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_setting_counts(change: dict) -> None:
    changed, default = (distillation(PatternGuideConfig(), **settings) for settings in (change, {}))
    assert distilled(changed, progress=0.5) != distilled(default, progress=0.5)
