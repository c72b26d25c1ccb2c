"""Denoising errors against the closed form of the analytic guide."""

import pytest
import torch
from tiny import GaussianGuideConfig

from db3d_nerfstudio.diffusion.denoising import NoiseLevels, denoising_errors

NOISES = (0.3, 0.8)


def errors(guide, z, draws=400, **how):
    text = guide.embed(["a photo of a dog"] * len(z))
    generator = torch.Generator().manual_seed(0)
    return denoising_errors(guide, z, text, NoiseLevels(NOISES, draws), generator, **how)


def test_errors_are_those_of_the_closed_form():
    """eps_hat - eps = (a s d - a^2 sigma^2 eps) / (a^2 sigma^2 + s^2) for an image that is d from the mean."""
    guide = GaussianGuideConfig(mean=0.5, std=0.4).setup()
    offsets = torch.tensor([0.0, 0.3])
    z = (0.5 + offsets)[:, None, None, None].expand(2, 3, 8, 8)
    abar = guide.alphas_cumprod[[round(noise * 999) for noise in NOISES]][:, None]
    spread, signal = abar * 0.4**2, (abar * (1 - abar)).sqrt() * offsets
    expected = (signal.square() + spread.square()) / (spread + 1 - abar).square()
    torch.testing.assert_close(errors(guide, z), expected, rtol=0.05, atol=0)


def test_errors_count_where_the_mask_is():
    guide = GaussianGuideConfig(mean=0.5).setup()
    z = torch.full((1, 3, 8, 8), 0.5)
    z[..., :4] = 5.0
    left = torch.zeros(1, 1, 8, 8)
    left[..., :4] = 1
    assert (errors(guide, z, mask=1 - left) < 0.2 * errors(guide, z, mask=left)).all()
    both = (errors(guide, z, mask=left) + errors(guide, z, mask=1 - left)) / 2
    torch.testing.assert_close(errors(guide, z), both)


def test_all_of_a_batch_get_the_same_noise():
    guide = GaussianGuideConfig().setup()
    first, second = errors(guide, torch.full((2, 3, 8, 8), 0.2), draws=1).unbind(1)
    assert first.tolist() == pytest.approx(second.tolist())
