"""The three fine-tuned guides of a run, by an analytic guide."""

import shutil

import pytest
from PIL import Image
from tiny_run import START, tiny_run

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


@pytest.mark.parametrize("missing", ["partial_steps", "full_steps", "multiview_steps"])
def test_a_fine_tuning_of_no_steps_leaves_the_guide_it_starts_from(config, missing):
    setattr(config.pipeline.phases, missing, 0)
    run = tiny_run(config)
    run.runner.before_step(0)
    partial = run.shift
    run.runner.before_step(START)
    made = {path.name for path in (run.context.folder / "dreambooth").iterdir()}
    assert made == {"partial", "full", "multiview"} - {missing.removesuffix("_steps")}
    if missing == "partial_steps":
        assert partial == 0
    if missing == "multiview_steps":
        assert run.shift == partial


def test_identifier_and_class_noun_name_the_subject(config):
    phases = config.pipeline.phases
    assert tiny_run(config).runner.fine_tunes.subject.class_prompt == "a photo of a robot"
    phases.identifier, phases.class_noun = "hat", "owl"
    assert tiny_run(config).runner.fine_tunes.subject.instance_prompt == "a photo of a hat owl"


def test_every_fine_tuning_leaves_a_sheet_of_its_samples(config):
    run = tiny_run(config)
    run.runner.before_step(START)
    sheets = [run.context.folder / "dreambooth" / name / "samples.png" for name in ("partial", "full", "multiview")]
    assert len({sheet.read_bytes() for sheet in sheets}) == 3
    with Image.open(sheets[0]) as image:
        assert image.size == (4 * 96, 2 * 96), "four views, two of each"


@pytest.mark.parametrize("keep", [True, False])
def test_d_full_can_go_when_pseudo_views_are_there(config, keep):
    config.pipeline.phases.keep_full = keep
    run = tiny_run(config)
    run.runner.before_step(0)
    run.runner.before_step(START)
    full, multiview = run.context.folder / "dreambooth" / "full", run.shift
    assert (full / "shift.safetensors").exists() == keep and (full / "samples.png").exists()
    made = {name: (run.context.folder / name).stat().st_mtime_ns for name in ("pseudo_views", "dreambooth/multiview")}
    again = tiny_run(config)
    again.runner.before_step(START + 1)
    assert again.shift == multiview and (full / "shift.safetensors").exists() == keep
    assert made == {name: (run.context.folder / name).stat().st_mtime_ns for name in made}


def test_d_full_is_tuned_again_where_pseudo_views_are_made_again(config):
    config.pipeline.phases.keep_full = False
    run = tiny_run(config)
    run.runner.before_step(START)
    views = run.context.folder / "pseudo_views"
    pictures = {file.name: file.read_bytes() for file in (views / "images").iterdir()}
    shutil.rmtree(views)
    tiny_run(config).runner.before_step(START)
    assert {file.name: file.read_bytes() for file in (views / "images").iterdir()} == pictures
