"""Reads commands from stdin, one a line, and prints those that the parser of their program refuses; runs none.

A program of its own, since type checks of the tests would also check the defaults of nerfstudio's configs.
"""

import contextlib
import io
import runpy
import shlex
import sys
from importlib.metadata import entry_points

import tyro


class Parsed(Exception):  # noqa: N818
    """The parser has accepted the arguments."""


def stop_after_parsing() -> None:
    """Let `tyro.cli` end the program that calls it."""
    parser = tyro.cli

    def cli(*args, **kwargs):
        parser(*args, **kwargs)
        raise Parsed

    tyro.cli = cli


def start(words: list[str]) -> None:
    """What the shell would start."""
    if words[0] == "python":
        sys.argv = words[2:]
        runpy.run_module(words[2], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        (script,) = entry_points(group="console_scripts", name=words[0])
        script.load()()


def refusal(command: str) -> str | None:
    """What the parser of a command objects to."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            start(shlex.split(command))
    except Parsed:
        return None
    except SystemExit as end:
        return None if end.code in (None, 0) else " ".join(f"{end.code} {said.getvalue()}".split())
    return "it has run without parsing anything"


if __name__ == "__main__":
    stop_after_parsing()
    for line in sys.stdin.read().splitlines():
        objection = refusal(line)
        if objection is not None:
            print(f"{line}: {objection}")
