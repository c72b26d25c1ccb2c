"""What a person changes in the viewer while a run is in training, and what a resumed run makes of it."""

import json

import pytest
import torch
from tiny_run import tiny_run

from db3d_nerfstudio.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


def test_a_changed_prompt_and_scale_hold_from_the_next_step_on_and_after_a_restart(config):
    run = tiny_run(config)
    run.runner.before_step(0)
    run.context.interventions.request(prompt="a photo of a sks robot on the moon")
    run.context.interventions.request(guidance_scale=3.0)
    distillation = run.context.model.distillation
    assert distillation.config.guidance_scale == config.pipeline.model.sds.guidance_scale
    run.runner.before_step(1)
    assert (distillation.prompt, distillation.config.guidance_scale) == ("a photo of a sks robot on the moon", 3.0)
    assert distillation.bank is None, "to be embedded again before the next guided view"
    run.runner.before_step(2)
    again = tiny_run(config)
    again.runner.before_step(0)
    resumed = again.context.model.distillation
    assert resumed.prompt == config.pipeline.model.prompt, "resumed before the change"
    again.runner.before_step(1)
    assert (resumed.prompt, resumed.config.guidance_scale) == (distillation.prompt, 3.0)


@pytest.mark.parametrize("wrong", ["a photo of a robot", "unknown sks word"])
def test_a_prompt_that_cannot_be_is_refused_and_training_goes_on(config, wrong, monkeypatch):
    run = tiny_run(config)
    run.runner.before_step(0)
    embed = run.context.guide.embed

    def picky(prompts):
        if "unknown" in prompts[0]:
            raise UserError("the guide does not know this word")
        return embed(prompts)

    monkeypatch.setattr(run.context.guide, "embed", picky)
    run.context.interventions.request(prompt=wrong)
    run.runner.before_step(1)
    assert run.context.interventions.answer.startswith("Not done: ")
    assert run.context.model.distillation.prompt == config.pipeline.model.prompt
    assert not (run.context.folder / "interventions.json").exists()


def test_a_stage_ended_in_the_viewer_is_as_long_for_the_run_that_resumes(config):
    config.pipeline.phases.initial.steps, config.pipeline.phases.final.steps = 8, 8
    run = tiny_run(config)
    run.runner.before_step(0)
    run.context.interventions.request(ends="initial")
    run.runner.before_step(2)
    assert run.context.interventions.ends == {"initial": 4}, "the optimizer moves every second step"
    run.runner.before_step(3)
    assert not run.context.datamanager.has_pseudo_views
    again = tiny_run(config)
    for step in (3, 4):
        again.runner.before_step(step)
    assert again.context.datamanager.has_pseudo_views and again.saved == [3]
    initial = json.loads((again.context.folder / "initial" / "recipe.json").read_text())
    assert initial["steps"] == 4
    again.context.interventions.request(ends="initial")
    again.context.interventions.request(ends="final")
    again.runner.before_step(6)
    assert again.context.interventions.ends == {"initial": 4, "final": 8}, "the initial NeRF is no longer in training"
    again.context.losses = {"a": torch.tensor(1.0)}
    again.runner.after_step(6)
    assert again.ends == []
    again.runner.after_step(7)
    assert again.ends == [8]
    config.max_num_iterations = 1000
    config.set_timestamp()
    assert config.max_num_iterations == 8, "for the same command knows of it"
