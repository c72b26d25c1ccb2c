"""Fixtures that several test files use; builders of guides and models are in tiny.py."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


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
