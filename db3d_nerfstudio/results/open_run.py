"""Opening a run, finished or killed, to look at it or to take something out of it: no guide, no photos, no GPU."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING

from db3d_nerfstudio.console import nerfstudio_silenced
from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.run.folder import checkpoint_step, read_config

if TYPE_CHECKING:
    from nerfstudio.engine.trainer import TrainerConfig
    from nerfstudio.pipelines.base_pipeline import Pipeline

EXPORTS = "exports"
"""The folder in the run folder that meshes and turntables go to."""
CHECKPOINTS = "nerfstudio_models"


def open_run(run: Path) -> Pipeline:
    """The pipeline of a run folder, or of the `initial` in one, with its newest checkpoint, in evaluation mode.

    The folder may have been moved or renamed since it was trained.

    Raises:
        UserError: it is no run, there is no checkpoint in it, or the checkpoint cannot be read.
    """
    from nerfstudio.utils.eval_utils import eval_setup

    if read_config(run) is None:
        raise UserError(f"{run} is no run of this version: give the folder that holds config.yml")
    if checkpoint_step(run / CHECKPOINTS) < 0:
        raise UserError(f"{run} has no checkpoint yet: start the command that trains it again, and it goes on")

    def here(config: TrainerConfig) -> TrainerConfig:
        # nerfstudio puts a run's path together from these four.
        config.output_dir, config.experiment_name, config.method_name, config.timestamp = run.absolute(), ".", ".", "."
        config.relative_model_dir = Path(CHECKPOINTS)
        return config

    try:
        with nerfstudio_silenced():
            return eval_setup(run / "config.yml", test_mode="inference", update_config_callback=here)[1]
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"the checkpoint in {run / CHECKPOINTS} cannot be loaded: {error}") from None


def exports_folder(run: Path, chosen: Path | None) -> Path:
    """Where exports go, made if needed."""
    folder = run / EXPORTS if chosen is None else chosen
    folder.mkdir(parents=True, exist_ok=True)
    return folder
