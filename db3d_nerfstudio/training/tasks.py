"""All that a run does, in order: what the progress bar, the viewer and the manifest count."""

from db3d_nerfstudio.run.progress import CLASS_IMAGES, FINAL_NERF, INITIAL_NERF, PSEUDO_VIEWS, Task, tuning
from db3d_nerfstudio.training.phases import PhasesConfig


def run_tasks(phases: PhasesConfig, num_views: int) -> list[Task]:
    """The tasks of a run; what has no steps is left out.

    Args:
        num_views: Number of pseudo views.
    """
    dreambooth, views = phases.dreambooth, phases.pseudo_views
    translation_steps = max(1, round(views.strength * views.steps))
    one, two, three = "1/3 initial", "2/3 pseudo_views", "3/3 final"
    tasks = [
        Task(one, tuning("partial"), "tuning", phases.partial_steps),
        Task(one, INITIAL_NERF, "initial NeRF", phases.initial.steps),
    ]
    if phases.final.steps:
        tasks += [
            Task(two, tuning("full"), "tuning", phases.full_steps),
            Task(two, PSEUDO_VIEWS, "images", num_views, translation_steps),
            Task(three, tuning("multiview"), "tuning", phases.multiview_steps),
            Task(three, FINAL_NERF, "final NeRF", phases.final.steps),
        ]
    tasks = [task for task in tasks if task.total]
    first = next((i for i, task in enumerate(tasks) if task.kind == "tuning"), None)
    if first is not None and dreambooth.prior_loss_weight > 0:
        class_images = (CLASS_IMAGES, "images", dreambooth.num_class_images, dreambooth.class_sampling.steps)
        tasks.insert(first, Task(tasks[first].stage, *class_images))
    return tasks
