"""How many threads compute, and how they wait for each other, by what other programs leave free.

OpenMP's threads wait for each other after every operation. While they wait they compute in vain, and one that shares
its core holds up all: on a busy machine, two threads can be far slower than one. Threads that sleep while they wait
lose nothing there, but are slower to wake on a machine of their own.
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import psutil

from db3d_nerfstudio.console import announce

SECONDS_BETWEEN_LOOKS = 10.0
FIRST_LOOK = 0.3
"""Seconds over which the machine is watched at the start."""
SLACK = 0.25
"""Share of a core in use by others that costs no thread: desktops are never quite idle."""


def threads_for(cores: int, others: float, quota: float, most: int) -> int:
    """Number of threads on `cores`, of which `others` are busy with other programs; at least one, at most `most`.

    Args:
        quota: Cores' worth of time that this process's container may use.
    """
    return max(1, min(most, int(min(cores - others, quota) + SLACK)))


def core_quota(root: Path = Path("/sys/fs/cgroup")) -> float:
    """Cores' worth of time that the container of this process may use; infinite outside of one."""
    try:
        if (root / "cpu.max").exists():
            quota, period = (root / "cpu.max").read_text().split()
        else:
            quota = (root / "cpu/cpu.cfs_quota_us").read_text()
            period = (root / "cpu/cpu.cfs_period_us").read_text()
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    except (OSError, ValueError):  # No container, or "max".
        return math.inf


class Others:
    """How much of the machine other programs use."""

    def __init__(self) -> None:
        self.cores = len(_affinity())
        self.seen, self._busy, self._own = _times()

    def used(self) -> float:
        """Cores in use by others since this was last asked."""
        clock, busy, own = _times()
        others = max(0.0, busy - self._busy - (own - self._own)) / max(clock - self.seen, 1e-3)
        self.seen, self._busy, self._own = clock, busy, own
        return others


def choose_wait_policy() -> None:
    """Let the threads sleep while they wait if others keep cores busy; for this process and those that it starts.

    OpenMP reads the policy when torch loads, so this is for programs that have not imported it yet. A policy or a
    number of threads that the environment sets stays.
    """
    if "OMP_WAIT_POLICY" in os.environ or "OMP_NUM_THREADS" in os.environ:
        return
    others = Others()
    time.sleep(FIRST_LOOK)
    used = others.used()
    if used > SLACK:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        announce(
            f"Threads sleep while they wait for each other: other programs use {used:.1f} of {others.cores} cores "
            "(OMP_WAIT_POLICY=ACTIVE keeps them awake)"
        )


class FreeThreads:
    """Sets torch's number of threads to the number of free cores, at the start and every few seconds.

    If OMP_NUM_THREADS is set, that number is used instead; if threads sleep while they wait, all of them are.
    """

    def __init__(self) -> None:
        import torch

        self._fixed = "OMP_NUM_THREADS" in os.environ or os.environ.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE"
        self._quota, self._most, self._others = core_quota(), torch.get_num_threads(), Others()

    def begin(self) -> None:
        """Measure the load for a moment, then set the number."""
        if not self._fixed:
            time.sleep(FIRST_LOOK)
            self._choose()

    def adapt(self) -> None:
        """Set the number again if the last time was a while ago."""
        if not self._fixed and time.monotonic() > self._others.seen + SECONDS_BETWEEN_LOOKS:
            self._choose()

    def _choose(self) -> None:
        import torch

        used, cores = self._others.used(), self._others.cores
        threads = threads_for(cores, used, self._quota, self._most)
        if threads != torch.get_num_threads():
            torch.set_num_threads(threads)
            container = self._quota < cores - used
            reason = f"this container has {self._quota:g}" if container else f"other programs use {used:.1f}"
            announce(
                f"Computing with {threads} thread{'s' if threads > 1 else ''}: {reason} of {cores} cores "
                "(OMP_NUM_THREADS sets another number)"
            )


def _affinity() -> list[int]:
    process = psutil.Process()
    return process.cpu_affinity() if hasattr(process, "cpu_affinity") else list(range(psutil.cpu_count() or 1))


def _times() -> tuple[float, float, float]:
    """The clock, and the seconds that the allowed cores and this process have computed."""
    allowed = set(_affinity())
    cores = [times for i, times in enumerate(psutil.cpu_times(percpu=True)) if i in allowed]
    return time.monotonic(), sum(map(_busy, cores)), time.process_time()


def _busy(core: Any) -> float:
    """Seconds of a core that programs, and other virtual machines, have had."""
    return core.user + core.system + getattr(core, "nice", 0.0) + getattr(core, "steal", 0.0)
