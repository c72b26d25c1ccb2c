"""A mesh from elsewhere in place of the first stage's distillation: fitted, resumed, and redrawn itself."""

import json

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from tiny_run import tiny_config, tiny_run

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.training.runner import PhaseRunner

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
STEPS = 2
"""Of the fit."""


@pytest.fixture
def config(photos, tmp_path):
    """Three short stages that start from a box: red, but for a green side at +x of the file."""
    mesh = trimesh.creation.box((0.6, 1.0, 0.6))
    mesh.visual.face_colors = [
        (0, 255, 0, 255) if normal[0] > 0.9 else (255, 0, 0, 255) for normal in mesh.face_normals
    ]
    mesh.export(tmp_path / "box.ply")
    config = tiny_config(photos, tmp_path / "out")
    initial = config.pipeline.phases.initial
    initial.mesh, initial.mesh_steps, initial.mesh_front, initial.mesh_views = tmp_path / "box.ply", STEPS, 90.0, 5
    config.set_timestamp()
    return config


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_the_first_stage_fits_the_mesh_without_the_guide(config):
    run = tiny_run(config)
    run.runner.before_step(0)
    assert run.shift == 0 and not (run.context.folder / "dreambooth").exists(), "nothing is tuned for it"
    assert len(list((run.context.folder / "mesh_views" / "images").iterdir())) == 5
    rays, batch = run.context.datamanager.next_train(0)
    assert batch["image"].shape == (len(rays), 4) and "views" not in batch
    _, losses, _ = run.pipeline.get_train_loss_dict(0)
    assert "sds_loss" not in losses and losses["recon_loss"] > 0
    run.runner.before_step(STEPS)
    assert run.context.datamanager.fitted is None and run.shift != 0, "then the guide is D_multi"
    assert config.max_num_iterations == STEPS + 4 and run.runner._phase_at(STEPS).name == "final"


def test_the_nerf_comes_to_look_like_the_mesh(config):
    config.pipeline.phases.initial.mesh_steps = 60
    config.pipeline.model.sampler.num_samples = 24
    run = tiny_run(config)
    optimizers = run.context.optimizers

    def error():
        posed = run.context.datamanager.fitted
        torch.manual_seed(5)
        rays, batch = posed.draw(512)
        return run.context.model.get_loss_dict(run.context.model(rays), batch)["recon_loss"]

    run.runner.before_step(0)
    before = error().item()
    for step in range(30):
        run.runner.before_step(step)
        _, losses, _ = run.pipeline.get_train_loss_dict(step)
        optimizers.zero_grad_all()
        sum(losses.values()).backward()
        optimizers.optimizer_step_all()
        run.context.model._after_step(step)
    assert error().item() < 0.7 * before


def test_pseudo_views_are_made_of_the_mesh_itself(config):
    config.pipeline.datamanager.dataparser.num_views, config.pipeline.datamanager.dataparser.resolution = 4, 32
    run = tiny_run(config)
    run.runner.before_step(STEPS)
    sides = [pixels(run.context.folder / "pseudo_views" / "renders" / f"{i:03d}.png")[16, 16] for i in range(4)]
    assert [side.tolist() for side in sides] == [[0, 255, 0], *[[255, 0, 0]] * 3], (
        "its front is where it was said to be"
    )
    corner = pixels(run.context.folder / "pseudo_views" / "renders" / "000.png")[0, 0]
    assert corner.tolist() == [255, 255, 255], "in front of the model's background"


def test_a_resumed_fit_draws_the_same_pixels(config):
    run = tiny_run(config)
    batches = []
    for step in range(STEPS):
        run.runner.before_step(step)
        batches.append(run.context.datamanager.next_train(step)[1]["image"])
    again = tiny_run(config)
    written = (again.context.folder / "mesh_views" / "front.json").stat().st_mtime_ns
    again.runner.before_step(1)
    assert torch.equal(again.context.datamanager.next_train(1)[1]["image"], batches[1])
    assert (again.context.folder / "mesh_views" / "front.json").stat().st_mtime_ns == written
    assert not torch.equal(*batches)


def test_the_guide_guesses_the_front_once(config, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "db3d_nerfstudio.training.initial_mesh.guess_front",
        lambda guide, renders, views, prompt, seed: asked.append((len(renders), prompt)) or 90.0,
    )
    config.pipeline.phases.initial.mesh_front = None
    for _ in range(2):
        run = tiny_run(config)
        run.runner.before_step(0)
    assert asked == [(8, "a photo of a robot")]
    assert json.loads((run.context.folder / "mesh_views" / "front.json").read_text()) == {"front": 90.0}


def test_a_front_is_guessed_by_one_guide_and_seen_from_one_orbit(config, monkeypatch):
    monkeypatch.setattr("db3d_nerfstudio.training.initial_mesh.guess_front", lambda *_: 90.0)
    config.pipeline.phases.initial.mesh_front = None
    tiny_run(config).runner.before_step(0)
    config.machine.seed += 1
    with pytest.raises(UserError, match="mesh_views was made with other settings .seed: "):
        tiny_run(config).runner.before_step(0)
    config.machine.seed -= 1
    config.pipeline.datamanager.dataparser.fov += 1
    with pytest.raises(UserError, match="mesh_views was made with other settings .mesh_cameras"):
        tiny_run(config).runner.before_step(0)


@pytest.mark.parametrize(("name", "value"), [("mesh_up", "z"), ("mesh_front", 0.0), ("mesh_views", 4)])
def test_every_setting_of_the_mesh_makes_other_renders_and_is_remembered(config, name, value):
    run = tiny_run(config)
    run.runner.before_step(0)
    before = [path.read_bytes() for path in sorted((run.context.folder / "mesh_views" / "images").iterdir())]
    setattr(config.pipeline.phases.initial, name, value)
    with pytest.raises(UserError, match="mesh_views was made with other settings"):
        tiny_run(config).runner.before_step(0)
    config.timestamp = "other"
    other = tiny_run(config)
    PhaseRunner.before_step(other.runner, 0)
    after = [path.read_bytes() for path in sorted((other.context.folder / "mesh_views" / "images").iterdir())]
    assert before != after


def test_a_changed_file_is_noticed(config):
    tiny_run(config).runner.before_step(0)
    path = config.pipeline.phases.initial.mesh
    path.write_bytes(path.read_bytes().replace(b"comment", b"COMMENT", 1) + b"\n")
    with pytest.raises(UserError, match="mesh_views was made with other settings .mesh: "):
        tiny_run(config).runner.before_step(0)


def test_no_mesh_and_a_method_of_one_stage_are_refused_at_once(photos, tmp_path, config):
    again = tiny_config(photos, tmp_path / "two")
    again.pipeline.phases.initial.mesh = photos / "notes.txt"
    with pytest.raises(SystemExit, match="notes.txt cannot be read as a mesh"):
        again.set_timestamp()
    again.pipeline.phases.initial.mesh = config.pipeline.phases.initial.mesh
    again.pipeline.phases.final.steps = 0
    with pytest.raises(SystemExit, match="a method of one stage has no use for a mesh"):
        again.set_timestamp()
