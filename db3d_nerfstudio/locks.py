"""Locks between processes and threads, which end with their holder however it ends."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_TAKEN = (errno.EWOULDBLOCK, errno.EACCES)


def take_lock(file: Path) -> int | None:
    """An open descriptor that holds the lock `file` until it is closed; None if another holder has it.

    Where a system or a file system has no locks, everybody gets one: there is no protection then.
    """
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        return descriptor
    except OSError as error:
        if error.errno in _TAKEN:
            os.close(descriptor)
            return None
    return descriptor


@contextmanager
def locked(file: Path) -> Iterator[bool]:
    """Hold the lock `file` for a while; yields whether it was free."""
    descriptor = take_lock(file)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)
