"""The guide's exam: what it asks, how it grades, and what it finds in true photos."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from db3d_nerfstudio.diffusion.sampling import SamplingConfig
from db3d_nerfstudio.toybox import exam, examiner, questions
from db3d_nerfstudio.toybox.guide import ToyboxGuideConfig
from db3d_nerfstudio.toybox.judge import Judge, load_judge

NAMES = {"class_noun", "main_color", "view", "hand", "accessory", "pattern", "frechet", "finest_band"}


def ask(num: int) -> list[questions.Question]:
    return [questions.draw_question(questions.FIRST_EXAM_SEED + seed) for seed in range(num)]


def test_the_exam_grades_every_trait_and_draws_a_sheet(guide_folder, tmp_path):
    save_file(Judge().state_dict(), tmp_path / "judge.safetensors")
    config = exam.ExamConfig(
        ToyboxGuideConfig(model=guide_folder), tmp_path / "judge.safetensors", num_captions=3,
        photos_per_caption=1, sampling=SamplingConfig(1), sheet=tmp_path / "sheet.png",
    )  # fmt: skip
    config.samples = tmp_path / "samples.npy"
    result = exam.main(config)
    assert set(result) == NAMES and (tmp_path / "sheet.png").exists()
    np.save(config.samples, 255 - np.load(config.samples))
    assert exam.main(config)["frechet"] != result["frechet"]  # What is there is not drawn again.


def test_true_photos_pass_and_photos_of_something_else_fail():
    asked, judge = ask(24), load_judge()
    photos = exam.true_photos(asked, 0)
    right, wrong = (exam.grade(judge, asked, images) for images in (photos, photos.roll(1, 0)))
    for name, least in (("class_noun", 0.9), ("main_color", 0.7), ("view", 0.8), ("hand", 0.7)):
        assert np.mean(right[name]) > least > np.mean(wrong[name]) + 0.1, name
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
        details = question.details
        for name in ("pattern", "accessory"):
            named = [word for word in text.replace(",", "").split() if word in examiner.HEADS[name]]
            assert named == ([details[name]] if details[name] else [])
        assert details["hand"] is None or f", {details['hand']} side view" in text


def test_the_finest_band_is_lost_by_blur():
    torch.manual_seed(0)
    noise = torch.rand(2, 3, 16, 16)
    blurred = torch.nn.functional.avg_pool2d(noise, 3, 1, 1)
    assert exam.finest_band(noise) > 3 * exam.finest_band(blurred) > exam.finest_band(torch.ones(2, 3, 16, 16)) == 0


def test_the_distance_of_normal_distributions_is_the_closed_form():
    torch.manual_seed(0)
    one = torch.randn(4000, 3) * torch.tensor([1.0, 2.0, 3.0])
    other = torch.randn(4000, 3) * torch.tensor([2.0, 2.0, 1.0]) + torch.tensor([0.0, 1.0, 0.0])
    assert exam.frechet_distance(one, other) == pytest.approx(1 + 1 + 4, rel=0.1)  # |means|^2, then (std - std)^2.
    assert exam.frechet_distance(one, one) == pytest.approx(0, abs=1e-6)
