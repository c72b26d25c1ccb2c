"""Locks between processes and threads, which end with their holder however it ends."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_TAKEN = (errno.EWOULDBLOCK, errno.EACCES)


def take_lock(file: Path) -> int | None:
    """An open descriptor that holds the lock `file` until it is closed; None if another holder has it.

    Where a system or a file system has no locks, everybody gets one: there is no protection then.
    """
    while True:
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
        if _is_still(file, descriptor):  # The holder before may have removed it meanwhile.
            return descriptor
        os.close(descriptor)


def _is_still(file: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(file), os.fstat(descriptor))
    except FileNotFoundError:
        return False


@contextmanager
def locked(file: Path) -> Iterator[bool]:
    """Hold the lock `file` for a while, and leave no file behind; yields whether it was free."""
    descriptor = take_lock(file)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            with suppress(OSError):  # Open files cannot be removed on Windows.
                file.unlink()
            os.close(descriptor)
