"""Renderings for the evaluation: a ball of one colour, of which everything is known."""

import pytest
import torch
from tiny_model import build, solid

from db3d_nerfstudio.evaluation.metrics.renders import evaluation_orbit, render_orbit
from db3d_nerfstudio.words import view_weights


@pytest.fixture(scope="module")
def ball():
    return render_orbit(solid(build()), 33, 4)


def test_a_red_ball_in_front_of_white(ball):
    assert ball.albedo.shape == (4, 3, 33, 33) and ball.masks.shape == (4, 33, 33)
    assert (ball.masks[:, 16, 16] > 0.99).all() and (ball.masks[:, 0, 0] < 0.01).all()
    for images in (ball.albedo, ball.lambertian, ball.textureless):
        torch.testing.assert_close(images[:, :, 0, 0], torch.ones(4, 3), atol=0.01, rtol=0)
    torch.testing.assert_close(ball.albedo[0, :, 16, 16], torch.tensor([1.0, 0, 0]), atol=0.02, rtol=0)


def test_light_comes_from_the_camera(ball):
    grey = ball.textureless[0].mean(0)
    assert grey[16, 16] == pytest.approx(1.0, abs=0.05), "ambient 0.1 and diffuse 0.9 where it faces the camera"
    rim = (ball.masks[0] > 0.95).nonzero()
    top = rim[rim[:, 1] == 16][0]
    assert grey[top[0], 16] < grey[16, 16] - 0.2
    torch.testing.assert_close(ball.lambertian[0, 0, 16, 16], ball.textureless[0, 0, 16, 16], atol=0.02, rtol=0)
    assert ball.lambertian[0, 1, 16, 16] < 0.02


def test_no_view_of_the_evaluation_is_near_the_border_of_two_view_words():
    _, views = evaluation_orbit(8)
    near = view_weights(views, interpolate=False).argmax(-1)
    for shift in (-8.0, 8.0):
        moved = type(views)(views.elevation, views.azimuth + shift, views.radius, views.fov)
        assert torch.equal(view_weights(moved, interpolate=False).argmax(-1), near)
