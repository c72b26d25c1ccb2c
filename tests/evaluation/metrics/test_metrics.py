"""Metrics against values worked out by hand, and against the true toys: ceiling for the truth, floor for another."""

import math

import pytest
import torch
from skimage.metrics import structural_similarity

from db3d_nerfstudio.cameras import orbit_cameras
from db3d_nerfstudio.evaluation import personalisation
from db3d_nerfstudio.evaluation.metrics import janus, pixels, r_precision, saturation, similarity
from db3d_nerfstudio.evaluation.metrics.bootstrap import bootstrap
from db3d_nerfstudio.words import VIEW_NAMES

DIAGONAL = 1 / math.sqrt(2)


def test_similarity_of_pictures_by_hand():
    generated, real = torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    assert similarity.mean_pairwise(generated, real) == pytest.approx((1 + 0 + DIAGONAL) / 3)
    assert similarity.mean_within(real) == pytest.approx((0 + DIAGONAL + DIAGONAL) / 3), "no picture with itself"
    with pytest.raises(ValueError, match="two pictures"):
        similarity.mean_within(generated)


def test_similarity_to_the_prompt_is_a_cosine_and_not_times_100():
    images = torch.tensor([[5.0, 0.0], [0.0, 1.0]])
    assert similarity.mean_to_prompt(images, torch.tensor([0.1, 0.0])) == pytest.approx(0.5)


def test_flattened_pictures_keep_the_subject_only():
    image, mask = torch.rand(1, 3, 2, 2), torch.tensor([[[1.0, 0.0], [0.5, 0.0]]])
    flat = similarity.flatten(image, mask)
    assert torch.equal(flat[0, :, 0, 0], image[0, :, 0, 0]) and (flat[0, :, :, 1] == 1).all()
    assert torch.allclose(flat[0, :, 1, 0], image[0, :, 1, 0] / 2 + 0.5)


def test_the_pool_has_other_contexts_of_the_class_and_other_classes():
    pool = r_precision.prompt_pool(["a {}", "a {} on grass", "a {}"], ["dog", "duck"])
    assert pool == ["a dog", "a duck", "a dog on grass", "a duck on grass"]


def test_r_precision_by_hand_looks_at_angles_and_not_at_lengths():
    pool = torch.tensor([[1.0, 0.0], [30.0, 30.0], [0.0, 0.1]])
    images = torch.tensor([[9.0, 1.0], [1.0, 1.2], [0.0, 2.0], [-1.0, 9.0]])
    assert r_precision.retrieve(images, pool).tolist() == [0, 1, 2, 2]
    assert [r_precision.r_precision(images, pool, true) for true in range(3)] == [0.25, 0.25, 0.5]


def test_janus_by_hand():
    _, views = orbit_cameras(4, 20.0, 3.0, 40.0, 8)
    true = janus.true_views(views)
    assert true == ["front", "side", "back", "side"]
    assert janus.janus_rate(true, true) == 0 and janus.num_faces(true) == 1 and janus.views_right(true, true) == 1
    said = ["front", "side", "front", "side"]
    assert janus.janus_rate(said, true) == pytest.approx(1 / 3) and janus.num_faces(said) == 2
    assert janus.views_right(said, true) == 0.75
    with pytest.raises(ValueError, match="elsewhere"):
        janus.janus_rate(["front"], ["front"])


@pytest.mark.parametrize(
    ("said", "faces"), [("ffssffss", 2), ("fssssssf", 1), ("ffff", 1), ("ssbb", 0), ("", 0), ("fsfsfsfs", 4)]
)
def test_faces_are_counted_round_the_circle(said, faces):
    words = {"f": "front", "s": "side", "b": "back"}
    assert janus.num_faces([words[letter] for letter in said]) == faces


def test_zero_shot_views_are_those_of_the_nearest_prompt():
    prompts = torch.eye(4)
    assert janus.zero_shot_views(prompts[[2, 0, 3]] + 0.1, prompts) == ["back", "front", "overhead"]


def test_over_saturation_by_hand():
    red, grey = torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.5)
    red[:, 0] = 1.0
    everything, half = torch.ones(1, 4, 4), torch.ones(1, 4, 4)
    half[:, :2] = 0.0
    assert saturation.mean_chroma(red, everything) == pytest.approx(104.55, abs=0.1), "CIELAB of sRGB red: 80.1, 67.2"
    red[:, :, :2] = 0.5  # The upper half is grey, and outside of the mask.
    assert saturation.over_saturation(red, half, grey, everything) == pytest.approx(104.55, abs=0.1)
    with pytest.raises(ValueError, match="empty"):
        saturation.mean_chroma(red, torch.zeros(1, 4, 4))


def test_ssim_agrees_with_scikit_image():
    torch.manual_seed(0)
    image = torch.rand(1, 3, 24, 24)
    other = (image + 0.3 * torch.rand(1, 3, 24, 24)).clamp(0, 1)
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    wanted = structural_similarity(image[0].numpy(), other[0].numpy(), channel_axis=0, **settings)
    assert pixels.ssim(image, other) == pytest.approx(wanted, abs=0.02), "they differ in how they treat the border"
    assert pixels.ssim(image, image) == pytest.approx(1.0)


def test_lpips_is_left_out_where_its_weights_are_not(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert pixels.load_lpips() is None, "and nothing was downloaded"
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth").touch()
    assert pixels.lpips_weights() is not None


def test_view_diversity_by_hand():
    assert personalisation.view_diversity(["front"] * 8) == 0
    assert personalisation.view_diversity(list(VIEW_NAMES) * 2) == pytest.approx(1.0)
    assert personalisation.view_diversity(["front", "side"]) == pytest.approx(0.5), "log 2 of log 4"


def test_diversity_is_the_mean_over_pairs():
    images = torch.tensor([0.0, 1.0, 4.0])[:, None, None, None].expand(3, 3, 2, 2)

    def distance(one, other):
        return (one - other).abs().mean((1, 2, 3))

    assert personalisation.diversity(images, distance) == pytest.approx((1 + 4 + 3) / 3)
    with pytest.raises(ValueError, match="two samples"):
        personalisation.diversity(images[:1], distance)


def test_all_views_are_asked_for_equally_often():
    prompts = personalisation.prompts_of_all_views("a sks dog", 2)
    assert prompts[:3] == ["a sks dog, front view", "a sks dog, front view", "a sks dog, side view"]
    assert len(prompts) == 8


def test_bootstrap_of_a_normal_sample_is_near_its_standard_error():
    values = torch.randn(100, generator=torch.Generator().manual_seed(0)).tolist()
    estimate = bootstrap(values)
    error = 1.96 * torch.tensor(values).std(correction=0).item() / 10
    assert estimate.mean == pytest.approx(sum(values) / 100) and estimate.number == 100
    assert estimate.low == pytest.approx(estimate.mean - error, abs=0.03)
    assert estimate.high == pytest.approx(estimate.mean + error, abs=0.03)
    assert bootstrap(values) == estimate, "the same values, the same interval"
    assert bootstrap(values, 0.5).high < estimate.high


def test_bootstrap_of_too_little():
    assert bootstrap([0.5]) == (0.5, None, None, 1) and str(bootstrap([0.5])) == "0.500"
    assert str(bootstrap([0.5, 0.5])) == "0.500 [0.500, 0.500]"
    with pytest.raises(ValueError, match="no values"):
        bootstrap([])
