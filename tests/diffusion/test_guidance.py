"""Guidance against closed forms."""

import pytest
import torch
from tiny import GaussianGuide, GaussianGuideConfig, PatternGuideConfig
from torch import Tensor

from db3d_nerfstudio.diffusion.guidance import Conditioning, PerpNeg, add_noise, guided_noise


def inputs(guide: GaussianGuide, num: int = 2) -> tuple[Tensor, Conditioning]:
    rgb = torch.rand(num, 3, guide.resolution, guide.resolution, generator=torch.Generator().manual_seed(0))
    return rgb, Conditioning.of(guide, ["a dog"] * num)


@pytest.mark.parametrize("scale", [0.0, 1.0, 7.5])
def test_guidance_is_affine_in_its_scale(scale: float) -> None:
    guide = GaussianGuideConfig().setup()
    z_t, conditioning = inputs(guide)
    t = torch.tensor([10, 900])
    eps_text, eps_uncond = (guide.predict_noise(z_t, t, text) for text in (conditioning.text, conditioning.uncond))
    guided = guided_noise(guide, z_t, t, conditioning, scale)
    torch.testing.assert_close(guided, (1 - scale) * eps_uncond + scale * eps_text)  # 0: uncond alone, 1: text alone


def test_guidance_calls_the_network_once() -> None:
    guide = GaussianGuideConfig().setup()
    batches = []
    predict = guide.predict_noise
    guide.predict_noise = lambda z_t, t, text: batches.append(len(z_t)) or predict(z_t, t, text)
    z_t, conditioning = inputs(guide)
    guided_noise(guide, z_t, torch.tensor([1, 2]), conditioning, 3.0)
    assert batches == [4]


def clean(guide: GaussianGuide, z_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    abar = guide.alphas_cumprod[t][:, None, None, None]
    return (z_t - (1 - abar).sqrt() * eps) / abar.sqrt()


def test_perp_neg_leads_away_without_weakening_the_prompt() -> None:
    """What is added is perpendicular to the prompt's direction, and away from the other prompt's."""
    guide = PatternGuideConfig().setup()
    z_t, conditioning = inputs(guide)
    text, uncond = conditioning.text, conditioning.uncond
    t, s, weight = torch.tensor([100, 700]), 5.0, torch.tensor([[0.5], [2.0]])
    back = guide.embed(["a cat"] * 2)

    def guided(text: Tensor, away: Tensor | None) -> Tensor:
        perp_neg = None if away is None else PerpNeg(away[:, None], weight)
        return guided_noise(guide, z_t, t, Conditioning(text, uncond, perp_neg), s)

    plain, kept = guided(text, None), guided(text, back)
    eps_text, eps_uncond, eps_back = (guide.predict_noise(z_t, t, prompt) for prompt in (text, uncond, back))
    added, towards, other = ((x).flatten(1) for x in (kept - plain, eps_text - eps_uncond, eps_back - eps_uncond))
    torch.testing.assert_close(torch.cosine_similarity(added, towards), torch.zeros(2), atol=1e-4, rtol=0)
    sideways = other - towards * ((other * towards).sum(1) / towards.square().sum(1))[:, None]
    torch.testing.assert_close(added, -s * weight * sideways, atol=1e-3, rtol=1e-3)
    # The prompt has nothing perpendicular to itself.
    torch.testing.assert_close(guided(text, text), plain, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(guided(uncond, uncond), eps_uncond, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("amount", [0.0, 0.5, 1.0])
def test_rescaling_returns_the_contrast_that_guidance_added(amount: float) -> None:
    guide = PatternGuideConfig(std=0.05).setup()
    z_t, conditioning = inputs(guide)
    t = torch.tensor([600, 900])

    def contrast(scale: float, rescale: float = 0.0) -> Tensor:
        return clean(guide, z_t, t, guided_noise(guide, z_t, t, conditioning, scale, rescale)).std((1, 2, 3))

    scales = [contrast(1.0), contrast(20.0)]
    assert (scales[1] > 5 * scales[0]).all()
    found = contrast(20.0, amount)
    torch.testing.assert_close(found, amount * scales[0] + (1 - amount) * scales[1], rtol=1e-3, atol=1e-4)


def test_noising_has_the_variance_of_the_schedule() -> None:
    guide = GaussianGuideConfig().setup()
    z, eps = torch.full((3, 1, 64, 64), 2.0), torch.randn(3, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0, 500, 999])
    z_t, abar = add_noise(guide, z, t, eps), guide.alphas_cumprod[t]
    torch.testing.assert_close(z_t.mean(dim=(1, 2, 3)), 2 * abar.sqrt(), atol=0.05, rtol=0)
    torch.testing.assert_close(z_t.var(dim=(1, 2, 3)), 1 - abar, atol=0.05, rtol=0)


def test_part_of_a_conditioning() -> None:
    guide = PatternGuideConfig().setup()
    text, away = guide.embed(["a dog", "a cat", "a duck"]), guide.embed(["a car"] * 3)
    weights = torch.tensor([[1.0], [2.0], [3.0]])
    part = Conditioning(text, guide.embed([""] * 3), PerpNeg(away[:, None], weights))[1:]
    assert len(part) == 2 and torch.equal(part.text, text[1:]) and len(part.uncond) == 2
    assert part.away.weights.tolist() == [[2], [3]] and torch.equal(part.away.text, away[1:, None])


def test_prompts_share_a_negative_prompt() -> None:
    guide = GaussianGuideConfig(means={"blurry": -1.0, "a cat": 0.2}).setup()
    conditioning = Conditioning.of(guide, ["a dog", "a cat"], "blurry")
    assert conditioning.text.flatten().tolist() == pytest.approx([0.7, 0.2])
    assert conditioning.uncond.flatten().tolist() == [-1, -1] and conditioning.away is None
