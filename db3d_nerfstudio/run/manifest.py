"""`RUN/manifest.json`: inputs with hashes, settings, versions, times, memory, and the files of a run.

It is written whole or not at all, and again every few seconds, so that a killed run has one too.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import sys
import time
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch
from nerfstudio.engine.trainer import TrainerConfig

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.photos import photo_paths
from db3d_nerfstudio.run.folder import settings
from db3d_nerfstudio.run.progress import Event, RunProgress

FILE = "manifest.json"
SECONDS_BETWEEN_WRITES = 10.0
SECONDS_BETWEEN_SAMPLES = 0.5
"""How often the memory in use is looked at."""

_PACKAGES = ("db3d_nerfstudio", "nerfstudio", "torch", "diffusers", "transformers", "peft", "nerfacc", "viser")


def read_manifest(run: Path) -> dict[str, Any]:
    """The manifest of a run; empty if it has none."""
    try:
        return json.loads((run / FILE).read_text("utf8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{run / FILE} cannot be read ({error}): delete it, and it is begun anew") from None


def describe(config: TrainerConfig, contents: dict[str, str]) -> dict[str, Any]:
    """The manifest of a run before it starts; `contents` describes the files of its folder."""
    folder = config.pipeline.datamanager.data
    photos = [
        {"file": path.name, "bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in (photo_paths(folder) if folder else [])
    ]
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "inputs": {"prompt": config.pipeline.model.prompt, "folder": folder and str(folder), "photos": photos},
        "seed": config.machine.seed,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
        "machine": {"system": platform.platform(), "device": _device(config), "threads": torch.get_num_threads()},
        "settings": _plain(settings(config)),
        "contents": contents,
    }


class Manifest:
    """Writes the manifest of a run as it progresses."""

    def __init__(self, run: Path, description: dict[str, Any]) -> None:
        self._file = run / FILE
        before = read_manifest(run)
        self.data = description | {
            "state": "running",
            "started": [*before.get("started", []), _now()],
            "finished": None,
            "tasks": before.get("tasks", {}),
        }
        self._spent_before = 0.0
        self._written = self._sampled = 0.0
        self.write()

    def __call__(self, progress: RunProgress, event: Event) -> None:
        """Record a task's time, summed over all processes that worked on it, and its peak memory."""
        if event == "begin":
            self._begin(progress)
        task = progress.present
        note = self.data["tasks"].get(task.name)
        if note is None and progress.done == 0:  # Found on disk, or not yet at work.
            return
        if note is None:
            note = {"stage": task.stage, "seconds": 0.0, "peak_memory_mb": 0}
            self.data["tasks"][task.name] = note
        note["done"], note["of"] = max(progress.done, note.get("done", 0)), task.total
        note["seconds"] = round(self._spent_before + progress.seconds, 2) if progress.done else note["seconds"]
        if event != "update" or time.monotonic() > self._sampled + SECONDS_BETWEEN_SAMPLES:
            self._sampled = time.monotonic()
            note["peak_memory_mb"] = max(note["peak_memory_mb"], _memory_mb())
        if event == "end" or time.monotonic() > self._written + SECONDS_BETWEEN_WRITES:
            self.write()

    def finish(self) -> None:
        """Record that the run has been trained to its end."""
        self.data |= {"state": "finished", "finished": _now()}
        self.write()

    def write(self) -> None:
        """Replace the file in one move."""
        scratch = self._file.with_name(f"{FILE}.tmp")
        scratch.write_text(json.dumps(self.data, indent=2) + "\n", "utf8")
        os.replace(scratch, self._file)
        self._written = time.monotonic()

    def _begin(self, progress: RunProgress) -> None:
        self._spent_before = self.data["tasks"].get(progress.present.name, {}).get("seconds", 0.0)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()


def _memory_mb() -> int:
    """Peak memory on the GPU since the task began; of a run that uses none, the present memory of this process."""
    on_gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return (on_gpu or psutil.Process().memory_info().rss) // 2**20


def _device(config: TrainerConfig) -> str:
    if config.machine.device_type == "cuda":
        return torch.cuda.get_device_name()
    return f"{config.machine.device_type}: {platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def _plain(value: Any) -> Any:
    """Settings as JSON values, without `_target` classes."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items() if key != "_target"}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
