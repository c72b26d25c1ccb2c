"""Random cameras obey the axioms of rotations and fill their ranges."""

import dataclasses

import pytest
import torch

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.training.random_cameras import RandomCamerasConfig, random_cameras, resolution_at

STILL = dict(position_jitter=0.0, center_jitter=0.0, up_jitter=0.0)


def draw(num=2000, seed=0, **changes):
    config = dataclasses.replace(RandomCamerasConfig(), **changes)
    return random_cameras(config, num, 8, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("changes", [{}, STILL, {"elevation_range": (90.0, 90.0), **STILL}])
def test_poses_are_right_handed_rotations(changes):
    rotations = draw(**changes)[0].camera_to_worlds[:, :, :3]
    torch.testing.assert_close(rotations @ rotations.mT, torch.eye(3).expand(len(rotations), 3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotations), torch.ones(len(rotations)))


def test_still_cameras_look_at_the_origin_from_where_the_views_say():
    cameras, views = draw(**STILL)
    position, back = cameras.camera_to_worlds[:, :, 3], cameras.camera_to_worlds[:, :, 2]
    torch.testing.assert_close(position, back * views.radius[:, None], atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.rad2deg(torch.asin(back[:, 2])), views.elevation, atol=1e-2, rtol=0)
    torch.testing.assert_close(cameras.camera_to_worlds[:, 2, 0], torch.zeros(len(back)), atol=1e-6, rtol=0)


def test_every_range_is_filled_and_kept():
    config = RandomCamerasConfig(
        elevation_range=(-20.0, 50.0), azimuth_range=(10.0, 90.0), radius_range=(1.5, 2.0), fov_range=(30.0, 60.0)
    )
    cameras, views = random_cameras(config, 4000, 64, torch.Generator().manual_seed(0))
    for name in ("elevation", "azimuth", "radius", "fov"):
        low, high = getattr(config, f"{name}_range")
        values, margin = getattr(views, name), 0.02 * (high - low)
        assert low <= values.min() < low + margin and high - margin < values.max() <= high
    torch.testing.assert_close(torch.rad2deg(2 * torch.atan(32 / cameras.fy[:, 0])), views.fov)


def test_share_of_area_uniform_cameras_is_drawn_per_camera():
    """Over the upper half sphere the mean elevation is 45 degrees in angle, 90 - 180/pi = 32.7 degrees in area."""
    for share, expected in ((0.0, 45.0), (1.0, 32.704), (0.5, 38.852)):
        views = draw(20000, elevation_range=(0.0, 90.0), uniform_sphere_prob=share)[1]
        assert views.elevation.mean() == pytest.approx(expected, abs=0.5)


def test_jitters_have_their_stated_size():
    size, still = {"position_jitter": 0.3, "center_jitter": 0.2, "up_jitter": 0.1}, draw(**STILL)[0].camera_to_worlds
    moved = draw(**{**STILL, "position_jitter": size["position_jitter"]})[0].camera_to_worlds
    shift = (moved - still)[:, :, 3].abs()
    assert 0.29 < shift.max() <= 0.3
    centred = draw(**{**STILL, "center_jitter": size["center_jitter"]})[0].camera_to_worlds
    assert torch.equal(centred[:, :, 3], still[:, :, 3])
    # The origin lies 3 units ahead, so a shift of the centre by 0.2 turns the axis by about 0.2 / 3.05 each way.
    assert (centred - still)[:, :, 2].pow(2).sum(-1).mean().sqrt() == pytest.approx(0.2 / 3.05 * 2**0.5, rel=0.1)
    rolled = draw(**{**STILL, "up_jitter": size["up_jitter"]})[0].camera_to_worlds
    torch.testing.assert_close(rolled[:, :, 2], still[:, :, 2])
    assert (rolled - still)[:, :, 0].pow(2).sum(-1).mean().sqrt() == pytest.approx(0.1, rel=0.1)


def test_draws_are_reproducible():
    assert torch.equal(draw(seed=3)[0].camera_to_worlds, draw(seed=3)[0].camera_to_worlds)
    assert not torch.equal(draw(seed=3)[0].camera_to_worlds, draw(seed=4)[0].camera_to_worlds)


def test_resolution_grows_in_a_phase():
    config = RandomCamerasConfig(resolution=((0.0, 32), (0.25, 64), (0.9, 128)))
    sides = [resolution_at(config, progress) for progress in (0.0, 0.24, 0.25, 0.89, 0.99)]
    assert sides == [32, 32, 64, 64, 128]


@pytest.mark.parametrize("resolution", [(), ((0.1, 64),), ((0.0, 64), (0.5, 0))])
def test_a_phase_without_a_resolution_is_refused(resolution):
    with pytest.raises(UserError, match="random-cameras.resolution"):
        resolution_at(RandomCamerasConfig(resolution=resolution), 0.0)
