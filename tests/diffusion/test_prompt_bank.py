"""Prompts: the subject in a sentence, and the view in a camera."""

import pytest
import torch
from tiny import GaussianGuideConfig

from db3d_nerfstudio.cameras import Views
from db3d_nerfstudio.diffusion.prompt_bank import (
    VIEW_NAMES,
    PromptBank,
    Subject,
    away_weights,
    direction_names,
    direction_weights,
    nearest_prompts,
    parse_subject,
    view_prompts,
    view_weights,
)


def views(*elevation_azimuth: tuple[float, float]) -> Views:
    elevation, azimuth = torch.tensor(elevation_azimuth, dtype=torch.float32).T
    return Views(elevation, azimuth, torch.full_like(azimuth, 3.0), torch.full_like(azimuth, 40.0))


@pytest.mark.parametrize(
    ("prompt", "class_noun"),
    [
        ("a photo of a sks robot", "robot"),
        ("a photo of sks dog wearing a red hat", "dog"),
        ("a DSLR photo of a sks duck toy, studio light", "duck toy"),
        ("sks teddy bear sitting on a rock", "teddy bear"),
    ],
)
def test_class_noun_ends_where_context_begins(prompt: str, class_noun: str) -> None:
    assert parse_subject(prompt) == Subject(prompt, "sks", class_noun)


def test_instance_and_class_prompts_leave_the_context_out() -> None:
    subject = parse_subject("a photo of a olis robot wearing a hat", identifier="olis")
    assert subject.instance_prompt == "a photo of a olis robot"
    assert subject.class_prompt == "a photo of a robot"


def test_given_class_noun_wins() -> None:
    assert parse_subject("a photo of sks", class_noun="owl").class_prompt == "a photo of a owl"


@pytest.mark.parametrize("prompt", ["a photo of a robot", "a photo of a skstoy robot", "a photo of a my-sks robot", ""])
def test_missing_identifier_is_an_error_with_the_fix(prompt: str) -> None:
    with pytest.raises(ValueError, match='does not contain the identifier "sks".*a photo of a sks'):
        parse_subject(prompt)


@pytest.mark.parametrize("prompt", ["a photo of a sks", "a photo of sks, studio light", "sks on a table"])
def test_missing_class_noun_is_an_error_with_the_fix(prompt: str) -> None:
    with pytest.raises(ValueError, match='No class noun follows "sks".*a photo of a sks robot'):
        parse_subject(prompt)


def test_view_prompts_come_in_the_order_of_their_names() -> None:
    assert tuple(view_prompts("a dog")) == VIEW_NAMES
    assert view_prompts("a dog")["side"] == "a dog, side view"


def test_nearest_view() -> None:
    seen = views((0, 0), (0, 45), (0, -46), (0, 134), (0, -135), (59, 180), (60, 359), (61, 90), (85, 0))
    names = [VIEW_NAMES[i] for i in view_weights(seen, interpolate=False).argmax(dim=-1)]
    assert names == ["front", "front", "side", "side", "back", "back", "front", "overhead", "overhead"]
    assert view_weights(seen, interpolate=False).unique().tolist() == [0, 1]


def test_interpolated_view_is_linear_between_the_named_ones() -> None:
    seen = views((0, 0), (0, 90), (0, -180), (0, 45), (0, -150), (60, 45), (75, 10))
    expected = [
        [1, 0, 0, 0],
        [0, 1, 0, 0],
        [0, 0, 1, 0],
        [0.5, 0.5, 0, 0],
        [0, 1 / 3, 2 / 3, 0],
        [0.25, 0.25, 0, 0.5],
        [0, 0, 0, 1],
    ]
    torch.testing.assert_close(view_weights(seen, interpolate=True), torch.tensor(expected))


def test_guides_that_tell_left_from_right_are_told_one_of_eight_directions() -> None:
    seen = views((0, 0), (0, 50), (0, -50), (0, 90), (0, -90), (80, 180), (59, 300))
    said = [prompt.removeprefix("a dog, ") for prompt in nearest_prompts("a dog", seen, sided=True)]
    assert said == [
        "front view",
        "front left view",
        "front right view",
        "left side view",
        "right side view",
        "overhead back view",
        "front right view",
    ]
    mixed = direction_weights(views((0, 30), (60, -90)), interpolate=True, sided=True)
    torch.testing.assert_close(mixed[0, :2], torch.tensor([1 / 3, 2 / 3]))
    torch.testing.assert_close(mixed[1, [6, 14]], torch.tensor([0.5, 0.5]))


@pytest.mark.parametrize("interpolate", [False, True])
@pytest.mark.parametrize("sided", [False, True])
def test_weights_of_a_view_sum_to_one(interpolate: bool, sided: bool) -> None:
    everywhere = views(*((e, a) for e in range(-90, 91, 15) for a in range(-180, 361, 15)))
    weights = direction_weights(everywhere, interpolate, sided)
    assert weights.shape[1] == len(direction_names(sided))
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(len(weights)))


def test_bank_picks_and_mixes_the_embeddings() -> None:
    means = {prompt: float(i) for i, prompt in enumerate(view_prompts("a sks dog").values())}
    guide = GaussianGuideConfig(means={**means, "blurry": -1.0}).setup()
    bank = PromptBank(guide, "a sks dog", negative_prompt="blurry")
    seen = views((0, 45), (80, 0))
    assert bank.text(seen).flatten().tolist() == [0, 3]
    assert bank.text(seen, interpolate=True).flatten().tolist() == [0.5, 3]
    assert bank.uncond(seen).flatten().tolist() == [-1, -1]
    assert PromptBank(guide, "a sks dog").uncond(views((0, 0))).item() == 0


def test_bank_of_a_guide_that_tells_left_from_right() -> None:
    directions = [f"a sks dog, {name} view" for name in direction_names(sided=True)]
    guide = GaussianGuideConfig(means={prompt: float(i) for i, prompt in enumerate(directions)}).setup()
    guide.tells_sides = True
    seen = views((0, 90), (0, -90), (80, 45))
    assert PromptBank(guide, "a sks dog").text(seen).flatten().tolist() == [2, 6, 9]


def test_guide_may_write_the_cameras_into_the_text() -> None:
    """As a multi-view model would: for the prompt and for the negative prompt."""
    guide = GaussianGuideConfig().setup()
    guide.add_cameras = lambda text, views: text + views.azimuth[:, None, None]
    bank = PromptBank(guide, "a sks dog")
    seen = views((0, 30), (0, 90))
    assert bank.text(seen).flatten().tolist() == pytest.approx([30.7, 90.7])
    assert bank.uncond(seen).flatten().tolist() == [30, 90]


def test_weights_of_perp_neg() -> None:
    """Of front and side, in front, at the side, behind and from above; steady where the two halves meet."""
    weights = away_weights(views((0, 0), (0, 90), (0, -90), (0, 180), (90, 180)))
    expected = torch.tensor([[0, 1.574], [1.574, 0], [1.574, 0], [1.967, 0.394], [0, 0]])
    torch.testing.assert_close(weights, expected, atol=1e-3, rtol=0)
    before, after = away_weights(views((0, 89.9), (0, 90.1)))
    torch.testing.assert_close(before, after, atol=1e-2, rtol=0)


def test_bank_keeps_away_from_front_and_side() -> None:
    means = {prompt: float(i) for i, prompt in enumerate(view_prompts("a sks dog").values())}
    bank = PromptBank(GaussianGuideConfig(means=means).setup(), "a sks dog")
    seen = views((0, 45), (0, 180))
    assert bank.away(seen, 0.0) is None
    away = bank.away(seen, 0.5)
    assert away.text.flatten(1).tolist() == [[0, 1], [0, 1]]
    torch.testing.assert_close(away.weights, 0.5 * away_weights(seen))
