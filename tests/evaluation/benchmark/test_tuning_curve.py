"""The figure of iterations against likeness and views, with a tiny guide and few numbers."""

import json

import pytest
import torch
from PIL import Image
from tiny import GaussianGuideConfig, tiny_toybox_folder

from db3d_nerfstudio.diffusion.dreambooth import DreamBoothConfig
from db3d_nerfstudio.diffusion.sampling import SamplingConfig
from db3d_nerfstudio.evaluation.benchmark import tuning_curve as module
from db3d_nerfstudio.evaluation.benchmark.subjects import FIRST_TOY, toybox_subject
from db3d_nerfstudio.evaluation.benchmark.tuning_curve import (
    Point,
    TuningCurveConfig,
    errors_of,
    judge_samples,
    plot,
    true_views,
    unlikeness,
)
from db3d_nerfstudio.photos import load_photos
from db3d_nerfstudio.toybox import examples
from db3d_nerfstudio.toybox.guide import ToyboxGuideConfig
from db3d_nerfstudio.toybox.judge import load_judge
from db3d_nerfstudio.words import DIRECTIONS


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setattr(examples, "PHOTO_SIZE", 64)
    return TuningCurveConfig(
        output=tmp_path / "out",
        iterations=(0, 1, 3),
        classes=("duck",),
        per_view=2,
        sampling=SamplingConfig(2),
        guide=ToyboxGuideConfig(model=tiny_toybox_folder(tmp_path / "guide", resolution=64)),
        dreambooth=DreamBoothConfig(num_class_images=2, class_sampling=SamplingConfig(2), learning_rate=1e-2),
    )


@pytest.mark.slow
def test_points_sheets_and_figure(config):
    module.main(config)
    points = json.loads((config.output / "tuning_curve.json").read_text())["duck-30000000"]
    assert [point["iterations"] for point in points] == [0, 1, 3]
    assert all(points[0][name] >= 0 for name in ("preservation", "error_seen", "error_unseen"))
    assert points[0]["subject_similarity"] != points[2]["subject_similarity"], "tuning has moved the samples"
    sheets = config.output / "curves" / "duck-30000000"
    with Image.open(sheets / "00003.png") as sheet:
        assert sheet.size == (5 * 64, 5 * 64), "five photos, four views"
    with Image.open(config.output / "tuning_curve.png") as figure:
        assert figure.size == (1500, 600)
    written = (sheets / "points.json").stat().st_mtime_ns
    module.main(config)
    assert (sheets / "points.json").stat().st_mtime_ns == written, "a finished toy is not done again"


def test_samples_that_are_the_photo_have_its_likeness_and_show_one_side():
    """The full collapse: whatever is asked, the photo from the front is drawn."""
    folder, _ = examples.default_subject()
    photo = load_photos(folder, 64)[2:3]
    judged = judge_samples(load_judge(), photo, photo.expand(8, -1, -1, -1), photo.expand(2, -1, -1, -1))
    assert judged["view_diversity"] == 0 and judged["views_right"] == 0.25
    assert judged["subject_similarity"] == pytest.approx(1, abs=1e-5)
    assert judged["preservation"] == pytest.approx(1, abs=1e-5) and judged["diversity"] == pytest.approx(0, abs=1e-5)


def test_a_guide_that_knows_the_front_denoises_what_photos_show_and_not_the_rest(tmp_path):
    """The analytic guide takes the subject for a toy of one colour, in front the true one and behind another."""
    toy = toybox_subject(FIRST_TOY, "duck", tmp_path)
    names = {name: 0.2 if "back" in name else 0.6 for name in DIRECTIONS}
    means = {f"a photo of a sks duck, {name} view": mean for name, mean in names.items()}
    guide = GaussianGuideConfig(mean=0.4, means=means, resolution=64).setup()
    guide.tells_sides = True
    truth = true_views(guide, toy, "a photo of a duck")
    assert truth.z.shape == (8, 3, 64, 64) and truth.mask.mean() < 0.5
    assert errors_of(guide, truth, "a photo of a duck") == pytest.approx((1, 1))
    object_of_one_colour = truth._replace(z=torch.full_like(truth.z, 0.6))
    untouched = errors_of(guide, object_of_one_colour, "a photo of a duck")
    seen, unseen = errors_of(guide, object_of_one_colour, "a photo of a sks duck")
    assert seen < untouched[0] and unseen > untouched[1]


def test_unlikeness_is_a_distance():
    judge = load_judge()
    images = torch.rand(3, 3, 64, 64)
    distance = unlikeness(judge)
    assert distance(images, images).abs().max() < 1e-5 and distance(images[:1], images[1:2]).min() > 0


def test_several_toys_are_drawn_with_their_spread(tmp_path):
    curves = [[Point(i, value, 1 - value, value, 0.1, 0.2, value, 1.1) for i in (0, 5)] for value in (0.2, 0.6)]
    plot(curves, tmp_path / "spread.png")
    plot(curves[:1], tmp_path / "one.png")
    assert (tmp_path / "spread.png").read_bytes() != (tmp_path / "one.png").read_bytes()
