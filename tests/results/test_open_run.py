"""A copy of a run is opened where it lies, by our programs and by nerfstudio's, while the original still exists."""

import importlib
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from nerfstudio.engine.trainer import TrainerConfig

from db3d_nerfstudio import cli
from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.evaluation import evaluate
from db3d_nerfstudio.results.open_run import open_run
from db3d_nerfstudio.run.config import read_config
from db3d_nerfstudio.training.initial_nerf import save_initial

pytestmark = pytest.mark.filterwarnings("ignore")  # Imports of nerfstudio's programs.

PROGRAMS = {
    "viewer.run_viewer": "--load-config {}",
    "eval": "--load-config {}",
    "render": "spiral --load-config {} --output-path film.mp4",
    "exporter": "tsdf --output-dir mesh --load-config={}",
}


class Opened(Exception):
    """Raised with the checkpoint that a program opens."""


@pytest.fixture(scope="module")
def copy(untrained_run, tmp_path_factory):
    """A copy of a run with an initial NeRF; the other is where both configs have it."""
    root = tmp_path_factory.mktemp("runs")
    first, second = root / "first", root / "second"
    shutil.copytree(untrained_run, first)
    config = read_config(first)
    config.pipeline.datamanager.dataparser.pseudo_views = first / "pseudo_views"
    (first / "config.yml").write_text(yaml.dump(config))
    (first / "initial").mkdir()
    save_initial(first / "initial", config, open_run(first).model, step=3)
    for run in (first, first / "initial"):
        (run / "nerfstudio_models" / "notes.txt").touch()
        (run / "nerfstudio_models" / "step-000000009 (copy).ckpt").touch()
    return shutil.copytree(first, second)


@pytest.fixture
def opened(monkeypatch):
    def load(path, **options):
        raise Opened(path)

    monkeypatch.setattr(torch, "load", load)


@pytest.mark.parametrize("run", [".", "initial"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_nerfstudio_s_programs_open_the_copy(copy, opened, monkeypatch, program, run):
    monkeypatch.setattr(sys, "argv", [program, *PROGRAMS[program].format(copy / run / "config.yml").split()])
    with pytest.raises(Opened) as found:
        importlib.import_module(f"nerfstudio.scripts.{program}").entrypoint()
    assert Path(found.value.args[0]).parent == copy / run / "nerfstudio_models"


@pytest.mark.parametrize("command", [["export"], ["turntable"], ["evaluate", "--run"]])
def test_our_commands_open_the_copy(copy, opened, monkeypatch, command):
    monkeypatch.setattr(evaluate, "make_reference", lambda *args: SimpleNamespace(judge=None))
    with pytest.raises(Opened) as found:
        cli.main([*command, str(copy)])
    assert Path(found.value.args[0]).is_relative_to(copy)


def test_the_artifacts_are_the_copy_s_too(copy):
    for run in (copy, copy / "initial"):
        config = read_config(run)
        assert config.get_base_dir() == run
        assert config.pipeline.datamanager.dataparser.pseudo_views == copy / "pseudo_views"


def test_a_config_that_no_command_line_names_keeps_its_home(copy):
    config = yaml.load((copy / "config.yml").read_text(), Loader=yaml.Loader)
    assert config.get_base_dir() == copy.with_name("first")


OLD = "!!python/object:db3d_nerfstudio.trainer.DreamBooth3DTrainerConfig\nresume: true\n"
RENAMED = (
    OLD.replace("nerfstudio.trainer", "nerfstudio.training.trainer") + "_target: !!python/name:db3d_nerfstudio.Gone\n"
)


@pytest.mark.parametrize("text", [OLD, RENAMED])
@pytest.mark.parametrize("program", PROGRAMS)
def test_nerfstudio_s_programs_refuse_another_version_in_one_line(tmp_path, monkeypatch, program, text):
    (tmp_path / "config.yml").write_text(text)
    monkeypatch.setattr(sys, "argv", [program, *PROGRAMS[program].format(tmp_path / "config.yml").split()])
    with pytest.raises(SystemExit, match=f"^Error: {tmp_path} was made by another version of db3d_nerfstudio"):
        importlib.import_module(f"nerfstudio.scripts.{program}").entrypoint()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (OLD, "another version"),
        (RENAMED, "another version"),
        ("!!python/object:db3d_nerfstudio.training.trainer.Gone\nresume: true\n", "another version"),
        (yaml.dump(TrainerConfig(method_name="nerfacto")), "not made by a method of db3d_nerfstudio"),
    ],
)
def test_runs_of_others_are_refused_in_one_line(tmp_path, text, line):
    (tmp_path / "config.yml").write_text(text)
    with pytest.raises(UserError, match=line):
        open_run(tmp_path)


def test_a_folder_that_is_not_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not a run: give the folder that holds config.yml"):
        open_run(tmp_path)
