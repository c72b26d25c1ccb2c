"""Score distillation against the analytic guide, whose every expectation has a closed form."""

import pytest
import torch
from tiny import GaussianGuide, GaussianGuideConfig, PatternGuideConfig
from torch import Tensor

from db3d_nerfstudio.diffusion.sds import (
    Away,
    add_noise,
    annealed_t_range,
    guided_noise,
    sample_timesteps,
    sds_loss,
    sds_loss_of_z,
    sds_weight,
)


def inputs(guide: GaussianGuide, num: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    rgb = torch.rand(num, 3, guide.resolution, guide.resolution, generator=torch.Generator().manual_seed(0))
    return rgb.requires_grad_(), guide.embed(["a dog"] * num), guide.embed([""] * num)


@pytest.mark.parametrize("scale", [0.0, 1.0, 7.5])
def test_guidance_is_affine_in_its_scale(scale: float) -> None:
    guide = GaussianGuideConfig().setup()
    rgb, text, uncond = inputs(guide)
    t = torch.tensor([10, 900])
    eps_text, eps_uncond = guide.predict_noise(rgb, t, text), guide.predict_noise(rgb, t, uncond)
    guided = guided_noise(guide, rgb, t, text, uncond, scale)
    torch.testing.assert_close(guided, (1 - scale) * eps_uncond + scale * eps_text)  # 0: uncond alone, 1: text alone


def test_guidance_calls_the_network_once() -> None:
    guide = GaussianGuideConfig().setup()
    batches = []
    predict = guide.predict_noise
    guide.predict_noise = lambda z_t, t, text: batches.append(len(z_t)) or predict(z_t, t, text)
    guided_noise(guide, *(inputs(guide)[0], torch.tensor([1, 2]), *inputs(guide)[1:]), 3.0)
    assert batches == [4]


@pytest.mark.parametrize("weighting", ["sigma2", "uniform", "fantasia"])
@pytest.mark.parametrize("scale", [1.0, -2.0])
def test_gradient_is_the_equation(weighting: str, scale: float) -> None:
    """mean over b of w(t) (eps_hat - eps) dz/drgb, with z = scale * rgb and the closed form of eps_hat."""
    guide = GaussianGuideConfig(scale=scale, std=0.2).setup()
    rgb, text, uncond = inputs(guide)
    t, s = torch.tensor([100, 700]), 4.0
    sds_loss(
        guide, rgb, text, uncond, t=t, guidance_scale=s, weighting=weighting, generator=torch.Generator().manual_seed(3)
    ).backward()

    eps = torch.randn(rgb.shape, generator=torch.Generator().manual_seed(3))
    abar = guide.alphas_cumprod[t][:, None, None, None]
    z_t = abar.sqrt() * scale * rgb.detach() + (1 - abar).sqrt() * eps
    mean = s * 0.7  # uncond is 0: guidance moves the mean to 0 + s (0.7 - 0)
    eps_hat = (1 - abar).sqrt() * (z_t - abar.sqrt() * mean) / (abar * 0.2**2 + 1 - abar)
    weight = {"sigma2": 1 - abar, "uniform": 1, "fantasia": abar.sqrt() * (1 - abar)}[weighting]
    torch.testing.assert_close(rgb.grad, weight * (eps_hat - eps) * scale / len(rgb))


def test_an_image_is_graded_as_its_z() -> None:
    guide = GaussianGuideConfig().setup()
    rgb, text, uncond = inputs(guide)
    how = {"t": torch.tensor([100, 700]), "guidance_scale": 3.0, "weighting": "uniform", "rescale": 0.5}
    losses = [
        loss(guide, rgb, text, uncond, **how, generator=torch.Generator().manual_seed(3))
        for loss in (sds_loss, sds_loss_of_z)
    ]
    gradients = [torch.autograd.grad(loss, rgb)[0] for loss in losses]
    assert torch.equal(*losses) and torch.equal(*gradients), "the codec is the identity"


def clean(guide: GaussianGuide, z_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    abar = guide.alphas_cumprod[t][:, None, None, None]
    return (z_t - (1 - abar).sqrt() * eps) / abar.sqrt()


def test_perp_neg_leads_away_without_weakening_the_prompt() -> None:
    """What is added is perpendicular to the prompt's direction, and away from the other prompt's."""
    guide = PatternGuideConfig().setup()
    z_t, text, uncond = inputs(guide)
    t, s, weight = torch.tensor([100, 700]), 5.0, torch.tensor([[0.5], [2.0]])
    back = guide.embed(["a cat"] * 2)
    plain, kept = (
        guided_noise(guide, z_t, t, text, uncond, s, away=away) for away in (None, Away(back[:, None], weight))
    )
    eps_text, eps_uncond, eps_back = (guide.predict_noise(z_t, t, prompt) for prompt in (text, uncond, back))
    added, towards, other = ((x).flatten(1) for x in (kept - plain, eps_text - eps_uncond, eps_back - eps_uncond))
    torch.testing.assert_close(torch.cosine_similarity(added, towards), torch.zeros(2), atol=1e-4, rtol=0)
    sideways = other - towards * ((other * towards).sum(1) / towards.square().sum(1))[:, None]
    torch.testing.assert_close(added, -s * weight * sideways, atol=1e-3, rtol=1e-3)
    same = guided_noise(guide, z_t, t, text, uncond, s, away=Away(text[:, None], weight))
    # The prompt has nothing perpendicular to itself.
    torch.testing.assert_close(same, plain, atol=1e-4, rtol=1e-4)
    nothing = guided_noise(guide, z_t, t, uncond, uncond, s, away=Away(uncond[:, None], weight))
    torch.testing.assert_close(nothing, eps_uncond, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("amount", [0.0, 0.5, 1.0])
def test_rescaling_returns_the_contrast_that_guidance_added(amount: float) -> None:
    guide = PatternGuideConfig(std=0.05).setup()
    z_t, text, uncond = inputs(guide)
    t = torch.tensor([600, 900])
    scales = [clean(guide, z_t, t, guided_noise(guide, z_t, t, text, uncond, s)).std((1, 2, 3)) for s in (1.0, 20.0)]
    assert (scales[1] > 5 * scales[0]).all()
    found = clean(guide, z_t, t, guided_noise(guide, z_t, t, text, uncond, 20.0, rescale=amount)).std((1, 2, 3))
    torch.testing.assert_close(found, amount * scales[0] + (1 - amount) * scales[1], rtol=1e-3, atol=1e-4)


def test_value_is_half_the_squared_gradient() -> None:
    guide = GaussianGuideConfig().setup()
    rgb, text, uncond = inputs(guide, num=1)
    loss = sds_loss(guide, rgb, text, uncond, t=torch.tensor([500]), guidance_scale=1.0)
    loss.backward()
    torch.testing.assert_close(loss, 0.5 * rgb.grad.square().sum())


def test_gradient_passes_through_resizing() -> None:
    guide = GaussianGuideConfig(resolution=16).setup()
    rgb = torch.rand(1, 3, 4, 4, requires_grad=True)
    _, text, uncond = inputs(guide, num=1)
    sds_loss(guide, rgb, text, uncond, t=torch.tensor([500]), guidance_scale=1.0).backward()
    assert (rgb.grad != 0).all()


def test_distillation_moves_pixels_to_what_the_guide_believes() -> None:
    guide = GaussianGuideConfig(mean=0.7, resolution=4).setup()
    rgb, text, uncond = inputs(guide, num=1)
    optimizer = torch.optim.SGD([rgb], lr=0.2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        optimizer.zero_grad()
        t = sample_timesteps(1, (0.02, 0.98), 1000, generator)
        sds_loss(guide, rgb, text, uncond, t=t, guidance_scale=1.0, generator=generator).backward()
        optimizer.step()
    assert rgb.mean().item() == pytest.approx(0.7, abs=0.01)


def test_guide_is_left_alone() -> None:
    guide = GaussianGuideConfig().setup()
    sds_loss(guide, *inputs(guide), t=torch.tensor([1, 2]), guidance_scale=2.0).backward()
    assert all(parameter.grad is None for parameter in guide.parameters())


def test_noise_estimate_that_is_not_finite_stops_the_run() -> None:
    guide = GaussianGuideConfig().setup()
    rgb, text, uncond = inputs(guide)
    with pytest.raises(FloatingPointError, match=r"noise estimate at t = \[700\].*dtype"):
        text[1] = torch.inf
        sds_loss(guide, rgb, text, uncond, t=torch.tensor([3, 700]), guidance_scale=2.0)


def test_noising_has_the_variance_of_the_schedule() -> None:
    guide = GaussianGuideConfig().setup()
    z, eps = torch.full((3, 1, 64, 64), 2.0), torch.randn(3, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0, 500, 999])
    z_t, abar = add_noise(guide, z, t, eps), guide.alphas_cumprod[t]
    torch.testing.assert_close(z_t.mean(dim=(1, 2, 3)), 2 * abar.sqrt(), atol=0.05, rtol=0)
    torch.testing.assert_close(z_t.var(dim=(1, 2, 3)), 1 - abar, atol=0.05, rtol=0)


def test_weights_at_the_ends_of_the_schedule() -> None:
    ends = torch.tensor([1.0, 0.0])  # no noise, all noise
    assert sds_weight(ends, "sigma2").tolist() == [0, 1]
    assert sds_weight(ends, "fantasia").tolist() == [0, 0]


def test_timesteps_fill_their_range() -> None:
    drawn = sample_timesteps(20_000, (0.02, 0.05), 1000, torch.Generator().manual_seed(0))
    assert sorted(drawn.unique().tolist()) == list(range(20, 51))
    assert sample_timesteps(3, (1.0, 1.0), 1000).tolist() == [999] * 3
    with pytest.raises(ValueError, match="low <= high"):
        sample_timesteps(1, (0.9, 0.1), 1000)


def test_annealing_is_linear_and_stays_in_its_ends() -> None:
    assert annealed_t_range(0.0) == (0.02, 0.98)
    assert annealed_t_range(0.5, (0.0, 1.0), (0.2, 0.4)) == pytest.approx((0.1, 0.7))
    assert annealed_t_range(1.5) == annealed_t_range(1.0) == pytest.approx((0.02, 0.5))
