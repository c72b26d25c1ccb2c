"""`db3d evaluate`: what a run is measured against, and a pretended run from end to end."""

import json
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
import trimesh
from PIL import Image
from tiny_model import build, solid

from db3d_nerfstudio import cli
from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.evaluation import evaluate
from db3d_nerfstudio.evaluation.benchmark.subjects import toybox_pool
from db3d_nerfstudio.evaluation.evaluate import (
    EvaluateConfig,
    make_gallery,
    make_reference,
    measure_mesh,
    measure_redrawing,
    true_toy,
)
from db3d_nerfstudio.evaluation.metrics import fidelity, shape
from db3d_nerfstudio.run import interventions
from db3d_nerfstudio.toybox.examples import default_subject, default_truth
from db3d_nerfstudio.toybox.guide import ToyboxGuideConfig
from db3d_nerfstudio.toybox.subjects import make_subject
from db3d_nerfstudio.training.pipeline import DreamBooth3DPipelineConfig
from db3d_nerfstudio.training.trainer import DreamBooth3DTrainerConfig


@pytest.fixture
def settings(photos):
    config = DreamBooth3DTrainerConfig(method_name="m", pipeline=DreamBooth3DPipelineConfig())
    config.pipeline.datamanager.data = photos
    config.pipeline.model.prompt = "a photo of a sks duck wearing a red hat"
    config.pipeline.model.guide = ToyboxGuideConfig()
    return config


def test_runs_of_the_embedded_guide_are_judged_by_the_judge(settings, tmp_path):
    reference = make_reference(EvaluateConfig(tmp_path), settings)
    assert reference.prompt == "a photo of a duck wearing a red hat"
    assert reference.pool == [*toybox_pool(), reference.prompt]
    assert [encoder.name for encoder in reference.encoders] == ["judge"] and reference.judge is not None
    assert len(reference.photos.images) == 4 and reference.photos.masks is None and reference.subject is None


def test_runs_of_other_guides_are_not(settings, tmp_path, photos):
    settings.pipeline.model.guide = object()
    (tmp_path / "pool.txt").write_text("a duck\n\n a dog\n")
    reference = make_reference(EvaluateConfig(tmp_path, pool=tmp_path / "pool.txt"), settings)
    assert reference.judge is None and reference.encoders == ()
    assert reference.pool == ["a duck", "a dog", reference.prompt]
    settings.pipeline.datamanager.data = None
    assert make_reference(EvaluateConfig(tmp_path), settings).photos is None
    assert len(make_reference(EvaluateConfig(tmp_path, photos=photos), settings).photos.images) == 4


def test_the_truth_is_the_bundled_toy_or_the_one_that_is_named(settings, tmp_path):
    assert true_toy(EvaluateConfig(tmp_path), settings) is None
    settings.pipeline.datamanager.data = default_subject()[0]
    assert true_toy(EvaluateConfig(tmp_path), settings).traits == default_truth().traits
    named = true_toy(EvaluateConfig(tmp_path, toy=3, toy_class="mug"), settings)
    assert named.traits == make_subject(3, "mug").traits


def test_the_truth_has_the_changes_that_the_prompt_asks_for(settings, tmp_path):
    toy = EvaluateConfig(tmp_path, toy=30_000_000, toy_class="dog")
    settings.pipeline.model.prompt = "a photo of a sks dog sitting"
    assert true_toy(toy, settings).traits.state == "sitting"
    settings.pipeline.model.prompt = "a photo of a sks dog at night"
    assert true_toy(toy, settings).traits == make_subject(30_000_000, "dog").traits


def test_a_prompt_set_in_the_viewer_is_what_a_run_is_measured_against(settings, tmp_path):
    interventions.add_change(tmp_path, interventions.Change(40, prompt="a photo of a sks dog sitting"))
    toy = EvaluateConfig(tmp_path, toy=30_000_000, toy_class="dog")
    assert make_reference(toy, settings).prompt == "a photo of a dog sitting"
    assert true_toy(toy, settings).traits.state == "sitting"


def test_a_subject_is_looked_for_among_others(settings, tmp_path, photos, monkeypatch):
    monkeypatch.setattr(evaluate, "NUM_OTHERS", 2)
    assert make_reference(EvaluateConfig(tmp_path), settings).gallery is None, "nothing is known of others"
    given = make_reference(EvaluateConfig(tmp_path, others=(photos, photos)), settings).gallery
    assert len(given.own) == 4 and [len(other) for other in given.others] == [4, 4]
    toys = make_gallery(EvaluateConfig(tmp_path), None, make_subject(3, "mug"))
    assert toys.own.shape == (16, 3, 64, 64) and len(toys.others) == 2
    assert not torch.equal(toys.own, toys.others[0]) and not torch.equal(*toys.others)


@pytest.mark.slow
def test_a_run_is_measured_and_filmed(settings, tmp_path, monkeypatch):
    """A red ball against a toy: no likeness is expected, but every result is in its place."""
    monkeypatch.setattr(fidelity, "TURNS", (0.0,))
    monkeypatch.setattr(fidelity, "SCALES", (1.0,))
    monkeypatch.setattr(fidelity, "FINER", ())
    pipeline = SimpleNamespace(model=solid(build()))
    monkeypatch.setattr("db3d_nerfstudio.results.open_run.open_run", lambda run: pipeline)
    monkeypatch.setattr("db3d_nerfstudio.run.config.read_config", lambda run: settings)
    (tmp_path / "initial").mkdir()
    for folder in (tmp_path, tmp_path / "initial"):
        (folder / "config.yml").touch()
    toy = ["--toy", "3", "--toy-class", "mug"]
    cli.main(["evaluate", "--run", str(tmp_path), *toy, "--turntable-frames", "3"])
    table = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    assert list(table) == ["initial", "final"] and table["initial"] == table["final"]
    assert {"silhouette_iou", "psnr", "judge r_precision", "judge i", "janus_rate"} < table["final"].keys()
    with Image.open(tmp_path / "evaluation" / "views.png") as sheet:
        assert sheet.size == (16 * 64, 5 * 64), "the truth, then albedo and shape of two stages"
    with Image.open(tmp_path / "evaluation" / "turntable.webp") as film:
        assert film.size == (128, 128)


def test_what_is_no_run_is_said_to_be_none(tmp_path):
    with pytest.raises(SystemExit, match="is not a run"):
        cli.main(["evaluate", "--run", str(tmp_path)])


def test_the_mesh_is_measured_against_the_true_toy(monkeypatch):
    monkeypatch.setattr("db3d_nerfstudio.results.export.build_mesh", lambda field, **settings: trimesh.creation.box())
    found = shape.ShapeFidelity(0.1, 0.9, 0.8, 20.0, 0.0, 1.0)
    monkeypatch.setattr(shape, "compare", lambda mesh, subject: (found, None))
    metrics = measure_mesh(None, make_subject(3, "mug"))
    assert metrics == {f"mesh {name}": value for name, value in asdict(found).items()}
    with pytest.raises(UserError, match="--toy"):
        measure_mesh(None, None)


def test_a_mesh_may_come_from_a_file(monkeypatch, tmp_path):
    monkeypatch.setattr(shape, "compare", lambda mesh, subject: (SimpleNamespace(faces=float(len(mesh.faces))), None))
    monkeypatch.setattr(evaluate, "asdict", vars)
    trimesh.creation.box().export(tmp_path / "box.glb")
    assert measure_mesh(None, make_subject(3, "mug"), tmp_path / "box.glb") == {"mesh faces": 12}
    with pytest.raises(UserError, match="gone.glb does not exist: give --mesh-file"):
        measure_mesh(None, make_subject(3, "mug"), tmp_path / "gone.glb")


def test_redrawing_is_measured_and_shown(settings, tmp_path, monkeypatch):
    views = torch.zeros(2, 8, 8, 3)
    monkeypatch.setattr("db3d_nerfstudio.evaluation.redrawing.redraw", lambda *_: (17.5, views, views))
    (tmp_path / "evaluation").mkdir()
    config = EvaluateConfig(tmp_path, redrawn=True)
    assert measure_redrawing(config, settings, make_subject(3, "mug")) == {}, "without D_full"
    (tmp_path / "dreambooth" / "full").mkdir(parents=True)
    assert measure_redrawing(config, settings, make_subject(3, "mug")) == {"redrawn psnr": 17.5}
    assert (tmp_path / "evaluation" / "redrawn.png").exists()
    monkeypatch.setattr("db3d_nerfstudio.workspace.is_released", lambda path: True)
    assert measure_redrawing(config, settings, make_subject(3, "mug")) == {}, "D_full has lost its weights"
    with pytest.raises(UserError, match="--toy"):
        measure_redrawing(config, settings, None)


def test_of_an_empty_scene_there_is_no_mesh():
    field = solid(build()).field
    with torch.no_grad():
        field.config.density_scale = 0.0
    assert measure_mesh(field, make_subject(3, "mug")) == {"mesh f_score": 0.0}
