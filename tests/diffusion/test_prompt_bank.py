"""Prompts: the view in a camera, and the embeddings that go with it."""

import pytest
import torch
from tiny import GaussianGuideConfig

from db3d_nerfstudio.cameras import Views
from db3d_nerfstudio.diffusion.prompt_bank import PromptBank, perp_neg_weights
from db3d_nerfstudio.words import (
    direction_names,
    view_prompts,
)


def views(*elevation_azimuth: tuple[float, float]) -> Views:
    elevation, azimuth = torch.tensor(elevation_azimuth, dtype=torch.float32).T
    return Views(elevation, azimuth, torch.full_like(azimuth, 3.0), torch.full_like(azimuth, 40.0))


def test_bank_picks_and_mixes_the_embeddings() -> None:
    means = {prompt: float(i) for i, prompt in enumerate(view_prompts("a sks dog").values())}
    guide = GaussianGuideConfig(means={**means, "blurry": -1.0}).setup()
    seen = views((0, 45), (80, 0))
    nearest, mixed = (PromptBank(guide, "a sks dog", "blurry", interpolate)(seen) for interpolate in (False, True))
    assert nearest.text.flatten().tolist() == [0, 3]
    assert mixed.text.flatten().tolist() == [0.5, 3]
    assert nearest.uncond.flatten().tolist() == [-1, -1]
    assert PromptBank(guide, "a sks dog")(views((0, 0))).uncond.item() == 0


def test_bank_of_a_guide_that_tells_left_from_right() -> None:
    directions = [f"a sks dog, {name} view" for name in direction_names(sided=True)]
    guide = GaussianGuideConfig(means={prompt: float(i) for i, prompt in enumerate(directions)}).setup()
    guide.tells_sides = True
    seen = views((0, 90), (0, -90), (80, 45))
    assert PromptBank(guide, "a sks dog")(seen).text.flatten().tolist() == [2, 6, 9]


def test_guide_may_write_the_cameras_into_the_text() -> None:
    """As a multi-view model would: for the prompt and for the negative prompt."""
    guide = GaussianGuideConfig().setup()
    guide.add_cameras = lambda text, views: text + views.azimuth[:, None, None]
    conditioning = PromptBank(guide, "a sks dog", perp_neg=1.0)(views((0, 30), (0, 90)))
    assert conditioning.text.flatten().tolist() == pytest.approx([30.7, 90.7])
    assert conditioning.uncond.flatten().tolist() == [30, 90]
    assert conditioning.away.text.flatten(1).tolist() == [pytest.approx([30.7] * 2), pytest.approx([90.7] * 2)]


def test_weights_of_perp_neg() -> None:
    """Of front and side, in front, at the side, behind and from above; steady where the two halves meet."""
    weights = perp_neg_weights(views((0, 0), (0, 90), (0, -90), (0, 180), (90, 180)))
    expected = torch.tensor([[0, 1.574], [1.574, 0], [1.574, 0], [1.967, 0.394], [0, 0]])
    torch.testing.assert_close(weights, expected, atol=1e-3, rtol=0)
    before, after = perp_neg_weights(views((0, 89.9), (0, 90.1)))
    torch.testing.assert_close(before, after, atol=1e-2, rtol=0)


def test_bank_keeps_away_from_front_and_side() -> None:
    means = {prompt: float(i) for i, prompt in enumerate(view_prompts("a sks dog").values())}
    guide, seen = GaussianGuideConfig(means=means).setup(), views((0, 45), (0, 180))
    assert PromptBank(guide, "a sks dog")(seen).away is None
    away = PromptBank(guide, "a sks dog", perp_neg=0.5)(seen).away
    assert away.text.flatten(1).tolist() == [[0, 1], [0, 1]]
    torch.testing.assert_close(away.weights, 0.5 * perp_neg_weights(seen))
