"""What the tests of the stages share."""

from pathlib import Path

import pytest
from tiny_run import tiny_config

from db3d_nerfstudio.training import runner
from db3d_nerfstudio.training.trainer import DreamBooth3DTrainerConfig


@pytest.fixture
def config(photos: Path, tmp_path: Path) -> DreamBooth3DTrainerConfig:
    """A run of three short stages that is about to begin."""
    config = tiny_config(photos, tmp_path / "out")
    config.set_timestamp()
    return config


@pytest.fixture(autouse=True)
def small_films(monkeypatch: pytest.MonkeyPatch) -> None:
    """Films of a few pixels: what they show is tested beside their functions."""
    monkeypatch.setattr(runner, "TURNTABLE_FRAMES", 2)
    monkeypatch.setattr(runner, "TURNTABLE_SIZE", 8)
