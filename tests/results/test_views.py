"""`db3d export RUN --views`: pictures, masks and poses that fit together, as other programs read them."""

import json
import shutil

import numpy as np
import pytest
import torch
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.data.utils import colmap_parsing_utils as colmap
from nerfstudio.models.base_model import Model
from PIL import Image
from torch import nn

from db3d_nerfstudio import cli
from db3d_nerfstudio.cameras import orbit_cameras
from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.results.views import save_views, shoot, surface_points

BALL, RADIUS = torch.tensor([0.3, -0.2, 0.4]), 0.15


class Ball(Model):
    """Stands in for a NeRF: a small, half transparent ball off every axis, green where it is above its middle."""

    device = torch.device("cpu")

    def __init__(self):
        nn.Module.__init__(self)

    def get_outputs_for_camera(self, camera):
        rays = camera.generate_rays(camera_indices=0)
        along = ((BALL - rays.origins) * rays.directions).sum(-1, keepdim=True)
        off = (rays.origins + rays.directions * along - BALL).norm(dim=-1, keepdim=True)
        alpha = 0.8 * (off < RADIUS).float()
        depth = along - (RADIUS**2 - off**2).clamp_min(0).sqrt()
        green = ((rays.origins + rays.directions * depth)[..., 2:] > BALL[2]).float()
        color = torch.cat([torch.full_like(green, 0.5), green, torch.zeros_like(green)], -1)
        return {"albedo": color * alpha, "accumulation": alpha, "depth": depth}


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def shots(cameras):
    return [shoot(Ball(), cameras[i : i + 1]) for i in range(len(cameras))]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Views of the ball."""
    folder = tmp_path_factory.mktemp("views")
    cameras, _ = orbit_cameras(6, 25.0, 3.0, 40.0, 32)
    rgba, surface = (torch.stack(part) for part in zip(*shots(cameras), strict=True))
    save_views(folder, cameras, rgba, surface_points(rgba, surface, num=60), rgba[:4])
    return folder


def test_colours_have_no_background_in_them(exported):
    view = pixels(exported / "images" / "000.png")
    inside = view[view[..., 3] > 0]
    assert view.shape == (32, 32, 4) and set(inside[:, 3]) == {204} and set(inside[:, 0]) == {128}
    mask = pixels(exported / "masks" / "000.png")
    assert ((mask == 255) == (view[..., 3] > 0)).all() and set(np.unique(mask)) == {0, 255}


def test_the_ball_is_where_colmap_says(exported):
    """Its centre, projected by what is read back, against the middle of the masks."""
    lenses, images, points = colmap.read_model(str(exported / "sparse" / "0"), ".txt")
    fx, fy, cx, cy = lenses[1].params
    for image in images.values():
        x, y, z = colmap.qvec2rotmat(image.qvec) @ BALL.double().numpy() + image.tvec
        rows, columns = pixels(exported / "masks" / image.name).nonzero()
        assert abs(fx * x / z + cx - columns.mean() - 0.5) < 0.5
        assert abs(fy * y / z + cy - rows.mean() - 0.5) < 0.5
        for pixel, point in zip(image.xys, image.point3D_ids, strict=True):
            x, y, z = colmap.qvec2rotmat(image.qvec) @ points[point].xyz + image.tvec
            assert np.allclose((fx * x / z + cx, fy * y / z + cy), pixel, atol=1e-3)
    assert 40 < len(points) <= 60
    for point in points.values():
        assert np.linalg.norm(point.xyz - BALL.numpy()) == pytest.approx(RADIUS, abs=1e-4)
        assert point.rgb.tolist() == [128, 255 if point.xyz[2] > BALL[2] else 0, 0]


def test_nerfstudio_reads_poses_pictures_and_points(exported):
    parser = NerfstudioDataParserConfig(
        data=exported,
        downscale_factor=1,
        orientation_method="none",
        center_method="none",
        auto_scale_poses=False,
        eval_mode="all",
        load_3D_points=True,
    )
    outputs = parser.setup().get_dataparser_outputs()
    cameras, _ = orbit_cameras(6, 25.0, 3.0, 40.0, 32)
    assert torch.allclose(outputs.cameras.camera_to_worlds, cameras.camera_to_worlds, atol=1e-6)
    assert all(path.is_file() for path in outputs.image_filenames) and outputs.mask_filenames is None
    distances = (outputs.metadata["points3D_xyz"] - BALL).norm(dim=-1)
    assert torch.allclose(distances, torch.full_like(distances, RADIUS), atol=1e-4)


def test_a_run_is_exported_once_for_each_size(untrained_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(untrained_run, run)
    cli.main(["export", str(run), "--views", "3", "--size", "16"])
    folder = run / "exports" / "views"
    assert sorted(path.name for path in (folder / "sides").iterdir()) == [
        "back.png",
        "front.png",
        "left.png",
        "right.png",
    ]
    written = (folder / "transforms.json").stat().st_mtime_ns
    assert len(json.loads((folder / "transforms.json").read_text())["frames"]) == 3
    cli.main(["export", str(run), "--views", "3", "--size", "16"])
    assert (folder / "transforms.json").stat().st_mtime_ns == written
    cli.main(["export", str(run), "--views", "2", "--size", "8"])
    assert [path.name for path in sorted((folder / "images").iterdir())] == ["000.png", "001.png"]
    assert pixels(folder / "images" / "000.png").shape == (8, 8, 4)
    assert not (run / "exports" / "mesh.glb").exists()


def test_left_is_the_subjects_own_left():
    """The ball lies at negative y, to the subject's right: in the picture from the front, to the viewer's left."""
    cameras, _ = orbit_cameras(4, 0.0, 3.0, 40.0, 32)
    alphas = [rgba[..., 3] for rgba, _ in shots(cameras)]
    front, left, back, right = [(alpha.nonzero()[:, 1].float().mean() - 15.5).item() for alpha in alphas]
    assert front < 0 < back and left < 0 < right, "from its left, its front is to the viewer's left"


def test_an_empty_scene_is_one_line():
    with pytest.raises(UserError, match="the scene is empty"):
        surface_points(torch.zeros(2, 4, 4, 4), torch.zeros(2, 4, 4, 3))
