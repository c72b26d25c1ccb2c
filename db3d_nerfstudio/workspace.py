"""The run folder: artifacts on disk that are made once, appear whole or not at all, and remember how they were made."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from db3d_nerfstudio.errors import UserError

RECIPE = "recipe.json"


def publish(scratch: Path, path: Path) -> None:
    """Move a finished file or folder to its place: after a crash `path` is whole or absent."""
    for file in [scratch, *scratch.rglob("*")]:
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
    path.parent.mkdir(parents=True, exist_ok=True)
    os.replace(scratch, path)


class Workspace:
    """Artifacts in a run folder, each a folder with the recipe it was made by."""

    def __init__(self, root: Path, instead: str = "start a new run (--resume False)") -> None:
        """Args: `instead` is the advice to a user whose settings differ from those of an artifact."""
        self.root, self.instead = root, instead

    def once(
        self,
        name: str,
        recipe: dict[str, Any],
        make: Callable[[Path], None],
        stale: Literal["refuse", "replace"] = "refuse",
    ) -> Path:
        """The artifact `name`: reused if it is there and was made by the same recipe, else made.

        Args:
            name: Path inside the run folder.
            recipe: Everything that decides the content, as plain values.
            make: Fills an empty folder. A folder that a crash left behind is deleted first.
            stale: What to do with an artifact of another recipe: end with an error, or make it again.
        """
        path = self.root / name
        recipe = json.loads(json.dumps(recipe, default=str))
        if path.exists():
            if stale == "refuse":
                _check_recipe(path, recipe, self.instead)
                return path
            if _read_recipe(path) == recipe:
                return path
        scratch = path.with_name(f"{path.name}.tmp")
        if scratch.exists():
            shutil.rmtree(scratch)
        scratch.mkdir(parents=True)
        make(scratch)
        (scratch / RECIPE).write_text(json.dumps(recipe, indent=2, sort_keys=True) + "\n", "utf8")
        if path.exists():
            shutil.rmtree(path)
        publish(scratch, path)
        return path


def _read_recipe(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads((path / RECIPE).read_text("utf8"))
    except (OSError, ValueError):
        return None


def _check_recipe(path: Path, wanted: dict[str, Any], instead: str) -> None:
    found = _read_recipe(path)
    if found is None:
        raise UserError(f"{path} has no readable {RECIPE}: delete the folder to have it made again")
    differences = compare(found, wanted)
    if differences:
        raise UserError(
            f"{path} was made with other settings ({'; '.join(differences)}): "
            f"{instead}, or delete that folder to have it made again"
        )


def compare(found: dict[str, Any], wanted: dict[str, Any], prefix: str = "") -> list[str]:
    """The differences of two recipes as 'key: found -> wanted', nested keys joined by dots."""
    lines = []
    for key in sorted(found.keys() | wanted.keys()):
        a, b = found.get(key), wanted.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += compare(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a} -> {b}")
    return lines
