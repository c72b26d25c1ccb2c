"""Orbits and rays keep the convention of the world."""

import torch

from db3d_nerfstudio.cameras import image_rays, orbit_cameras, spiral_cameras


def test_azimuth_zero_looks_at_the_front_and_grows_counter_clockwise():
    cameras, views = orbit_cameras(4, elevation=0.0, radius=2.0, fov=40.0, resolution=8)
    expected = torch.tensor([[2.0, 0, 0], [0, 2.0, 0], [-2.0, 0, 0], [0, -2.0, 0]])
    torch.testing.assert_close(cameras.camera_to_worlds[:, :, 3], expected, atol=1e-6, rtol=0)
    assert views.azimuth.tolist() == [0.0, 90.0, -180.0, -90.0]
    # From the front, the subject's left hand (+y) is on the right of the picture and +z is up.
    torch.testing.assert_close(cameras.camera_to_worlds[0, :, 0], torch.tensor([0.0, 1.0, 0.0]))
    torch.testing.assert_close(cameras.camera_to_worlds[0, :, 1], torch.tensor([0.0, 0.0, 1.0]))


def test_rays_come_image_by_image_and_row_by_row():
    cameras, views = orbit_cameras(3, elevation=20.0, radius=3.0, fov=40.0, resolution=4)
    rays = image_rays(cameras)
    assert rays.origins.shape == (48, 3)
    torch.testing.assert_close(rays.origins.view(3, 16, 3), cameras.camera_to_worlds[:, None, :, 3].expand(3, 16, 3))
    directions = rays.directions.view(3, 4, 4, 3)
    right, up = cameras.camera_to_worlds[:, :, 0], cameras.camera_to_worlds[:, :, 1]
    assert ((directions[:, :, 1:] - directions[:, :, :-1]) * right[:, None, None]).sum(-1).min() > 0
    assert ((directions[:, 1:] - directions[:, :-1]) * up[:, None, None]).sum(-1).max() < 0
    # The four central rays enclose the origin.
    centre = torch.nn.functional.normalize(directions[:, 1:3, 1:3].mean((1, 2)), dim=-1)
    torch.testing.assert_close(centre, -cameras.camera_to_worlds[:, :, 2], atol=1e-6, rtol=0)


def test_a_spiral_is_even_in_area():
    _, views = spiral_cameras(64, (-30.0, 80.0), 3.0, 40.0, 4)
    sines = torch.sin(torch.deg2rad(views.elevation))
    assert -30 < views.elevation.min() and views.elevation.max() < 80
    assert torch.allclose(sines.diff(), sines.diff()[:1].expand(63), atol=1e-5)
    around = torch.histc(views.azimuth, 8, -180, 180)
    assert around.min() >= 7 and around.max() <= 9
