"""Both fields satisfy one interface: closed forms of the blob, and normals against finite differences."""

import dataclasses
import math

import pytest
import torch
from torch.nn import functional as F

from db3d_nerfstudio.nerf.field import Field, GridFieldConfig, HashFieldConfig

GRID = GridFieldConfig(density_scale=1.0, resolutions=(4, 9), hidden_width=16)
HASH = HashFieldConfig(
    density_scale=1.0, implementation="torch", num_levels=3, base_resolution=4, max_resolution=16, log2_hashmap_size=8
)
both = pytest.mark.parametrize("config", [GRID, HASH], ids=["grid", "hash"])


def build(config, **changes) -> Field:
    torch.manual_seed(0)
    return dataclasses.replace(config, **changes).setup()


def points(num=64, seed=0):
    return (torch.rand(num, 3, generator=torch.Generator().manual_seed(seed)) * 2 - 1) * 0.9


def silence(field: Field) -> Field:
    """Leaves only the blob."""
    for parameter in field.param_groups()["networks"]:
        parameter.data.zero_()
    return field


@both
def test_density_and_albedo_are_in_range_and_consistent(config):
    field, positions = build(config), points()
    density, albedo = field.density_and_albedo(positions)
    assert (density >= 0).all() and (albedo > 0).all() and (albedo < 1).all()
    torch.testing.assert_close(density, field.density(positions))


@both
@pytest.mark.parametrize("activation, inverse", [("softplus", lambda d: (d.exp() - 1).log()), ("exp", torch.log)])
def test_blobs_have_their_closed_form(config, activation, inverse):
    positions, radius = torch.tensor([[0.0, 0, 0], [0.25, 0, 0], [0, -0.3, 0.4]]), torch.tensor([0.0, 0.25, 0.5])
    expected = {"linear": 8 * (1 - radius / 0.4), "gaussian": 8 * torch.exp(-(radius**2) / (2 * 0.4**2))}
    for blob, raw in expected.items():
        field = silence(build(config, blob=blob, blob_density=8.0, blob_radius=0.4, activation=activation))
        torch.testing.assert_close(inverse(field.density(positions)), raw, atol=2e-3, rtol=1e-3)
        scaled = silence(build(config, **vars(field.config) | {"density_scale": 3.0}))
        torch.testing.assert_close(scaled.density(positions), 3 * field.density(positions))


@both
@pytest.mark.parametrize("normals", ["analytic", "finite_difference"])
def test_normals_of_the_blob_point_outwards(config, normals):
    field, positions = silence(build(config, normals=normals)), points()
    positions = positions[positions.norm(dim=-1) > 0.3]
    torch.testing.assert_close(field.normals(positions), F.normalize(positions, dim=-1), atol=1e-2, rtol=0)


@both
def test_both_ways_to_differentiate_agree(config):
    """Away from the planes of vertices, where the interpolation has kinks, they agree to second order in epsilon."""
    field, positions = build(config).double(), points(200).double()
    field.config = dataclasses.replace(field.config, normals="analytic")
    analytic = field.normals(positions)
    field.config = dataclasses.replace(field.config, normals="finite_difference", normal_epsilon=1e-5)
    agreement = (analytic * field.normals(positions)).sum(-1)
    assert (agreement > 1 - 1e-6).double().mean() > 0.97


@both
@pytest.mark.parametrize("normals", ["analytic", "finite_difference"])
def test_normals_carry_gradient_into_the_parameters(config, normals):
    """d(normal)/d(parameter) against a central difference in a random direction of parameter space."""
    field, positions = build(config, normals=normals, normal_epsilon=1e-3).double(), points(16).double()
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


@both
def test_normals_without_grad_build_no_graph(config):
    with torch.no_grad():
        assert not build(config, normals="analytic").normals(points()).requires_grad


@both
def test_param_groups_hold_every_parameter_once(config):
    field = build(config)
    groups = field.param_groups()
    assert set(groups) == {"encodings", "networks"}
    listed = [id(parameter) for group in groups.values() for parameter in group]
    assert sorted(listed) == sorted(id(parameter) for parameter in field.parameters())


@both
def test_latents_are_unbounded_and_density_does_not_care(config):
    field = build(config, latent_channels=5)
    field.param_groups()["networks"][-1].data[1:] += 3.0
    density, colors = field.density_and_colors(points())
    assert colors.shape == (64, 5) and (colors > 1).any()
    torch.testing.assert_close(density, field.density(points()))
    assert field.density_and_albedo(points())[1].shape == (64, 3)
    with pytest.raises(RuntimeError, match="--pipeline.model.field"):
        build(config).load_state_dict(field.state_dict(), strict=False)


@both
def test_no_positions_are_no_problem(config):
    density, albedo = build(config).density_and_albedo(torch.zeros(0, 3))
    assert density.shape == (0,) and albedo.shape == (0, 3)
    assert build(config).normals(torch.zeros(0, 3)).shape == (0, 3)


@both
def test_state_of_another_field_is_refused(config):
    state = build(config, hidden_width=8).state_dict()
    with pytest.raises(RuntimeError, match="--pipeline.model.field"):
        build(config, hidden_width=24).load_state_dict(state, strict=False)
    with pytest.raises(RuntimeError, match="--pipeline.model.field"):
        build(HASH if config is GRID else GRID).load_state_dict(build(config).state_dict(), strict=False)


def test_grid_config_shapes_the_grids():
    field = build(GRID, resolutions=(3, 5), channels=6, init_scale=0.5)
    assert [tuple(grid.shape) for grid in field.grids] == [(1, 6, 3, 3, 3), (1, 6, 5, 5, 5)]
    assert field.grids[1].std().item() == pytest.approx(0.5, rel=0.1)


def test_grid_interpolates_linearly_between_vertices():
    """A grid whose first feature is the x coordinate of its vertices reads x everywhere, with the axes in order."""
    field = build(GRID, resolutions=(5,), channels=3)
    axis = torch.linspace(-1, 1, 5)
    field.grids[0].data[0] = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).flip(0)
    field.network = torch.nn.ConstantPad1d((0, 1), 0.0)
    torch.testing.assert_close(field._raw(points())[:, :3], points(), atol=1e-5, rtol=0)


def test_hash_config_shapes_the_encoding():
    size = sum(p.numel() for p in build(HASH, num_levels=2, features_per_level=4).param_groups()["encodings"])
    assert size == 2 * 4 * 2**8
    assert sum(p.numel() for p in build(HASH, log2_hashmap_size=9).param_groups()["encodings"]) == 3 * 2 * 2**9
    encoding = build(HASH, base_resolution=8, max_resolution=32).encoding
    torch.testing.assert_close(encoding.scalings, torch.tensor([8.0, 16.0, 32.0]), atol=1, rtol=0)


def test_tinycudann_is_only_used_where_it_can_be():
    implementation = HashFieldConfig().implementation
    assert implementation == "tcnn"
    if not torch.cuda.is_available():
        assert build(HASH, implementation=implementation).encoding.tcnn_encoding is None


def test_learned_detail_adds_to_the_blob():
    """The blob is permanent: fitted to nothing, the field must learn its negative."""
    field = build(GRID, blob_density=0.0)
    assert field.density(torch.zeros(1, 3)).item() == pytest.approx(math.log(2), abs=0.3)
    assert build(GRID).density(torch.zeros(1, 3)).item() == pytest.approx(10, abs=0.3)
