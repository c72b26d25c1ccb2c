"""The context of a run's stages: what they work on, and their requests to the training loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from nerfstudio.cameras.camera_optimizers import CameraOptimizer
from nerfstudio.engine.optimizers import Optimizers
from torch import Tensor

from db3d_nerfstudio.guides.base import DiffusionGuide
from db3d_nerfstudio.nerf.model import DreamBooth3DModel
from db3d_nerfstudio.run.interventions import Interventions
from db3d_nerfstudio.run.record import RunRecord
from db3d_nerfstudio.training.datamanager import DreamBooth3DDataManager

PAUSE = 0.05
"""Seconds between two looks at the viewer's pause button."""


@dataclass(eq=False)
class RunContext:
    """Built by the pipeline for its callbacks, so that stages, fine-tunes and the viewer's panel need no trainer."""

    model: DreamBooth3DModel
    """The NeRF in training."""
    datamanager: DreamBooth3DDataManager
    """The source of batches."""
    optimizers: Optimizers
    """nerfstudio's optimizers, with the configs that they were made from."""
    record: RunRecord
    """The record of the run."""
    interventions: Interventions
    """Changes made in the viewer."""
    folder: Path
    """The run folder, which holds the artifacts of the stages."""
    seed: int
    """Seed of the run: every random draw is a function of this and the step."""
    save: Callable[..., None]
    """Saves a checkpoint, given the last step that it holds; `between_nerfs=True` where the next NeRF begins."""
    end_at: Callable[[int], None]
    """Ends training, given the number of steps that have been trained in all."""
    paused: Callable[[], bool] = lambda: False
    """Whether the viewer's pause button is pressed."""
    unlocked: Callable[[], AbstractContextManager] = nullcontext
    """Entered while the guide computes, so that the viewer can render in the meantime."""
    photo_poses: CameraOptimizer | None = None
    """Changes of the photos' poses, if these are refined."""
    accumulation: int = 1
    """Micro-steps in a step of the optimizers."""
    step: int = 0
    """The micro-step that is trained now, or next."""
    losses: dict[str, Tensor] = field(default_factory=dict)
    """The losses of the last micro-step."""

    @property
    def guide(self) -> DiffusionGuide:
        """The diffusion model, loaded on first use."""
        return self.model.distillation.guide

    @contextmanager
    def task(self, name: str) -> Iterator[Callable[..., None]]:
        """Record work of the guide as the task `name`; the viewer can render meanwhile, and pause the work.

        Yields `update(done, loss=None)`: the number of things done, and the loss if there is one.
        """
        progress = self.record.progress
        with self.unlocked(), progress.during(name) as update:

            def update_and_wait(done: int, loss: float | None = None) -> None:
                update(done, loss)
                while self.paused():
                    time.sleep(PAUSE)
                    progress.restart_clock()

            yield update_and_wait
