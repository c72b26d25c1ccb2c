"""Baselines are diffs of the method they are compared with, and the text-only one does without photos."""

import pytest
import torch
from tiny_run import tiny_config, tiny_run

from db3d_nerfstudio.method_configs import (
    dreambooth3d,
    dreambooth3d_toybox,
    dreambooth_fusion,
    dreambooth_fusion_toybox,
    dreamfusion,
    dreamfusion_toybox,
    latent_nerf,
    latent_nerf_toybox,
    textual_inversion_fusion,
    textual_inversion_fusion_toybox,
)
from db3d_nerfstudio.run.folder import settings
from db3d_nerfstudio.training.phases import phase_at

SCALE = {"pipeline.model.sds.guidance_scale", "pipeline.model.sds.guidance_rescale"}
"""What public systems set otherwise for the methods that baselines with real models stand for."""
FAMILIES = [
    (dreambooth3d, dreambooth_fusion, dreamfusion, 150, 800),
    (dreambooth3d_toybox, dreambooth_fusion_toybox, dreamfusion_toybox, 300, 400),
]


def differences(one, other, prefix=""):
    """The dotted names of the settings in which two configs differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        return [d for key in one for d in differences(one[key], other.get(key), f"{prefix}{key}.")]
    return [] if one == other else [prefix.rstrip(".")]


@pytest.mark.parametrize(("ours", "fusion", "text_only", "partial", "full"), FAMILIES)
def test_baselines_differ_in_the_stages_alone_and_train_as_long(ours, fusion, text_only, partial, full):
    configs = [preset.method.config for preset in (ours, fusion, text_only)]
    phases = [config.pipeline.phases for config in configs]
    stages = ["method_name", "pipeline.phases.initial.steps", "pipeline.phases.final.steps"]
    without_photos = ["pipeline.phases.full_steps"]
    if ours is dreambooth3d:
        without_photos += [*SCALE, "pipeline.model.guide.train_text_encoder"]
    for config, others in ((configs[1], []), (configs[2], without_photos)):
        assert sorted(differences(settings(configs[0]), settings(config))) == sorted([*stages, *others])
    assert [p.total_steps() for p in phases] == [phases[0].total_steps()] * 3
    assert phases[0].partial_steps == partial and [p.full_steps for p in phases] == [full, full, 0]
    assert {phase_at(phases[1], step).name for step in range(0, phases[1].total_steps(), 100)} == {"initial"}


@pytest.mark.parametrize(
    ("fusion", "inversion"),
    [
        (dreambooth_fusion, textual_inversion_fusion),
        (dreambooth_fusion_toybox, textual_inversion_fusion_toybox),
    ],
)
def test_textual_inversion_differs_in_what_is_learned_alone(fusion, inversion):
    one, other = fusion.method.config, inversion.method.config
    changed = set(differences(settings(one), settings(other)))
    guide = "pipeline.model.guide"
    tuned = {f"{guide}.train_text_encoder", "pipeline.phases.dreambooth.learning_rate"}  # Of what else is trained.
    assert changed - tuned == {
        "method_name",
        f"{guide}.tuning",
        "pipeline.phases.full_steps",
        "pipeline.phases.identifier",
    }
    assert other.pipeline.phases.dreambooth.learning_rate is None, "that of a word"
    assert not other.pipeline.model.guide.train_text_encoder
    assert other.pipeline.model.guide.tuning == "textual_inversion"
    assert other.pipeline.phases.identifier == other.pipeline.model.guide.new_token


@pytest.mark.parametrize(
    ("fusion", "latents", "channels", "grid"),
    [(dreambooth_fusion, latent_nerf, 4, 64), (dreambooth_fusion_toybox, latent_nerf_toybox, 16, 8)],
)
def test_latent_nerf_differs_in_what_the_colours_are_alone(fusion, latents, channels, grid):
    one, other = fusion.method.config, latents.method.config
    cameras, model = other.pipeline.datamanager.random_cameras, other.pipeline.model
    assert set(differences(settings(one), settings(other))) == {
        "method_name",
        "pipeline.datamanager.random_cameras.resolution",
        "pipeline.model.field.latent_channels",
        "pipeline.model.shading.lambertian_prob",
        *(SCALE if fusion is dreambooth_fusion else ()),
    }
    assert (model.field.latent_channels, model.shading.lambertian_prob) == (channels, 0)
    assert cameras.resolution == ((0.0, grid),)
    assert other.pipeline.phases.total_steps() == one.pipeline.phases.total_steps()


@pytest.fixture
def text_only(tmp_path):
    config = tiny_config(None, tmp_path)
    config.pipeline.phases.final.steps = config.pipeline.phases.full_steps = 0
    config.pipeline.model.prompt = "a photo of a robot"
    return config


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_text_alone_is_enough_where_nothing_is_fine_tuned(text_only, capsys):
    text_only.set_timestamp()
    run = tiny_run(text_only)
    run.runner.before_step(0)
    assert "Stage 1/1 distillation: NeRF from the prompt alone\n" in capsys.readouterr().out
    assert run.shift == 0 and run.context.model.distillation.bank is not None
    assert not (text_only.run_folder() / "dreambooth").exists()
    assert run.context.datamanager.config.data is None, "nerfstudio puts the working folder in the place of no folder"
    assert torch.isfinite(
        run.context.model.distillation.bank(run.context.datamanager.config.dataparser.orbit()[1]).text
    ).all()


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_full_dreambooth_is_called_full(text_only, photos, capsys):
    text_only.pipeline.phases.full_steps = 2
    text_only.pipeline.datamanager.data, text_only.pipeline.model.prompt = photos, "a photo of a sks robot"
    text_only.set_timestamp()
    run = tiny_run(text_only)
    run.runner.before_step(0)
    assert [path.name for path in (run.context.folder / "dreambooth").iterdir()] == ["full"] and run.shift != 0
    assert "Stage 1/1 distillation: Class images, DreamBooth full, NeRF\n" in capsys.readouterr().out
    assert run.context.record.progress.task.name == "NeRF"


def test_what_is_fine_tuned_needs_photos_and_an_identifier(text_only, photos):
    text_only.pipeline.phases.full_steps = 1
    with pytest.raises(SystemExit, match="no photos"):
        text_only.set_timestamp()
    text_only.pipeline.datamanager.data = photos
    with pytest.raises(SystemExit, match="identifier"):
        text_only.set_timestamp()


def test_text_alone_still_needs_a_prompt(text_only):
    text_only.pipeline.model.prompt = None
    with pytest.raises(SystemExit, match="no prompt"):
        text_only.set_timestamp()
