"""The results of a benchmark: a table of means with intervals, and a self-contained HTML page."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from db3d_nerfstudio.evaluation.benchmark.cell import run_folder
from db3d_nerfstudio.evaluation.benchmark.gallery import gallery
from db3d_nerfstudio.evaluation.benchmark.subjects import BenchmarkSubject
from db3d_nerfstudio.evaluation.evaluate import EVALUATION, TURNTABLE, VIEWS
from db3d_nerfstudio.evaluation.metrics.bootstrap import Estimate, bootstrap
from db3d_nerfstudio.images import data_uri, file_uri

Record = dict[str, Any]
GALLERY = "views.png"
TEMPLATES = Path(__file__).parent / "templates"
THUMBNAIL = 128
"""Pixels of a photo's longer side in the report."""


def values_of(
    records: Sequence[Record], method: str, metric: str, stage: str = "final"
) -> dict[tuple[str, str], float]:
    """A metric of a method's assets of one stage: a value for every subject and prompt, the mean over seeds."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for record in records:
        if record["method"] == method and metric in record["metrics"].get(stage, ()):
            found[record["subject"], record["prompt"]].append(record["metrics"][stage][metric])
    return {key: sum(values) / len(values) for key, values in found.items()}


def metrics_of(records: Sequence[Record]) -> list[str]:
    """All metrics of final assets, in the order in which they were measured."""
    return list(dict.fromkeys(name for record in records for name in record["metrics"]["final"]))


def summarise(records: Sequence[Record], methods: Sequence[str]) -> dict[str, dict[str, Estimate]]:
    """For each metric and method the mean over subjects and prompts, with its bootstrap interval."""
    summary: dict[str, dict[str, Estimate]] = {}
    for metric in metrics_of(records):
        values = {method: list(values_of(records, method, metric).values()) for method in methods}
        summary[metric] = {method: bootstrap(each) for method, each in values.items() if each}
    return summary


def margins(records: Sequence[Record], methods: Sequence[str]) -> dict[str, dict[str, Estimate]]:
    """How far the first method is above each other one, over the subjects and prompts that both have.

    Metrics without a better direction, such as a ceiling, are left out.
    """
    table: dict[str, dict[str, Estimate]] = {}
    for metric in filter(direction, metrics_of(records)):
        ours = values_of(records, methods[0], metric)
        for method in methods[1:]:
            _compare(table, metric, method, ours, values_of(records, method, metric))
    return table


def gains(records: Sequence[Record], methods: Sequence[str]) -> dict[str, dict[str, Estimate]]:
    """How far the final NeRF is above the initial one, of the methods that have two."""
    table: dict[str, dict[str, Estimate]] = {}
    for metric in filter(direction, metrics_of(records)):
        for method in methods:
            final = values_of(records, method, metric)
            _compare(table, metric, method, final, values_of(records, method, metric, "initial"))
    return table


def _compare(table: dict, metric: str, method: str, ours: dict, theirs: dict) -> None:
    """Add the mean difference over the subjects and prompts that both have, if there are any."""
    differences = [ours[key] - theirs[key] for key in ours if key in theirs]
    if differences:
        table.setdefault(metric, {})[method] = bootstrap(differences)


def costs_of(records: Sequence[Record], methods: Sequence[str]) -> dict[str, str]:
    """What a run of each method took: mean seconds, highest peak memory, and the cards; empty where that is unknown."""
    lines = {}
    for method in methods:
        costs = [record["cost"] for record in records if record["method"] == method and record.get("cost")]
        if costs:
            seconds = sum(cost["seconds"] for cost in costs) / len(costs)
            memory = max(cost["peak_memory_mb"] for cost in costs) / 1024
            cards = " and ".join(sorted({cost["device"] for cost in costs}))
            lines[method] = f"{seconds:.0f} s, {memory:.1f} GiB, {cards}"
    return lines


def markdown_table(
    table: dict[str, dict[str, Estimate]], methods: Sequence[str], costs: dict[str, str] | None = None
) -> str:
    """A row for every metric, a column for every method, under its name what a run of it took."""
    names = [f"{method} ({costs[method]})" if costs and method in costs else method for method in methods]
    lines = [f"| metric | {' | '.join(names)} |", f"|---|{'---|' * len(methods)}"]
    for metric, row in table.items():
        cells = [str(row[method]) if method in row else "" for method in methods]
        lines.append(f"| {metric} {direction(metric)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def columns_of(table: dict[str, dict[str, Estimate]], methods: Sequence[str]) -> list[str]:
    """The methods that a table has values for."""
    return [method for method in methods if any(method in row for row in table.values())]


def direction(metric: str) -> str:
    """The better direction of a metric as an arrow; empty for those without one, such as a ceiling or a turn."""
    name = metric.removeprefix("mesh ")
    if name.endswith("ceiling") or name in ("turn", "scale", "faces", "over_saturation"):
        return ""
    return "↓" if name.endswith("janus_rate") or name in ("lpips", "chamfer") else "↑"


def embedded(path: Path) -> str | None:
    """A picture file as part of a page; None if there is no such file."""
    return file_uri(path) if path.exists() else None


def thumbnails(folder: Path) -> list[str]:
    """The photos of a folder, small, as parts of a page."""
    from db3d_nerfstudio.photos import load_photo, photo_paths

    return [data_uri(load_photo(path, THUMBNAIL), "JPEG", quality=80) for path in photo_paths(folder)]


def write_report(
    root: Path,
    records: Sequence[Record],
    failures: dict[str, str],
    subjects: Sequence[BenchmarkSubject],
    methods: Sequence[str],
) -> None:
    """Write `table.md`, `views.png` and `report.html` into the benchmark's folder."""
    from jinja2 import Environment, FileSystemLoader

    tables = [
        ("Mean over subjects and prompts, with the 95 % bootstrap interval", summarise(records, methods)),
        (f"{methods[0]} minus the others, on the same subjects and prompts", margins(records, methods)),
        ("Final minus initial NeRF", gains(records, methods)),
    ]
    tables = [(title, table) for title, table in tables if table]
    costs = costs_of(records, methods)
    texts = [f"{title}\n\n{markdown_table(table, columns_of(table, methods), costs)}" for title, table in tables]
    text = "\n".join(texts)
    (root / "table.md").write_text(text, "utf8")
    picture = gallery(root, records, methods)
    if picture is not None:
        picture.save(root / GALLERY)
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.get_template("report.html").render(
        direction=direction,
        costs=costs,
        tables=[(title, table, columns_of(table, methods)) for title, table in tables],
        gallery=embedded(root / GALLERY),
        failures=failures,
        subjects=[
            {
                "name": subject.name,
                "photos": thumbnails(subject.photos),
                "cells": [_pictures(root, record) for record in records if record["subject"] == subject.name],
            }
            for subject in subjects
        ],
    )
    (root / "report.html").write_text(page, "utf8")


def _pictures(root: Path, record: Record) -> dict[str, Any]:
    """The pictures of a cell."""
    run = run_folder(root / "cells" / record["cell"], record["method"])
    return {
        **record,
        "turntable": embedded(run / EVALUATION / TURNTABLE),
        "views": embedded(run / EVALUATION / VIEWS),
        "pseudo_views": embedded(run / "pseudo_views" / "contact_sheet.png"),
    }
