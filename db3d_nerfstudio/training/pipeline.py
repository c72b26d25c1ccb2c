"""nerfstudio's pipeline, with the phases run before every training iteration."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.engine.trainer import Trainer
from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig
from torch import Tensor

from db3d_nerfstudio.nerf.model import DreamBooth3DModelConfig
from db3d_nerfstudio.results.film import make_ffmpeg_findable
from db3d_nerfstudio.training.datamanager import DreamBooth3DDataManagerConfig
from db3d_nerfstudio.training.phases import PhasesConfig


@dataclass
class DreamBooth3DPipelineConfig(VanillaPipelineConfig):
    """Photos and views, the NeRF and its guide, and the stages that lead from one to the other."""

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


class DreamBooth3DPipeline(VanillaPipeline):
    """A `VanillaPipeline` whose training goes through the phases."""

    config: DreamBooth3DPipelineConfig
    losses: dict[str, Tensor]
    """The losses of the last training step."""

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> list[TrainingCallback]:
        """The phases come first: other callbacks find the model in the state that the step asks for."""
        from db3d_nerfstudio.training.runner import PhaseRunner

        trainer = training_callback_attributes.trainer
        self.model.guide_context = partial(unlocked, trainer)
        runner = PhaseRunner(self.config.phases, trainer)
        self.model.viewer_panel.follow(runner)
        before = TrainingCallback([TrainingCallbackLocation.BEFORE_TRAIN_ITERATION], runner.before_step)
        after = TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN_ITERATION], runner.after_step)
        at_end = TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN], trainer.end_of_training)
        return [before, *super().get_training_callbacks(training_callback_attributes), after, at_end]

    def get_train_loss_dict(self, step: int) -> tuple[dict, dict[str, Tensor], dict]:
        """nerfstudio's, with the losses kept until the step has been recorded."""
        outputs, losses, metrics = super().get_train_loss_dict(step)
        self.losses = {name: loss.detach() for name, loss in losses.items()}
        return outputs, losses, metrics


@contextmanager
def unlocked(trainer: Trainer) -> Iterator[None]:
    """Let the viewer render while the guide computes: nerfstudio's trainer holds its lock for a whole iteration.

    The viewer puts the model into evaluation mode; hence the last line.
    """
    trainer.train_lock.release()
    try:
        yield
    finally:
        trainer.train_lock.acquire()
        trainer.pipeline.train()
