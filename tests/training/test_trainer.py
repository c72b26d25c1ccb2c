"""Whole checkpoints, at steps where a run can go on, and failures in one line."""

import dataclasses
import os
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from nerfstudio.engine.trainer import Trainer
from nerfstudio.viewer.render_state_machine import RenderStateMachine
from torch import nn

from db3d_nerfstudio.cli import COMMANDS
from db3d_nerfstudio.errors import DivergedError, UserError
from db3d_nerfstudio.run.config import RunConfig, checkpoint_step
from db3d_nerfstudio.run.folder import next_commands
from db3d_nerfstudio.run.progress import RunProgress
from db3d_nerfstudio.training.trainer import DreamBooth3DTrainer, DreamBooth3DTrainerConfig, exit_on_failure


@pytest.fixture
def trainer(config):
    """A trainer without everything that saving does not need."""
    trainer = object.__new__(DreamBooth3DTrainer)
    trainer.config, trainer.base_dir, trainer.checkpoint_dir = (
        config,
        config.get_base_dir(),
        config.get_checkpoint_dir(),
    )
    trainer.gradient_accumulation_steps = defaultdict(lambda: 1, encodings=2)
    trainer.pipeline = nn.Linear(2, 2)
    trainer.optimizers = SimpleNamespace(optimizers={}, schedulers={})
    trainer.grad_scaler = torch.amp.GradScaler("cpu", enabled=False)
    trainer._total_steps = 10
    return trainer


def saved(trainer):
    return sorted(os.listdir(trainer.checkpoint_dir)) if trainer.checkpoint_dir.exists() else []


def test_checkpoints_wait_for_the_end_of_an_accumulated_gradient(trainer):
    trainer.save_checkpoint(4)
    trainer.save_if_due(4)
    assert saved(trainer) == []
    trainer.save_if_due(5)
    assert saved(trainer) == ["step-000000005.ckpt"]
    trainer.save_if_due(7)
    assert saved(trainer) == ["step-000000005.ckpt"], "nothing was due"


def test_the_last_step_is_always_saved(trainer):
    trainer._total_steps = 9
    trainer.save_checkpoint(8)
    assert saved(trainer) == ["step-000000008.ckpt"]


def test_between_nerfs_gradients_need_not_be_waited_for(trainer):
    trainer.save_checkpoint(4, between_nerfs=True)
    assert saved(trainer) == ["step-000000004.ckpt"]


def test_groups_that_accumulate_differently_share_few_steps(trainer):
    trainer.gradient_accumulation_steps = {"encodings": 2, "networks": 3}
    trainer.save_checkpoint(2)
    assert saved(trainer) == []
    trainer.save_if_due(5)
    assert saved(trainer) == ["step-000000005.ckpt"]


@pytest.mark.parametrize("content", [b"", b"PK\3\4 cut off", b"junk"])
def test_a_damaged_checkpoint_is_named_with_the_fix(trainer, content):
    trainer.save_checkpoint(9)
    (trainer.checkpoint_dir / "step-000000009.ckpt").write_bytes(content)
    with pytest.raises(
        SystemExit, match=r"^Error: the checkpoint .*000009\.ckpt cannot be loaded .*: put it back"
    ) as end:
        trainer._load_checkpoint()
    assert "\n" not in end.value.code


def test_a_full_card_is_no_damage(trainer, monkeypatch):
    trainer.save_checkpoint(9)

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainer.pipeline, "load_pipeline", full, raising=False)
    with pytest.raises(torch.OutOfMemoryError):
        trainer._load_checkpoint()


def test_a_checkpoint_of_another_run_is_named(trainer):
    trainer.save_checkpoint(9)
    trainer.pipeline = nn.Linear(3, 3)
    trainer.pipeline.load_pipeline = lambda state, step: trainer.pipeline.load_state_dict(state)
    with pytest.raises(
        SystemExit, match=r"cannot be loaded \(Error.* in loading state_dict for Linear:\): put it back"
    ):
        trainer._load_checkpoint()


@pytest.mark.parametrize("only_latest", [True, False])
def test_older_checkpoints(trainer, only_latest):
    trainer.config.save_only_latest_checkpoint = only_latest
    trainer.save_checkpoint(1)
    trainer.save_checkpoint(3)
    assert len(saved(trainer)) == (1 if only_latest else 2)
    torch.load(trainer.checkpoint_dir / "step-000000003.ckpt", weights_only=True)


def test_files_that_somebody_put_beside_checkpoints_stay(trainer):
    trainer.save_checkpoint(1)
    for name in ("backup.ckpt", "step-000000001 (copy).ckpt"):
        (trainer.checkpoint_dir / name).touch()
    trainer.save_checkpoint(3)
    assert saved(trainer) == ["backup.ckpt", "step-000000001 (copy).ckpt", "step-000000003.ckpt"]
    assert checkpoint_step(trainer.checkpoint_dir) == 3


def test_resuming_prints_nothing_and_finds_the_newest(trainer, capsys, monkeypatch):
    loaded = []
    monkeypatch.setattr(torch, "load", lambda path, **_: loaded.append(path.name) or {})
    trainer.save_checkpoint(3)
    (trainer.checkpoint_dir / "notes.txt").touch()
    with pytest.raises(SystemExit, match="'step'"):  # The empty checkpoint has none.
        trainer._load_checkpoint()
    assert loaded == ["step-000000003.ckpt"] and capsys.readouterr().out == ""


def test_a_crash_while_saving_leaves_the_older_checkpoint(trainer, monkeypatch):
    trainer.save_checkpoint(1)

    def half(state, path):
        path.write_bytes(b"half a checkpoint")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        trainer.save_checkpoint(3)
    assert saved(trainer) == ["step-000000001.ckpt"] and trainer.checkpoint_dir.name == "nerfstudio_models"


def test_renders_of_the_viewer_end_with_the_training(trainer, monkeypatch):
    trainer._start_step, trainer.config.machine.device_type = 0, "cpu"
    trainer.pipeline.context = SimpleNamespace(record=SimpleNamespace(progress=RunProgress([])))
    viewer = SimpleNamespace(ready=False)  # So the thread waits, as one of a page that is still loading does.
    render = RenderStateMachine(viewer, 1.0, client=None)

    def interrupted(trainer):
        render.start()
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert not render.is_alive(), "inside torch, it would abort Python at its exit"


def test_what_next_names_the_run(tmp_path):
    commands = next_commands(tmp_path)
    assert {line.split()[0] for _, line in commands} == {"ns-viewer", "db3d", "ns-eval", "python"}
    assert (
        {"export", "turntable"}
        <= {line.split()[1] for _, line in commands if line.startswith("db3d")}
        <= COMMANDS.keys()
    )
    assert all(str(tmp_path) in line for _, line in commands)
    assert "the initial NeRF" not in dict(commands)  # A run in one stage has none.
    (tmp_path / "initial").mkdir()
    (tmp_path / "initial" / "config.yml").touch()
    assert str(tmp_path / "initial") in dict(next_commands(tmp_path))["the initial NeRF"]


def test_a_nerf_that_diverges_ends_the_run_in_one_line(trainer, monkeypatch):
    trainer._start_step, trainer.config.machine.device_type = 0, "cpu"
    trainer.pipeline.context = SimpleNamespace(record=SimpleNamespace(progress=RunProgress([])))

    def diverge(trainer):
        raise DivergedError("the NeRF is empty")

    monkeypatch.setattr(Trainer, "train", diverge)
    with pytest.raises(SystemExit, match="Error: the NeRF is empty"):
        trainer.train()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("a folder\nis missing"), "^Error: a folder is missing$"),
        (FloatingPointError("the loss is nan"), "^Error: the loss is nan$"),
        (torch.OutOfMemoryError("CUDA out of memory.\nSee"), "^Error: CUDA out of memory. .*continues this run."),
    ],
)
def test_what_a_user_can_put_right_is_one_line(error, line):
    with pytest.raises(SystemExit, match=line), exit_on_failure(RunConfig(), RunProgress([])):
        raise error


def test_a_defect_keeps_its_traceback():
    with pytest.raises(ValueError, match="shape"), exit_on_failure(RunConfig(), RunProgress([])):
        raise ValueError("shape mismatch")


def test_help_lists_first_what_a_run_is_about():
    names = [field.name for field in dataclasses.fields(DreamBooth3DTrainerConfig)]
    assert names[:4] == ["data", "prompt", "resume", "pipeline"]


def test_settings_are_written_and_not_printed(tmp_path, capsys):
    config = DreamBooth3DTrainerConfig(method_name="m", experiment_name="e", timestamp="t", output_dir=tmp_path)
    config.print_to_terminal()
    config.save_config()
    assert capsys.readouterr().out == "" and (tmp_path / "e" / "m" / "t" / "config.yml").is_file()
