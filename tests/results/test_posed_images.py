"""Pictures with poses: the pixels that are drawn are those that their rays see."""

from dataclasses import replace

import pytest
import torch
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

from db3d_nerfstudio.cameras import image_rays, spiral_cameras
from db3d_nerfstudio.results.posed_images import load_posed, save_posed


def posed(folder, num=3, side=4):
    cameras, _ = spiral_cameras(num, (-30.0, 80.0), 3.0, 40.0, side)
    views = list(torch.rand(num, 4, side, side))
    save_posed(folder, cameras, views)
    return cameras, torch.stack(views)


def test_pixels_belong_to_their_rays(tmp_path):
    cameras, views = posed(tmp_path)
    rays, batch = load_posed(tmp_path, "cpu").draw(200)
    every = image_rays(cameras)
    distances = torch.cdist(rays.directions, every.directions) + torch.cdist(rays.origins, every.origins)
    nearest, index = distances.min(1)
    assert nearest.max() < 2e-3 and len(set(index.tolist())) > 40, "most of 48 pixels, and no others"
    assert (batch["image"] - views.permute(0, 2, 3, 1).reshape(-1, 4)[index]).abs().max() < 0.5 / 255 + 1e-6


def test_a_picture_is_drawn_whole_and_row_by_row(tmp_path):
    cameras, views = posed(tmp_path)
    torch.manual_seed(0)
    seen = set()
    for _ in range(12):
        rays, batch = load_posed(tmp_path, "cpu").draw_picture()
        pictures = (views.permute(0, 2, 3, 1).reshape(3, 16, 4) - batch["image"]).abs().amax((1, 2))
        (index,) = (pictures < 1 / 255).nonzero()[0].tolist()
        every = image_rays(cameras[index : index + 1])
        assert batch["picture_shape"] == (4, 4) and torch.allclose(rays.directions, every.directions, atol=2e-3)
        seen.add(index)
    assert seen == {0, 1, 2}


def test_cameras_are_moved_around_the_origin_and_their_rays_with_them(tmp_path):
    posed(tmp_path)
    still = load_posed(tmp_path, "cpu")
    motion = torch.tensor([[0.0, -1.0, 0.0, 0.1], [1.0, 0.0, 0.0, 0.2], [0.0, 0.0, 1.0, 0.3]])
    moved = replace(still, motions=lambda index: motion.expand(len(index), 3, 4))
    rotation, translation = motion.split([3, 1], -1)
    origins = (rotation @ still.cameras.camera_to_worlds[..., 3:] + translation)[..., 0]
    assert torch.allclose(moved.moved().camera_to_worlds[..., 3], origins)
    torch.manual_seed(0)
    before, _ = still.draw(50)
    torch.manual_seed(0)
    after, _ = moved.draw(50)
    assert torch.allclose(after.origins, before.origins @ rotation.T + translation[:, 0], atol=1e-6)
    assert torch.allclose(after.directions, before.directions @ rotation.T, atol=1e-6)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # nerfstudio opens the first picture.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_cameras_of_several_lenses_are_kept(tmp_path):
    cameras, _ = spiral_cameras(3, (-30.0, 80.0), 3.0, 40.0, 4)
    cameras.fx = cameras.fy = torch.tensor([[4.0], [5.0], [6.0]])
    cameras.cx = torch.tensor([[2.0], [1.0], [3.0]])
    save_posed(tmp_path, cameras, list(torch.rand(3, 4, 4, 4)))
    again = load_posed(tmp_path, "cpu").cameras
    for name in ("fx", "fy", "cx", "cy", "camera_to_worlds"):
        assert torch.allclose(getattr(again, name), getattr(cameras, name))
    parsed = NerfstudioDataParserConfig(data=tmp_path, eval_mode="all").setup().get_dataparser_outputs()
    assert torch.allclose(parsed.cameras.fx, cameras.fx), "and nerfstudio reads them"


def test_batches_depend_on_the_random_state_alone(tmp_path):
    posed(tmp_path)
    batches = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        batches.append(load_posed(tmp_path, "cpu").draw(16)[1]["image"])
    assert torch.equal(batches[0], batches[1]) and not torch.equal(batches[0], batches[2])
