"""What a person changed while a run was training: a file, so that a run resumed from any checkpoint does the same.

`RUN/interventions.json` lists changes, each with the first step that it holds for. What holds at a step is a pure
function of the file and the step. Changes only ever begin at the step that comes next, so no checkpoint is ahead of
the file.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.workspace import publish

FILE = "interventions.json"
PhaseName = Literal["initial", "final"]
"""The NeRFs of a run."""


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
    """The phase that ends at this step, counted from the beginning of the run."""


def read_changes(run: Path) -> list[Change]:
    """The changes made to a run, in order."""
    file = run / FILE
    return [Change(**entry) for entry in json.loads(file.read_text("utf8"))] if file.exists() else []


def add_change(run: Path, change: Change) -> None:
    """Record a change; a resumed run applies it too."""
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


class Interventions:
    """The changes made to a run so far, and the requests that wait for the next step."""

    def __init__(self, run: Path, prompt: str, guidance_scale: float) -> None:
        self._run = run
        self._started_with = (prompt, guidance_scale)
        self._changes = read_changes(run)
        self._requests: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self.answer = ""
        """What became of the last request."""

    def request(self, **change: str | float) -> None:
        """Ask, from any thread, for a `Change` to hold from the next NeRF step on."""
        self.answer = "From the next NeRF step on."
        self._requests.put(change)

    def apply(self, step: int, check_prompt: Callable[[str], None], next_end: int, phase: PhaseName) -> None:
        """Called before a step: record what was requested, unless it cannot be.

        Args:
            check_prompt: Raises UserError for a prompt that the guide cannot be given.
            next_end: The first step, after this one, at which the phase can end.
            phase: The phase of the step.
        """
        while not self._requests.empty():
            request = self._requests.get()
            change = Change(next_end if "ends" in request else step, **request)
            try:
                if change.prompt is not None:
                    check_prompt(change.prompt)
            except UserError as error:
                self.answer = f"Not done: {error}"
                continue
            if change.ends not in (None, phase):
                self.answer = f"Not done: the {change.ends} NeRF is not in training."
                continue
            add_change(self._run, change)
            self._changes.append(change)
            self.answer = f"Since step {step}." if change.ends is None else f"This NeRF ends at step {next_end}."

    def guidance_at(self, step: int) -> tuple[str, float]:
        """Prompt and guidance scale of a step."""
        return guidance_at(self._changes, step, *self._started_with)

    @property
    def ends(self) -> dict[PhaseName, int]:
        """The steps at which phases were, or will be, ended before their time."""
        return stage_ends(self._changes)
