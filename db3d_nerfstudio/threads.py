"""The number of threads to compute with: as many as other programs leave cores free.

OpenMP's threads wait for each other after every operation, so one that shares its core holds up all: on a busy machine,
two threads can be far slower than one.
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import psutil
import torch

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


class FreeThreads:
    """Sets torch's number of threads to the number of free cores, at the start and every few seconds.

    If OMP_NUM_THREADS is set, that number is used instead.
    """

    def __init__(self) -> None:
        self._fixed = "OMP_NUM_THREADS" in os.environ
        self._cores, self._quota, self._most = len(_affinity()), core_quota(), torch.get_num_threads()
        self._clock, self._busy, self._own = _times()

    def begin(self) -> None:
        """Measure the load for a moment, then set the number."""
        if not self._fixed:
            time.sleep(FIRST_LOOK)
            self._choose()

    def adapt(self) -> None:
        """Set the number again if the last time was a while ago."""
        if not self._fixed and time.monotonic() > self._clock + SECONDS_BETWEEN_LOOKS:
            self._choose()

    def _choose(self) -> None:
        clock, busy, own = _times()
        seconds = max(clock - self._clock, 1e-3)
        others = max(0.0, busy - self._busy - (own - self._own)) / seconds
        self._clock, self._busy, self._own = clock, busy, own
        threads = threads_for(self._cores, others, self._quota, self._most)
        if threads != torch.get_num_threads():
            torch.set_num_threads(threads)
            announce(
                f"Computing with {threads} thread{'s' if threads > 1 else ''}: other programs use {others:.1f} of "
                f"{self._cores} cores (OMP_NUM_THREADS sets another number)"
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
    """Seconds of a core that are not to be had: niced programs give way to one that is not, other machines do not."""
    seconds = core.user + core.system + getattr(core, "steal", 0.0)
    niced = hasattr(os, "nice") and os.nice(0) > 0
    return seconds + (core.nice if niced else 0.0)
