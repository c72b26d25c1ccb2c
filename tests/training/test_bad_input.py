"""Input that cannot be used: one line with the fix, before a run begins."""

import copy

import pytest
from nerfstudio.engine.schedulers import ExponentialDecaySchedulerConfig
from typed_command import begin, typed_command

from db3d_nerfstudio.toybox.examples import default_subject
from db3d_nerfstudio.training.optimizers import FusedAdamConfig


@pytest.fixture
def config(photos, tmp_path):
    return typed_command(photos, tmp_path / "out")


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


def no_gpu(config):
    config.machine.device_type = "mps"


def out_of_range(config):
    config.pipeline.phases.dreambooth.batch_size = 0
    config.pipeline.model.sds.guidance_scale = float("nan")


def inverted_range(config):
    config.pipeline.model.sds.noise_range_start = (0.9, 0.1)


def rates_and_seeds_of_nerfstudio_out_of_range(config):
    config.optimizers = {"encodings": {"optimizer": FusedAdamConfig(lr=float("nan")), "scheduler": None}}
    config.machine.seed = -1
    config.gradient_accumulation_steps = {"encodings": 0}


def references_for_a_guide_that_sees_none(config):
    config.pipeline.phases.pseudo_views.references = True


def nothing_to_load(config):
    config.load_dir = config.pipeline.datamanager.data


def photos_of_another_kind(config):
    forget_data(config)
    config.example = True


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (forget_data, "no photos: give --data a folder"),
        (forget_prompt, 'no prompt: .*--prompt "a photo of a sks robot"'),
        (no_photos, "the folder .*nowhere does not exist: give one with 3 to 6 photos"),
        (corrupt_photo, r"cannot read the photo .*02\.png"),
        (no_identifier, 'does not contain the identifier "sks"'),
        (not_writable, "cannot write to .* choose another --output-dir"),
        (another_subject, 'another subject .*"a photo of a sks dog".*choose another --timestamp'),
        (no_gpu, "no MPS device: leave --machine.device-type out"),
        (
            out_of_range,
            "--pipeline.model.sds.guidance-scale is nan.*--pipeline.phases.dreambooth.batch-size is 0: .*at least 1",
        ),
        (inverted_range, "--pipeline.model.sds.noise-range-start is .* the smaller one first"),
        (
            rates_and_seeds_of_nerfstudio_out_of_range,
            ".*".join(
                [
                    "--machine.seed is -1: it must be from 0 to",
                    "--optimizers.encodings.optimizer.lr is nan: it must be above 0",
                    "--gradient-accumulation-steps.encodings is 0: it must be at least 1",
                ]
            ),
        ),
        (references_for_a_guide_that_sees_none, "does not see reference images.*train with dreambooth3d-flux2"),
        (nothing_to_load, "has no checkpoints: give --load-dir a run"),
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
