"""Chamfer distance, F-score and texture PSNR: closed forms, and a toy from its field through export to figures."""

import numpy as np
import pytest
import torch
import trimesh

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.evaluation.metrics import shape
from db3d_nerfstudio.nerf.field import GridField, GridFieldConfig
from db3d_nerfstudio.results.export import build_mesh
from db3d_nerfstudio.toybox.shapes import Part, normalise, place
from db3d_nerfstudio.toybox.subjects import Subject, Traits

BALLS = (  # Centre, radius and colour of a snowman that looks to the left.
    ((0.0, 0.0, -0.35), 0.5, (0.9, 0.8, 0.1)),
    ((0.0, 0.0, 0.4), 0.35, (0.1, 0.3, 0.9)),
    ((0.35, 0.15, 0.4), 0.12, (0.9, 0.1, 0.1)),
)


@pytest.fixture(scope="module")
def snowman():
    parts = [Part(place("ball", center, (r, r, r)), np.array(colour)) for center, r, colour in BALLS]
    return Subject(Traits("robot", "yellow", "blue", "nose"), tuple(normalise(parts)))


class SnowmanField(GridField):
    """Raw density `-100` times the distance to the nearest ball, coloured like that ball."""

    def __init__(self, subject):
        super().__init__(GridFieldConfig(resolutions=(2,), blob_density=0.0))
        meshes = [part.mesh for part in subject.parts]
        self.centres = torch.tensor(np.stack([mesh.bounds.mean(0) for mesh in meshes]), dtype=torch.float32)
        self.radii = torch.tensor([mesh.extents[0] / 2 for mesh in meshes], dtype=torch.float32)
        self.colours = torch.tensor(np.stack([part.color for part in subject.parts]), dtype=torch.float32)

    def _raw(self, positions):
        distance, nearest = (torch.cdist(positions, self.centres) - self.radii).min(1)
        return torch.cat([-100 * distance[:, None], torch.logit(self.colours[nearest])], -1)

    def param_groups(self):
        return {}


def test_chamfer_distance_by_hand():
    one, other = np.array([[0.0, 0.0, 0.0]]), np.array([[1.0, 0.0, 0.0], [3.0, 0.0, 0.0]])
    assert shape.chamfer_distance(one, other) == (1 + (1 + 3) / 2) / 2
    assert shape.chamfer_distance(other, other) == 0


def test_f_score_by_hand():
    one, truth = np.array([[0.0, 0.0, 0.0]]), np.array([[1.0, 0.0, 0.0], [3.0, 0.0, 0.0]])
    assert shape.f_score(one, truth, 1.0) == pytest.approx(2 * 1.0 * 0.5 / 1.5)
    assert shape.f_score(one, truth, 0.5) == 0
    assert shape.f_score(one, truth, 3.0) == 1


def test_points_lie_outside_of_all_parts():
    one = trimesh.creation.box((2.0, 1.0, 1.0))
    other = one.copy().apply_translation((1.5, 0.0, 0.0))  # Overlaps from 0.5 to 1; the union is 3.5 long.
    points = shape.surface_points([one, other], 20_000)
    assert (np.abs(points - (0.75, 0, 0)) / (1.75, 0.5, 0.5)).max(1) == pytest.approx(1.0, abs=1e-6)
    kept = (4 * 3.5 + 2) / (2 * (4 * 2 + 2))
    overlap = (4 * 0.5) / (2 * (4 * 2 + 2))  # Here the sides of both coincide, and both are outside.
    assert len(points) / 20_000 == pytest.approx(kept + overlap, abs=0.02)


def test_turn_and_scale_are_found():
    truth = np.random.default_rng(0).normal(size=(400, 3)) * (1.0, 0.5, 0.3)
    turn, scale = shape.align(shape.turned(truth, -17.0, 1 / 1.3), truth)
    assert turn == pytest.approx(17, abs=0.5) and scale == pytest.approx(1.3, rel=0.01)
    turn, _ = shape.align(shape.turned(truth, -60.0, 1.0), truth)
    assert abs(turn) <= shape.MAX_TURN + 1, "a side is not taken for a front"


def test_turns_go_counter_clockwise_from_above():
    assert shape.turned(np.array([[1.0, 0.0, 2.0]]), 90.0, 3.0) == pytest.approx(np.array([[0.0, 3.0, 6.0]]))


@pytest.mark.slow
def test_an_exported_field_is_the_toy_that_is_in_it(snowman):
    """Quality without a guide: all that is lost between field and file is what the grid and the texture cost."""
    mesh = build_mesh(SnowmanField(snowman), resolution=64, max_faces=4000, texture_size=256)
    assert len(mesh.faces) <= 4000 and mesh.extents.max() == pytest.approx(1.0)
    result, picture = shape.compare(mesh, snowman)
    assert result.chamfer < 0.01, "sampling alone costs 0.004"
    assert result.f_score > 0.99 and result.silhouette_iou > 0.97
    assert result.texture_psnr > 22, "25 were measured; what is lost are the borders of colours"
    assert abs(result.turn) < 2 and picture.shape == (2 * shape.VIEW_SIZE, shape.NUM_VIEWS * shape.VIEW_SIZE, 3)


def test_mesh_without_texture_is_refused(snowman):
    with pytest.raises(UserError, match="no texture.*glb or obj"):
        shape.compare(trimesh.creation.box(), snowman)


@pytest.mark.slow
def test_another_toy_is_told_from_it(snowman):
    mesh = build_mesh(SnowmanField(snowman), resolution=32, max_faces=2000, texture_size=64)
    bad = Subject(snowman.traits, tuple(normalise([Part(place("box", (0, 0, 0), (1, 0.5, 0.5)), np.zeros(3))])))
    result, _ = shape.compare(mesh, bad)
    assert result.chamfer > 0.1 and result.f_score < 0.5 and result.silhouette_iou < 0.7 and result.texture_psnr < 10
