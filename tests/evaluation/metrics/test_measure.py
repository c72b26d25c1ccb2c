"""All metrics of the true toys: the truth gets the ceiling, another subject the floor, what is missing is left out."""

from dataclasses import replace

import pytest
import torch

from db3d_nerfstudio.evaluation.benchmark.subjects import FIRST_TOY, toybox_pool
from db3d_nerfstudio.evaluation.metrics import fidelity
from db3d_nerfstudio.evaluation.metrics.encoders import Encoder, judge_encoder
from db3d_nerfstudio.evaluation.metrics.measure import Photos, Reference, measure
from db3d_nerfstudio.evaluation.metrics.renders import Renders, evaluation_orbit
from db3d_nerfstudio.evaluation.metrics.retrieval import Gallery
from db3d_nerfstudio.toybox.judge import load_judge
from db3d_nerfstudio.toybox.scene import Studio
from db3d_nerfstudio.toybox.subjects import make_subject


def renders_of(subject, garish=0.0, size=64):
    """The truth as if it were an asset; `garish` moves its colours away from grey."""
    images, masks = fidelity.photograph_truth(Studio(subject), size=size)
    images = images.permute(0, 3, 1, 2)
    grey = images.mean(1, keepdim=True)
    images = (grey + (1 + garish) * (images - grey)).clamp(0, 1)
    return Renders(images, images, torch.ones_like(images), masks, evaluation_orbit(size)[1])


@pytest.fixture(scope="module")
def toys():
    return {noun: make_subject(FIRST_TOY + i, noun) for i, noun in enumerate(("chair", "house"))}


@pytest.fixture(scope="module")
def reference(toys):
    judge = load_judge()
    truth = renders_of(toys["house"])
    return Reference(
        prompt="a photo of a house",
        pool=list(toybox_pool()),
        encoders=(judge_encoder(judge),),
        judge=judge,
        photos=Photos(truth.albedo[::4], truth.masks[::4]),
        subject=toys["house"],
    )


@pytest.fixture(autouse=True)
def few_alignments(monkeypatch):
    monkeypatch.setattr(fidelity, "TURNS", (0.0,))
    monkeypatch.setattr(fidelity, "SCALES", (1.0,))
    monkeypatch.setattr(fidelity, "FINER", ())


def test_the_truth_gets_the_ceiling_and_another_toy_the_floor(toys, reference):
    truth, _ = measure(renders_of(toys["house"]), reference)
    assert truth["silhouette_iou"] == 1 and truth["psnr"] > 90 and truth["ssim"] == pytest.approx(1, abs=1e-4)
    assert truth["judge truth"] == pytest.approx(1, abs=1e-5) and truth["judge r_precision"] > 0.9
    assert truth["janus_rate"] == 0 and truth["faces"] == 1 and truth["views_right"] > 0.9
    assert abs(truth["over_saturation"]) < 2
    large, _ = measure(renders_of(toys["house"], size=128), reference)
    assert large["silhouette_iou"] == 1 and large["views_right"] > 0.9 and large["judge truth"] > 0.99
    assert truth["judge i masked"] > truth["judge i masked ceiling"] - 0.1
    other, _ = measure(renders_of(toys["chair"]), reference)
    assert other["judge r_precision"] == 0 and other["judge t"] < truth["judge t"]
    assert other["silhouette_iou"] < 0.8 and other["psnr"] < 20 and other["judge truth"] < 0.7
    for name in ("judge i", "judge i masked"):
        assert other[name] < truth[name] - 0.1


def test_a_toy_finds_itself_among_others_and_another_does_not(toys, reference):
    own, chair = (renders_of(toys[noun]).albedo for noun in ("house", "chair"))
    reference = replace(reference, gallery=Gallery(own[::2], (chair[::2],)))
    assert measure(renders_of(toys["house"]), reference)[0]["judge retrieval"] == 1
    assert measure(renders_of(toys["chair"]), reference)[0]["judge retrieval"] == 0


def test_shape_without_texture_is_judged_by_itself(toys, reference):
    renders = replace(renders_of(toys["house"]), textureless=renders_of(toys["chair"]).albedo)
    metrics, _ = measure(renders, reference)
    assert metrics["judge r_precision textureless"] == 0 and metrics["judge r_precision"] > 0.9
    assert metrics["judge r_precision lambertian"] == metrics["judge r_precision"]


def test_four_fronts_are_called_janus(toys, reference):
    renders = renders_of(toys["house"])
    around = renders.albedo.clone()
    for index in range(16):  # Every quarter repeats what lies around the front: 33.75 and 11.25 degrees on both sides.
        around[index] = renders.albedo[(0, 1, 14, 15)[index % 4]]
    metrics, _ = measure(replace(renders, albedo=around), reference)
    assert metrics["janus_rate"] > 0.8


def test_garish_colours_are_over_saturated(toys, reference):
    assert measure(renders_of(toys["house"], garish=1.0), reference)[0]["over_saturation"] > 5


def test_what_is_missing_is_left_out(toys):
    flat = Encoder("flat", lambda rgb: rgb.mean((2, 3)), lambda texts: torch.eye(4)[: len(texts), :3] + 0.1)
    renders = renders_of(toys["house"])
    metrics, truth = measure(renders, Reference("a photo of a chair", [], (flat,)))
    assert truth is None
    assert metrics.keys() == {"flat t", "flat janus_rate", "flat faces", "flat views_right"}
    empty = replace(renders, masks=torch.zeros_like(renders.masks))
    photos = Photos(renders.albedo[:1], renders.masks[:1])
    silent = Encoder("flat", flat.images)
    assert measure(empty, Reference("a", [], (silent,), photos=photos))[0].keys() == {"flat i", "flat i masked"}
