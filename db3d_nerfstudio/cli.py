"""`db3d`: everything but training. `db3d COMMAND --help` lists a command's options."""

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
    "benchmark": Command(
        "evaluation.benchmark.benchmark", "BenchmarkConfig", "compare methods on subjects, with a report"
    ),
    "sweep": Command("evaluation.sweep", "SweepConfig", "compare guidance scales on one subject"),
    "user-study": Command(
        "evaluation.benchmark.user_study", "UserStudyConfig", "ask people which of two assets is better"
    ),
    "dreambooth": Command(
        "personalisation.personalise",
        "PersonaliseConfig",
        "teach a model a subject from photos, and show its uses",
    ),
    "photos": Command("personalisation.cutout", "PhotosConfig", "cut the subject out of its photos"),
    "sample": Command("personalisation.draw", "SampleConfig", "draw a prompt with a base model or a personalised one"),
    "tokens": Command("personalisation.tokens", "TokensConfig", "check an identifier and a class noun"),
    "evaluate": Command("evaluation.evaluate", "EvaluateConfig", "measure a finished run"),
    "report": Command("results.report", "ReportConfig", "everything a run has made, on one page"),
    "export": Command("results.export", "ExportConfig", "a textured mesh of a run, and a page that shows it"),
    "turntable": Command("results.film", "TurntableConfig", "a film of a run from all sides"),
}


def usage() -> str:
    """One line a command."""
    lines = [f"  {name:<12}{command.help}" for name, command in COMMANDS.items()]
    return "\n".join(["usage: db3d COMMAND [OPTIONS]", "", *lines, "", "db3d COMMAND --help lists its options."])


def main(args: list[str] | None = None) -> None:
    """Run the command that the arguments name."""
    args = sys.argv[1:] if args is None else args
    if not args or args[0] in ("-h", "--help"):
        print(usage())
        return
    if args[0] not in COMMANDS:
        sys.exit(f'db3d has no command "{args[0]}".\n{usage()}')
    import tyro

    from db3d_nerfstudio import threads
    from db3d_nerfstudio.console import ignore_known_warnings
    from db3d_nerfstudio.errors import exit_on_user_error
    from db3d_nerfstudio.paths import expand_home
    from db3d_nerfstudio.ranges import check_ranges

    ignore_known_warnings()
    threads.choose_wait_policy()  # The commands import torch.
    command = COMMANDS[args[0]]
    module = import_module(f"db3d_nerfstudio.{command.module}")
    config = tyro.cli(getattr(module, command.config), prog=f"db3d {args[0]}", args=args[1:])
    with exit_on_user_error(FloatingPointError):
        expand_home(config)
        check_ranges(config)
        module.main(config)
