"""The photos as views of the NeRFs: when they join, from which poses, and which are left out."""

import json
import shutil

import numpy as np
import pytest
import torch
from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig
from PIL import Image
from tiny_model import SIZE, build
from tiny_run import START, tiny_run

from db3d_nerfstudio.cameras import orbit_cameras
from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.nerf.field import GridFieldConfig
from db3d_nerfstudio.results.film import render_views
from db3d_nerfstudio.results.posed_images import PosedImages
from db3d_nerfstudio.training import posed_photos
from db3d_nerfstudio.training.phases import PosedPhotosConfig
from db3d_nerfstudio.training.posed_photos import azimuths_of, cut_out

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
JOIN = 2
"""The step of the tiny run at which photos join: 30 % of three, not between steps that share their gradients."""


@pytest.fixture
def config(config, monkeypatch):
    config.pipeline.phases.posed_photos = PosedPhotosConfig(share=0.5)
    config.pipeline.model.prompt = "a photo of a sks robot"
    monkeypatch.setattr(posed_photos, "MAX_MISMATCH", float("inf"))  # A tiny NeRF resembles nothing.
    return config


@pytest.fixture
def looked_at(monkeypatch):
    """The steps of the NeRFs whose renders photos were compared with."""
    steps, render = set(), posed_photos.render_views

    def look(model, cameras):
        steps.add(model.field.grids[0].flatten()[0].item())
        return render(model, cameras)

    monkeypatch.setattr(posed_photos, "render_views", look)
    return steps


def trained(run, steps):
    for step in steps:
        run.runner.before_step(step)
        torch.nn.init.constant_(run.context.model.field.grids[0], float(step))
    return run


def files(run, name):
    return {path.name: path.read_bytes() for path in (run.context.folder / name).rglob("*") if path.is_file()}


def test_photos_join_within_the_initial_phase_and_at_new_poses_in_the_final_one(config, looked_at):
    run = trained(tiny_run(config), range(JOIN))
    data = run.context.datamanager
    assert data.photos is None and not (run.context.folder / "posed_photos").exists()
    run.runner.before_step(JOIN)
    assert run.saved == [JOIN - 1] and len(data.photos.cameras) == 4
    assert data.next_train(3)[1]["image"].shape[1] == 4 and "views" in data.next_train(2)[1]
    assert looked_at == {JOIN - 1}
    trained(run, range(JOIN, START + 1))
    first, second = (files(run, name) for name in (posed_photos.INITIAL, posed_photos.FINAL))
    assert looked_at == {JOIN - 1, START - 1} and first["000.png"] == second["000.png"], "the same photos"
    assert data.photo_share == 0.5 and len(json.loads(second["poses.json"])) == 4


def test_a_killed_run_finds_the_poses_or_says_that_they_are_gone(config):
    run = trained(tiny_run(config), range(JOIN + 1))
    made = files(run, posed_photos.INITIAL)
    again = trained(tiny_run(config), [START])
    assert files(run, posed_photos.INITIAL) == made and again.context.datamanager.photos is not None
    shutil.rmtree(run.context.folder / posed_photos.INITIAL)
    config.pipeline.phases.initial.steps = START + 1
    with pytest.raises(UserError, match="posed_photos/initial/ is missing .* start a new run"):
        tiny_run(config).runner.before_step(START)


def test_poses_of_the_final_nerf_can_be_made_again(config, looked_at):
    run = trained(tiny_run(config), range(START + 1))
    made = files(run, posed_photos.FINAL)
    shutil.rmtree(run.context.folder / posed_photos.FINAL)
    late = tiny_run(config)
    torch.nn.init.constant_(late.context.model.field.grids[0], 9.0)
    looked_at.clear()
    late.runner.before_step(START + 1)
    assert files(late, posed_photos.FINAL)["poses.json"] == made["poses.json"] and looked_at == {START - 1}


@pytest.mark.parametrize(("begin", "initial"), [(1.0, False), (0.0, True)])
def test_begin_decides_whether_the_initial_nerf_reconstructs_photos(config, begin, initial):
    config.pipeline.phases.posed_photos.begin = begin
    run = trained(tiny_run(config), range(1))
    assert (run.context.datamanager.photos is not None) == initial and not run.saved
    trained(run, range(1, START + 1))
    assert (run.context.folder / posed_photos.INITIAL).exists() == initial and run.context.datamanager.photos


def test_without_a_share_photos_are_never_posed(config):
    config.pipeline.phases.posed_photos.share = 0.0
    run = trained(tiny_run(config), range(START + 1))
    assert run.context.datamanager.photos is None and not (run.context.folder / "posed_photos").exists()


def test_a_baseline_has_no_posed_photos(config):
    config.pipeline.phases.final.steps = 0
    run = trained(tiny_run(config), range(START))
    assert run.context.datamanager.photos is None


@pytest.mark.parametrize("prompt", ["a photo of a sks robot wearing a hat", "a photo of a green sks robot"])
def test_photos_are_not_reconstructed_where_the_prompt_asks_for_more(config, capsys, prompt):
    config.pipeline.model.prompt = prompt
    run = trained(tiny_run(config), range(START + 1))
    assert run.context.datamanager.photos is None and not (run.context.folder / "posed_photos").exists()
    line = 'The prompt is not "a photo of a sks robot", so the NeRFs do not reconstruct photos'
    assert capsys.readouterr().out.count(line) == 1


def test_a_prompt_set_in_the_viewer_decides_from_its_step_on(config):
    run = trained(tiny_run(config), range(JOIN + 1))
    assert run.context.datamanager.photos is not None
    run.context.interventions.request(prompt="a photo of a green sks robot")
    trained(run, range(START, START + 2))
    again = trained(tiny_run(config), [START + 2])
    assert run.context.datamanager.photos is None and again.context.datamanager.photos is None
    assert not (run.context.folder / posed_photos.FINAL).exists()


def test_photos_join_the_final_nerf_of_a_prompt_that_has_come_to_ask_for_no_more(config):
    config.pipeline.model.prompt = "a photo of a sks robot wearing a hat"
    run = trained(tiny_run(config), range(JOIN + 1))
    assert run.context.datamanager.photos is None
    run.context.interventions.request(prompt="a photo of a sks robot")
    assert trained(run, range(START, START + 1)).context.datamanager.photos is not None


def test_photos_are_reconstructed_for_any_prompt_on_request(config, capsys):
    config.pipeline.model.prompt = "a photo of a sks robot on the beach"
    config.pipeline.phases.posed_photos.any_prompt = True
    run = trained(tiny_run(config), range(START + 1))
    assert run.context.datamanager.photos is not None and "do not reconstruct" not in capsys.readouterr().out


def test_a_perceptual_term_needs_whole_pictures(config):
    config.pipeline.model.perceptual_loss_mult = 1.0
    config.pipeline.phases.posed_photos.share = 0.5
    run = trained(tiny_run(config), range(START + 1))
    data, channels = run.context.datamanager, set()
    for _ in range(20):
        rays, batch = data.next_train(5)
        assert len(batch["image"]) == batch["picture_shape"][0] * batch["picture_shape"][1]
        channels.add(batch["image"].shape[-1])
    assert channels == {3, 4}, "pseudo views and photos"
    model = run.context.model
    assert model.get_loss_dict(model(rays), batch)["perceptual_loss"] > 0


def test_photos_that_fit_nowhere_are_left_out_and_named(config, monkeypatch, capsys):
    monkeypatch.setattr(posed_photos, "MAX_MISMATCH", -1.0)
    run = trained(tiny_run(config), range(START + 1))
    assert run.context.datamanager.photos is None
    assert "so they are not reconstructed: 00.png, 01.png, 02.png, 03.png" in capsys.readouterr().out
    assert "image" in run.context.datamanager.next_train(5)[1], "pseudo views are there"


def test_poses_are_refined_with_the_nerf_and_start_anew_in_the_final_one(config):
    run = trained(tiny_run(config), range(JOIN + 1))
    poses, optimizer = run.context.photo_poses.pose_adjustment, run.context.optimizers.optimizers["camera_opt"]
    assert poses.shape == (4, 6) and not poses.any()
    rays, _ = run.context.datamanager.photos.draw(64)
    rays.directions.sum().backward()
    optimizer.step()
    assert poses[:, 3:].any() and any("pose_adjustment" in name for name in run.pipeline.state_dict())
    run.runner.before_step(START)
    assert not poses.any() and not optimizer.state


def test_the_contact_sheet_shows_the_nerf_from_refined_poses_at_its_end(config, monkeypatch):
    def look(model, cameras):
        """The colour of a camera's position."""
        side = int(cameras.width[0])
        rgb = cameras.camera_to_worlds[:, :, 3, None, None].sigmoid().expand(-1, -1, side, side)
        return rgb.detach(), torch.ones_like(rgb[:, :1])

    monkeypatch.setattr(posed_photos, "render_views", look)
    run = trained(tiny_run(config), range(JOIN + 1))
    sheet = run.context.folder / posed_photos.INITIAL / posed_photos.CONTACT_SHEET
    found = np.asarray(Image.open(sheet))
    run.runner.posed_photos.show_refined()
    assert np.array_equal(np.asarray(Image.open(sheet)), found), "no pose has been moved yet"
    torch.nn.init.constant_(run.context.photo_poses.pose_adjustment, 0.3)
    run.runner.before_step(START)
    refined, last = np.asarray(Image.open(sheet)), found.shape[0] * 2 // 3
    assert np.array_equal(refined[:last], found[:last]) and not np.array_equal(refined[last:], found[last:])


def test_refined_poses_approach_the_true_ones():
    model = build(field=GridFieldConfig(resolutions=(4, 9), init_scale=1.0))
    true, guessed = (orbit_cameras(4, 20.0, 3.0, 40.0, SIZE, first_azimuth=turn)[0] for turn in (0.0, 6.0))
    model.eval()
    rgb, alpha = render_views(model, true)
    assert 0.05 < alpha.mean() < 0.9
    colors = (rgb - (1 - alpha) * model.background.color(rgb.device)[:, None, None]) / alpha.clamp_min(1e-4)
    images = (torch.cat([colors, alpha], 1).clamp(0, 1).permute(0, 2, 3, 1) * 255).byte()
    motions = CameraOptimizerConfig(mode="SO3xR3").setup(num_cameras=4, device="cpu")
    photos, optimizer = PosedImages(guessed, images, motions), torch.optim.Adam(motions.parameters(), 2e-3)

    def error():
        matrix, position = motions(torch.arange(4)), guessed.camera_to_worlds[..., 3:]
        return (matrix[..., :3] @ position + matrix[..., 3:] - true.camera_to_worlds[..., 3:]).norm(dim=1).mean()

    before = error()
    model.train()
    for _ in range(120):
        rays, batch = photos.draw(1024)
        loss = model.get_loss_dict(model(rays), batch)["recon_loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert error() < before / 3


@pytest.mark.parametrize("changes", [{"refine": False}, {"share": 0.0}])
def test_poses_are_not_refined_unless_asked(config, changes):
    config.pipeline.phases.posed_photos = PosedPhotosConfig(**{"share": 0.5} | changes)
    run = tiny_run(config)
    assert run.context.photo_poses is None and "camera_opt" not in run.pipeline.get_param_groups()


@pytest.mark.parametrize("mode", ["test", "inference"])
def test_a_run_that_is_opened_needs_no_photos(config, mode):
    config.pipeline.datamanager.data = config.pipeline.datamanager.data / "gone"
    assert config.pipeline.setup(device="cpu", test_mode=mode).photo_poses is None


def test_names_of_files_say_where_to_search(tmp_path):
    assert azimuths_of(tmp_path / "00.png") == [15.0 * step for step in range(-6, 7)]
    assert azimuths_of(tmp_path / "2_overhead_back.png") == [180.0 + 15 * step for step in range(-3, 4)]
    assert azimuths_of(tmp_path / "3_back_left.jpg") == [135.0 + 15 * step for step in range(-3, 4)]


def test_transparent_photos_are_cut_out_as_they_are(tmp_path):
    image = Image.new("RGBA", (64, 64), (0, 0, 255, 0))
    image.paste((200, 100, 50, 255), (16, 16, 48, 48))
    image.save(tmp_path / "a.png")
    cut = cut_out(tmp_path / "a.png", 16)
    assert cut[3, 8, 8] == 1 and torch.allclose(cut[:3, 8, 8] * 255, torch.tensor([200.0, 100.0, 50.0]), atol=1)
    assert cut[:, 0, 0].abs().max() == 0 and cut[3].mean() == pytest.approx(0.25, abs=0.01)
    image.convert("RGB").save(tmp_path / "b.png")
    found = cut_out(tmp_path / "b.png", 16)
    assert found[3, 8, 8] == 1 and found[:, 0, 0].abs().max() == 0, "and others by their colours"
