"""Sampling and img2img against the analytic guide."""

import pytest
import torch
from tiny import GaussianGuide, GaussianGuideConfig

from db3d_nerfstudio.translate import sample, translate

PROMPTS = ["a dog", "a duck"]


def gaussian_guide(std: float = 0.05, scale: float = 1.0) -> GaussianGuide:
    return GaussianGuideConfig(means={"a dog": 0.3, "a duck": 0.6}, std=std, scale=scale, resolution=16).setup()


def words(guide: GaussianGuide) -> dict[str, torch.Tensor]:
    return {"text": guide.embed(PROMPTS), "uncond": guide.embed([""] * len(PROMPTS))}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_samples_follow_the_distribution_of_their_prompt() -> None:
    guide = gaussian_guide(std=0.1)
    images = sample(guide, **words(guide), steps=500, guidance_scale=1.0, generator=seeded())
    assert images.shape == (2, 3, 16, 16)
    torch.testing.assert_close(images.mean(dim=(1, 2, 3)), torch.tensor([0.3, 0.6]), atol=0.01, rtol=0)
    torch.testing.assert_close(images.std(dim=(1, 2, 3)), torch.full((2,), 0.1), atol=0.01, rtol=0)


def test_guidance_moves_away_from_the_empty_prompt() -> None:
    guide = gaussian_guide()
    images = sample(guide, **words(guide), steps=20, guidance_scale=1.5, generator=seeded())
    torch.testing.assert_close(images.mean(dim=(1, 2, 3)), torch.tensor([0.45, 0.9]), atol=0.02, rtol=0)


@pytest.mark.parametrize("strength", [0.0, 0.01])
def test_no_strength_returns_the_image(strength: float) -> None:
    guide = gaussian_guide(scale=3.0)
    rgb = torch.rand(2, 3, 16, 16, generator=seeded())
    same = translate(guide, rgb, **words(guide), strength=strength, guidance_scale=1.0, steps=20, generator=seeded())
    torch.testing.assert_close(same, rgb)


def test_full_strength_forgets_the_image() -> None:
    guide = gaussian_guide()
    settings = {**words(guide), "guidance_scale": 1.0, "steps": 10}
    black, white = (
        translate(guide, torch.full((2, 3, 16, 16), value), strength=1.0, generator=seeded(), **settings)
        for value in (0.0, 1.0)
    )
    assert torch.equal(black, white)
    assert torch.equal(black, sample(guide, generator=seeded(), **settings))


def test_strength_trades_the_image_for_the_prompt() -> None:
    guide = gaussian_guide()
    rgb = torch.full((2, 3, 16, 16), 0.9)
    settings = {**words(guide), "guidance_scale": 1.0, "steps": 20}
    means = [
        translate(guide, rgb, strength=strength, generator=seeded(), **settings)[0].mean().item()
        for strength in (0.0, 0.05, 0.1, 0.2, 0.9)
    ]
    assert means == sorted(means, reverse=True)
    assert means[0] == pytest.approx(0.9) and means[-1] == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize(("strength", "first"), [(0.25, 249), (0.5, 499), (0.98, 979)])
def test_strength_is_the_noise_level_denoising_starts_from(strength: float, first: int) -> None:
    guide = gaussian_guide()
    seen = []
    predict = guide.predict_noise
    guide.predict_noise = lambda z_t, t, text: seen.append(t[0].item()) or predict(z_t, t, text)
    translate(guide, torch.rand(2, 3, 16, 16), **words(guide), strength=strength, guidance_scale=1.0, steps=100)
    assert seen[0] == first and seen[-1] == 9 and len(seen) == 100 * strength


def test_seed_decides() -> None:
    guide = gaussian_guide()
    rgb = torch.rand(2, 3, 16, 16, generator=seeded())
    first, again, other = (
        translate(guide, rgb, **words(guide), strength=0.5, guidance_scale=1.0, steps=4, generator=seeded(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_bounded_codecs_have_their_estimates_clipped() -> None:
    """Wild guidance without the clip ends at mean * scale, far outside of what a bounded z can be."""
    guide = gaussian_guide()
    settings = {**words(guide), "guidance_scale": 30.0, "steps": 10}
    guide.decode = lambda z: z
    assert sample(guide, generator=seeded(), **settings).max() > 5
    guide.z_bound = 0.5
    assert sample(guide, generator=seeded(), **settings).abs().max() <= 0.5


@pytest.mark.parametrize("strength", [-0.1, 1.1])
def test_strength_outside_of_the_schedule_is_an_error(strength: float) -> None:
    guide = gaussian_guide()
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        translate(guide, torch.rand(2, 3, 16, 16), **words(guide), strength=strength, guidance_scale=1.0, steps=2)
