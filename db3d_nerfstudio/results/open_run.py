"""Opening a run, finished or not, to look at it or to export from it, without guide, photos or GPU."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING

from db3d_nerfstudio.console import nerfstudio_silenced
from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.paths import output_folder
from db3d_nerfstudio.run.config import FILE, checkpoint_step, read_config

if TYPE_CHECKING:
    from nerfstudio.pipelines.base_pipeline import Pipeline

EXPORTS = "exports"
"""The folder in the run folder that meshes and turntables go to."""


def open_run(run: Path) -> Pipeline:
    """The pipeline of a run folder, or of the `initial` in one, with its newest checkpoint, in evaluation mode.

    The folder may have been moved, renamed or copied since it was trained.

    Raises:
        UserError: it is not a run, there is no checkpoint in it, or the checkpoint cannot be read.
    """
    from nerfstudio.utils.eval_utils import eval_setup

    config = read_config(run)
    checkpoints = config.get_checkpoint_dir()
    if checkpoint_step(checkpoints) < 0:
        raise UserError(f"{run} has no checkpoint yet: start its ns-train command again to continue it")
    try:
        with nerfstudio_silenced():
            return eval_setup(run / FILE, test_mode="inference", update_config_callback=lambda _: config)[1]
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"the checkpoint in {checkpoints} cannot be loaded: {error}") from None


def exports_folder(run: Path, chosen: Path | None) -> Path:
    """The folder for exports, made if needed."""
    return output_folder(run / EXPORTS if chosen is None else chosen)
