"""The tasks of a run in order, and the files in its folder, named by what they are in this run."""

from db3d_nerfstudio.run.interventions import PhaseName
from db3d_nerfstudio.run.progress import Task
from db3d_nerfstudio.training.phases import PhasesConfig

CLASS_IMAGES, UPSCALER, PSEUDO_VIEWS = "Class images", "Upscaler", "Pseudo views"
ONE, TWO, THREE = "1/3 initial", "2/3 pseudo_views", "3/3 final"
ONLY = "1/1 distillation"
"""The stage of a baseline."""


def dreambooth_task(name: str) -> str:
    """The task of a fine-tuning."""
    return f"DreamBooth {name}"


def nerf_task(phases: PhasesConfig, phase: PhaseName) -> str:
    """The task of a NeRF: a baseline has no initial or final one."""
    return "NeRF" if phases.one_stage else f"{phase.capitalize()} NeRF"


def run_tasks(phases: PhasesConfig, num_views: int) -> list[Task]:
    """The tasks of a run, without those that have no steps.

    Args:
        num_views: Number of pseudo views.
    """
    dreambooth, views = phases.dreambooth, phases.pseudo_views
    translation_steps = max(1, round(views.strength * views.steps))
    upscaling = views.upscaler.max_train_steps if views.upscaler is not None and views.images is None else 0
    full = (dreambooth_task("full"), "tuning", phases.full_steps if phases.full_is_used else 0)
    if phases.one_stage:
        tasks = [Task(ONLY, *full), Task(ONLY, nerf_task(phases, "initial"), "initial NeRF", phases.initial.steps)]
    else:
        tasks = [
            Task(ONE, nerf_task(phases, "initial"), "initial NeRF", phases.initial.length),
            Task(TWO, *full),
            Task(TWO, UPSCALER, "upscaling", upscaling),
            Task(TWO, PSEUDO_VIEWS, "images", num_views, translation_steps if views.images is None else 1),
            Task(THREE, dreambooth_task("multiview"), "tuning", phases.multiview_steps),
            Task(THREE, nerf_task(phases, "final"), "final NeRF", phases.final.steps),
        ]
        stage, place = (ONE, 0) if phases.initial.mesh is None else (THREE, 3)  # Only D_multi needs it beside a mesh.
        tasks.insert(place, Task(stage, dreambooth_task("partial"), "tuning", phases.partial_steps))
    tasks = [task for task in tasks if task.total]
    first = next((i for i, task in enumerate(tasks) if task.kind == "tuning"), None)
    if first is not None and dreambooth.prior_loss_weight > 0:
        class_images = (CLASS_IMAGES, "images", dreambooth.num_class_images, dreambooth.class_sampling.steps)
        tasks.insert(first, Task(tasks[first].stage, *class_images))
    return tasks


def stage_line(phases: PhasesConfig, stage: str) -> str:
    """The line that announces a stage."""
    steps = [task.name for task in run_tasks(phases, num_views=1) if task.stage == stage]
    if not phases.needs_photos:
        steps = ["NeRF from the prompt alone"]
    return f"Stage {stage}: {', '.join(steps)}"


def contents(phases: PhasesConfig) -> dict[str, str]:
    """The files of the run folder, with descriptions."""
    found = {
        "manifest.json": "this: inputs, settings, versions, times",
        "report.html": "the run in one page, made at its end or by `db3d report`",
        "config.yml": "every setting, for nerfstudio's programs (--load-config)",
        "nerfstudio_models": "the newest checkpoint of the NeRF in training",
        "turntables": "each NeRF at the end of its training, going round",
        "losses.jsonl": "the NeRFs' losses, one line for every few steps",
        "interventions.json": "what was changed in the viewer while the run was training",
    }
    if phases.needs_photos:
        found |= {
            "photo_views": "the sides that the guide guesses for the photos",
            "class_images": "images of the class by the untuned guide, for prior preservation",
        }
    if phases.full_is_used:
        found["dreambooth/full"] = f"D_full: the guide after {phases.full_steps} iterations on the photos"
    if not phases.one_stage:
        given = phases.pseudo_views.images
        views = "its renders, turned into the subject by D_full" if given is None else f"the images of {given}"
        photos = phases.reconstructs_photos
        if phases.initial.mesh is not None:
            found["mesh_views"] = f"{phases.initial.mesh} from all round, which the initial NeRF is fitted to"
        found |= {
            "dreambooth/partial": f"D_partial: the guide after {phases.partial_steps} iterations on the photos",
            "dreambooth/multiview": f"D_multi: D_partial after {phases.multiview_steps} more, also on pseudo views",
            "initial": "the initial NeRF, a small run of its own",
            **({"posed_photos": "the photos at the poses from which the NeRFs reconstruct them"} if photos else {}),
            "pseudo_views": f"{views}; contact_sheet.png shows them",
        }
    return found
