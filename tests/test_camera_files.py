"""Camera files, as other programs read them."""

import json

import numpy as np
import pytest
import torch
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig
from nerfstudio.data.utils import colmap_parsing_utils as colmap

from db3d_nerfstudio.camera_files import SurfacePoints, save_colmap, transforms
from db3d_nerfstudio.cameras import image_rays, orbit_cameras

SIDE = 8
POINT = np.array([0.3, -0.2, 0.4])
"""Off every axis, so that no two conventions agree about it."""


@pytest.fixture
def cameras():
    return orbit_cameras(5, 25.0, 3.0, 40.0, SIDE)[0]


def pixel_of_point(cameras, i):
    """Column and row of `POINT` by nerfstudio's own rays: where the ray that passes it meets the picture."""
    rays = image_rays(cameras[i : i + 1])
    to_point = torch.from_numpy(POINT).float() - rays.origins
    angles = torch.nn.functional.cosine_similarity(to_point, rays.directions, dim=-1)
    row, column = divmod(int(angles.argmax()), SIDE)
    return column, row


def saved(cameras, folder):
    points = SurfacePoints(
        np.stack([POINT, -POINT]),
        np.array([[1, 2, 3], [4, 5, 6]], np.uint8),
        np.array([2, 2]),
        np.array([[1.5, 2.5], [3.5, 4.5]]),
    )
    save_colmap(folder, cameras, [f"{i}.png" for i in range(len(cameras))], points)
    return points


def test_transforms_are_plain_json():
    cameras, _ = orbit_cameras(2, 0.0, 3.0, 90.0, 8)
    data = json.loads(json.dumps(transforms(cameras)))
    assert (data["w"], data["h"], data["cx"]) == (8, 8, 4)
    assert abs(data["fl_y"] - 4) < 1e-5  # Half the height at 90 degrees.
    assert data["frames"][0]["transform_matrix"][3] == [0, 0, 0, 1]


def test_a_point_lands_where_the_renderer_sees_it(cameras, tmp_path):
    """COLMAP's projection of what is read back, against the rays of nerfstudio's cameras."""
    saved(cameras, tmp_path / "sparse")
    lenses, images, _ = colmap.read_model(str(tmp_path / "sparse"), ".txt")
    for i in range(len(cameras)):
        image = images[i + 1]
        fx, fy, cx, cy = lenses[image.camera_id].params
        x, y, z = colmap.qvec2rotmat(image.qvec) @ POINT + image.tvec
        assert z > 0 and image.name == f"{i}.png"
        assert (int(fx * x / z + cx), int(fy * y / z + cy)) == pixel_of_point(cameras, i)


def test_points_and_their_pixels_refer_to_each_other(cameras, tmp_path):
    points = saved(cameras, tmp_path / "sparse")
    _, images, solids = colmap.read_model(str(tmp_path / "sparse"), ".txt")
    assert solids.keys() == {1, 2} and [len(image.xys) for image in images.values()] == [0, 0, 2, 0, 0]
    for index, point in solids.items():
        assert np.allclose(point.xyz, points.positions[index - 1]) and (point.rgb == points.colors[index - 1]).all()
        seen = images[point.image_ids[0]]
        assert seen.point3D_ids[point.point2D_idxs[0]] == index
        assert (seen.xys[point.point2D_idxs[0]] == points.pixels[index - 1]).all()


def test_nerfstudio_reads_the_same_cameras_from_colmap(cameras, tmp_path):
    saved(cameras, tmp_path / "sparse" / "0")
    parser = ColmapDataParserConfig(
        data=tmp_path,
        colmap_path="sparse/0",
        downscale_factor=1,
        orientation_method="none",
        center_method="none",
        auto_scale_poses=False,
        assume_colmap_world_coordinate_convention=False,
        eval_mode="all",
    )
    read = parser.setup().get_dataparser_outputs().cameras
    assert torch.allclose(read.camera_to_worlds, cameras.camera_to_worlds, atol=1e-5)
    assert torch.allclose(read.fx, cameras.fx) and torch.equal(read.width, cameras.width)
