"""From density to mesh: the level is where the renderer sees the surface, and the mesh is closed, whole and upright."""

import numpy as np
import pytest
import torch
import trimesh

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.results.mesh import decimate, density_grid, extract_surface, surface_level, y_up_unit

R = 49
SPACING = 2 / (R - 1)


def ball(density, center=(0.0, 0.0, 0.0)):
    """The grid of a density that is a function of the distance to a point."""
    center = torch.tensor(center)
    return density_grid(lambda points: density((points - center).norm(dim=-1)), R)


def hard(radius: float, inside: float = 200.0, outside: float = 0.0):
    return lambda distance: torch.where(distance < radius, inside, outside)


def test_grid_has_the_density_of_its_vertices_and_nothing_outside_the_sphere():
    grid = density_grid(lambda points: points[:, 0] + 10 * points[:, 1] + 100 * points[:, 2] + 1000, 5)
    assert grid[2, 2, 2] == 1000 and grid[3, 2, 2] == 1000.5 and grid[2, 3, 2] == 1005 and grid[2, 2, 1] == 950
    assert grid[4, 4, 4] == grid[0, 2, 0] == 0


def test_grid_refuses_a_broken_field():
    with pytest.raises(UserError, match="not a finite number"):
        density_grid(lambda points: torch.full((len(points),), torch.nan), 5)


def test_level_separates_an_object_from_thin_fog_around_it():
    grid = ball(hard(0.5, inside=60.0, outside=0.1))
    level = surface_level(grid, SPACING)
    assert 0.1 < level < 60
    assert np.abs(np.linalg.norm(extract_surface(grid, level).vertices, axis=1) - 0.5).max() < SPACING


def test_level_is_where_a_quarter_of_the_light_is_gone():
    """The density falls off as exp(-r / a) from 1000 per unit: rays to the centre lose a quarter of their light
    at 1000 a exp(-r / a) = ln 4/3, where it is ln 4/3 / a. Rays that graze it lose theirs further out."""
    a = 0.1
    level = surface_level(ball(lambda distance: 1000 * torch.exp(-distance / a)), SPACING)
    assert np.log(4 / 3) / a / 3 < level <= np.log(4 / 3) / a


@pytest.mark.parametrize("strength", [0.03, 1.0, 30.0, 1e5])
def test_mesh_is_never_empty(strength):
    grid = ball(lambda distance: strength * torch.exp(-8 * distance**2))
    assert extract_surface(grid, surface_level(grid, SPACING)).volume > 0.03


def test_uniform_fog_gives_the_scene_s_sphere():
    grid = ball(lambda distance: torch.full_like(distance, 0.2))
    mesh = extract_surface(grid, surface_level(grid, SPACING))
    assert mesh.is_watertight and mesh.volume == pytest.approx(4 / 3 * np.pi, rel=0.1)


def test_empty_scene_is_refused():
    with pytest.raises(UserError, match="the scene is empty: no ray through it loses 1%"):
        surface_level(ball(lambda distance: torch.full_like(distance, 1e-3)), SPACING)
    with pytest.raises(ValueError, match="no density is above"):
        extract_surface(np.zeros((8, 8, 8)), 1.0)


def test_surface_lies_on_the_level_set_and_faces_outwards():
    mesh = extract_surface(ball(lambda distance: torch.exp(40 * (0.5 - distance))), 1.0)
    assert np.linalg.norm(mesh.vertices, axis=1) == pytest.approx(0.5, abs=2e-3)
    assert mesh.is_watertight and mesh.volume == pytest.approx(4 / 3 * np.pi / 8, rel=0.02)


def test_dust_goes_and_hollows_are_filled():
    shell = ball(lambda distance: torch.where((distance > 0.2) & (distance < 0.4), 100.0, 0.0))
    dust = ball(hard(0.07), center=(0.0, 0.0, 0.7))
    mesh = extract_surface(shell + dust, 10.0)
    assert mesh.body_count == 1 and mesh.is_watertight
    assert mesh.vertices[:, 2].max() < 0.45
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 0.4**3, rel=0.15)


def test_a_part_that_floats_stays():
    mesh = extract_surface(ball(hard(0.4)) + ball(hard(0.12), center=(0.0, 0.0, 0.7)), 10.0)
    assert mesh.body_count == 2 and mesh.is_watertight
    assert mesh.vertices[:, 2].max() == pytest.approx(0.82, abs=0.04)


def test_matter_at_the_edge_of_the_grid_is_closed():
    assert extract_surface(np.full((6, 6, 6), 50.0), 10.0).is_watertight


def test_decimation_keeps_the_budget_and_the_shape():
    mesh = trimesh.creation.icosphere(4)
    small = decimate(mesh, 500)
    assert len(small.faces) <= 500 and small.is_watertight and small.volume == pytest.approx(mesh.volume, rel=0.05)
    assert decimate(mesh, 10_000) is mesh


def test_exported_mesh_is_upright_centred_and_of_unit_size():
    front_left_top = trimesh.creation.box((4.0, 2.0, 1.0)).apply_translation((5.0, 6.0, 7.0))
    faces_front = front_left_top.face_normals[:, 0] > 0.9
    mesh = y_up_unit(front_left_top)
    assert mesh.bounds == pytest.approx(np.array([[-0.25, -0.125, -0.5], [0.25, 0.125, 0.5]]))
    assert (mesh.face_normals[faces_front, 2] > 0.9).all(), "the scene's front, +x, is the mesh's, +z"
    assert mesh.volume == pytest.approx(1 / 8), "turned and not mirrored"
