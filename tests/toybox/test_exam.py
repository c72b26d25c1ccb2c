"""The guide's exam: what it asks, how it grades, and what it finds in true photos."""

import pytest
import torch
from safetensors.torch import save_file

from db3d_nerfstudio.diffusion.sampling import SamplingConfig
from db3d_nerfstudio.toybox import exam, network, questions
from db3d_nerfstudio.toybox.guide import ToyboxGuideConfig
from db3d_nerfstudio.toybox.judge import Judge, load_judge

NAMES = {"class_noun", "main_color", "view", "hand", "accessory", "pattern", "frechet"}


def ask(num: int) -> list[questions.Question]:
    return [questions.draw_question(questions.FIRST_EXAM_SEED + seed) for seed in range(num)]


def test_the_exam_grades_every_trait_and_draws_a_sheet(tmp_path):
    network.save_guide(tmp_path / "guide", network.make_unet(), network.make_text_encoder())
    save_file(Judge().state_dict(), tmp_path / "judge.safetensors")
    config = exam.ExamConfig(
        ToyboxGuideConfig(model=tmp_path / "guide"), tmp_path / "judge.safetensors", num_captions=3,
        photos_per_caption=1, sampling=SamplingConfig(1), sheet=tmp_path / "sheet.png",
    )  # fmt: skip
    assert set(exam.main(config)) == NAMES and (tmp_path / "sheet.png").exists()


def test_true_photos_pass_and_photos_of_something_else_fail():
    asked, judge = ask(24), load_judge()
    photos = exam.true_photos(asked, 0)
    right, wrong = (exam.grade(judge, asked, images) for images in (photos, photos.roll(1, 0)))
    for name, least in (("class_noun", 0.9), ("main_color", 0.7), ("view", 0.8)):
        assert sum(right[name]) > least * len(asked) and sum(wrong[name]) < 0.6 * len(asked), name
    embeddings = exam.embed_images(judge, photos)
    near = exam.frechet_distance(embeddings, exam.embed_images(judge, exam.true_photos(asked, 1)))
    far = exam.frechet_distance(embeddings, exam.embed_images(judge, torch.rand_like(photos)))
    assert near < 0.3 * far
    assert not torch.equal(photos, exam.true_photos(asked, 1)) and torch.equal(photos, exam.true_photos(asked, 0))


def test_captions_say_what_the_exam_asks():
    for question in ask(50):
        text, traits = question.text, question.traits
        assert f"{traits.main_color} {traits.class_noun}" in text and text.endswith(f"{question.view} view")
        assert (question.view == "side") == (question.hand is not None)
        others = questions.alternatives(question)
        assert ("accessory" in others) == (traits.accessory is not None)
        assert ("pattern" in others) == (traits.pattern is not None)
        for captions in others.values():
            assert captions[0] == text and len(set(captions)) == len(captions)
        if question.hand is not None:
            assert {question.hand, "left" if question.hand == "right" else "right"} == {
                word for caption in others["hand"] for word in ("left", "right") if f"{word} side view" in caption
            }


def test_the_distance_of_normal_distributions_is_the_closed_form():
    torch.manual_seed(0)
    one = torch.randn(4000, 3) * torch.tensor([1.0, 2.0, 3.0])
    other = torch.randn(4000, 3) * torch.tensor([2.0, 2.0, 1.0]) + torch.tensor([0.0, 1.0, 0.0])
    assert exam.frechet_distance(one, other) == pytest.approx(1 + 1 + 4, rel=0.1)  # |means|^2, then (std - std)^2.
    assert exam.frechet_distance(one, one) == pytest.approx(0, abs=1e-6)
