"""Paths as people type them, and commands as they paste them."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path
from typing import Any


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


def command(*words: object) -> str:
    """A line for a shell, with quotes where a word needs them: "db3d export 'My Dog/run'"."""
    return shlex.join(map(str, words))
