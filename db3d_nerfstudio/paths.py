"""Paths as people type them, and commands as they paste them."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
from pathlib import Path
from typing import Any

from db3d_nerfstudio.errors import UserError


def expand_home(config: Any) -> None:
    """Put the home folder in place of "~" in all paths of a config dataclass and of those inside it.

    Shells leave the tilde of `--output=~/runs` alone. Strings that begin like "~/" or "~name/" are paths too.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            expand_home(value)
        elif isinstance(value, tuple):
            setattr(config, field.name, tuple(map(_expanded, value)))
        else:
            setattr(config, field.name, _expanded(value))


def _expanded(value: Any) -> Any:
    if isinstance(value, Path):
        return value.expanduser()
    return str(Path(value).expanduser()) if isinstance(value, str) and re.match(r"~[\w.-]*/", value) else value


def output_folder(folder: Path) -> Path:
    """A folder for results, made if needed; asked for before any work is done.

    Raises:
        UserError: nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror}): choose another --output") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"cannot write to {folder}: choose another --output")
    return folder


def command(*words: object) -> str:
    """A line for a shell, with quotes where a word needs them: "db3d export 'My Dog/run'"."""
    return shlex.join(map(str, words))
