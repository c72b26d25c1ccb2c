"""A benchmark whose cells cannot all be trained does not begin."""

import copy
import subprocess
import sys
from importlib.metadata import entry_points

import pytest
from tiny import tiny_toybox_folder

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.evaluation.benchmark import check
from db3d_nerfstudio.evaluation.benchmark.cell import RESULT, Cell, Job, make_job
from db3d_nerfstudio.evaluation.benchmark.check import check_jobs
from db3d_nerfstudio.evaluation.benchmark.subjects import BenchmarkSubject

OURS, TEXT = "dreambooth3d-toybox", "dreamfusion-toybox"


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    """Makes cells; in place of ns-train's parser, which cannot be used under the tests' type checks, a small one."""
    tiny_toybox_folder(tmp_path / "guide")

    def pipeline_of(job: Job):
        (entry,) = entry_points(group="nerfstudio.method_configs", name=job.train[1])
        pipeline = copy.deepcopy(entry.load().config.pipeline)
        pipeline.model.guide.model = tmp_path / "guide"
        if "--negative" in job.train:
            pipeline.model.sds.negative_prompt = job.train[job.train.index("--negative") + 1]
        return pipeline

    def jobs_of(*methods: str, templates: tuple[str, ...] = ("a photo of a {}",)) -> list[Job]:
        subject = BenchmarkSubject("duck-1", "duck", tmp_path, None, templates, ())
        settings = {"steps": None, "train_args": [], "evaluate_args": [], "threads": 1}
        cells = [Cell(subject, template, method, 1) for template in templates for method in methods]
        return [make_job(cell, tmp_path, **settings) for cell in cells]

    monkeypatch.setattr(check, "pipeline_of", pipeline_of)
    return jobs_of


def test_cells_that_can_be_trained_pass(jobs):
    check_jobs(jobs(OURS, TEXT, templates=("a photo of a {}", "a {} with a red hat")))


def test_every_cell_with_a_prompt_that_cannot_be_read_is_counted(jobs):
    templates = ("a photo of a {}", "a {} on a bicycle", "a {} in the jungle")
    with pytest.raises(UserError, match='^2 of 3 cells .*, duck-1/a-duck-on-a-bicycle/.* first: .*"bicycle"'):
        check_jobs(jobs(OURS, templates=templates))


def test_what_only_a_side_makes_too_long_is_found(jobs):
    long = "a photo of a {} with a red hat and a blue scarf on the red chair"
    with pytest.raises(UserError, match="view.*shorten it"):
        check_jobs(jobs(OURS, templates=(long,)))


def test_negative_prompts_are_those_of_the_cell_and_finished_cells_are_left_alone(jobs):
    (job,) = jobs(f"{OURS} --negative ugly")
    with pytest.raises(UserError, match='"ugly"'):
        check_jobs([job])
    job.folder.mkdir(parents=True)
    (job.folder / RESULT).touch()
    check_jobs([job])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "line"),
    [
        (f"{OURS} --no-such-option 1", "no-such-option"),
        (f"{OURS} --pipeline.model.sds.negative-prompt ugly", '"ugly"'),
    ],
)
def test_the_command_refuses_them_before_it_starts_ray(tmp_path, method, line):
    options = ["--output", str(tmp_path), "--classes", "dog", "--methods", method]
    call = [sys.executable, "-W", "ignore", "-c", "from db3d_nerfstudio.cli import main; main()", "benchmark", *options]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and line in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not (tmp_path / "cells").exists()
