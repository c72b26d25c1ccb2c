"""Fixtures that several test files use; builders of guides and models are in tiny.py."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture(autouse=True)
def seed() -> None:
    """Every test draws the same numbers, whichever tests ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of four photos, each of one colour, among files that are none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, colour in enumerate([(200, 30, 30), (30, 200, 30), (30, 30, 200), (90, 90, 90)]):
        pixels = np.full((20, 30, 3), colour, np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    (folder / "notes.txt").write_text("not a photo")
    (folder / ".hidden.png").write_text("not a photo either")
    return folder


@pytest.fixture(scope="session")
def untrained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose NeRF is still the coloured blob that it starts from; its guide does not exist."""
    import copy

    import yaml

    from db3d_nerfstudio.method_configs.dreambooth3d_toybox import method

    config = copy.deepcopy(method.config)
    config.output_dir, config.experiment_name, config.timestamp = tmp_path_factory.mktemp("runs"), "toy", "run"
    config.pipeline.model.guide.model = "nowhere"
    config.pipeline.model.prompt = "a photo of a sks robot"
    config.pipeline.model.field.resolutions = (8,)
    run = config.get_base_dir()
    (run / "nerfstudio_models").mkdir(parents=True)
    (run / "config.yml").write_text(yaml.dump(config), "utf8")
    torch.manual_seed(0)
    pipeline = config.pipeline.setup(device="cpu", test_mode="inference")
    state = {"step": 7, "pipeline": pipeline.state_dict()}
    torch.save(state, run / "nerfstudio_models" / "step-000000007.ckpt")
    return run
