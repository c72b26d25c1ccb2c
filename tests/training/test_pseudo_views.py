import json

import torch
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.models.base_model import Model
from torch import nn

from db3d_nerfstudio.cameras import orbit_cameras
from db3d_nerfstudio.images import contact_sheet
from db3d_nerfstudio.training.pseudo_views import (
    in_chunks,
    load_pseudo_views,
    render,
    save_pseudo_views,
    transforms,
    widened,
)


class Compass(Model):
    """Stands in for a NeRF: every view shows the direction it is seen from."""

    device = torch.device("cpu")

    def __init__(self):
        nn.Module.__init__(self)

    def get_outputs_for_camera(self, camera):
        assert not self.training and not torch.is_grad_enabled()
        direction = nn.functional.normalize(camera.camera_to_worlds[0, :, 3], dim=-1)
        return {"rgb": (direction / 2 + 0.5).expand(4, 4, 3), "accumulation": direction[1].abs().expand(4, 4, 1)}


def test_renders_are_in_the_order_of_the_cameras_and_leave_the_model_in_training():
    model = Compass()
    renders, accumulation = render(model, orbit_cameras(4, 0.0, 3.0, 40.0, 4)[0])
    assert model.training
    expected = torch.tensor([[1, 0.5], [0.5, 1], [0, 0.5], [0.5, 0]])
    assert torch.allclose(renders[:, :2, 0, 0], expected, atol=1e-6)
    assert torch.allclose(accumulation[:, 0, 0, 0], torch.tensor([0.0, 1, 0, 1]), atol=1e-6)


def test_silhouettes_are_widened_by_a_share_of_the_width():
    accumulation = torch.zeros(1, 1, 20, 40)
    accumulation[..., 10, 20], accumulation[..., 0, 0] = 0.6, 0.4
    rows, columns = widened(accumulation, 0.05)[0, 0].nonzero().unbind(1)
    assert sorted(set(rows.tolist())) == [8, 9, 10, 11, 12] and sorted(set(columns.tolist())) == [18, 19, 20, 21, 22]
    assert torch.equal(widened(accumulation, 0.0), (accumulation > 0.5).float())


def test_pseudo_views_survive_the_disk_at_their_cameras_size(tmp_path):
    cameras, _ = orbit_cameras(2, 10.0, 3.0, 40.0, 8)
    renders, translated = torch.zeros(2, 3, 8, 8), torch.tensor([0.2, 0.8])[:, None, None, None].expand(2, 3, 16, 16)
    save_pseudo_views(tmp_path, cameras, torch.ones(5, 3, 16, 16), renders, translated)
    loaded = load_pseudo_views(tmp_path)
    assert torch.allclose(loaded, translated[:, :, ::2, ::2])
    assert len(list((tmp_path / "renders").iterdir())) == 2 and (tmp_path / "contact_sheet.png").exists()


def test_nerfstudio_reads_the_same_cameras_back(tmp_path):
    """What `ns-train nerfacto --data RUN/pseudo_views` would see, without its normalisation of poses."""
    cameras, _ = orbit_cameras(4, 10.0, 3.0, 40.0, 8)
    images = torch.zeros(4, 3, 8, 8)
    save_pseudo_views(tmp_path, cameras, images, images, images)
    parser = NerfstudioDataParserConfig(
        data=tmp_path,
        downscale_factor=1,
        orientation_method="none",
        center_method="none",
        auto_scale_poses=False,
        eval_mode="all",
    )
    outputs = parser.setup().get_dataparser_outputs()
    assert [path.name for path in outputs.image_filenames] == [f"{i:03d}.png" for i in range(4)]
    assert torch.allclose(outputs.cameras.camera_to_worlds, cameras.camera_to_worlds, atol=1e-6)
    assert torch.allclose(outputs.cameras.fx, cameras.fx)


def test_transforms_are_plain_json():
    cameras, _ = orbit_cameras(2, 0.0, 3.0, 90.0, 8)
    data = json.loads(json.dumps(transforms(cameras)))
    assert (data["w"], data["h"], data["cx"]) == (8, 8, 4)
    assert abs(data["fl_y"] - 4) < 1e-5  # Half the height at 90 degrees.
    assert data["frames"][0]["transform_matrix"][3] == [0, 0, 0, 1]


def test_contact_sheets_fill_short_rows_with_white():
    red, blue = (torch.tensor(rgb).view(1, 3, 1, 1).expand(-1, 3, 4, 4) for rgb in ([1.0, 0, 0], [0.0, 0, 1]))
    sheet = contact_sheet([red, blue.expand(2, -1, -1, -1)], side=2)
    corners = sheet[:, ::2, ::2].permute(1, 2, 0)
    assert corners.tolist() == [[[1, 0, 0], [1, 1, 1]], [[0, 0, 1], [0, 0, 1]]]


def test_chunks_are_told_which_renders_they_have():
    seen = []

    def translate(rgb, part):
        seen.append((part.start, len(rgb)))
        return rgb + 1

    renders = torch.rand(5, 3, 2, 2)
    assert torch.equal(in_chunks(translate, renders, 2), renders + 1)
    assert seen == [(0, 2), (2, 2), (4, 1)]
