"""The sweep is a benchmark of one method with other options, all of which `ns-train` has."""

import subprocess
import sys
from pathlib import Path

import pytest

from db3d_nerfstudio.evaluation import sweep
from db3d_nerfstudio.evaluation.benchmark.benchmark import BenchmarkConfig
from db3d_nerfstudio.evaluation.sweep import SweepConfig, main, methods_of

PARSER = Path(__file__).parents[1] / "parse_commands.py"


def test_reconstruction_keeps_its_share_at_every_scale() -> None:
    runs = methods_of(SweepConfig(scales=(8.0, 100.0), rescales=(0.0, 0.5)))
    assert len(runs) == 2 * 2 + 1
    expected = [("8", "0", "10"), ("8", "0.5", "10"), ("100", "0", "125"), ("100", "0.5", "125")]
    for run, (scale, rescale, recon) in zip(runs[:-1], expected, strict=True):
        assert f"guidance-scale {scale} " in run and f"guidance-rescale {rescale} " in run
        assert run.endswith(f"recon-loss-mult {recon}")
    assert "gradient contrast" in runs[-1] and "tuning lora" in runs[-1]
    assert "learning-rate None" in runs[-1], "a rate for all weights would leave adapters as they are"
    assert len(methods_of(SweepConfig(contrast=False))) == 8


@pytest.mark.slow
def test_ns_train_has_every_option() -> None:
    lines = "\n".join(f"ns-train {run} --data photos" for run in methods_of(SweepConfig(scales=(8.0,))))
    command = [sys.executable, "-W", "ignore", str(PARSER)]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout == "", done.stderr


def test_it_is_a_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[BenchmarkConfig] = []
    monkeypatch.setattr(sweep, "run_benchmark", seen.append)
    main(SweepConfig(method="dreamfusion", contrast=False, subject="dog6", gpus=0.5, steps=7, address="auto"))
    (benchmark,) = seen
    assert all(method.startswith("dreamfusion --") for method in benchmark.methods)
    assert (benchmark.subjects, benchmark.gpus, benchmark.steps) == (("dog6",), 0.5, 7)
    assert benchmark.address == "auto"
