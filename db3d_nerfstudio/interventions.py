"""What a person changed while a run was training: a file, so that a run resumed from any checkpoint does the same.

`RUN/interventions.json` lists changes, each with the first step that it holds for. What holds at a step is a pure
function of the file and the step. Changes only ever begin at the step that comes next, so no checkpoint is ahead of
the file.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from db3d_nerfstudio.phases import PhaseName
from db3d_nerfstudio.workspace import publish

FILE = "interventions.json"


@dataclasses.dataclass(frozen=True)
class Change:
    """One thing that a person did."""

    step: int
    """The first step that it holds for."""
    prompt: str | None = None
    """What the guide is asked for from then on."""
    guidance_scale: float | None = None
    """Classifier-free guidance of score distillation from then on."""
    ends: PhaseName | None = None
    """The phase that has this many steps only, counted from the beginning of the run."""


def read_changes(run: Path) -> list[Change]:
    """The changes made to a run, in order."""
    file = run / FILE
    return [Change(**entry) for entry in json.loads(file.read_text("utf8"))] if file.exists() else []


def add_change(run: Path, change: Change) -> None:
    """Record a change; from then on a resumed run knows of it."""
    changes = [
        {key: value for key, value in dataclasses.asdict(made).items() if value is not None}
        for made in [*read_changes(run), change]
    ]
    scratch = run / f"{FILE}.tmp"
    scratch.write_text(json.dumps(changes, indent=2) + "\n", "utf8")
    publish(scratch, run / FILE)


def guidance_at(changes: list[Change], step: int, prompt: str, guidance_scale: float) -> tuple[str, float]:
    """Prompt and guidance scale of a step, given those that the run was started with."""
    for change in changes:
        if change.step <= step:
            prompt = prompt if change.prompt is None else change.prompt
            guidance_scale = guidance_scale if change.guidance_scale is None else change.guidance_scale
    return prompt, guidance_scale


def stage_ends(changes: list[Change]) -> dict[PhaseName, int]:
    """The steps at which phases were ended before their time."""
    return {change.ends: change.step for change in changes if change.ends is not None}
