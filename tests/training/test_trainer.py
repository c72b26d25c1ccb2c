import copy
import fcntl
import os
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from nerfstudio.engine.schedulers import ExponentialDecaySchedulerConfig
from nerfstudio.engine.trainer import Trainer
from nerfstudio.viewer.render_state_machine import RenderStateMachine
from torch import nn

from db3d_nerfstudio.cli import COMMANDS
from db3d_nerfstudio.errors import DivergedError, UserError
from db3d_nerfstudio.guides.base import DiffusionGuideConfig
from db3d_nerfstudio.nerf.model import DreamBooth3DModelConfig
from db3d_nerfstudio.run.folder import next_commands
from db3d_nerfstudio.run.progress import RunProgress
from db3d_nerfstudio.toybox.examples import default_subject
from db3d_nerfstudio.training.pipeline import DreamBooth3DPipelineConfig
from db3d_nerfstudio.training.trainer import DreamBooth3DTrainer, DreamBooth3DTrainerConfig, exit_on_failure


@pytest.fixture
def config(photos, tmp_path):
    """What `ns-train` has made of a command line when it calls `set_timestamp`."""
    config = DreamBooth3DTrainerConfig(
        method_name="m",
        output_dir=tmp_path / "out",
        gradient_accumulation_steps={"encodings": 2},
        pipeline=DreamBooth3DPipelineConfig(model=DreamBooth3DModelConfig(guide=DiffusionGuideConfig())),
    )
    config.pipeline.datamanager.data = photos
    config.pipeline.model.prompt = "a photo of a sks robot"
    config.pipeline.phases.initial.steps = 4
    config.pipeline.phases.final.steps = 6
    return config


def begin(config, reached=None):
    """Start a run from a copy of `config` as `ns-train` does; let it save a checkpoint of step `reached`."""
    config = copy.deepcopy(config)
    config.set_timestamp()
    config.save_config()
    if reached is not None:
        config.get_checkpoint_dir().mkdir(exist_ok=True)
        (config.get_checkpoint_dir() / f"step-{reached:09d}.ckpt").touch()
    return config


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
    assert begin(again).timestamp == first.timestamp
    assert f"at step {0 if reached is None else reached + 1} of 10 (--resume False" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change",
    [
        lambda c: setattr(c.pipeline.model, "prompt", "a photo of a sks dog"),
        lambda c: setattr(c.pipeline.model, "guidance_scale", 3.0),
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


def test_a_finished_run_is_left_alone(config):
    first = begin(config, reached=9)
    first.get_base_dir().rename(first.get_base_dir().with_name("earlier"))
    assert begin(config).timestamp != "earlier"


def test_a_run_that_another_process_is_training_is_left_alone(config):
    config.timestamp = "run"
    run = config.get_base_dir()
    run.mkdir(parents=True)
    with (run / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(SystemExit, match="another process is training"):
            config.set_timestamp()


def forget_data(config):
    config.pipeline.datamanager.data = None


def forget_prompt(config):
    config.pipeline.model.prompt = None


def corrupt_photo(config):
    (config.pipeline.datamanager.data / "02.png").write_bytes(b"no image")


def no_photos(config):
    config.pipeline.datamanager.data = config.output_dir.parent / "nowhere"


def no_identifier(config):
    config.pipeline.model.prompt = "a photo of a robot"


def not_writable(config):
    config.output_dir.write_text("a file where a folder should be")


def another_subject(config):
    other = copy.deepcopy(config)
    other.pipeline.model.prompt = "a photo of a sks dog"
    config.timestamp = other.timestamp = "run"
    begin(other)


def two_rates(config):
    config.pipeline.phases.lr_final_fraction = 0.1
    config.optimizers = {"encodings": {"optimizer": None, "scheduler": ExponentialDecaySchedulerConfig()}}


def photos_of_another_kind(config):
    forget_data(config)
    config.example = True


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (forget_data, "no photos: give --data a folder"),
        (forget_prompt, 'no prompt: .*--prompt "a photo of a sks robot"'),
        (no_photos, "no photos folder at .*nowhere: give --data"),
        (corrupt_photo, r"cannot read the photo .*02\.png"),
        (no_identifier, 'does not contain the identifier "sks"'),
        (not_writable, "cannot write to .* choose another --output-dir"),
        (another_subject, 'another subject .*"a photo of a sks dog".*choose another --timestamp'),
        (photos_of_another_kind, "no photos: give --data a folder"),
        (two_rates, "scheduler of encodings .* take the scheduler out, or set .*lr-final-fraction 1"),
    ],
)
def test_bad_input_is_one_line_with_the_fix(config, spoil, line):
    spoil(config)
    with pytest.raises(SystemExit, match=f"^Error: .*{line}") as error:
        config.set_timestamp()
    assert "\n" not in error.value.code


@pytest.mark.parametrize("said", [None, "a photo of a green sks duck wearing a scarf"])
def test_without_photos_the_example_s_are_taken_for_prompts_about_it(config, said):
    forget_data(config)
    config.pipeline.model.prompt = said
    config.example = True
    config.set_timestamp()
    assert config.pipeline.model.prompt == (said or "a photo of a sks duck")
    assert config.pipeline.datamanager.data == default_subject()[0]


@pytest.fixture
def trainer(config):
    """A trainer without everything that saving does not need."""
    config.set_timestamp()
    trainer = object.__new__(DreamBooth3DTrainer)
    trainer.config, trainer.base_dir, trainer.checkpoint_dir = (
        config,
        config.get_base_dir(),
        config.get_checkpoint_dir(),
    )
    trainer.gradient_accumulation_steps = defaultdict(lambda: 1, config.gradient_accumulation_steps)
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


@pytest.mark.parametrize("only_latest", [True, False])
def test_older_checkpoints(trainer, only_latest):
    trainer.config.save_only_latest_checkpoint = only_latest
    trainer.save_checkpoint(1)
    trainer.save_checkpoint(3)
    assert len(saved(trainer)) == (1 if only_latest else 2)
    torch.load(trainer.checkpoint_dir / "step-000000003.ckpt", weights_only=True)


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
    assert {line.split()[0] for _, line in commands} >= {"ns-viewer", "db3d", "ns-eval"}
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
        (torch.OutOfMemoryError("CUDA out of memory.\nSee"), "^Error: CUDA out of memory. .*continues this run.$"),
    ],
)
def test_what_a_user_can_put_right_is_one_line(error, line):
    with pytest.raises(SystemExit, match=line), exit_on_failure():
        raise error


def test_a_defect_keeps_its_traceback():
    with pytest.raises(ValueError, match="shape"), exit_on_failure():
        raise ValueError("shape mismatch")
