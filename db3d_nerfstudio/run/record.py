"""The record of a run in training: its progress, its manifest, the NeRFs' losses, pictures for TensorBoard."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from nerfstudio.utils import writer
from torch import Tensor

from db3d_nerfstudio.run.manifest import Manifest
from db3d_nerfstudio.run.progress import RunProgress, Task

LOSSES = "losses.jsonl"
LINES = 500
"""How many lines the record of the losses has at most for a run that is never killed."""


class LossLog:
    """The losses of NeRF steps, averaged over a few, one line of JSON each."""

    def __init__(self, run: Path, total_steps: int) -> None:
        self._file = run / LOSSES
        self._every = -(-total_steps // LINES)
        self._sums: dict[str, list[Tensor]] = defaultdict(list)

    def add(self, step: int, losses: dict[str, Tensor]) -> float | None:
        """Add the losses of a step; returns the mean of their sum whenever a line is written."""
        for name, loss in {**losses, "sum": torch.stack(list(losses.values())).sum()}.items():
            self._sums[name].append(loss)
        if (step + 1) % self._every:
            return None
        means = {name: torch.stack(values).mean().item() for name, values in self._sums.items()}
        self._sums.clear()
        total = means.pop("sum")
        with self._file.open("a", encoding="utf8") as file:
            file.write(json.dumps({"step": step, **means}) + "\n")
        return total


def read_losses(run: Path) -> dict[str, list[tuple[int, float]]]:
    """The curve of each loss of a run: (step, value), ascending.

    Of steps that a resumed run trained again, the later values count; a line that a kill cut off is ignored.
    """
    lines: dict[int, dict[str, float]] = {}
    file = run / LOSSES
    for line in file.read_text("utf8").splitlines() if file.exists() else []:
        try:
            losses = json.loads(line)
        except ValueError:
            continue
        lines[losses.pop("step")] = losses
    curves = defaultdict(list)
    for step in sorted(lines):
        for name, value in lines[step].items():
            curves[name].append((step, value))
    return dict(curves)


class RunRecord:
    """Everything that is recorded of a run."""

    def __init__(self, run: Path, description: dict[str, Any], tasks: list[Task], total_steps: int) -> None:
        """Args: a `manifest.describe`d run, all that it does in order, and the number of its NeRF steps."""
        self.progress = RunProgress(tasks)
        self._manifest = Manifest(run, description)
        self.progress.listeners.append(self._manifest)
        self._losses = LossLog(run, total_steps)

    def nerf_step(self, step: int, done: int, losses: dict[str, Tensor]) -> None:
        """Record a NeRF step."""
        self.progress.update(done, self._losses.add(step, losses))

    def picture(self, name: str, rgb: Float[Tensor, "3 h w"], step: int) -> None:
        """Write a picture to TensorBoard, wandb or comet."""
        writer.put_image(name, rgb.permute(1, 2, 0), step)

    def number(self, name: str, value: float, step: int) -> None:
        """Write a number to the same."""
        writer.put_scalar(name, value, step)

    def finish(self, complete: bool) -> None:
        """Record the end of training; `complete` if nothing of the run is left."""
        if self.progress.task is not None:
            self.progress.end()
        if complete:
            self._manifest.finish()
