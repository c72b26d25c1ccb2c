from pathlib import Path

import torch

from db3d_nerfstudio.training.dataparser import DreamBooth3DDataParserConfig


def test_the_orbit_is_even_at_a_fixed_radius_and_starts_at_the_front():
    cameras, views = DreamBooth3DDataParserConfig(num_views=4, elevation=0.0, radius=3.0).orbit()
    positions = cameras.camera_to_worlds[:, :, 3]
    expected = torch.tensor([[3.0, 0, 0], [0, 3, 0], [-3, 0, 0], [0, -3, 0]])
    assert torch.allclose(positions, expected, atol=1e-5)
    assert views.azimuth.abs().tolist() == [0, 90, 180, 90]


def test_every_setting_reaches_the_cameras():
    config = DreamBooth3DDataParserConfig(num_views=3, elevation=30.0, radius=2.0, fov=60.0, resolution=10)
    outputs = config.setup().get_dataparser_outputs()
    cameras = outputs.cameras
    assert len(cameras) == len(outputs.image_filenames) == 3
    assert torch.allclose(cameras.camera_to_worlds[:, 2, 3], torch.tensor(1.0))  # 2 sin 30
    assert torch.allclose(cameras.fx, torch.tensor(5 * 3**0.5))  # (10 / 2) / tan 30
    assert cameras.height.unique().tolist() == [10]


def test_images_are_those_of_the_pseudo_views_which_need_not_exist():
    outputs = DreamBooth3DDataParserConfig(pseudo_views=Path("run/pseudo_views")).setup().get_dataparser_outputs()
    assert outputs.image_filenames[1] == Path("run/pseudo_views/images/001.png")
    assert outputs.scene_box.aabb.tolist() == [[-1, -1, -1], [1, 1, 1]]
