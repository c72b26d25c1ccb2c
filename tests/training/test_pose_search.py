"""Poses of photos of a toy, whose true poses are known: the toy itself is the asset that they are compared with."""

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from db3d_nerfstudio.cameras import image_rays
from db3d_nerfstudio.toybox.examples import default_truth
from db3d_nerfstudio.toybox.scene import FOV, Shot, Studio
from db3d_nerfstudio.training.pose_search import PhotoPose, find_poses, frames, mismatches, placements, pose_cameras

SIDE, RADIUS = 48, 3.05
FRONT_HALF = [15.0 * step for step in range(-6, 7)]


@pytest.fixture(scope="module")
def studio():
    return Studio(default_truth())


def picture(studio, shot, side=SIDE):
    rgba = torch.from_numpy(studio.cut_out(shot, side)).permute(2, 0, 1).float() / 255
    return torch.cat([rgba[:3] * rgba[3:], rgba[3:]])


def renders(studio):
    return lambda directions: torch.stack([picture(studio, Shot(*direction, RADIUS)) for direction in directions])


@pytest.mark.parametrize("true", [(-52.0, 11.0), (4.0, 24.0), (71.0, 38.0)])
@pytest.mark.parametrize("crop", [(0, 0, 96), (10, 4, 80)])
def test_poses_are_found_however_the_photo_is_cropped(studio, true, crop):
    left, top, side = crop
    photo = picture(studio, Shot(*true, RADIUS), 96)[:, top : top + side, left : left + side]
    photo = interpolate(photo[None], (SIDE, SIDE), mode="area")
    (pose,) = find_poses(renders(studio), photo, [FRONT_HALF])
    assert (pose.azimuth, pose.elevation) == pytest.approx(true, abs=6)
    assert pose.zoom == pytest.approx(96 / side, rel=0.05) and pose.mismatch < 0.25
    middle = (48 - left) / side * 2 - 1, (48 - top) / side * 2 - 1
    assert pose.shift == pytest.approx(middle, abs=0.08)


def test_only_allowed_azimuths_are_searched(studio):
    photo = picture(studio, Shot(60.0, 15.0, RADIUS))[None]
    (pose,) = find_poses(renders(studio), photo, [[-45.0, -30.0]])
    assert pose.azimuth < -15 and pose.mismatch > 0.3


def test_a_render_matches_itself_and_nothing_matches_what_is_elsewhere(studio):
    views = renders(studio)([(0.0, 20.0), (90.0, 20.0)])
    errors = mismatches(views[:1], views)
    assert errors[0] < 1e-4 and errors[1] > 0.3
    bar, beam = torch.zeros(2, 4, SIDE, SIDE)
    bar[:, 4:44, 22:26], beam[:, 22:26, 4:44] = 1.0, 1.0
    assert mismatches(bar[None], beam[None]) > 1.5, "other silhouettes with the same area and centre"


def test_frames_and_placements_are_those_of_moved_squares():
    small, large = torch.zeros(2, 1, 4, 8, 8).unbind(0)
    small[:, :, 2:4, 2:4] = 1.0
    large[:, :, 2:6, 4:8] = 1.0
    centre, size = frames(large[:, 3:])
    assert centre.tolist() == [[0.5, 0.0]] and size.tolist() == [0.5]
    zoom, shift = placements(large, small)
    assert zoom.tolist() == [2.0] and shift.tolist() == [[1.0, 0.5]], "of the small one's centre, (-0.25, -0.25)"


def test_cameras_see_what_the_photo_shows(studio):
    pose = PhotoPose(30.0, 20.0, zoom=1.3, shift=(0.2, -0.1), mismatch=0.0)
    cameras = pose_cameras([pose], RADIUS, FOV, SIDE)
    rays = image_rays(cameras)
    origin = torch.nn.functional.cosine_similarity(-rays.origins, rays.directions, dim=-1)
    row, column = divmod(int(origin.argmax()), SIDE)
    assert (column, row) == pytest.approx((0.6 * SIDE, 0.45 * SIDE), abs=1)
    corner = np.degrees(np.arccos(float(rays.directions[0] @ rays.directions[SIDE - 1])))
    assert corner < np.degrees(2 * np.arctan(np.tan(np.radians(FOV / 2)) / 1.3)), "a zoom is a narrower field of view"
