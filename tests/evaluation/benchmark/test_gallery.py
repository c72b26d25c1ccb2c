"""The benchmark in one picture: which views are shown, and where."""

import numpy as np
import pytest
from PIL import Image

from db3d_nerfstudio.evaluation.benchmark.gallery import FONT_SIZE, GAP, SIDES, cut, gallery
from db3d_nerfstudio.evaluation.metrics.renders import NUM_VIEWS

SIZE = 8
TWO_STAGES = {"initial": {}, "final": {}}


def sheet_of(rows, base=0):
    """Views whose red says in which row they are, and whose green from which side."""
    red = np.repeat(np.arange(rows) + base, SIZE)[:, None]
    green = np.repeat(np.arange(NUM_VIEWS), SIZE)[None]
    return Image.fromarray(np.stack(np.broadcast_arrays(red, green, 7), -1).astype(np.uint8))


def strip(row):
    return [(row, side, 7) for side in SIDES]


def colours(picture, left=0, top=0):
    return [picture.getpixel((left + place * SIZE + 2, top + 2)) for place in range(len(SIDES))]


@pytest.mark.parametrize(
    ("rows", "stages", "where"),
    [
        (5, ["initial", "final"], {"truth": 0, "initial": 1, "final": 3}),
        (4, ["initial", "final"], {"initial": 0, "final": 2}),
        (3, ["final"], {"truth": 0, "final": 1}),
    ],
)
def test_a_sheet_is_taken_apart(rows, stages, where):
    strips = cut(sheet_of(rows), stages)
    assert {name: colours(image) for name, image in strips.items()} == {n: strip(row) for n, row in where.items()}


@pytest.fixture
def records(tmp_path):
    def finished(subject, method, stages, base):
        cell = f"{subject}/{method}"
        folder = tmp_path / "cells" / cell / "train" / method.split()[0] / "run" / "evaluation"
        folder.mkdir(parents=True)
        sheet_of(1 + 2 * len(stages), base).save(folder / "views.png")
        prompt = f"a photo of a {subject}"
        return {"subject": subject, "prompt": prompt, "method": method, "cell": cell, "metrics": stages}

    return [
        finished("duck", "ours", TWO_STAGES, 10),
        finished("duck", "other --with options", {"final": {}}, 20),
        finished("mug", "other --with options", {"final": {}}, 30),
    ]


def test_subjects_are_rows_and_methods_columns(records, tmp_path):
    picture = gallery(tmp_path, records, ["ours", "other --with options"])
    width = len(SIDES) * SIZE
    assert picture.width == 4 * (width + GAP) - GAP, "truth, initial NeRF and two methods"
    duck, mug = picture.height - 2 * SIZE, picture.height - SIZE
    columns = [column * (width + GAP) for column in range(4)]
    assert [colours(picture, left, duck) for left in columns] == [strip(10), strip(11), strip(13), strip(21)]
    blank = [(255, 255, 255)] * len(SIDES)
    assert [colours(picture, left, mug) for left in columns] == [strip(30), blank, blank, strip(31)]


def test_without_views_there_is_no_picture(records, tmp_path):
    assert gallery(tmp_path / "elsewhere", records, ["ours"]) is None


def test_prompts_of_one_subject_are_rows_under_their_texts(records, tmp_path):
    plain = gallery(tmp_path, records, ["ours"])
    asked = [*records, {**records[0], "prompt": "a photo of a duck flying"}]
    picture = gallery(tmp_path, asked, ["ours"])
    assert picture.height - plain.height == SIZE + 3 * (FONT_SIZE + 5), "one more row, and a line of text for each"
    assert colours(picture, 0, picture.height - SIZE) == strip(10)
