"""RUN/initial: the initial NeRF as a small run of its own, which every ns-* tool opens."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch
import yaml
from nerfstudio.models.base_model import Model
from torch import Tensor

from db3d_nerfstudio.run.config import FILE, RunConfig, checkpoints

FOLDER = "initial"
CHECKPOINTS = "nerfstudio_models"
PREFIX = "_model."
"""What nerfstudio's pipeline puts before the names of the model's weights."""


def save_initial(path: Path, config: RunConfig, model: Model, step: int) -> None:
    """Write the model as a run.

    Args:
        path: An empty folder.
        config: The config of the run that it is the initial NeRF of; changed.
        step: The last step that it was trained.
    """
    config.home, config.relative_model_dir = config.get_base_dir() / FOLDER, Path(CHECKPOINTS)
    config.load_step = step
    (path / FILE).write_text(yaml.dump(config), "utf8")
    (path / CHECKPOINTS).mkdir()
    weights = {f"{PREFIX}{name}": value for name, value in model.state_dict().items()}
    torch.save({"step": step, "pipeline": weights}, path / CHECKPOINTS / f"step-{step:09d}.ckpt")


@contextmanager
def showing(model: Model, initial: Path) -> Generator[None, None, None]:
    """Give the model the initial NeRF's weights within a `with` block."""
    (checkpoint,) = checkpoints(initial / CHECKPOINTS).values()
    weights = torch.load(checkpoint, map_location="cpu", weights_only=True)["pipeline"]
    present: dict[str, Tensor] = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict({name.removeprefix(PREFIX): value for name, value in weights.items()})
    try:
        yield
    finally:
        model.load_state_dict(present)
