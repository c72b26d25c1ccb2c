"""`db3d report`: a run in one self-contained page, made from the run folder, also of an unfinished run."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import tyro
from PIL import Image

from db3d_nerfstudio.console import announce
from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.images import data_uri, file_uri, tiled
from db3d_nerfstudio.photos import load_photo
from db3d_nerfstudio.results.film import TURNTABLES
from db3d_nerfstudio.run.folder import next_commands
from db3d_nerfstudio.run.interventions import Change, read_changes
from db3d_nerfstudio.run.manifest import read_manifest
from db3d_nerfstudio.run.progress import clock_time
from db3d_nerfstudio.run.record import read_losses
from db3d_nerfstudio.workspace import publish

FILE = "report.html"
TEMPLATE = Path(__file__).parent / "assets" / FILE
TILE = 96
"""Side of photos and class images, pixels."""
MOST_CLASS_IMAGES = 32


@dataclass
class ReportConfig:
    """Put everything that a run has made into one page, RUN/report.html. The run may be unfinished."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run's folder."""


class Section(NamedTuple):
    """Pictures under a title, each with its name."""

    title: str
    words: str
    pictures: list[tuple[str, str]]


def main(config: ReportConfig) -> None:
    """Write the report, and print where it is."""
    announce(f"Open {write_report(config.run)} in a browser")


def write_report(run: Path) -> Path:
    """The report of a run folder; replaces an older one."""
    from jinja2 import Environment

    manifest = read_manifest(run)
    if not manifest:
        raise UserError(f"{run} is not a run: give the folder that holds manifest.json")
    template = Environment(autoescape=True, trim_blocks=True).from_string(TEMPLATE.read_text("utf8"))
    page = template.render(
        run=run.absolute(),
        prompt=manifest["inputs"]["prompt"],
        state=_state(manifest),
        sections=_sections(run, manifest),
        curves=_curves(run, _tunings(manifest)),
        tasks=[{"name": name, **task, "time": clock_time(task["seconds"])} for name, task in manifest["tasks"].items()],
        total_time=clock_time(float(sum(task["seconds"] for task in manifest["tasks"].values()))),
        commands=next_commands(run) if manifest["state"] == "finished" else [("continue", manifest["command"])],
        command=manifest["command"],
        changes=[{"step": change.step, "words": _words(change)} for change in read_changes(run)],
        tables=_tables(manifest),
    )
    scratch = run / f"{FILE}.tmp"
    try:
        scratch.write_text(page, "utf8")
        publish(scratch, run / FILE)
    except OSError as error:
        raise UserError(f"cannot write {run / FILE} ({error.strerror}): copy the run to another disk") from None
    return run / FILE


def _state(manifest: dict[str, Any]) -> str:
    if manifest["state"] == "finished":
        return f"finished {manifest['finished']}"
    at = next(reversed(manifest["tasks"].items()), None)
    where = f", at {at[0]}, {at[1]['done']} of {at[1]['of']}" if at else ""
    return f"not finished{where}; started {manifest['started'][0]}"


def _sections(run: Path, manifest: dict[str, Any]) -> list[Section]:
    """The sections of the report, made or still to come; a baseline has fewer."""
    folder, contents = manifest["inputs"]["folder"], manifest["contents"]
    photos = [Path(folder or "") / photo["file"] for photo in manifest["inputs"]["photos"]]
    classes = [path for path in sorted((run / "class_images").glob("*.png"))[:MOST_CLASS_IMAGES] if _is_readable(path)]
    readable = [path for path in photos if _is_readable(path)]
    sheets = [(contents[name], run / name / "samples.png") for name in _tunings(manifest)]
    views = run / "pseudo_views" / "contact_sheet.png"
    posed = [run / "posed_photos" / name / "contact_sheet.png" for name in ("initial", "final")]
    films = sorted((run / TURNTABLES).glob("*.webp"), key=os.path.getmtime)
    sections = {
        "inputs": Section("Photos", f"{folder}{_gone(photos)}", [(path.name, _tile(path)) for path in readable]),
        "class_images": Section(
            "Class images",
            "Samples of the class by the untuned guide.",
            [("", data_uri(tiled([load_photo(path, TILE) for path in classes], columns=8)))] if classes else [],
        ),
        "dreambooth/full": Section(
            "Samples of the fine-tuned guides",
            "Columns: front, side, back and overhead view; the same noise for all of them.",
            [(words, data_uri(Image.open(path))) for words, path in sheets if _is_readable(path)],
        ),
        "posed_photos": Section(
            "Poses of the photos",
            "Rows: photos; the subject; the initial NeRF from where they were taken, when they join and at its end.",
            [(path.parent.name, data_uri(Image.open(path))) for path in posed if _is_readable(path)],
        ),
        "pseudo_views": Section(
            "Pseudo views",
            "Rows: photos; renders of the initial NeRF; what D_full makes of them.",
            [("", data_uri(Image.open(views)))] if _is_readable(views) else [],
        ),
        TURNTABLES: Section(
            "NeRFs",
            f"Colours and normals at the end of training; db3d turntable {run} films the newest checkpoint.",
            [(path.stem.replace("-", " "), file_uri(path)) for path in films],
        ),
    }
    return [section for name, section in sections.items() if name in contents or (name == "inputs" and folder)]


def _tunings(manifest: dict[str, Any]) -> list[str]:
    """The folders of the fine-tuned guides, in the order in which they are made."""
    order = [f"dreambooth/{name}" for name in ("partial", "full", "multiview")]
    return [name for name in order if name in manifest["contents"]]


def _curves(run: Path, folders: list[str]) -> str:
    """The losses of the fine-tunings and of the NeRFs, as SVG; empty if there are none."""
    from matplotlib.figure import Figure

    tunings = {
        f"DreamBooth {Path(folder).name}": list(enumerate(json.loads(path.read_text("utf8")), 1))
        for folder in folders
        if (path := run / folder / "losses.json").exists()
    }
    curves = {**tunings, **{f"NeRF: {name}": curve for name, curve in read_losses(run).items()}}
    if not curves:
        return ""
    columns, rows = 3, -(-len(curves) // 3)
    figure = Figure(figsize=(10, 2.2 * rows), layout="constrained")
    for i, (name, curve) in enumerate(curves.items()):
        steps, values = np.array(curve).T
        axes = figure.add_subplot(rows, columns, i + 1, title=name)
        axes.plot(steps, values, color="#bcd", linewidth=0.8)
        axes.plot(steps, _smoothed(values), color="#246", linewidth=1.2)
    text = io.StringIO()
    figure.savefig(text, format="svg")
    return text.getvalue()[text.getvalue().index("<svg") :]


def _smoothed(values: np.ndarray) -> np.ndarray:
    """A running mean over a tenth of the curve."""
    width = max(1, len(values) // 10)
    kernel = np.ones(width)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def _tables(manifest: dict[str, Any]) -> list[tuple[str, list[tuple[str, Any]]]]:
    photos = [(photo["file"], f"sha256 {photo['sha256']}") for photo in manifest["inputs"]["photos"]]
    return [
        ("All settings", [("seed", manifest["seed"]), *_flat(manifest["settings"])]),
        ("Versions", [*manifest["versions"].items(), *manifest["machine"].items()]),
        ("Inputs", photos),
        ("What lies where in the run folder", list(manifest["contents"].items())),
    ]


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _words(change: Change) -> str:
    values = {"prompt": change.prompt, "guidance scale": change.guidance_scale, "end of the NeRF": change.ends}
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)


def _is_readable(path: Path) -> bool:
    """Whether a picture of the run is still there and whole."""
    try:
        load_photo(path, 1)
    except UserError:
        return False
    return True


def _gone(photos: list[Path]) -> str:
    gone = [path.name for path in photos if not _is_readable(path)]
    return f" (gone or unreadable since: {', '.join(gone)})" if gone else ""


def _tile(path: Path) -> str:
    return data_uri(load_photo(path, 2 * TILE))
