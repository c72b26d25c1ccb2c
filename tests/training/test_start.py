"""What `ns-train` does before a run begins: it checks what is there, and the same command continues its run."""

import copy
import errno
import fcntl
import json
import shutil
from pathlib import Path

import pytest
from typed_command import begin, typed_command

from db3d_nerfstudio.locks import locked
from db3d_nerfstudio.run.config import read_config
from db3d_nerfstudio.workspace import Workspace


@pytest.fixture
def config(photos, tmp_path):
    return typed_command(photos, tmp_path / "out")


def test_relative_paths_become_absolute_and_the_total_is_the_phases(config, monkeypatch, photos):
    monkeypatch.chdir(photos.parent)
    config.output_dir, config.pipeline.datamanager.data = (
        config.output_dir.relative_to(photos.parent),
        photos.relative_to(photos.parent),
    )
    config.set_timestamp()
    assert config.output_dir.is_absolute() and config.pipeline.datamanager.data == photos
    assert config.max_num_iterations == 10
    assert config.pipeline.datamanager.dataparser.pseudo_views == config.get_base_dir() / "pseudo_views"
    assert config.get_base_dir().is_dir()


@pytest.mark.parametrize("reached", [None, 3, 8])
def test_the_same_command_continues_its_unfinished_run(config, reached, capsys):
    first = begin(config, reached)
    again = copy.deepcopy(config)
    again.steps_per_save, again.vis = 7, "tensorboard"  # Nothing that changes the result.
    again.pipeline.phases.keep_full, again.pipeline.phases.pseudo_views.chunk = False, 1
    again.pipeline.model.eval_num_rays_per_chunk = 9
    assert begin(again).timestamp == first.timestamp
    assert f"at step {0 if reached is None else reached + 1} of 10 (--resume False" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change",
    [
        lambda c: setattr(c.pipeline.model, "prompt", "a photo of a sks dog"),
        lambda c: setattr(c.pipeline.model.sds, "guidance_scale", 3.0),
        lambda c: setattr(c.pipeline.phases.pseudo_views, "strength", 0.1),
        lambda c: setattr(c.machine, "seed", 7),
        lambda c: setattr(c, "resume", False),
    ],
)
def test_another_command_starts_another_run(config, change):
    first = begin(config, reached=3)
    (first.get_base_dir()).rename(first.get_base_dir().with_name("earlier"))
    change(config)
    assert begin(config).timestamp != "earlier"


def renamed(begun):
    """The folder of a run as a process that has ended left it."""
    run = begun.get_base_dir().with_name("earlier")
    shutil.copytree(begun.get_base_dir(), run)
    shutil.rmtree(begun.get_base_dir())
    return run


@pytest.mark.parametrize(
    ("state", "reported"), [(None, False), ("running", False), ("finished", False), ("finished", True)]
)
def test_a_finished_run_is_left_alone_and_one_killed_before_its_report_is_finished(config, state, reported):
    first = begin(config, reached=9)
    run = renamed(first)
    if state is not None:
        (run / "manifest.json").write_text(json.dumps({"state": state}))
    if reported:
        (run / "report.html").touch()
    assert (begin(config).timestamp == "earlier") is not reported


def test_the_same_command_twice_at_a_time_is_one_line(config):
    run = renamed(begin(config, reached=3))
    with locked(run / ".lock"), pytest.raises(SystemExit, match="another process is training .*earlier by the same"):
        begin(config)


def test_a_tilde_is_the_home_folder(config, monkeypatch, tmp_path, photos):
    monkeypatch.setenv("HOME", str(tmp_path))
    config.output_dir, config.pipeline.datamanager.data = Path("~/runs"), Path("~") / photos.relative_to(tmp_path)
    assert begin(config).get_base_dir().is_relative_to(tmp_path / "runs")


def test_the_class_noun_and_what_photos_lose_are_announced(config, capsys):
    config.pipeline.model.prompt = "a photo of a sks robot floating on water"
    begin(config)
    said = capsys.readouterr().out
    assert 'its class noun "robot" (--pipeline.phases.class-noun sets another)' in said
    assert "removes 33 % of each" in said


def test_what_surrounds_a_prompt_changes_nothing(config):
    first = begin(config, reached=3)
    config.pipeline.model.prompt = f" {config.pipeline.model.prompt}.\n"
    assert begin(config).get_base_dir() == first.get_base_dir()
    assert config.pipeline.model.prompt != first.pipeline.model.prompt == "a photo of a sks robot"


def test_artifacts_that_are_not_whole_are_named_before_anything_is_loaded(config):
    run = begin(config, reached=3).get_base_dir()
    views = Workspace(run).once("pseudo_views", {}, lambda path: (path / "001.png").write_text("a view"))
    begin(config)
    (views / "001.png").unlink()
    with pytest.raises(SystemExit, match="in .*pseudo_views, 001.png is gone: put it back, or delete the folder"):
        begin(config)


def test_a_run_on_a_disk_that_cannot_be_written_to_is_named(config, monkeypatch):
    begin(config, reached=3)

    def refuse(path):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr("db3d_nerfstudio.run.folder.take_lock", refuse)
    monkeypatch.setattr("db3d_nerfstudio.run.folder._held_locks", {})
    with pytest.raises(SystemExit, match=r"cannot write to .* \(Read-only file system\): copy the run to another disk"):
        begin(config)


def test_load_dir_may_name_the_run(config):
    earlier = begin(config, reached=3)
    for folder in (earlier.get_base_dir(), earlier.get_checkpoint_dir()):
        again = copy.deepcopy(config)
        again.load_dir = folder
        again.set_timestamp()
        assert again.load_dir == earlier.get_checkpoint_dir()


def test_a_run_that_another_process_is_training_is_left_alone(config):
    config.timestamp = "run"
    run = config.get_base_dir()
    run.mkdir(parents=True)
    with (run / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(SystemExit, match="another process is training"):
            config.set_timestamp()


def test_checkpoints_may_lie_deep_in_the_run(config):
    config.relative_model_dir = Path("checkpoints/nerf")
    config.set_timestamp()
    config.load_dir = config.get_checkpoint_dir()  # As the trainer does when it resumes.
    assert config.run_folder() == config.get_base_dir()


def test_damage_in_another_run_is_in_nobody_s_way(config):
    run = renamed(begin(config, reached=3))
    (run / "interventions.json").write_text("{")
    config.pipeline.model.prompt = "a photo of a sks dog"
    assert begin(config).timestamp != "earlier"


def test_a_copied_run_is_continued_in_its_own_folder(config):
    first = begin(config, reached=3).get_base_dir()
    copy = first.with_name("copy")
    shutil.copytree(first, copy)
    again = read_config(copy)  # As `ns-train METHOD --load-config copy/config.yml`.
    again.set_timestamp()
    assert again.get_base_dir() == again.run_folder() == copy
    assert again.pipeline.datamanager.dataparser.pseudo_views == copy / "pseudo_views"
