"""Light falls where Lambert says."""

import dataclasses

import pytest
import torch

from db3d_nerfstudio.nerf.shading import Shading, ShadingConfig, Surface, draw_shading, sample_light, shade

CONFIG = ShadingConfig(warmup=0.2, lambertian_prob=0.75, textureless_prob=0.5)


def lit(config, shading, normal=(0.0, 0, 1), light=(0.0, 0, 2), position=(0.0, 0, 1)):
    """One ray of one view that sees half-transparent red matter."""
    vectors = [torch.tensor(v).view(1, 1, 3) for v in (normal, position)]
    albedo, accumulation = torch.tensor([[[0.5, 0.0, 0.0]]]), torch.tensor([[[0.5]]])
    surface = Surface(albedo, accumulation, *vectors)
    return shade(config, torch.tensor([int(shading)]), surface, torch.tensor([light])).squeeze()


def test_lambert_by_hand():
    """Facing the light 0.1 + 0.9, at 60 degrees 0.1 + 0.45, turned away 0.1."""
    slanted = (0.75**0.5, 0.0, 0.5)
    for normal, expected in (((0.0, 0, 1), 1.0), (slanted, 0.55), ((0.0, 0, -1), 0.1)):
        torch.testing.assert_close(lit(CONFIG, Shading.LAMBERTIAN, normal), torch.tensor([0.5, 0, 0]) * expected)
        torch.testing.assert_close(lit(CONFIG, Shading.TEXTURELESS, normal), torch.full((3,), 0.5) * expected)
        torch.testing.assert_close(lit(CONFIG, Shading.ALBEDO, normal), torch.tensor([0.5, 0, 0]))


def test_light_comes_from_a_point_and_not_from_infinity():
    aside = lit(CONFIG, Shading.TEXTURELESS, position=(1.0, 0, 1))
    torch.testing.assert_close(aside, torch.full((3,), 0.5 * (0.1 + 0.9 * 0.5**0.5)))


def test_ambient_and_diffuse_are_config():
    config = dataclasses.replace(CONFIG, ambient=0.3, diffuse=0.5)
    assert lit(config, Shading.LAMBERTIAN)[0] == pytest.approx(0.5 * 0.8)
    assert lit(config, Shading.LAMBERTIAN, normal=(0.0, 0, -1))[0] == pytest.approx(0.5 * 0.3)


def test_each_view_has_its_own_shading_and_light():
    shading = torch.tensor([Shading.ALBEDO, Shading.LAMBERTIAN, Shading.TEXTURELESS])
    ones, up = torch.full((3, 2, 3), 0.5), torch.tensor([0.0, 0, 1]).expand(3, 2, 3)
    light = torch.tensor([[0.0, 0, 2], [0.0, 0, 2], [0.0, 0, -2]])
    colour = shade(CONFIG, shading, Surface(ones, torch.ones(3, 2, 1), up, torch.zeros(3, 2, 3)), light)
    torch.testing.assert_close(colour[:, 0, 0], torch.tensor([0.5, 0.5, 0.1]))


def test_shading_carries_gradient_into_normals():
    normals = torch.tensor([[[0.6, 0.0, 0.8]]], requires_grad=True)
    surface = Surface(torch.ones(1, 1, 3), torch.ones(1, 1, 1), normals, torch.zeros(1, 1, 3))
    colour = shade(CONFIG, torch.tensor([int(Shading.TEXTURELESS)]), surface, torch.tensor([[0.0, 0, 2.0]]))
    colour.sum().backward()
    torch.testing.assert_close(normals.grad, torch.tensor([[[0.0, 0.0, 2.7]]]))


def test_shares_of_shadings_and_warmup():
    generator = torch.Generator().manual_seed(0)
    late = draw_shading(CONFIG, 20000, 0.2, generator)
    shares = [(late == mode).float().mean().item() for mode in Shading]
    assert shares == pytest.approx([0.25, 0.375, 0.375], abs=0.02)
    assert (draw_shading(CONFIG, 100, 0.19, generator) == Shading.ALBEDO).all()


def test_lights_are_drawn_around_the_camera():
    """With a jitter as large as the camera is far, the mean cosine to the camera is that of N(e, I) in 3D, 0.57."""
    generator, cameras = torch.Generator().manual_seed(0), torch.tensor([[3.0, 0, 0]]).expand(20000, 3)
    light = sample_light(dataclasses.replace(CONFIG, light_jitter=3.0), cameras, generator)
    distance = light.norm(dim=-1)
    assert 0.8 <= distance.min() < 0.81 and 1.49 < distance.max() <= 1.5
    reference = torch.nn.functional.normalize(torch.tensor([1.0, 0, 0]) + torch.randn(200000, 3), dim=-1)[:, 0].mean()
    assert (light[:, 0] / distance).mean() == pytest.approx(reference.item(), abs=0.01)
    still = sample_light(dataclasses.replace(CONFIG, light_jitter=0.0, light_distance=(5.0, 5.0)), cameras, generator)
    torch.testing.assert_close(still, torch.tensor([[5.0, 0, 0]]).expand_as(still))
