"""The tasks of a run, and what they are called."""

from pathlib import Path

import pytest

from db3d_nerfstudio.diffusion.upscaler import UpscalerConfig
from db3d_nerfstudio.training.phases import NerfPhaseConfig, PhasesConfig, PseudoViewsConfig
from db3d_nerfstudio.training.tasks import ONE, ONLY, contents, nerf_task, run_tasks, stage_line


def one_stage(full_steps):
    return PhasesConfig(final=NerfPhaseConfig(steps=0), full_steps=full_steps)


def test_tasks_come_in_order_and_those_without_steps_are_left_out():
    assert [task.name for task in run_tasks(PhasesConfig(), 4)] == [
        *("Class images", "DreamBooth partial", "Initial NeRF", "DreamBooth full", "Pseudo views"),
        *("DreamBooth multiview", "Final NeRF"),
    ]
    late = run_tasks(PhasesConfig(partial_steps=0), 4)
    assert [task.name for task in late][:3] == ["Initial NeRF", "Class images", "DreamBooth full"]
    assert late[1].stage == "2/3 pseudo_views", "those are made for the first fine-tuning"


def test_the_tuning_of_an_upscaler_is_a_task_of_the_second_stage():
    views = PseudoViewsConfig(upscaler=UpscalerConfig(max_train_steps=9))
    tasks = run_tasks(PhasesConfig(pseudo_views=views), 4)
    assert [(task.name, task.total) for task in tasks if task.stage.startswith("2/3")][1:] == [
        ("Upscaler", 9),
        ("Pseudo views", 4),
    ]
    views.images = Path("elsewhere")
    assert "Upscaler" not in [task.name for task in run_tasks(PhasesConfig(pseudo_views=views), 4)]


def test_baselines_call_things_by_their_names():
    tasks = run_tasks(one_stage(800), 4)
    assert [task.name for task in tasks] == ["Class images", "DreamBooth full", "NeRF"]
    assert {task.stage for task in tasks} == {ONLY}
    assert [task.name for task in run_tasks(one_stage(0), 4)] == ["NeRF"]
    assert nerf_task(one_stage(0), "initial") == "NeRF"


@pytest.mark.parametrize(
    ("phases", "stage", "line"),
    [
        (PhasesConfig(), ONE, "Stage 1/3 initial: Class images, DreamBooth partial, Initial NeRF"),
        (PhasesConfig(partial_steps=0), ONE, "Stage 1/3 initial: Initial NeRF"),
        (one_stage(800), ONLY, "Stage 1/1 distillation: Class images, DreamBooth full, NeRF"),
        (one_stage(0), ONLY, "Stage 1/1 distillation: NeRF from the prompt alone"),
    ],
)
def test_stages_are_announced_by_what_is_in_them(phases, stage, line):
    assert stage_line(phases, stage) == line


def test_the_manifest_lists_what_a_run_makes():
    assert {"dreambooth/partial", "dreambooth/full", "dreambooth/multiview", "pseudo_views"} < set(
        contents(PhasesConfig())
    )
    assert "800 iterations" in contents(one_stage(800))["dreambooth/full"]
    assert not {"initial", "pseudo_views", "dreambooth/partial"} & set(contents(one_stage(800)))
    assert not [name for name in contents(one_stage(0)) if name.startswith(("dreambooth", "class"))]
