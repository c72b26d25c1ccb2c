"""The benchmark, with programs that only pretend: which commands, once each, and what is made of their results."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.evaluation.benchmark import benchmark, report
from db3d_nerfstudio.evaluation.benchmark.benchmark import BenchmarkConfig
from db3d_nerfstudio.evaluation.benchmark.cell import Cell, cost_of, make_job, phases_of, run_job, step_arguments
from db3d_nerfstudio.evaluation.benchmark.subjects import BenchmarkSubject

OURS, FUSION, TEXT = "dreambooth3d-toybox", "dreambooth-fusion-toybox", "dreamfusion-toybox"
TRAIN = """#!/bin/sh
method=$1; while [ "$1" != "--output-dir" ]; do shift; done
mkdir -p "$2/train/$method/run/evaluation"
echo "$method $OMP_NUM_THREADS" >> PLACE/trained
[ "$method" = "dreamfusion-toybox" ] && [ ! -e PLACE/mended ] && { echo "out of luck"; exit 3; }
exit 0
"""
EVALUATE = """#!/bin/sh
cp PLACE/turntable.webp "$3/evaluation/turntable.webp"
echo '{"initial": {"score": 0.1}, "final": {"score": 0.5}}' > "$3/evaluation/metrics.json"
"""


@pytest.fixture
def subject(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(photos / "0.png")
    return BenchmarkSubject(
        "duck-1", "duck", photos, photos, ("a photo of a {}", "a {} at night"), ("a photo of a duck",), 1
    )


@pytest.fixture
def pretend(tmp_path, monkeypatch):
    """Programs in the place of ns-train and db3d, first on PATH."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, script in (("ns-train", TRAIN), ("db3d", EVALUATE)):
        (programs / name).write_text(script.replace("PLACE", str(tmp_path)))
        (programs / name).chmod(0o755)
    Image.fromarray(np.full((4, 4, 3), 9, np.uint8)).save(tmp_path / "turntable.webp")
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    return tmp_path


def job_of(subject, method, root, **settings):
    cell = Cell(subject, settings.pop("template", subject.templates[0]), method, 7)
    return make_job(cell, root, **{"steps": None, "train_args": [], "evaluate_args": [], "threads": 1} | settings)


def test_commands_of_a_cell(subject, tmp_path):
    job = job_of(subject, OURS, tmp_path, template="a {} at night", train_args=["--x", "1"], evaluate_args=["--y"])
    train = " ".join(job.train)
    assert train.startswith(
        f"ns-train {OURS} --output-dir {tmp_path / 'cells' / 'duck-1/a-duck-at-night' / OURS / 'seed-7'}"
    )
    assert f"--data {subject.photos}" in train and "--prompt a sks duck at night" in train and train.endswith("--x 1")
    assert "--machine.seed 7" in train
    evaluate = " ".join(job.evaluate)
    assert evaluate.startswith(f"db3d evaluate --run {job.run} --photos {subject.photos}") and evaluate.endswith("--y")
    assert f"--cutouts {subject.cutouts} --toy 1 --toy-class duck --mesh" in evaluate


def test_text_alone_gets_neither_photos_nor_identifier(subject, tmp_path):
    job = job_of(subject, TEXT, tmp_path)
    assert "--data" not in job.train and "a photo of a duck" in job.train
    assert "--photos" in job.evaluate, "it is measured against the same photos"


def test_a_method_with_options_is_another_method(subject, tmp_path):
    method = f"{OURS} --pipeline.phases.multiview-steps 0"
    job = job_of(subject, method, tmp_path, train_args=["--x", "1"])
    assert job.train[:2] == ("ns-train", OURS)
    assert job.train[-4:] == ("--x", "1", "--pipeline.phases.multiview-steps", "0"), "its own options hold against all"
    assert job.folder != job_of(subject, OURS, tmp_path).folder and " " not in str(job.folder)
    assert job.run == job.folder / "train" / OURS / "run", "where nerfstudio puts it"


@pytest.mark.parametrize(
    "method, complaint",
    [
        ("nerfacto --x 1", '"nerfacto" is not a method of this package'),
        ("", '"" is not a method of this package'),
        (f"{OURS} --prompt 'a duck", "cannot parse the arguments .*: No closing quotation"),
    ],
)
def test_what_is_no_method_is_refused(subject, tmp_path, method, complaint):
    with pytest.raises(UserError, match=complaint):
        job_of(subject, method, tmp_path)


def test_steps_are_divided_like_the_methods_own():
    name = "--pipeline.phases.{}.steps".format
    own = phases_of(OURS)
    share = own.initial.steps / own.total_steps()
    arguments = step_arguments(own, 200)
    assert arguments == [name("initial"), str(2 * round(100 * share)), name("final"), str(200 - 2 * round(100 * share))]
    assert step_arguments(phases_of(FUSION), 200) == [name("initial"), "200", name("final"), "0"]
    assert step_arguments(own, None) == []
    with pytest.raises(UserError, match=f"choose among .*{OURS}"):
        phases_of("nerfacto")


def test_failures_are_told_in_the_end_and_what_is_finished_stays(subject, pretend, monkeypatch):
    monkeypatch.setattr(benchmark, "choose_subjects", lambda config, root: [subject])
    monkeypatch.setattr(benchmark, "check_jobs", lambda jobs: None)
    config = BenchmarkConfig(output=pretend / "out", methods=(f"{OURS} --x 1", FUSION, TEXT), prompts=1, seeds=(7,))
    with pytest.raises(UserError, match="1 of 3 cells failed, duck-1/a-photo-of-a-duck/dreamfusion.*out of luck"):
        benchmark.main(config)
    (pretend / "mended").touch()
    benchmark.main(config)
    trained = (pretend / "trained").read_text().split()
    assert sorted(trained) == sorted([OURS, "1", FUSION, "1", TEXT, "1", TEXT, "1"])
    records = [json.loads(line) for line in (pretend / "out" / "results.jsonl").read_text().splitlines()]
    assert [record["method"] for record in records] == [f"{OURS} --x 1", FUSION, TEXT]
    assert records[0]["prompt"] == "a photo of a duck" and records[0]["metrics"]["final"] == {"score": 0.5}
    assert (pretend / "out" / "pools" / "duck-1.txt").read_text() == "a photo of a duck\n"
    page = (pretend / "out" / "report.html").read_text()
    assert page.count("data:image/webp;base64,") == 3 and page.count("data:image/jpeg;base64,") == 1
    assert "http" not in page and "Failed" not in page


def test_without_ray_a_failure_does_not_keep_the_next_cell_from_running(subject, pretend):
    jobs, outcomes = [job_of(subject, method, pretend) for method in (TEXT, OURS, FUSION)], {}
    jobs[2].folder.mkdir(parents=True)
    (jobs[2].folder / "recipe.json").write_text("{}")
    benchmark.one_by_one(jobs, outcomes.__setitem__)
    assert "out of luck" in outcomes[0] and "made by other commands" in outcomes[2]
    assert outcomes[1]["method"] == OURS and list(outcomes) == [0, 1, 2]


def test_without_a_gpu_cells_are_trained_on_the_cpu_of_any_machine(subject, tmp_path):
    config = BenchmarkConfig(methods=(OURS,), train_args="--x 1")
    (on_cpu,) = benchmark.make_jobs(config, tmp_path, [subject])
    (on_gpu,) = benchmark.make_jobs(replace(config, gpus=0.5), tmp_path, [subject])
    assert " --machine.device-type cpu --x 1" in " ".join(on_cpu.train)
    assert "--machine.device-type" not in on_gpu.train and "--x 1" in " ".join(on_gpu.train)


@pytest.mark.slow
def test_on_ray(pretend):
    """The command itself, in a process of its own: what Ray leaves behind must not disturb the other tests."""
    pytest.importorskip("ray")
    catalogue = "duck_toy,toy\n" + 2 * "prompt_list = ['a {0} {1} in the snow'.format(a, b)]\n"
    (pretend / "data" / "duck_toy").mkdir(parents=True)
    (pretend / "data" / "prompts_and_classes.txt").write_text(catalogue)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(pretend / "data" / "duck_toy" / "0.png")
    options = [
        "--photos",
        str(pretend / "data"),
        "--output",
        str(pretend / "out"),
        "--methods",
        OURS,
        TEXT,
        "--address",
        "local",
    ]
    call = [sys.executable, "-W", "ignore", "-c", "from db3d_nerfstudio.cli import main; main()", "benchmark", *options]
    done = subprocess.run(call, capture_output=True, text=True, check=False, cwd=pretend)
    if "Ray did not start" in done.stderr:
        pytest.skip("this machine is too busy for Ray")
    assert done.returncode == 1 and "1 of 2 cells failed" in done.stderr and "out of luck" in done.stderr, done.stderr
    (line,) = (pretend / "out" / "results.jsonl").read_text().splitlines()
    assert json.loads(line)["subject"] == "duck_toy" and json.loads(line)["metrics"]["final"] == {"score": 0.5}


def test_a_finished_cell_is_taken_as_it_is_but_not_for_other_commands(subject, pretend):
    job = job_of(subject, OURS, pretend)
    assert run_job(job) == run_job(job)
    assert (pretend / "trained").read_text().count("\n") == 1
    with pytest.raises(UserError, match="made by other commands"):
        run_job(replace(job, train=(*job.train, "--x")))


def test_subjects_are_chosen_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "toybox_subject", lambda seed, noun, root: BenchmarkSubject(
        f"{noun}-{seed}", noun, root, None, (), ()))  # fmt: skip
    config = BenchmarkConfig(classes=("dog", "mug"), toys_per_class=2, first_toy=10)
    names = [subject.name for subject in benchmark.choose_subjects(config, tmp_path)]
    assert names == ["dog-10", "mug-11", "dog-12", "mug-13"]
    (one,) = benchmark.choose_subjects(replace(config, subjects=("mug-11",)), tmp_path)
    assert one.name == "mug-11"
    with pytest.raises(UserError, match="no subject is called cat"):
        benchmark.choose_subjects(replace(config, subjects=("cat",)), tmp_path)


def test_other_prompts_can_be_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "toybox_subject", lambda seed, noun, root: BenchmarkSubject(
        f"{noun}-{seed}", noun, root, None, ("a {}",), ("a dog",)))  # fmt: skip
    config = BenchmarkConfig(classes=("dog",), methods=(OURS,), templates=("a green {}", "a {} at night"))
    (dog,) = benchmark.choose_subjects(config, tmp_path)
    assert dog.pool == ("a dog", "a green dog", "a dog at night")
    jobs = benchmark.make_jobs(config, tmp_path, [dog])
    assert [job.train[job.train.index("--prompt") + 1] for job in jobs] == ["a green sks dog", "a sks dog at night"]
    with pytest.raises(UserError, match='template "a dog" needs {} once'):
        benchmark.choose_subjects(replace(config, templates=("a dog",)), tmp_path)


def records_of(values, metric="score"):
    return [
        {"subject": subject, "prompt": "p", "method": method, "seed": seed, "metrics": {"final": {metric: value}}}
        for (subject, method, seed), value in values.items()
    ]


def test_what_a_run_took_stands_beside_its_numbers(tmp_path):
    assert cost_of(tmp_path) == {}
    tasks = {"a": {"seconds": 61.25, "peak_memory_mb": 512}, "b": {"seconds": 2.0, "peak_memory_mb": 1536}}
    manifest = {"tasks": tasks, "machine": {"device": "a card"}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    cost = cost_of(tmp_path)
    assert cost == {"seconds": 63.2, "peak_memory_mb": 1536, "device": "a card"}
    records = records_of({("a", "x", 1): 1.0, ("b", "x", 1): 0.5, ("a", "y", 1): 0.5})
    records[0]["cost"], records[1]["cost"] = cost, cost | {"seconds": 36.8, "device": "another"}
    costs = report.costs_of(records, ["x", "y"])
    assert costs == {"x": "50 s, 1.5 GiB, a card and another"}
    table = report.markdown_table(report.summarise(records, ["x", "y"]), ["x", "y"], costs)
    assert table.splitlines()[0] == "| metric | x (50 s, 1.5 GiB, a card and another) | y |"


def test_others_of_a_class_are_looked_for(subject, tmp_path):
    assert "--others" not in job_of(subject, OURS, tmp_path).evaluate
    job = job_of(replace(subject, others=(tmp_path / "dog2", tmp_path / "dog3")), OURS, tmp_path)
    assert f"--others {tmp_path / 'dog2'} {tmp_path / 'dog3'}" in " ".join(job.evaluate)


def test_margins_are_of_what_can_be_better():
    values = {("a", "x", 1): 1.0, ("a", "y", 1): 0.5}
    assert report.margins(records_of(values, "psnr"), ["x", "y"])["psnr"]["y"].mean == 0.5
    assert report.margins(records_of(values, "mesh scale"), ["x", "y"]) == {}


def test_gains_are_of_methods_that_have_two_nerfs():
    records = records_of({("a", "x", 1): 1.0, ("b", "x", 1): 0.5, ("a", "y", 1): 0.5}, "psnr")
    records[0]["metrics"]["initial"] = {"psnr": 0.25}
    gains = report.gains(records, ["x", "y"])
    assert {metric: list(row) for metric, row in gains.items()} == {"psnr": ["x"]}
    assert gains["psnr"]["x"].mean == 0.75, "of subject a, the only one with an initial NeRF"
    assert report.columns_of(gains, ["y", "x"]) == ["x"]


def test_seeds_are_averaged_before_subjects():
    records = records_of({("a", "x", 1): 0.0, ("a", "x", 2): 1.0, ("b", "x", 1): 1.0, ("a", "y", 1): 0.25})
    assert report.values_of(records, "x", "score") == {("a", "p"): 0.5, ("b", "p"): 1.0}
    summary = report.summarise(records, ["x", "y"])
    assert summary["score"]["x"].mean == 0.75 and summary["score"]["y"] == (0.25, None, None, 1)
    assert report.margins(records, ["x", "y"])["score"]["y"].mean == 0.25, "on subject a, the only one that both have"
    assert report.markdown_table(summary, ["x", "y"]).splitlines()[0] == "| metric | x | y |"
    assert report.markdown_table(summary, ["x", "y"]).splitlines()[2].endswith("| 0.250 |")


@pytest.mark.parametrize(
    ("metric", "arrow"),
    [("judge r_precision", "↑"), ("janus_rate", "↓"), ("mesh chamfer", "↓"), ("psnr", "↑"), ("judge i ceiling", ""),
     ("mesh turn", ""), ("over_saturation", "")],
)  # fmt: skip
def test_metrics_say_which_way_is_better(metric, arrow):
    assert report.direction(metric) == arrow
