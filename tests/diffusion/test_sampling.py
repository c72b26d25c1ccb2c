"""Sampling and img2img against the analytic guide."""

import pytest
import torch
from tiny import GaussianGuide, GaussianGuideConfig
from torch import Tensor

from db3d_nerfstudio.diffusion.guidance import Conditioning
from db3d_nerfstudio.diffusion.sampling import BATCH_SIZE, SamplingConfig, TranslationConfig, draw, sample, translate
from db3d_nerfstudio.errors import UserError

PROMPTS = ["a dog", "a duck"]


def gaussian_guide(std: float = 0.05, scale: float = 1.0) -> GaussianGuide:
    return GaussianGuideConfig(means={"a dog": 0.3, "a duck": 0.6}, std=std, scale=scale, resolution=16).setup()


def drawn(guide: GaussianGuide, steps: int, guidance_scale: float = 1.0) -> Tensor:
    return sample(guide, Conditioning.of(guide, PROMPTS), SamplingConfig(steps, guidance_scale), seeded())


def redrawn(
    guide: GaussianGuide,
    rgb: torch.Tensor,
    strength: float,
    steps: int,
    seed: int = 0,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    conditioning = Conditioning.of(guide, PROMPTS[: len(rgb)])
    return translate(guide, rgb, conditioning, TranslationConfig(steps, 1.0, strength=strength), seeded(seed), mask)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_samples_follow_the_distribution_of_their_prompt() -> None:
    guide = gaussian_guide(std=0.1)
    images = drawn(guide, steps=500)
    assert images.shape == (2, 3, 16, 16)
    torch.testing.assert_close(images.mean(dim=(1, 2, 3)), torch.tensor([0.3, 0.6]), atol=0.01, rtol=0)
    torch.testing.assert_close(images.std(dim=(1, 2, 3)), torch.full((2,), 0.1), atol=0.01, rtol=0)


def test_guidance_moves_away_from_the_empty_prompt() -> None:
    guide = gaussian_guide()
    images = drawn(guide, steps=20, guidance_scale=1.5)
    torch.testing.assert_close(images.mean(dim=(1, 2, 3)), torch.tensor([0.45, 0.9]), atol=0.02, rtol=0)


@pytest.mark.parametrize("strength", [0.0, 0.01])
def test_no_strength_returns_the_image(strength: float) -> None:
    guide = gaussian_guide(scale=3.0)
    rgb = torch.rand(2, 3, 16, 16, generator=seeded())
    same = redrawn(guide, rgb, strength, steps=20)
    torch.testing.assert_close(same, rgb)


def test_full_strength_forgets_the_image() -> None:
    guide = gaussian_guide()
    black, white = (redrawn(guide, torch.full((2, 3, 16, 16), value), 1.0, steps=10) for value in (0.0, 1.0))
    assert torch.equal(black, white)
    assert torch.equal(black, drawn(guide, steps=10))


def test_strength_trades_the_image_for_the_prompt() -> None:
    guide = gaussian_guide()
    rgb = torch.full((2, 3, 16, 16), 0.9)
    means = [redrawn(guide, rgb, strength, steps=20)[0].mean().item() for strength in (0.0, 0.05, 0.1, 0.2, 0.9)]
    assert means == sorted(means, reverse=True)
    assert means[0] == pytest.approx(0.9) and means[-1] == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize(("strength", "first"), [(0.25, 249), (0.5, 499), (0.98, 979)])
def test_strength_is_the_noise_level_denoising_starts_from(strength: float, first: int) -> None:
    guide = gaussian_guide()
    seen = []
    predict = guide.predict_noise
    guide.predict_noise = lambda z_t, t, text: seen.append(t[0].item()) or predict(z_t, t, text)
    redrawn(guide, torch.rand(2, 3, 16, 16), strength, steps=100)
    assert seen[0] == first and seen[-1] == 9 and len(seen) == 100 * strength


def test_seed_decides() -> None:
    guide = gaussian_guide()
    rgb = torch.rand(2, 3, 16, 16, generator=seeded())
    first, again, other = (redrawn(guide, rgb, 0.5, steps=4, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_bounded_codecs_have_their_estimates_clipped() -> None:
    """Wild guidance without the clip ends at mean * scale, far outside of what a bounded z can be."""
    guide = gaussian_guide()
    guide.decode = lambda z: z
    assert drawn(guide, steps=10, guidance_scale=30.0).max() > 5
    guide.z_bound = 0.5
    assert drawn(guide, steps=10, guidance_scale=30.0).abs().max() <= 0.5


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_the_guide_draws_where_it_may_and_nowhere_else(strength: float) -> None:
    """The analytic guide treats every pixel by itself: what is kept elsewhere does not change what is drawn."""
    guide = gaussian_guide()
    rgb = torch.rand(2, 3, 16, 16, generator=seeded())
    left = torch.zeros(2, 1, 16, 16)
    left[..., :8] = 1
    free = redrawn(guide, rgb, strength, steps=10)
    kept = redrawn(guide, rgb, strength, steps=10, mask=left)
    torch.testing.assert_close(kept[..., :8], free[..., :8])
    torch.testing.assert_close(kept[..., 8:], rgb[..., 8:])
    assert not torch.allclose(free[..., 8:], rgb[..., 8:], atol=0.1)


def test_what_is_kept_is_as_noisy_as_what_is_drawn() -> None:
    guide = gaussian_guide()
    rgb, seen = torch.full((1, 3, 16, 16), 0.8), []
    predict = guide.predict_noise
    guide.predict_noise = lambda z_t, t, text: seen.append((z_t, t[0])) or predict(z_t, t, text)
    redrawn(guide, rgb, 0.8, steps=10, mask=torch.zeros(1, 1, 16, 16))
    for z_t, t in seen:
        abar = guide.alphas_cumprod[t]
        noise = (z_t - abar.sqrt() * guide.encode(rgb)) / (1 - abar).sqrt()
        assert noise.mean().abs() < 0.1 and noise.std() == pytest.approx(1, abs=0.1)


def test_a_pixel_of_z_is_drawn_if_any_of_the_pixels_that_it_covers_may_be() -> None:
    guide = gaussian_guide()
    mask = torch.zeros(2, 1, 32, 32)
    mask[..., 5, 7] = 1
    rgb = torch.full((2, 3, 32, 32), 0.9)
    changed = (redrawn(guide, rgb, 0.9, steps=10, mask=mask) - 0.9).abs().amax(1) > 1e-4
    assert changed[0].nonzero().tolist() == [[2, 3]]


@pytest.mark.parametrize("strength", [-0.1, 1.1])
def test_strength_outside_of_the_schedule_is_an_error(strength: float) -> None:
    guide = gaussian_guide()
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        redrawn(guide, torch.rand(2, 3, 16, 16), strength, steps=2)


def test_every_prompt_gets_its_image_whatever_the_number_of_batches() -> None:
    guide, told = gaussian_guide(std=0.0), []
    images = draw(guide, PROMPTS * 5, SamplingConfig(3, 1.0), seed=0, progress=told.append)
    torch.testing.assert_close(images.mean((1, 2, 3)), torch.tensor([0.3, 0.6] * 5), atol=1e-3, rtol=0)
    assert told == [BATCH_SIZE, 10]


@pytest.mark.parametrize("change", [{"seed": 1}, {"negative_prompt": "blurry"}, {"config": SamplingConfig(3, 1.5)}])
def test_every_setting_changes_what_is_drawn(change: dict) -> None:
    guide, plain = gaussian_guide(), {"config": SamplingConfig(2, 1.5), "seed": 0}
    guide.config.means["blurry"] = 0.9
    first, again, other = (draw(guide, PROMPTS, **settings) for settings in (plain, plain, {**plain, **change}))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.3, 0.7), (0.0, 0.45), (0.5, 1.0), (0.95, 0.97)])
def test_guidance_acts_in_its_interval(interval: tuple[float, float]) -> None:
    """DDIM of z ~ N(m, 0.3^2) by hand: guidance makes s m of the mean m, where it acts."""
    guide, scale, low, high = gaussian_guide(std=0.3), 1.5, *interval
    guide.decode = lambda z: z
    config = SamplingConfig(10, scale, interval)
    drawn = sample(guide, Conditioning.of(guide, ["a dog"]), config, seeded())
    z, abar = torch.randn(1, 3, 16, 16, generator=seeded()), [*guide.alphas_cumprod[99::100], 1.0]
    for step in reversed(range(10)):
        mean = 0.3 * (scale if low <= (99 + 100 * step) / 999 <= high else 1.0)
        a, after = abar[step], abar[step - 1]
        eps = (1 - a).sqrt() * (z - a.sqrt() * mean) / (a * 0.3**2 + 1 - a)
        clean = (z - (1 - a).sqrt() * eps) / a.sqrt()
        z = torch.as_tensor(after).sqrt() * clean + (1 - torch.as_tensor(after)).sqrt() * eps
    torch.testing.assert_close(drawn, z, atol=1e-4, rtol=1e-4)


def test_a_step_without_guidance_calls_the_conditional_model_alone() -> None:
    guide, seen = gaussian_guide(), []
    predict = guide.predict_noise
    guide.predict_noise = lambda z_t, t, text: seen.append(len(z_t)) or predict(z_t, t, text)
    conditioning = Conditioning.of(guide, PROMPTS)
    translate(guide, torch.rand(2, 3, 16, 16), conditioning, TranslationConfig(10, 4.0, (0.3, 0.5), strength=0.7))
    assert seen == [2, 2, 4, 4, 2, 2, 2]  # t = 699, 599, 499, ...
    seen.clear()
    translate(guide, torch.rand(2, 3, 16, 16), conditioning, TranslationConfig(10, 4.0, strength=0.7))
    assert seen == [4] * 7


@pytest.mark.parametrize("interval", [(0.5, 0.4), (-0.1, 1.0), (0.0, 1.1)])
def test_an_interval_outside_of_the_schedule_is_an_error(interval: tuple[float, float]) -> None:
    with pytest.raises(UserError, match="guidance_interval"):
        sample(gaussian_guide(), Conditioning.of(gaussian_guide(), PROMPTS), SamplingConfig(2, 4.0, interval))
