"""The number of threads beside other programs, and how they wait."""

import os
import subprocess
import sys
from math import inf
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from db3d_nerfstudio import threads
from db3d_nerfstudio.threads import FreeThreads, core_quota, threads_for


@pytest.mark.parametrize(
    ("cores", "others", "quota", "most", "expected"),
    [
        (2, 0.0, inf, 2, 2),
        (2, 0.2, inf, 2, 2),
        (2, 1.0, inf, 2, 1),
        (2, 7.0, inf, 2, 1),
        (8, 3.0, inf, 8, 5),
        (64, 0.5, inf, 32, 32),
        (64, 0.0, 1.5, 64, 1),
        (64, 30.0, 2.0, 64, 2),
        (64, 63.0, 2.0, 64, 1),
    ],
)
def test_others_cost_a_thread_for_each_core_they_use(cores, others, quota, most, expected) -> None:
    assert threads_for(cores, others, quota, most) == expected


def test_niced_programs_and_other_machines_count() -> None:
    assert threads._busy(SimpleNamespace(user=1.0, system=2.0, nice=4.0, steal=8.0, idle=16.0)) == 15.0
    assert threads._busy(SimpleNamespace(user=1.0, system=2.0, idle=16.0)) == 3.0, "as on Windows"


def test_a_containers_quota_counts(tmp_path: Path) -> None:
    assert core_quota(tmp_path) == inf
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert core_quota(tmp_path) == inf
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert core_quota(tmp_path) == 0.5
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("25000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert core_quota(tmp_path) == 0.25


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """A machine of four cores whose times a test sets; torch's threads are put back at the end."""
    times, before = {"clock": 0.0, "busy": 0.0, "own": 0.0}, torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setattr(threads, "_affinity", lambda: range(4))
    monkeypatch.setattr(threads, "_times", lambda: (times["clock"], times["busy"], times["own"]))
    monkeypatch.setattr(threads.time, "sleep", lambda seconds: times.update(clock=times["clock"] + seconds))
    monkeypatch.setattr(threads.time, "monotonic", lambda: times["clock"])
    torch.set_num_threads(4)
    yield times
    torch.set_num_threads(before)


def test_threads_follow_what_is_free_and_say_so(machine: dict[str, float], capsys: pytest.CaptureFixture) -> None:
    free = FreeThreads()
    free.begin()
    assert torch.get_num_threads() == 4 and capsys.readouterr().out == ""
    machine.update(clock=100.0, busy=500.0, own=300.0)  # Others: 200 seconds in 100.
    free.adapt()
    assert torch.get_num_threads() == 2
    assert "Computing with 2 threads: other programs use 2.0 of 4 cores" in capsys.readouterr().out
    machine.update(clock=105.0, own=305.0)
    free.adapt()  # Too soon.
    assert torch.get_num_threads() == 2
    machine.update(clock=200.0, busy=700.0, own=500.0)
    free.adapt()
    assert torch.get_num_threads() == 4


def test_a_container_is_named_as_the_reason_where_it_is(machine, monkeypatch, capsys) -> None:
    monkeypatch.setattr(threads, "core_quota", lambda: 1.5)
    free = FreeThreads()
    free.begin()
    assert torch.get_num_threads() == 1
    assert capsys.readouterr().out.startswith("Computing with 1 thread: this container has 1.5 of 4 cores (OMP_NUM_")


@pytest.mark.parametrize(("name", "value"), [("OMP_NUM_THREADS", "3"), ("OMP_WAIT_POLICY", "passive")])
def test_what_the_environment_sets_stays(machine, monkeypatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    free = FreeThreads()
    machine.update(clock=100.0, busy=400.0)
    free.begin()
    free.adapt()
    assert torch.get_num_threads() == 4


def at_the_start(machine: dict[str, float], monkeypatch: pytest.MonkeyPatch, others: float) -> str | None:
    """The policy that is chosen beside other programs that use this many cores."""

    def sleep(seconds: float) -> None:
        machine.update(clock=machine["clock"] + seconds, busy=machine["busy"] + others * seconds)

    monkeypatch.setattr(threads.time, "sleep", sleep)
    threads.choose_wait_policy()
    return os.environ.pop("OMP_WAIT_POLICY", None)


def test_threads_sleep_while_they_wait_beside_other_programs(machine, monkeypatch, capsys) -> None:
    assert at_the_start(machine, monkeypatch, others=0.1) is None and capsys.readouterr().out == ""
    assert at_the_start(machine, monkeypatch, others=1.5) == "PASSIVE"
    assert "other programs use 1.5 of 4 cores" in capsys.readouterr().out
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert at_the_start(machine, monkeypatch, others=1.5) == "ACTIVE"
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert at_the_start(machine, monkeypatch, others=1.5) is None


def test_the_policy_is_set_before_torch_loads() -> None:
    program = "import sys; from db3d_nerfstudio import cli, threads; "
    program += "threads.choose_wait_policy = lambda: print('torch' in sys.modules); cli.main(['report', '--help'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[0] == "False", done.stderr
