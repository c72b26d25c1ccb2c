"""What the tests on a real GPU share: they are skipped without one, and end in a table of seconds and memory."""

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch

GIB = 2**30


class Row(NamedTuple):
    """A line of the table."""

    what: str
    seconds: float
    peak: float
    """GiB, by PyTorch's allocator."""
    counted: float | None
    """GiB that fake tensors predict."""


ROWS: list[Row] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/gpu/" in item.path.as_posix():
            item.add_marker(pytest.mark.gpu)
            item.add_marker(pytest.mark.filterwarnings("ignore"))
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="there is no CUDA device"))


@contextmanager
def _measured(what: str, counted: int | None = None) -> Iterator[None]:
    torch.cuda.empty_cache()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    yield
    torch.cuda.synchronize()
    seconds, peak = time.perf_counter() - start, torch.cuda.max_memory_allocated()
    ROWS.append(Row(what, seconds, peak / GIB, None if counted is None else counted / GIB))


@pytest.fixture
def measured() -> Callable:
    """A context whose seconds and peak memory become a row of the table; `counted` is the predicted peak in bytes."""
    return _measured


def pytest_terminal_summary(terminalreporter) -> None:
    if not ROWS:
        return
    card = torch.cuda.get_device_properties(0)
    try:
        driver = torch._C._cuda_getDriverVersion()
    except AttributeError:
        driver = "unknown"
    lines = [
        f"{card.name}, {card.total_memory / GIB:.0f} GiB, CUDA driver {driver}, PyTorch {torch.__version__}, "
        f"Python {platform.python_version()}",
        "",
        "| | seconds | peak GiB | counted GiB |",
        "|---|---:|---:|---:|",
    ]
    for row in ROWS:
        counted = "" if row.counted is None else f"{row.counted:.1f}"
        lines.append(f"| {row.what} | {row.seconds:.2f} | {row.peak:.1f} | {counted} |")
    terminalreporter.write_line("\n" + "\n".join(lines))
