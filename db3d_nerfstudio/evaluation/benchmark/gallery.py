"""A benchmark in one picture: each prompt from three sides, the truth, the initial NeRF and what every method made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from db3d_nerfstudio.evaluation.benchmark.cell import run_folder
from db3d_nerfstudio.evaluation.evaluate import EVALUATION, VIEWS
from db3d_nerfstudio.evaluation.metrics.renders import NUM_VIEWS

SIDES = (1, 4, 9)
"""Which of the evaluation's views are shown: from the front, from a side, from behind."""
GAP = 12
"""Pixels between two columns."""
FONT_SIZE = 13


def cut(sheet: Image.Image, stages: Sequence[str]) -> dict[str, Image.Image]:
    """Cut a run's `views.png` apart: the truth, if the sheet has it, and the colours of each stage, from `SIDES`.

    Args:
        sheet: `NUM_VIEWS` square views to a row: the truth's, then colours and shape of every stage.
    """
    size = sheet.width // NUM_VIEWS
    rows = [name for stage in stages for name in (stage, "")]
    if sheet.height // size > len(rows):
        rows.insert(0, "truth")
    strips: dict[str, Image.Image] = {}
    for row, name in enumerate(rows):
        if name:
            strips[name] = Image.new("RGB", (len(SIDES) * size, size))
            for place, side in enumerate(SIDES):
                view = sheet.crop((side * size, row * size, (side + 1) * size, (row + 1) * size))
                strips[name].paste(view, (place * size, 0))
    return strips


def gallery(root: Path, records: Sequence[dict[str, Any]], methods: Sequence[str]) -> Image.Image | None:
    """A row for every prompt of every subject, its first seed; None if no run has views.

    Args:
        root: The benchmark's folder.
        records: Its finished cells.
        methods: Its methods in the order of the columns; truth and initial NeRF are taken from the first that has them.
    """
    rows: dict[tuple[str, str], dict[str, Image.Image]] = {}
    for method in methods:
        for record in records:
            row = rows.setdefault((record["subject"], record["prompt"]), {})
            views = run_folder(root / "cells" / record["cell"], method) / EVALUATION / VIEWS
            if record["method"] != method or method in row or not views.exists():
                continue
            with Image.open(views) as sheet:
                strips = cut(sheet.convert("RGB"), list(record["metrics"]))
            row[method] = strips.pop("final")
            rows[record["subject"], record["prompt"]] = strips | row
    columns = [name for name in ("truth", "initial", *methods) if any(name in row for row in rows.values())]
    several = len({subject for subject, _ in rows}) < len(rows)
    captions = [prompt if several else "" for _, prompt in rows]
    return _lay_out(list(rows.values()), captions, columns) if columns else None


def _lay_out(rows: list[dict[str, Image.Image]], captions: list[str], columns: list[str]) -> Image.Image:
    """Strips under the names of their columns, rows under their captions; missing strips stay white."""
    width, height = next(strip.size for row in rows for strip in row.values())
    line = FONT_SIZE + 5 if any(captions) else 0
    titles = {"truth": "the true toy", "initial": "initial NeRF"}
    wrapped = [fill(titles.get(name, name), width // (FONT_SIZE // 2)) for name in columns]
    top = max(text.count("\n") + 1 for text in wrapped) * (FONT_SIZE + 5)
    picture = Image.new("RGB", (len(columns) * (width + GAP) - GAP, top + len(rows) * (line + height)), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(FONT_SIZE)
    for place, text in enumerate(captions):
        draw.text((0, top + place * (line + height)), text, "black", font)
    for column, (name, text) in enumerate(zip(columns, wrapped, strict=True)):
        left = column * (width + GAP)
        draw.multiline_text((left + width / 2, 0), text, "black", font, anchor="ma", align="center")
        for place, row in enumerate(rows):
            if name in row:
                picture.paste(row[name].resize((width, height)), (left, top + line + place * (line + height)))
    return picture
