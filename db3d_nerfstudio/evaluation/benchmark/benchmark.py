"""`db3d benchmark`: subjects x prompts x methods x seeds, each cell trained and measured, here or on a cluster.

    OUTPUT/cells/SUBJECT/PROMPT/METHOD/seed-N     see `cell.py`
    OUTPUT/pools/SUBJECT.txt                      the prompts that R-precision retrieves from
    OUTPUT/results.jsonl                          a line for every finished cell
    OUTPUT/table.md                               means and intervals
    OUTPUT/views.png                              every subject from three sides: the truth, and what each method made
    OUTPUT/report.html                            both, with photos, losses and turntables

Cells run one after the other, or side by side where Ray (https://www.ray.io) schedules them. Finished cells are kept,
and interrupted ones continue.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.evaluation.benchmark.cell import Cell, Job, make_job, pool_file, run_job, split_words
from db3d_nerfstudio.evaluation.benchmark.check import check_jobs
from db3d_nerfstudio.evaluation.benchmark.oracles import oracles_of, truth_of
from db3d_nerfstudio.evaluation.benchmark.subjects import (
    FIRST_TOY,
    BenchmarkSubject,
    dreambooth_subjects,
    toybox_subject,
)
from db3d_nerfstudio.ranges import Count, NonNegative

Record = dict[str, Any]
Finished = Callable[[int, Record | str], None]
"""Called with the index of a job."""


@dataclass
class BenchmarkConfig:
    """Compare methods on subjects. If it is interrupted, the same command continues."""

    output: Path = Path("outputs/benchmark")
    """Folder for all results; on a cluster, one that all machines share."""
    methods: tuple[str, ...] = ("dreambooth3d-toybox", "dreambooth-fusion-toybox", "dreamfusion-toybox")
    """Methods to compare; the first is compared with each other one. A method with options of its own goes in quotes:
    "dreambooth3d-toybox --pipeline.phases.multiview-steps 0"."""
    oracles: bool = False
    """Compare the first method with its oracles, too, which have the true initial NeRF, true pseudo views, or photos
    from all round; of toys."""
    classes: tuple[str, ...] = ("dog", "duck", "robot", "car", "chair", "teapot")
    """Kinds of toys. No guide was trained on these toys."""
    toys_per_class: Count = 1
    """Toys of each kind."""
    first_toy: int = FIRST_TOY
    """Seed of the first toy."""
    photos: Path | None = None
    """Folder in the layout of the DreamBooth data set, with its prompts_and_classes.txt; replaces the toys."""
    subjects: tuple[str, ...] = ()
    """Names of the subjects to use; by default all."""
    prompts: Count = 1
    """Number of prompts per subject; the first is "a photo of a ..."."""
    templates: tuple[str, ...] = ()
    """Prompts in place of the subjects' own, with {} where the subject goes: "a photo of a green {}"."""
    seeds: tuple[int, ...] = (42,)
    """Seeds of the runs."""
    steps: Count | None = None
    """NeRF micro-steps of every run, for all methods alike; by default each method's own."""
    train_args: str = ""
    """More arguments for every `ns-train`, after an equals sign: --train-args="--steps-per-save 500"."""
    evaluate_args: str = ""
    """More arguments for every `db3d evaluate`: --evaluate-args="--clip ViT-B/32 --dino facebook/dino-vits16"."""
    cores: Count = 1
    """CPU cores per cell."""
    gpus: NonNegative = 0.0
    """GPUs per cell; 0 trains on the CPU. On Ray, cells with a fraction share one."""
    address: str | None = None
    """Ray cluster on which cells run side by side, such as "ray://host:10001" or "auto"; local starts one on this
    machine. By default cells run here, one after the other."""


def main(config: BenchmarkConfig) -> None:
    """Train and measure the cells that are not finished, and write the results.

    Raises:
        UserError: wrong input; or, after all other cells are done, that some failed.
    """
    from db3d_nerfstudio.console import announce
    from db3d_nerfstudio.evaluation.benchmark.report import write_report

    root = config.output.absolute()
    if config.oracles:
        config = replace(config, methods=(*config.methods, *oracles_of(config.methods[0])))
    subjects = choose_subjects(config, root)
    jobs = make_jobs(config, root, subjects)
    check_jobs(jobs)
    records, failures = run_all(jobs, config)
    lines = [json.dumps(record) + "\n" for record in records]
    (root / "results.jsonl").write_text("".join(lines), "utf8")
    (root / "failures.json").write_text(json.dumps(failures, indent=2) + "\n", "utf8")
    if records:
        write_report(root, records, failures, subjects, config.methods)
        announce((root / "table.md").read_text("utf8"))
        announce(f"Open {root / 'report.html'}")
    if failures:
        name, reason = next(iter(failures.items()))
        raise UserError(f"{len(failures)} of {len(jobs)} cells failed, {name} first: {reason}")


def choose_subjects(config: BenchmarkConfig, root: Path) -> list[BenchmarkSubject]:
    """The subjects that the config names; toys are photographed.

    Raises:
        UserError: no subject has a given name.
    """
    if config.photos is not None:
        subjects = dreambooth_subjects(config.photos.expanduser().absolute())
    else:
        nouns = config.classes * config.toys_per_class
        subjects = [toybox_subject(config.first_toy + i, noun, root / "subjects") for i, noun in enumerate(nouns)]
        if config.oracles:
            subjects = [replace(subject, truth=truth_of(subject, root / "truth")) for subject in subjects]
    names = [subject.name for subject in subjects]
    unknown = set(config.subjects) - set(names)
    if unknown:
        raise UserError(f"no subject is called {', '.join(sorted(unknown))}: choose among {', '.join(names)}")
    chosen = [subject for subject in subjects if not config.subjects or subject.name in config.subjects]
    return [subject.asked(config.templates) for subject in chosen] if config.templates else chosen


def make_jobs(config: BenchmarkConfig, root: Path, subjects: Sequence[BenchmarkSubject]) -> list[Job]:
    """All cells, subject by subject; every subject's prompt pool is published on the way."""
    jobs, device = [], ["--machine.device-type", "cpu"] if config.gpus == 0 else []
    for subject in subjects:
        pool = pool_file(root, subject)
        pool.parent.mkdir(parents=True, exist_ok=True)
        pool.write_text("".join(f"{prompt}\n" for prompt in subject.pool), "utf8")
        templates = config.templates or subject.templates[: config.prompts]
        for template, method, seed in product(templates, config.methods, config.seeds):
            jobs.append(
                make_job(
                    Cell(subject, template, method, seed),
                    root,
                    steps=config.steps,
                    train_args=[*device, *split_words(config.train_args)],
                    evaluate_args=split_words(config.evaluate_args),
                    threads=config.cores,
                )
            )
    return jobs


def run_all(jobs: list[Job], config: BenchmarkConfig) -> tuple[list[Record], dict[str, str]]:
    """Run the jobs: the records of those that succeeded, in their order, and why others did not."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from db3d_nerfstudio.console import CONSOLE

    outcomes: dict[int, Record | str] = {}
    columns = (TextColumn("Cells"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=CONSOLE) as bar:
        task = bar.add_task("Cells", total=len(jobs))

        def finished(index: int, outcome: Record | str) -> None:
            outcomes[index] = outcome
            bar.advance(task)

        if config.address is None:
            one_by_one(jobs, finished)
        else:
            on_ray(jobs, config, config.address, finished)
    ordered = [(jobs[index].cell.name, outcomes[index]) for index in range(len(jobs))]
    records = [outcome for _, outcome in ordered if not isinstance(outcome, str)]
    return records, {name: outcome for name, outcome in ordered if isinstance(outcome, str)}


def one_by_one(jobs: list[Job], finished: Finished) -> None:
    """`finished` is called as each job ends, with its line of results or why it failed."""
    for index, job in enumerate(jobs):
        try:
            outcome: Record | str = run_job(job)
        except (UserError, RuntimeError, OSError) as error:
            outcome = str(error)
        finished(index, outcome)


def on_ray(jobs: list[Job], config: BenchmarkConfig, address: str, finished: Finished) -> None:
    """One Ray task per job; `finished` is called as each ends, with its line of results or why it failed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Nothing is sent to anyone.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's default of tomorrow, or it warns.
    os.environ.setdefault("RAY_agent_register_timeout_ms", "300000")
    try:
        import ray
        from ray.exceptions import RayError, RayTaskError
    except ImportError:
        raise UserError('--address needs Ray: pip install "db3d_nerfstudio[benchmark]", or leave it out') from None
    dashboard = False if address == "local" else None  # A cluster has its own setting.
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=dashboard)
    except Exception as error:  # Ray raises no narrower one.
        raise UserError(
            f"Ray did not start ({error}): it gives up after 30 seconds, which may be too few on a busy machine. "
            "Leave --address out, or run `ray start --head` first and give --address auto"
        ) from None
    try:
        task = ray.remote(run_job).options(num_cpus=config.cores, num_gpus=config.gpus, max_retries=0)
        running = {task.remote(job): index for index, job in enumerate(jobs)}
        while running:
            for done in ray.wait(list(running))[0]:
                try:
                    outcome = ray.get(done)
                except RayTaskError as error:
                    outcome = str(error.cause)
                except RayError as error:
                    outcome = " ".join(str(error).split())
                finished(running.pop(done), outcome)
    finally:
        ray.shutdown()
