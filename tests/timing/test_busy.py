"""Steps beside busy loops."""

import time

import psutil
import pytest
import torch

from db3d_nerfstudio.timing import busy


def test_a_rate_is_steps_per_second_of_the_clock() -> None:
    assert busy.rate(lambda: time.sleep(0.02), 0.2) == pytest.approx(1 / 0.02, rel=0.5)


def test_loops_are_busy_within_the_block_and_gone_after_it() -> None:
    before = set(psutil.Process().children())
    with busy.busy_loops(2):
        loops = set(psutil.Process().children()) - before
        assert len(loops) == 2 and all(loop.is_running() for loop in loops)
    assert not any(loop.is_running() for loop in loops)


def test_every_choice_is_compared_with_itself_alone(monkeypatch, capsys) -> None:
    before, chosen = torch.get_num_threads(), []
    monkeypatch.setattr(busy, "training_step", lambda resolution: lambda: chosen.append(torch.get_num_threads()))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    try:
        busy.Busy(seconds=0.01).main()
    finally:
        torch.set_num_threads(before)
    *_, every, one, free = capsys.readouterr().out.strip().splitlines()
    assert [line.split("  ")[0] for line in (every, one)] == [f"all, {before}", "one"] and "as many as free" in free
    assert 1 in chosen
