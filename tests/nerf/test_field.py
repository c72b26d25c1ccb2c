"""The field: closed forms of the cone, and normals against autograd's."""

import dataclasses
import math

import pytest
import torch
from torch.nn import functional as F

from db3d_nerfstudio.nerf.field import GridField, GridFieldConfig

CONFIG = GridFieldConfig(density_scale=1.0, resolutions=(4, 9), hidden_width=16)


def build(**changes) -> GridField:
    torch.manual_seed(0)
    return dataclasses.replace(CONFIG, **changes).setup()


def points(num=64, seed=0):
    return (torch.rand(num, 3, generator=torch.Generator().manual_seed(seed)) * 2 - 1) * 0.9


def silence(field: GridField) -> GridField:
    """Leaves only the cone."""
    for parameter in field.param_groups()["networks"]:
        parameter.data.zero_()
    return field


def inverse_softplus(density):
    return (density.exp() - 1).log()


def test_density_and_albedo_are_in_range_and_consistent():
    field, positions = build(), points()
    density, albedo = field.density_and_albedo(positions)
    assert (density >= 0).all() and (albedo > 0).all() and (albedo < 1).all()
    torch.testing.assert_close(density, field.density(positions))


def test_the_cone_has_its_closed_form():
    positions, radius = torch.tensor([[0.0, 0, 0], [0.25, 0, 0], [0, -0.3, 0.4]]), torch.tensor([0.0, 0.25, 0.5])
    field = silence(build(blob_density=8.0, blob_radius=0.4))
    expected = 8 * (1 - radius / 0.4)
    torch.testing.assert_close(inverse_softplus(field.density(positions)), expected, atol=2e-3, rtol=1e-3)
    scaled = silence(build(**vars(field.config) | {"density_scale": 3.0}))
    torch.testing.assert_close(scaled.density(positions), 3 * field.density(positions))


def test_normals_of_the_cone_point_outwards():
    field, positions = silence(build()), points()
    positions = positions[positions.norm(dim=-1) > 0.3]
    torch.testing.assert_close(field.normals(positions), F.normalize(positions, dim=-1), atol=1e-2, rtol=0)


def test_normals_agree_with_autograd():
    """Away from the planes of vertices, where the interpolation has kinks, they agree to second order in epsilon."""
    field, positions = build(normal_epsilon=1e-5).double(), points(200).double().requires_grad_()
    gradient = torch.autograd.grad(inverse_softplus(field.density(positions)).sum(), positions)[0]
    agreement = (-F.normalize(gradient, dim=-1) * field.normals(positions)).sum(-1)
    assert (agreement > 1 - 1e-6).double().mean() > 0.97


def test_normals_carry_gradient_into_the_parameters():
    """d(normal)/d(parameter) against a central difference in a random direction of parameter space."""
    field, positions = build(normal_epsilon=1e-3).double(), points(16).double()
    cotangent = torch.randn(16, 3, dtype=torch.float64)
    parameters = list(field.parameters())
    directions = [torch.randn_like(parameter) for parameter in parameters]
    gradients = torch.autograd.grad((field.normals(positions) * cotangent).sum(), parameters, allow_unused=True)
    slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True) if g is not None)
    values, step = [], 1e-7
    for sign in (step, -2 * step):
        for parameter, direction in zip(parameters, directions, strict=True):
            parameter.data += sign * direction
        values.append((field.normals(positions) * cotangent).sum())
    assert slope.abs() > 1e-3
    assert (values[0] - values[1]).item() / (2 * step) == pytest.approx(slope.item(), rel=1e-2)


def test_param_groups_hold_every_parameter_once():
    field = build()
    groups = field.param_groups()
    assert set(groups) == {"encodings", "networks"}
    listed = [id(parameter) for group in groups.values() for parameter in group]
    assert sorted(listed) == sorted(id(parameter) for parameter in field.parameters())


def test_latents_are_unbounded_and_density_does_not_care():
    field = build(latent_channels=5)
    field.param_groups()["networks"][-1].data[1:] += 3.0
    density, colors = field.density_and_colors(points())
    assert colors.shape == (64, 5) and (colors > 1).any()
    torch.testing.assert_close(density, field.density(points()))
    assert field.density_and_albedo(points())[1].shape == (64, 3)
    with pytest.raises(RuntimeError, match="--pipeline.model.field"):
        build().load_state_dict(field.state_dict(), strict=False)


def test_no_positions_are_no_problem():
    density, albedo = build().density_and_albedo(torch.zeros(0, 3))
    assert density.shape == (0,) and albedo.shape == (0, 3)
    assert build().normals(torch.zeros(0, 3)).shape == (0, 3)


@pytest.mark.parametrize("change", [{"hidden_width": 24}, {"resolutions": (4, 8)}])
def test_state_of_another_field_is_refused(change):
    with pytest.raises(RuntimeError, match="--pipeline.model.field"):
        build(**change).load_state_dict(build().state_dict(), strict=False)


def test_config_shapes_the_grids():
    field = build(resolutions=(3, 5), channels=6, init_scale=0.5)
    assert [tuple(grid.shape) for grid in field.grids] == [(1, 6, 3, 3, 3), (1, 6, 5, 5, 5)]
    assert field.grids[1].std().item() == pytest.approx(0.5, rel=0.1)


def test_grids_interpolate_linearly_between_vertices():
    """A grid whose first feature is the x coordinate of its vertices reads x everywhere, with the axes in order."""
    field = build(resolutions=(5,), channels=3)
    axis = torch.linspace(-1, 1, 5)
    field.grids[0].data[0] = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).flip(0)
    field.network = torch.nn.ConstantPad1d((0, 1), 0.0)
    torch.testing.assert_close(field._raw(points())[:, :3], points(), atol=1e-5, rtol=0)


def test_learned_detail_adds_to_the_cone():
    """The cone is permanent: fitted to nothing, the field must learn its negative."""
    field = build(blob_density=0.0)
    assert field.density(torch.zeros(1, 3)).item() == pytest.approx(math.log(2), abs=0.3)
    assert build().density(torch.zeros(1, 3)).item() == pytest.approx(10, abs=0.3)
