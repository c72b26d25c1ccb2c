"""What would end a benchmark's cells, found before the first one is trained: their options and their prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from itertools import groupby
from typing import Any

import tyro
from nerfstudio.configs.method_configs import AnnotatedBaseConfigUnion

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.evaluation.benchmark.cell import RESULT, Job
from db3d_nerfstudio.guides.base import DiffusionGuide, DiffusionGuideConfig
from db3d_nerfstudio.words import parse_subject, prompts_of_run


def check_jobs(jobs: Iterable[Job]) -> None:
    """Check the cells that have no result yet. The guide of each method is read once, onto the CPU.

    Raises:
        UserError: The guide cannot read some cell's prompts; the message names the first such cell.
        SystemExit: `ns-train` does not have one of the options; its parser says which.
    """
    waiting = sorted((job for job in jobs if not (job.folder / RESULT).exists()), key=lambda job: job.cell.method)
    wrong = [fault for _, same in groupby(waiting, lambda job: job.cell.method) for fault in _faults(list(same))]
    if wrong:
        name, reason = wrong[0]
        raise UserError(f"{len(wrong)} of {len(waiting)} cells cannot be trained, {name} first: {reason}")


def _faults(jobs: list[Job]) -> list[tuple[str, str]]:
    """The cells of a method that cannot be trained, with the reason."""
    pipeline = pipeline_of(jobs[0])
    guide, faults = _reader(pipeline.model.guide), []
    for job in jobs:
        try:
            guide.check_prompts(_prompts(job, pipeline, guide.tells_sides))
        except UserError as error:
            faults.append((job.cell.name, str(error)))
    return faults


def pipeline_of(job: Job) -> Any:
    """The pipeline's config in a cell, as `ns-train` reads it from the command line."""
    return tyro.cli(AnnotatedBaseConfigUnion, prog="ns-train", args=job.train[1:]).pipeline


def _reader(config: DiffusionGuideConfig) -> DiffusionGuide:
    """The guide, in as little memory as it can be had: it only reads prompts."""
    small = {"device": "cpu", "dtype": "bfloat16"}
    names = {field.name for field in dataclasses.fields(config)}
    return dataclasses.replace(config, **{key: small[key] for key in names & small.keys()}).setup(device="cpu")


def _prompts(job: Job, pipeline: Any, sided: bool) -> list[str]:
    cell, phases = job.cell, pipeline.phases
    prompt = cell.subject.prompt(cell.template, phases.identifier if phases.needs_photos else None)
    subject = parse_subject(prompt, phases.identifier, cell.subject.class_noun) if phases.needs_photos else None
    return prompts_of_run(prompt, subject, pipeline.model.sds.negative_prompt, sided)
