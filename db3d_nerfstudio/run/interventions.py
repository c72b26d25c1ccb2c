"""Changes made in the viewer while a run was training, kept in a file so that a resumed run applies them too.

`RUN/interventions.json` lists changes, each with the first step that it applies to. The settings of a step are a pure
function of the file and the step. A change begins at the next step at the earliest, so no checkpoint is ahead of the
file.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal, cast, get_args

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.workspace import write_json

FILE = "interventions.json"
PhaseName = Literal["initial", "final"]
"""The NeRFs of a run."""


@dataclasses.dataclass(frozen=True)
class Change:
    """One change."""

    step: int
    """The first step that it applies to."""
    prompt: str | None = None
    """The prompt from then on."""
    guidance_scale: float | None = None
    """The guidance scale of score distillation from then on."""
    ends: PhaseName | None = None
    """The phase that ends at this step, counted from the beginning of the run."""


def read_changes(run: Path) -> list[Change]:
    """The changes made to a run, in order."""
    file = run / FILE
    if not file.exists():
        return []
    try:
        entries: Any = json.loads(file.read_text("utf8"))
        if not isinstance(entries, list):
            raise ValueError("it is not a list")
        return [_change(entry) for entry in cast(list[Any], entries)]
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}): put it right, or delete it to drop the changes") from None


_KINDS: dict[str, Callable[[Any], bool]] = {
    "step": lambda value: isinstance(value, int) and value >= 0,
    "prompt": lambda value: isinstance(value, str),
    "guidance_scale": lambda value: isinstance(value, int | float) and 0 <= value < math.inf,
    "ends": lambda value: value in get_args(PhaseName),
}
"""What each entry of a change may be."""


def _change(entry: Any) -> Change:
    """A change as it is in the file, which people edit; raises ValueError for one that is none."""
    if not isinstance(entry, dict) or "step" not in entry:
        raise ValueError(f"{json.dumps(entry)} is not a change of a step")
    change = cast(dict[str, Any], entry)
    for name, value in change.items():
        if name not in _KINDS or not _KINDS[name](value):
            raise ValueError(f"a change cannot have {json.dumps({name: value})}")
    return Change(**change)


def add_change(run: Path, change: Change) -> None:
    """Record a change; a resumed run applies it too."""
    changes = [
        {key: value for key, value in dataclasses.asdict(made).items() if value is not None}
        for made in [*read_changes(run), change]
    ]
    write_json(run / FILE, changes)


def guidance_at(changes: list[Change], step: int, prompt: str, guidance_scale: float) -> tuple[str, float]:
    """Prompt and guidance scale at a step, given those that the run was started with."""
    for change in changes:
        if change.step <= step:
            prompt = prompt if change.prompt is None else change.prompt
            guidance_scale = guidance_scale if change.guidance_scale is None else change.guidance_scale
    return prompt, guidance_scale


def stage_ends(changes: list[Change]) -> dict[PhaseName, int]:
    """The steps at which phases were ended early."""
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
        """Request, from any thread, a `Change` that applies from the next NeRF step on."""
        self.answer = "From the next NeRF step on."
        self._requests.put(change)

    def apply(self, step: int, check_prompt: Callable[[str], None], next_end: int, phase: PhaseName) -> None:
        """Called before a step: record the requests that are possible.

        Args:
            check_prompt: Raises UserError for a prompt that the guide cannot embed.
            next_end: The first step, after this one, at which the phase can end.
            phase: The phase of the step.
        """
        while not self._requests.empty():
            request = self._requests.get()
            change = Change(next_end if "ends" in request else step, **request)
            try:
                if change.prompt is not None:
                    check_prompt(change.prompt)
                if change.guidance_scale is not None and not (0 <= change.guidance_scale < math.inf):
                    raise UserError(f"a guidance scale is 0 or more, not {change.guidance_scale}")
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
        """Prompt and guidance scale at a step."""
        return guidance_at(self._changes, step, *self._started_with)

    @property
    def prompts(self) -> list[str]:
        """The prompts that have been set so far."""
        return [change.prompt for change in self._changes if change.prompt is not None]

    @property
    def ends(self) -> dict[PhaseName, int]:
        """The steps at which phases were, or will be, ended early."""
        return stage_ends(self._changes)
