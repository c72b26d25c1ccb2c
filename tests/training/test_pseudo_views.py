"""Pseudo views: what they are made from, and a dataset on disk that other programs read."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from PIL import Image
from tiny import GaussianGuide, GaussianGuideConfig
from tiny_run import START, tiny_run

from db3d_nerfstudio.cameras import orbit_cameras
from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.images import contact_sheet
from db3d_nerfstudio.training.pseudo_views import (
    dilate,
    given_views,
    load_pseudo_views,
    save_pseudo_views,
)
from db3d_nerfstudio.training.start import check_input
from db3d_nerfstudio.training.tasks import run_tasks

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


def test_pseudo_views_made_late_still_show_the_initial_nerf(config):
    run = tiny_run(config)
    run.runner.before_step(0)
    run.runner.before_step(START)
    folder = run.context.folder / "pseudo_views"
    views, renders = load_pseudo_views(folder), (folder / "renders" / "000.png").read_bytes()
    folder.rename(run.context.folder.parent / "moved")
    late = tiny_run(config)
    torch.nn.init.constant_(late.context.model.field.grids[0], 5.0)
    late.runner.before_step(START + 1)
    assert torch.equal(load_pseudo_views(folder), views)
    assert (folder / "renders" / "000.png").read_bytes() == renders
    assert bool((late.context.model.field.grids[0] == 5).all()), "and the model is given back what it had"


@pytest.mark.parametrize(("name", "value"), [("strength", 1.0), ("guidance_scale", 1.0), ("steps", 2), ("margin", 0.1)])
def test_every_setting_of_the_translation_changes_the_pseudo_views(config, name, value):
    views = []
    for config.timestamp in ("run", "other"):
        run = tiny_run(config)
        run.runner.before_step(START)
        views.append(load_pseudo_views(run.context.folder / "pseudo_views"))
        setattr(config.pipeline.phases.pseudo_views, name, value)
    assert not torch.equal(*views)


class SeeingGuide(GaussianGuide):
    """Draws brighter, the brighter what it sees."""

    sees_references = True

    @contextmanager
    def references(self, rgb: torch.Tensor) -> Iterator[None]:
        self.shift.data += rgb.mean()
        yield
        self.shift.data -= rgb.mean()


def test_the_guide_sees_the_photos_while_it_draws(config):
    config.pipeline.model.guide = GaussianGuideConfig(_target=SeeingGuide, mean=0.3)
    views = []
    for config.timestamp in ("run", "other"):
        run = tiny_run(config)
        run.runner.before_step(START)
        views.append(load_pseudo_views(run.context.folder / "pseudo_views"))
        config.pipeline.phases.pseudo_views.references = True
    assert (views[1] - views[0]).mean() > 0.05


def test_silhouettes_are_dilated_by_a_share_of_the_width():
    accumulation = torch.zeros(1, 1, 20, 40)
    accumulation[..., 10, 20], accumulation[..., 0, 0] = 0.6, 0.4
    rows, columns = dilate(accumulation, 0.05)[0, 0].nonzero().unbind(1)
    assert sorted(set(rows.tolist())) == [8, 9, 10, 11, 12] and sorted(set(columns.tolist())) == [18, 19, 20, 21, 22]
    assert torch.equal(dilate(accumulation, 0.0), (accumulation > 0.5).float())


def test_pseudo_views_keep_the_size_that_the_guide_gave_them(tmp_path):
    cameras, _ = orbit_cameras(2, 10.0, 3.0, 40.0, 8)
    renders, translated = torch.zeros(2, 3, 8, 8), torch.tensor([0.2, 0.8])[:, None, None, None].expand(2, 3, 16, 16)
    save_pseudo_views(tmp_path, cameras, torch.ones(5, 3, 16, 16), renders, translated)
    loaded = load_pseudo_views(tmp_path)
    assert torch.allclose(loaded, translated, atol=1 / 255) and loaded.shape[-1] == 16
    data = json.loads((tmp_path / "transforms.json").read_text())
    assert (data["w"], data["h"], data["cx"]) == (16, 16, 8)
    assert data["fl_x"] == pytest.approx(2 * float(cameras.fx[0]))
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


def test_contact_sheets_fill_short_rows_with_white():
    red, blue = (torch.tensor(rgb).view(1, 3, 1, 1).expand(-1, 3, 4, 4) for rgb in ([1.0, 0, 0], [0.0, 0, 1]))
    sheet = contact_sheet([red, blue.expand(2, -1, -1, -1)], side=2)
    corners = sheet[:, ::2, ::2].permute(1, 2, 0)
    assert corners.tolist() == [[[1, 0, 0], [1, 1, 1]], [[0, 0, 1], [0, 0, 1]]]


def write_views(folder, greys, size=(16, 16)):
    folder.mkdir()
    for index, grey in enumerate(greys):
        Image.new("RGB", size, (grey,) * 3).save(folder / f"{index}.png")
    return folder


def test_given_images_take_the_place_of_translated_renders(config, tmp_path):
    config.pipeline.phases.pseudo_views.images = write_views(tmp_path / "edited", (30, 120, 240))
    run = tiny_run(config)
    run.runner.before_step(0)
    run.runner.before_step(START)
    views = load_pseudo_views(run.context.folder / "pseudo_views")
    assert (views[:, 0, 0, 0] * 255).round().tolist() == [30, 120, 240] and views.shape[-1] == 16
    assert not (run.context.folder / "dreambooth" / "full").exists(), "nothing needs D_full"
    assert "DreamBooth full" not in [task.name for task in run_tasks(config.pipeline.phases, 3)]
    Image.new("RGB", (16, 16), "red").save(tmp_path / "edited" / "1.png")
    with pytest.raises(UserError, match="images"):
        tiny_run(config).runner.before_step(START)


def test_given_images_on_transparent_ground_are_not_cropped_to_the_subject(tmp_path):
    folder = write_views(tmp_path / "edited", (0,))
    image = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 4, 4))
    image.save(folder / "0.png")
    (view,) = given_views(folder, 1, background=(0.0, 0.0, 1.0))
    assert view[:, 0, 0].tolist() == [1, 0, 0] and view[:, 8, 8].tolist() == [0, 0, 1]


@pytest.mark.parametrize(("greys", "size", "words"), [((1, 2), (8, 8), "2 images"), ((1, 2, 3), (8, 9), "not square")])
def test_given_images_that_fit_no_orbit_end_the_run_at_its_start(config, tmp_path, greys, size, words):
    config.pipeline.phases.pseudo_views.images = write_views(tmp_path / "edited", greys, size)
    with pytest.raises(UserError, match=words):
        check_input(config.pipeline)
