"""nerfstudio's pipeline, which enters the phases before every training iteration."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import Any, Protocol, cast, runtime_checkable

from nerfstudio.cameras.camera_optimizers import CameraOptimizer, CameraOptimizerConfig
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.engine.optimizers import Optimizers
from nerfstudio.pipelines.base_pipeline import Pipeline, VanillaPipeline, VanillaPipelineConfig
from torch import Tensor
from torch.nn import Parameter

from db3d_nerfstudio.nerf.model import DreamBooth3DModel, DreamBooth3DModelConfig
from db3d_nerfstudio.photos import photo_paths
from db3d_nerfstudio.results.film import make_ffmpeg_findable
from db3d_nerfstudio.run.config import RunConfig
from db3d_nerfstudio.run.interventions import Interventions
from db3d_nerfstudio.run.manifest import describe
from db3d_nerfstudio.run.record import RunRecord
from db3d_nerfstudio.training.context import RunContext
from db3d_nerfstudio.training.datamanager import DreamBooth3DDataManager, DreamBooth3DDataManagerConfig
from db3d_nerfstudio.training.phases import PhasesConfig
from db3d_nerfstudio.training.runner import PhaseRunner
from db3d_nerfstudio.training.tasks import contents, run_tasks
from db3d_nerfstudio.training.viewer_panel import ViewerPanel


@dataclass
class DreamBooth3DPipelineConfig(VanillaPipelineConfig):
    """Photos and views, the NeRF and its guide, and the stages."""

    _target: type = field(default_factory=lambda: DreamBooth3DPipeline)
    datamanager: DreamBooth3DDataManagerConfig = field(default_factory=DreamBooth3DDataManagerConfig)
    """Photos, pseudo views and random views."""
    model: DreamBooth3DModelConfig = field(default_factory=DreamBooth3DModelConfig)
    """The NeRF and its guide."""
    phases: PhasesConfig = field(default_factory=PhasesConfig)
    """The stages."""

    def setup(self, **kwargs: Any) -> DreamBooth3DPipeline:
        """Also lets `ns-render`, which opens a pipeline for inference, find an ffmpeg."""
        if kwargs.get("test_mode") == "inference":
            make_ffmpeg_findable()
        return super().setup(**kwargs)


@runtime_checkable
class TrainingLoop(Protocol):
    """The part of the trainer that is used here."""

    config: RunConfig
    optimizers: Optimizers
    gradient_accumulation_steps: dict[str, int]
    training_state: str
    train_lock: Lock

    def save_checkpoint(self, step: int, between_nerfs: bool = False) -> None:
        """Save the state after a step, now or as soon as the optimizers have stepped."""
        ...

    def save_if_due(self, step: int) -> None:
        """Save a checkpoint that `save_checkpoint` postponed."""
        ...

    def end_at(self, total_steps: int) -> None:
        """Stop training, given the number of steps that have been trained in all."""
        ...

    def end_of_training(self, step: int) -> None:
        """Called when training ends."""
        ...


class DreamBooth3DPipeline(VanillaPipeline):
    """A `VanillaPipeline` whose training goes through the phases."""

    config: DreamBooth3DPipelineConfig
    context: RunContext
    """The run in training; not set where a run is only opened."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.viewer_panel = ViewerPanel()  # nerfstudio's viewer finds it here.
        self.photo_poses = self._make_photo_poses()
        data = cast(DreamBooth3DDataManager, self.datamanager)
        data.whole_pictures = self.config.model.perceptual_loss_mult > 0

    def _make_photo_poses(self) -> CameraOptimizer | None:
        """Changes of the photos' poses: parameters of the run beside those of the model."""
        phases, data = self.config.phases, self.config.datamanager.data
        refined = phases.reconstructs_photos and phases.posed_photos.refine
        if self.test_mode != "val" or data is None or not refined:  # "val" is training.
            return None
        optimizer = CameraOptimizerConfig(mode="SO3xR3")
        return optimizer.setup(num_cameras=len(photo_paths(data)), device=self.device)

    def get_param_groups(self) -> dict[str, list[Parameter]]:
        """nerfstudio's, and the photos' poses as "camera_opt"."""
        groups = super().get_param_groups()
        if self.photo_poses is not None:
            self.photo_poses.get_param_groups(groups)
        return groups

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> list[TrainingCallback]:
        """The callback of the phases comes first, so that others find the model in the state of the step."""
        loop = cast(TrainingLoop, training_callback_attributes.trainer)
        self.context = self._make_context(loop)
        distillation = self.context.model.distillation
        distillation.context, distillation.identifier = self.context.unlocked, self.config.phases.identifier
        self.viewer_panel.follow(self.context)
        runner = PhaseRunner(self.config.phases, self.context)
        before, after, at_end = (
            TrainingCallbackLocation.BEFORE_TRAIN_ITERATION,
            TrainingCallbackLocation.AFTER_TRAIN_ITERATION,
            TrainingCallbackLocation.AFTER_TRAIN,
        )

        def after_training(step: int) -> None:
            with loop.train_lock:  # nerfstudio holds it in iterations alone; the viewer goes on rendering.
                runner.after_training(step)

        return [
            TrainingCallback([before], lambda step: loop.save_if_due(step - 1)),
            TrainingCallback([before], runner.before_step),
            *super().get_training_callbacks(training_callback_attributes),
            TrainingCallback([after], runner.after_step),
            TrainingCallback([at_end], after_training),
            TrainingCallback([at_end], loop.end_of_training),
        ]

    def _make_context(self, loop: TrainingLoop) -> RunContext:
        phases, model, run = self.config.phases, self.config.model, loop.config.run_folder()
        tasks = run_tasks(phases, self.config.datamanager.dataparser.num_views)
        return RunContext(
            model=cast(DreamBooth3DModel, self.model),
            datamanager=cast(DreamBooth3DDataManager, self.datamanager),
            optimizers=loop.optimizers,
            record=RunRecord(run, describe(loop.config, contents(phases)), tasks, phases.total_steps()),
            interventions=Interventions(run, model.prompt or "", model.sds.guidance_scale),
            folder=run,
            seed=loop.config.machine.seed,
            save=loop.save_checkpoint,
            end_at=loop.end_at,
            paused=lambda: loop.training_state == "paused",
            unlocked=partial(unlocked, loop.train_lock, self),
            photo_poses=self.photo_poses,
            accumulation=math.lcm(*loop.gradient_accumulation_steps.values()),
        )

    def get_train_loss_dict(self, step: int) -> tuple[dict, dict[str, Tensor], dict]:
        """nerfstudio's, with the losses kept until the step has been recorded."""
        outputs, losses, metrics = super().get_train_loss_dict(step)
        self.context.losses = {name: loss.detach() for name, loss in losses.items()}
        return outputs, losses, metrics


@contextmanager
def unlocked(lock: Lock, pipeline: Pipeline) -> Iterator[None]:
    """Let the viewer render while the guide computes: nerfstudio's trainer holds its lock for a whole iteration.

    The viewer puts the model into evaluation mode; hence the last line.
    """
    lock.release()
    try:
        yield
    finally:
        lock.acquire()
        pipeline.train()
