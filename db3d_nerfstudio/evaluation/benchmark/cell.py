"""One cell of a benchmark: a subject, a prompt, a method and a seed; trained, then measured, in a folder of its own.

CELL/recipe.json        the commands of the cell
CELL/train/PRESET/run   the run, which an interrupted cell continues
CELL/log.txt            the output of the programs
CELL/result.json        the metrics; a cell that has this file is done
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.evaluation.benchmark.oracles import TRUTH
from db3d_nerfstudio.evaluation.benchmark.subjects import BenchmarkSubject
from db3d_nerfstudio.evaluation.evaluate import EVALUATION, METRICS
from db3d_nerfstudio.run.manifest import read_manifest
from db3d_nerfstudio.workspace import compare, write_json

if TYPE_CHECKING:
    from db3d_nerfstudio.training.phases import PhasesConfig

RESULT = "result.json"
LAST_LINES = 5
"""How much of a program's last words a failure repeats."""


@dataclass(frozen=True)
class Cell:
    """A subject, a prompt, a method and a seed."""

    subject: BenchmarkSubject
    """The subject."""
    template: str
    """The prompt, with "{}" where the subject goes."""
    method: str
    """The `ns-train` method, possibly with options of its own."""
    seed: int
    """Seed of the run."""

    @property
    def name(self) -> str:
        """The cell's folder in the benchmark's."""
        prompt = re.sub(r"\W+", "-", self.subject.prompt(self.template, None).lower()).strip("-")
        method = re.sub(r"[^\w.-]+", "-", self.method)
        return f"{self.subject.name}/{prompt}/{method}/seed-{self.seed}"


@dataclass(frozen=True)
class Job:
    """A cell and the commands that fill it."""

    cell: Cell
    """What is trained and measured."""
    folder: Path
    """Folder of the cell; on a cluster, on a file system that all machines share."""
    train: tuple[str, ...]
    """The command that trains; started again, it must continue."""
    evaluate: tuple[str, ...]
    """The command that measures."""
    threads: int
    """Threads of each program."""

    @property
    def run(self) -> Path:
        """The run's folder."""
        return run_folder(self.folder, self.cell.method)


def run_folder(cell: Path, method: str) -> Path:
    """Path of the run in a cell's folder, which nerfstudio names after the preset."""
    return cell / "train" / method.split()[0] / "run"


def phases_of(method: str) -> PhasesConfig:
    """The stages of a method of this package.

    Raises:
        UserError: the method is not installed, or it has no stages.
    """
    found = entry_points(group="nerfstudio.method_configs", name=method)
    for entry in found:
        phases = getattr(entry.load().config.pipeline, "phases", None)
        if phases is not None:
            return phases
    names = sorted(e.name for e in entry_points(group="nerfstudio.method_configs") if e.value.startswith("db3d_"))
    raise UserError(f'"{method}" is not a method of this package: choose among {", ".join(names)}')


def split_words(line: str) -> list[str]:
    """The arguments that a shell would make of a line.

    Raises:
        UserError: a quote in it is not closed.
    """
    try:
        return shlex.split(line)
    except ValueError as error:
        raise UserError(f"cannot parse the arguments {line!r}: {error}") from None


def step_arguments(phases: PhasesConfig, steps: int | None) -> list[str]:
    """Arguments that give a method `steps` NeRF micro-steps in all, divided between its stages as its own are.

    The stages get even numbers: the optimizer moves once in two micro-steps.
    """
    if steps is None:
        return []
    own = phases.initial.steps + phases.final.steps
    initial = 2 * round(steps * phases.initial.steps / own / 2)
    names = ("--pipeline.phases.initial.steps", str(initial), "--pipeline.phases.final.steps", str(steps - initial))
    return list(names)


def make_job(
    cell: Cell, root: Path, *, steps: int | None, train_args: list[str], evaluate_args: list[str], threads: int
) -> Job:
    """The commands of a cell. A method that uses no photos gets none, and a prompt without identifier.

    Options of the method itself come last, so that they override all others; "{truth}" in them is the subject's.

    Raises:
        UserError: unknown method, options that cannot be parsed, or an oracle of a subject whose truth is not known.
    """
    preset, *options = split_words(cell.method) or [""]
    phases, subject = phases_of(preset), cell.subject
    if TRUTH in cell.method and subject.truth is None:
        raise UserError(f"{subject.name} has no known truth for {cell.method}: use toys, and --oracles")
    options = [option.replace(TRUTH, str(subject.truth)) for option in options]
    folder = root / "cells" / cell.name
    train = ["ns-train", preset, "--output-dir", str(folder), "--experiment-name", "train", "--timestamp", "run"]
    if phases.needs_photos:
        train += ["--data", str(subject.photos), "--pipeline.phases.class-noun", subject.class_noun]
    identifier = phases.identifier if phases.needs_photos else None
    train += ["--prompt", subject.prompt(cell.template, identifier), "--vis", "tensorboard"]
    train += ["--machine.seed", str(cell.seed), *step_arguments(phases, steps), *train_args, *options]
    job = Job(cell, folder, tuple(train), (), threads)
    evaluate = ["db3d", "evaluate", "--run", str(job.run), "--photos", str(subject.photos)]
    evaluate += ["--pool", str(pool_file(root, subject))]
    if subject.cutouts is not None:
        evaluate += ["--cutouts", str(subject.cutouts)]
    if subject.others:
        evaluate += ["--others", *map(str, subject.others)]
    if subject.toy is not None:
        evaluate += ["--toy", str(subject.toy), "--toy-class", subject.class_noun, "--mesh"]
    return replace(job, evaluate=(*evaluate, *evaluate_args))


def pool_file(root: Path, subject: BenchmarkSubject) -> Path:
    """Path of a subject's prompt pool."""
    return root / "pools" / f"{subject.name}.txt"


def run_job(job: Job) -> dict[str, Any]:
    """Train and measure, or read an existing result; returns the cell's line of results.

    Raises:
        UserError: the folder was made by other commands.
        RuntimeError: a program failed; the message has the end of its output.
    """
    recipe = {"train": list(job.train), "evaluate": list(job.evaluate)}
    job.folder.mkdir(parents=True, exist_ok=True)
    known = job.folder / "recipe.json"
    if known.exists():
        differences = compare(json.loads(known.read_text("utf8")), recipe)
        if differences:
            raise UserError(f"{job.folder} was made by other commands: choose another --output, or delete the folder")
    known.write_text(json.dumps(recipe, indent=2) + "\n", "utf8")
    result = job.folder / RESULT
    if not result.exists():
        call(job.train, job)
        call(job.evaluate, job)
        write_json(result, record_of(job))
    return json.loads(result.read_text("utf8"))


def call(command: tuple[str, ...], job: Job) -> None:
    """Run a program of this environment, and append its output to the cell's log."""
    here = str(Path(sys.executable).parent)
    path = os.pathsep.join([os.environ.get("PATH", ""), here])
    program = shutil.which(command[0], path=path)
    if program is None:
        raise UserError(f"{command[0]} is missing in the benchmark's environment: install db3d_nerfstudio there")
    # Cells share a machine with each other.
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "PATH": path, "PYTHONUNBUFFERED": "1"}
    environment["OMP_NUM_THREADS"] = str(job.threads)
    log = job.folder / "log.txt"
    with log.open("a") as out:
        status = subprocess.call(
            [program, *command[1:]], stdout=out, stderr=out, stdin=subprocess.DEVNULL, env=environment
        )
    if status != 0:
        words = " ".join(" ".join(log.read_text("utf8", errors="replace").splitlines()[-LAST_LINES:]).split())
        raise RuntimeError(f"{command[0]} ended with status {status}: {words}")


def record_of(job: Job) -> dict[str, Any]:
    """The cell's line in the benchmark's results."""
    cell = job.cell
    return {
        "subject": cell.subject.name,
        "class_noun": cell.subject.class_noun,
        "prompt": cell.subject.prompt(cell.template, None),
        "method": cell.method,
        "seed": cell.seed,
        "cell": cell.name,
        "photos": str(cell.subject.photos),
        "cost": cost_of(job.run),
        "metrics": json.loads((job.run / EVALUATION / METRICS).read_text("utf8")),
    }


def cost_of(run: Path) -> dict[str, Any]:
    """What a run took, as its manifest has it: seconds of all tasks, peak memory in MB, and the card; empty without."""
    manifest = read_manifest(run)
    tasks = list(manifest.get("tasks", {}).values())
    if not tasks:
        return {}
    return {
        "seconds": round(sum(task["seconds"] for task in tasks), 1),
        "peak_memory_mb": max(task["peak_memory_mb"] for task in tasks),
        "device": manifest["machine"]["device"],
    }
