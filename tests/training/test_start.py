"""What `ns-train` does before a run begins: bad input is one line, and the same command continues its run."""

import copy
import fcntl
import shutil

import pytest
from nerfstudio.engine.schedulers import ExponentialDecaySchedulerConfig

from db3d_nerfstudio.guides.base import DiffusionGuideConfig
from db3d_nerfstudio.nerf.model import DreamBooth3DModelConfig
from db3d_nerfstudio.run.config import read_config
from db3d_nerfstudio.toybox.examples import default_subject
from db3d_nerfstudio.training.pipeline import DreamBooth3DPipelineConfig
from db3d_nerfstudio.training.trainer import DreamBooth3DTrainerConfig


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
        (two_rates, "scheduler of encodings .* remove the scheduler, or set .*lr-final-fraction 1"),
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


def test_a_copied_run_is_continued_in_its_own_folder(config):
    first = begin(config, reached=3).get_base_dir()
    copy = first.with_name("copy")
    shutil.copytree(first, copy)
    again = read_config(copy)  # As `ns-train METHOD --load-config copy/config.yml`.
    again.set_timestamp()
    assert again.get_base_dir() == again.run_folder() == copy
    assert again.pipeline.datamanager.dataparser.pseudo_views == copy / "pseudo_views"
