"""The number of threads beside other programs."""

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


def test_niced_programs_give_way_unless_this_one_is_niced_too(monkeypatch: pytest.MonkeyPatch) -> None:
    core = SimpleNamespace(user=1.0, system=2.0, nice=4.0, steal=8.0)
    monkeypatch.setattr("os.nice", lambda by: 0)
    assert threads._busy(core) == 11.0
    monkeypatch.setattr("os.nice", lambda by: 10)
    assert threads._busy(core) == 15.0
    assert threads._busy(SimpleNamespace(user=1.0, system=2.0, nice=0.0)) == 3.0, "macOS knows of no other machines"


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


def test_omp_num_threads_is_obeyed(machine: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    free = FreeThreads()
    machine.update(clock=100.0, busy=400.0)
    free.begin()
    free.adapt()
    assert torch.get_num_threads() == 4
