"""A tiny guide for the tests of verbs over guides."""

from pathlib import Path

import pytest
from tiny import tiny_toybox_folder

from db3d_nerfstudio.toybox.guide import ToyboxGuide, ToyboxGuideConfig


@pytest.fixture(scope="module")
def toybox_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_toybox_folder(tmp_path_factory.mktemp("toybox"))


@pytest.fixture
def toybox(toybox_folder: Path) -> ToyboxGuide:
    return ToyboxGuideConfig(model=toybox_folder).setup()
