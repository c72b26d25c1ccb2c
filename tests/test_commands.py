"""Every command that a page or a docstring shows is read by the parser of its program, and nothing is run."""

import ast
import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from db3d_nerfstudio.cli import COMMANDS
from db3d_nerfstudio.diffusion import UpscalerConfig

ROOT = Path(__file__).parent.parent
CODE = [path for folder in ("db3d_nerfstudio", "method_configs") for path in (ROOT / folder).rglob("*.py")]
PAGES = [ROOT / "README.md", *ROOT.glob("*/**/*.md")]
PROGRAM = re.compile(r"(ns-[a-z]+|db3d|python -m db3d_nerfstudio[.\w]*|pytest)(?![\w-])")
FENCE = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)
OPTION = re.compile(r"--((?:pipeline|guide)(?:\.[a-z][\w-]*)+)")


def docstrings(source: str) -> Iterator[str]:
    """Every string that stands by itself: docstrings, those of fields too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value.value


def commands(text: str) -> Iterator[str]:
    """Commands that are lines of a code block, or stand in backquotes with at least one argument."""
    for block in FENCE.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            if PROGRAM.match(line.strip()):
                yield line.strip()
    for span in re.findall(r"`([^`]+)`", FENCE.sub("", text)):
        words = " ".join(span.split())
        if PROGRAM.match(words):
            yield words


def shown() -> list[str]:
    """The commands of all pages and docstrings, each once."""
    texts = [page.read_text("utf8") for page in PAGES]
    texts += [text for path in CODE for text in docstrings(path.read_text("utf8"))]
    return sorted({shlex.join(split(command)) for text in texts for command in commands(text)})


def split(command: str) -> list[str]:
    """The words of a command, without its comment and the brackets around what may be left out."""
    return shlex.split(re.sub(r"\[(--.*?)\]", r"\1", command), comments=True)


def refused(shown: list[str]) -> list[str]:
    """The commands that their parsers refuse, with the reasons."""
    program = [sys.executable, "-W", "ignore", ROOT / "tests" / "parse_commands.py"]
    run = subprocess.run(program, input="\n".join(shown), capture_output=True, text=True, check=True)
    return run.stdout.splitlines()


def is_complete(command: str) -> bool:
    """Whether a command could be typed as it is, and is not only mentioned."""
    words = command.split()
    return "COMMAND" not in words and (len(words) > 2 or words[0] in ("ns-train", "python") and len(words) > 1)


@pytest.mark.slow
def test_commands_shown_are_understood():
    complete = [command for command in shown() if is_complete(command) and not command.startswith("pytest")]
    assert len(complete) > 20 and not refused(complete)


def test_commands_mentioned_exist():
    for command in shown():
        program, *rest = command.split()
        if program == "pytest":
            assert all((ROOT / word).exists() for word in rest if "/" in word), command
        elif program == "db3d" and rest:
            assert rest[0] in {*COMMANDS, "COMMAND"}
        elif program != "python":
            assert entry_points(group="console_scripts", name=program)


def test_wrong_commands_are_refused():
    wrong = ["db3d export RUN --formats obj", "ns-train dreambooth4d", "python -m db3d_nerfstudio.toybox.exam --no"]
    assert len(refused([*wrong, "db3d export RUN --format obj"])) == len(wrong)


def test_commands_are_found_in_blocks_and_backquotes():
    found = list(commands("`db3d\nexport RUN` or\n```bash\nns-train a \\\n  --b  # c\nls\n```\nand `pip install`"))
    assert sorted(found) == ["db3d export RUN", "ns-train a    --b  # c"]
    assert split("db3d a [--b c] 'd e'  # f") == ["db3d", "a", "--b", "c", "d e"]


def test_options_named_in_messages_and_pages_exist():
    """Every --pipeline.x.y of a help text, an error or a page is a setting of some preset."""
    presets = [path.stem for path in (ROOT / "method_configs").glob("*.py") if path.stem != "__init__"]
    configs = [importlib.import_module(f"db3d_nerfstudio.method_configs.{name}").method.config for name in presets]
    roots = [*configs, *(config.pipeline.model for config in configs)]
    optional = {"upscaler": UpscalerConfig()}  # A subcommand turns it on.

    def exists(option: str) -> bool:
        found = roots
        for name in option.replace("-", "_").split("."):
            found = [getattr(config, name) or optional.get(name) for config in found if hasattr(config, name)]
        return bool(found)

    named = {option for path in [*CODE, *PAGES] for option in OPTION.findall(path.read_text("utf8"))}
    assert len(named) > 10 and not {option for option in named if not exists(option)}
