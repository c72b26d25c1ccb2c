"""The run folder: artifacts on disk that are made once, appear whole or not at all, and remember how they were made."""

import errno
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from db3d_nerfstudio.console import announce
from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.locks import locked

RECIPE, FILES = "recipe.json", "files"
"""The file that says how an artifact was made, and the key under which it lists what it consists of."""
RELEASED = "released"
"""The key in that file of an artifact whose files were deleted on purpose."""
SAMPLE, MOST_SAMPLES = 2**20, 64
"""Bytes that are read at a time of a file, and how often: damage to more than one part in 64 of it is noticed."""


def publish(scratch: Path, path: Path) -> None:
    """Move a finished file or folder to its place: after a crash `path` is whole or absent."""
    for file in [scratch, *scratch.rglob("*")]:
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
    path.parent.mkdir(parents=True, exist_ok=True)
    os.replace(scratch, path)


def write_json(path: Path, content: Any) -> None:
    """Write a file, which appears whole or not at all."""
    scratch = path.with_name(f"{path.name}.tmp")
    scratch.write_text(json.dumps(content, indent=2) + "\n", "utf8")
    publish(scratch, path)


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
        for_people: tuple[str, ...] = (),
    ) -> Path:
        """The artifact `name`: reused if it is there, whole, and was made by the same recipe; else made.

        Args:
            name: Path inside the run folder.
            recipe: Everything that decides the content, as plain values.
            make: Fills an empty folder. A folder that a crash left behind is deleted first.
            stale: What to do with an artifact of another recipe, or damaged: end with an error, or make it again.
            for_people: Files of it that nothing reads, and that may therefore be missing.

        Raises:
            UserError: another recipe, files that are gone or changed, or another process at work on it.
        """
        path = self.root / name
        recipe = json.loads(json.dumps(recipe, default=str))
        if path.exists():
            fault = _fault(path, recipe, self.instead, for_people)
            if not fault and not is_released(path):
                return path
            if fault and stale == "refuse":
                raise UserError(fault)
            announce(f"{path} is made again")
        with makes(path) as scratch:
            make(scratch)
            recipe[FILES] = {name: entry for name, entry in listing(scratch).items() if name not in for_people}
            (scratch / RECIPE).write_text(json.dumps(recipe, indent=2, sort_keys=True) + "\n", "utf8")
        return path

    def release(self, name: str, for_people: tuple[str, ...] = ()) -> None:
        """Delete the files of the artifact `name`, except those for people; `once` makes it again if it is needed."""
        path = self.root / name
        recipe = _read_recipe(path)
        if recipe is None:
            return
        scratch = path / f"{RECIPE}.tmp"
        scratch.write_text(json.dumps({**recipe, FILES: {}, RELEASED: True}, indent=2, sort_keys=True) + "\n", "utf8")
        publish(scratch, path / RECIPE)
        kept = {path / each for each in (RECIPE, *for_people)}
        for file in sorted(path.rglob("*"), reverse=True):  # What is in a folder comes before the folder.
            if file.is_dir() and not any(file.iterdir()):
                file.rmdir()
            elif file.is_file() and file not in kept:
                file.unlink()


_CANNOT_WRITE = (
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT),
    *(errno.EEXIST, errno.ENOTDIR, errno.ELOOP),
)
"""Errors of a place where nothing can be made: no permission, no space, or something else in the way."""


@contextmanager
def makes(path: Path) -> Iterator[Path]:
    """An empty folder that takes its place at `path` at the end; one process at a time may make it.

    Raises:
        UserError: another process is making it, or the place cannot be written to.
    """
    scratch = path.with_name(f"{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_name(f".{path.name}.lock")) as free:
            if not free:
                raise UserError(f"another process is making {path}: wait for it, or choose another output")
            _delete(scratch)
            scratch.mkdir()
            yield scratch
            _put_away(path)
            publish(scratch, path)
    except OSError as error:
        if error.errno not in _CANNOT_WRITE or not error.filename:
            raise
        raise UserError(f"cannot write {error.filename} ({error.strerror}): choose another output") from None


def _delete(path: Path) -> None:
    """Delete what is left of an earlier attempt, whatever it is."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def listing(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and digest of every file of a folder, by its path inside the folder."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {
        file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "digest": digest_of(file)} for file in files
    }


def digest_of(file: Path) -> str:
    """SHA-256 of a file; of a large one, of samples of it."""
    size, digest = file.stat().st_size, hashlib.sha256()
    step = max(SAMPLE, size // MOST_SAMPLES)
    with file.open("rb") as handle:
        for start in range(0, size, step):
            handle.seek(start)
            digest.update(handle.read(SAMPLE))
    return digest.hexdigest()[:16]


def damages(folder: Path, files: dict[str, dict[str, Any]]) -> list[str]:
    """What is wrong with the listed files of a folder, one entry each."""
    found = []
    for name, entry in files.items():
        file = folder / name
        if not file.is_file():
            found.append(f"{name} is gone")
        elif file.stat().st_size != entry["bytes"] or digest_of(file) != entry["digest"]:
            found.append(f"{name} has changed")
    return found


def unlisted(folder: Path, files: dict[str, dict[str, Any]]) -> list[str]:
    """Files that lie beside listed ones of their kind and that nothing uses."""
    kinds = {(str(Path(name).parent), Path(name).suffix) for name in files}
    others = [file.relative_to(folder) for file in sorted(folder.rglob("*")) if file.is_file()]
    return [
        other.as_posix()
        for other in others
        if other.as_posix() not in (*files, RECIPE)
        and not other.name.startswith(".")
        and (str(other.parent), other.suffix) in kinds
    ]


def is_released(path: Path) -> bool:
    """Whether the files of an artifact were deleted by `Workspace.release`."""
    return bool((_read_recipe(path) or {}).get(RELEASED))


def check_whole(path: Path) -> None:
    """Raises UserError if files of an artifact are gone or changed; one that is not there passes."""
    damage = _damage(path, (_read_recipe(path) or {}).get(FILES, {}))
    if damage:
        raise UserError(damage)


def _damage(path: Path, files: dict[str, dict[str, Any]]) -> str:
    wrong = ", ".join(damages(path, files))
    return wrong and f"in {path}, {wrong}: put it back, or delete the folder to have it made again"


def _put_away(path: Path) -> None:
    """Delete an artifact, or keep it under another name if files were added to it."""
    if not path.exists():
        return
    files = (_read_recipe(path) or {}).get(FILES)
    if files is not None and not unlisted(path, files):
        shutil.rmtree(path)
        return
    number = next(n for n in itertools.count(1) if not path.with_name(f"{path.name}.old-{n}").exists())
    kept = path.rename(path.with_name(f"{path.name}.old-{number}"))
    announce(f"What was in {path} before is kept in {kept}")


def _read_recipe(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((path / RECIPE).read_text("utf8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _fault(path: Path, wanted: dict[str, Any], instead: str, for_people: tuple[str, ...]) -> str:
    """Why an artifact cannot be used, with the fix; empty if it can."""
    found = _read_recipe(path)
    if found is None:
        return f"{path} has no readable {RECIPE}: delete the folder to have it made again"
    files = {name: entry for name, entry in found.pop(FILES, {}).items() if name not in for_people}
    found.pop(RELEASED, None)
    differences = compare(found, wanted)
    if differences:
        return (
            f"{path} was made with other settings ({'; '.join(differences)}): "
            f"{instead}, or delete that folder to have it made again"
        )
    damage = _damage(path, files)
    if damage:
        return damage
    others = [name for name in unlisted(path, files) if name not in for_people]
    if others:
        announce(f"{path} has files that are not used: {', '.join(others)}")
    return ""


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
