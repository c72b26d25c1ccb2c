"""`db3d`: what is done with runs and guides beside training them. `db3d COMMAND --help` tells a command's options."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import NamedTuple


class Command(NamedTuple):
    """A command: a config dataclass and a `main(config)` in a module of this package, imported when it is called."""

    module: str
    config: str
    help: str


COMMANDS: dict[str, Command] = {
    "benchmark": Command("evaluation.benchmark", "BenchmarkConfig", "compare methods on subjects, with a report"),
    "user-study": Command("evaluation.user_study", "UserStudyConfig", "ask people which of two assets is better"),
    "dreambooth": Command(
        "personalisation.personalise",
        "PersonaliseConfig",
        "teach a model a subject from photos, and show its uses",
    ),
    "sample": Command("personalisation.draw", "SampleConfig", "draw a prompt, by a model as it came or personalised"),
    "tokens": Command("personalisation.tokens", "TokensConfig", "check an identifier and a class noun"),
    "evaluate": Command("evaluation.evaluate", "EvaluateConfig", "measure a finished run"),
    "report": Command("run.report", "ReportConfig", "all that a run has made, in one page"),
    "export": Command("exporting.export", "ExportConfig", "a textured mesh of a run, and a page that shows it"),
    "turntable": Command("exporting.turntable", "TurntableConfig", "a film of a run going round"),
}


def usage() -> str:
    """One line a command."""
    lines = [f"  {name:<12}{command.help}" for name, command in COMMANDS.items()]
    return "\n".join(["usage: db3d COMMAND [OPTIONS]", "", *lines, "", "db3d COMMAND --help tells its options."])


def main(args: list[str] | None = None) -> None:
    """Run the command that the arguments name."""
    args = sys.argv[1:] if args is None else args
    if not args or args[0] in ("-h", "--help"):
        print(usage())
        return
    if args[0] not in COMMANDS:
        sys.exit(f'db3d has no command "{args[0]}".\n{usage()}')
    import tyro

    from db3d_nerfstudio.errors import one_line

    command = COMMANDS[args[0]]
    module = import_module(f"db3d_nerfstudio.{command.module}")
    config = tyro.cli(getattr(module, command.config), prog=f"db3d {args[0]}", args=args[1:])
    with one_line(ValueError, OSError, FloatingPointError):
        module.main(config)
