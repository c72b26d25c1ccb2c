"""Colours on a mesh: every texel shows the point of the surface that it stands for."""

import numpy as np
import pytest
import torch
import trimesh
from trimesh.visual.color import uv_to_interpolated_color

from db3d_nerfstudio.nerf.field import GridField, GridFieldConfig
from db3d_nerfstudio.results import texture


class Rainbow(GridField):
    """Dense everywhere; red, green and blue grow along x, y and z."""

    def _raw(self, positions):
        colour = (positions + 1) / 2
        return torch.cat([torch.full_like(positions[:, :1], 50.0), torch.logit(colour, eps=1e-4)], -1)

    def param_groups(self):
        return {}


@pytest.fixture(scope="module")
def box():
    return trimesh.creation.box((1.0, 1.2, 0.8)).subdivide().subdivide()


def test_atlas_shows_every_triangle_once(box):
    atlas = texture.unwrap(box, 64)
    assert np.array_equal(atlas.vertices[atlas.faces], box.faces)
    assert atlas.uv.min() >= 0 and atlas.uv.max() <= 1
    corners = atlas.uv[atlas.faces]
    one, two = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    flat = np.abs(one[:, 0] * two[:, 1] - one[:, 1] * two[:, 0]) / 2
    covered, *_ = texture.texel_points(box, atlas, 256)
    assert covered.mean() == pytest.approx(flat.sum(), rel=0.02), "triangles do not overlap in the atlas"


def test_texels_are_points_of_the_surface(box):
    covered, points, normals = texture.texel_points(box, texture.unwrap(box, 64), 64)
    assert len(points) == covered.sum() > 1000
    assert (np.abs(points) / (0.5, 0.6, 0.4)).max(1) == pytest.approx(1.0, abs=1e-5)
    assert np.linalg.norm(normals, axis=1) == pytest.approx(1.0, abs=1e-5)
    assert (points * normals).sum(1).min() > 0


def test_texture_shows_the_field_s_colours_where_they_are(box):
    baked = texture.bake(box, Rainbow(GridFieldConfig(resolutions=(2,), blob_density=0.0)), 256, depth=1e-3)
    points, faces = trimesh.sample.sample_surface(baked, 500, seed=0)
    weights = trimesh.triangles.points_to_barycentric(baked.triangles[faces], points)
    uv = (baked.visual.uv[baked.faces[faces]] * weights[..., None]).sum(1)
    colours = uv_to_interpolated_color(uv, baked.visual.material.baseColorTexture)[:, :3] / 255
    assert colours == pytest.approx((points + 1) / 2, abs=0.02)


def test_baked_normals_are_those_of_the_uncut_mesh():
    ball = trimesh.creation.icosphere(2)
    baked = texture.bake(ball, Rainbow(GridFieldConfig(resolutions=(2,), blob_density=0.0)), 64, depth=1e-3)
    assert len(baked.vertices) > len(ball.vertices)
    assert baked.vertex_normals == pytest.approx(baked.vertices, abs=0.01), "no seam shows in the shading"


def test_colour_is_composited_along_the_normal():
    """Two samples, half a unit outside and inside: the first is ln 2 dense over the unit between them, so it hides
    half of the second, which stands for all that is behind."""

    def density_and_albedo(positions):
        outside = positions[:, 2] > 0
        return torch.where(outside, float(np.log(2)), 7.0), torch.where(outside[:, None], 1.0, 0.0).expand(-1, 3)

    point, up = np.zeros((1, 3)), np.array([[0.0, 0.0, 1.0]])
    assert texture.surface_albedo(density_and_albedo, point, up, 0.5, num_samples=2) == pytest.approx(0.5)
    assert texture.surface_albedo(density_and_albedo, point, -up, 0.5, num_samples=2) == pytest.approx(np.exp(-7))


def test_gaps_take_the_nearest_colour():
    image = np.zeros((1, 5, 3))
    image[0, 1], image[0, 4] = 0.25, 0.75
    covered = np.array([[False, True, False, False, True]])
    assert texture.fill_gaps(image, covered)[0, :, 0].tolist() == [0.25, 0.25, 0.25, 0.75, 0.75]
