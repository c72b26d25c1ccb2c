import pytest
import torch
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager, VanillaDataManagerConfig
from PIL import Image

from db3d_nerfstudio.cameras import orbit_cameras
from db3d_nerfstudio.results.posed_images import load_posed, save_posed
from db3d_nerfstudio.training.datamanager import DreamBooth3DDataManagerConfig
from db3d_nerfstudio.training.dataparser import DreamBooth3DDataParserConfig
from db3d_nerfstudio.training.random_cameras import RandomCamerasConfig

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


@pytest.fixture
def manager(tmp_path):
    config = DreamBooth3DDataManagerConfig(
        data=tmp_path,
        dataparser=DreamBooth3DDataParserConfig(num_views=3, resolution=8, pseudo_views=tmp_path / "pseudo_views"),
        random_cameras=RandomCamerasConfig(resolution=((0.0, 4), (0.5, 8))),
        views_per_step=2,
        train_num_rays_per_batch=32,
    )
    return config.setup(device="cpu")


def make_pseudo_views(manager, colours):
    for path, colour in zip(manager.train_dataset.image_filenames, colours, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), colour).save(path)


def test_random_views_are_image_major_and_coarse_at_first(manager):
    rays, batch = manager.next_train(1)
    assert batch["image_shape"] == (2, 4, 4) and len(rays) == 2 * 4 * 4 and "image" not in batch
    for image, radius in zip(rays.origins.view(2, -1, 3), batch["views"].radius, strict=True):
        assert torch.equal(image, image[:1].expand_as(image)), "one camera's rays start at one point"
        assert abs(image[0].norm() - radius) < 0.2, "near where the view is said to be, but for the jitter"
    manager.progress = 0.5
    assert manager.next_train(1)[1]["image_shape"] == (2, 8, 8)


def test_with_pseudo_views_every_second_batch_has_their_pixels(manager):
    make_pseudo_views(manager, ["red", "lime", "blue"])
    manager.load_pseudo_views()
    assert "image" not in manager.next_train(0)[1]
    rays, batch = manager.next_train(1)
    assert len(rays) == 32
    assert torch.equal(batch["image"], torch.eye(3)[batch["indices"][:, 0]]), "each camera's pixels are its own"
    origins = manager.train_dataset.cameras.camera_to_worlds[batch["indices"][:, 0], :, 3]
    assert torch.allclose(rays.origins, origins)


def test_photos_take_their_share_of_the_pseudo_views_micro_steps(manager, tmp_path):
    cameras, _ = orbit_cameras(2, 20.0, 3.0, 40.0, 8)
    (tmp_path / "posed").mkdir()
    save_posed(tmp_path / "posed", cameras, list(torch.rand(2, 4, 8, 8)))
    manager.photos = load_posed(tmp_path / "posed", "cpu")
    assert manager.next_train(1)[1]["image"].shape == (32, 4) and "image" not in manager.next_train(2)[1]
    make_pseudo_views(manager, ["red", "lime", "blue"])
    manager.load_pseudo_views()
    for share, channels in ((0.0, {3}), (1.0, {4}), (0.5, {3, 4})):
        manager.photo_share = share
        assert {manager.next_train(1)[1]["image"].shape[1] for _ in range(20)} == channels


def test_the_orbit_is_white_until_there_are_pseudo_views(manager):
    assert manager.train_dataset[0]["image"].shape == (8, 8, 3)
    assert manager.train_dataset[0]["image"].min() == 1
    make_pseudo_views(manager, ["black"] * 3)
    assert manager.train_dataset[0]["image"].max() == 0


def test_large_pseudo_views_are_compared_at_the_size_that_is_rendered(manager):
    make_pseudo_views(manager, ["black"] * 3)
    halves = Image.new("RGB", (32, 32), "white")
    halves.paste("black", (0, 0, 16, 32))
    halves.save(manager.train_dataset.image_filenames[0])
    image = manager.train_dataset[0]["image"]
    assert image.shape == (8, 8, 3)
    assert image[:, :3].max() == 0 and image[:, 5:].min() == 1


def test_batches_depend_on_the_random_state_alone(manager):
    make_pseudo_views(manager, ["red", "lime", "blue"])
    torch.manual_seed(3)
    manager.load_pseudo_views()
    for step in (0, 1):
        torch.manual_seed(step)
        first = manager.next_train(step)[0]
        manager.next_train(7)
        torch.manual_seed(step)
        assert torch.equal(manager.next_train(step)[0].directions, first.directions)


def test_exporters_find_what_they_ask_for(manager):
    """`ns-export` wants rays towards the object, and to set their number; `ns-eval` whole images."""
    assert isinstance(manager, VanillaDataManager) and isinstance(manager.config, VanillaDataManagerConfig)
    manager.eval()
    manager.train_pixel_sampler.num_rays_per_batch = 5
    rays, batch = manager.next_train(0)
    assert len(rays) == 5 and "image" in batch
    camera, batch = next(iter(manager.fixed_indices_eval_dataloader))
    assert camera.shape == (1,) and batch["image"].shape == (8, 8, 3)
    assert manager.get_datapath() == manager.config.data
