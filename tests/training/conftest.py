"""What the tests of the stages share."""

from pathlib import Path

import pytest
from tiny_run import tiny_config

from db3d_nerfstudio.training.trainer import DreamBooth3DTrainerConfig


@pytest.fixture
def config(photos: Path, tmp_path: Path) -> DreamBooth3DTrainerConfig:
    """A run of three short stages that is about to begin."""
    config = tiny_config(photos, tmp_path / "out")
    config.set_timestamp()
    return config
