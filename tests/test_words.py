"""Words: the subject in a sentence, and the names of views."""

import re

import pytest
import torch

from db3d_nerfstudio.cameras import Views
from db3d_nerfstudio.words import (
    VIEW_NAMES,
    Subject,
    direction_names,
    direction_weights,
    drop_identifier,
    nearest_prompts,
    parse_subject,
    prompts_of_run,
    tidy,
    view_prompts,
    view_weights,
)


def views(*elevation_azimuth: tuple[float, float]) -> Views:
    elevation, azimuth = torch.tensor(elevation_azimuth, dtype=torch.float32).T
    return Views(elevation, azimuth, torch.full_like(azimuth, 3.0), torch.full_like(azimuth, 40.0))


@pytest.mark.parametrize(
    ("prompt", "plain"),
    [
        ("a photo of a sks dog in the snow", "a photo of a dog in the snow"),
        ("sks, the dog of sks-land", ", the dog of sks-land"),
    ],
)
def test_the_identifier_is_dropped_as_a_word(prompt, plain):
    assert drop_identifier(prompt, "sks") == plain


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


@pytest.mark.parametrize(
    "typed",
    [
        *(
            "a photo of a sks dog.",
            " a photo of\ta sks dog\n",
            "a photo of a sks dog, ",
            "\ufeffa photo of a sks\u200bdog",
        ),
        *("\u201ca photo of a sks dog.\u201d", "'a photo of a sks dog'", "\u00ab a photo of a sks dog \u00bb."),
    ],
)
def test_what_typing_and_copying_leave_around_a_prompt_is_dropped(typed: str) -> None:
    assert tidy(typed) == "a photo of a sks dog"


@pytest.mark.parametrize("prompt", ["a sks dog's", 'a sign that reads "hi"', "what a sks dog!", "sks", "'", "sks の犬"])
def test_the_rest_of_a_prompt_is_left_alone(prompt: str) -> None:
    assert tidy(prompt) == prompt


def test_given_class_noun_wins() -> None:
    assert parse_subject("a photo of sks", class_noun="owl").class_prompt == "a photo of a owl"


@pytest.mark.parametrize("prompt", ["a photo of a robot", "a photo of a skstoy robot", "a photo of a my-sks robot", ""])
def test_missing_identifier_is_an_error_with_the_fix(prompt: str) -> None:
    with pytest.raises(ValueError, match='does not contain the identifier "sks".*a photo of a sks'):
        parse_subject(prompt)


@pytest.mark.parametrize(
    ("prompt", "meant"), [("A photo of a SKS dog", "SKS"), ("a [V] dog", "[V]"), ("a <new> dog", "<new>")]
)
def test_what_was_meant_as_the_identifier_is_named(prompt: str, meant: str) -> None:
    with pytest.raises(ValueError, match=rf'Write it in place of "{re.escape(meant)}"'):
        parse_subject(prompt)


@pytest.mark.parametrize("prompt", ["a photo of a sks", "a photo of sks, studio light", "sks on a table"])
def test_missing_class_noun_is_an_error_with_the_fix(prompt: str) -> None:
    with pytest.raises(ValueError, match='No class noun follows "sks".*a photo of a sks robot'):
        parse_subject(prompt)


def test_view_prompts_come_in_the_order_of_their_names() -> None:
    assert tuple(view_prompts("a dog")) == VIEW_NAMES
    assert view_prompts("a dog")["side"] == "a dog, side view"


@pytest.mark.parametrize("sided", [False, True])
def test_the_prompts_of_a_run_name_every_view_of_all_that_is_shown(sided: bool) -> None:
    prompts = prompts_of_run("sks dog on grass", parse_subject("a sks dog"), "ugly", sided)
    assert {"sks dog on grass", "a photo of a sks dog", "a photo of a dog", "ugly", ""} <= set(prompts)
    for text in ("sks dog on grass", "a photo of a sks dog", "a photo of a dog"):
        for view in [*VIEW_NAMES, *direction_names(sided)]:
            assert f"{text}, {view} view" in prompts
    assert len(prompts) == len(set(prompts))
    assert not any("photo" in prompt for prompt in prompts_of_run("a dog"))


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
