"""Locks between processes and threads, which are released when their holder ends in any way."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_TAKEN = (errno.EWOULDBLOCK, errno.EACCES)


def take_lock(file: Path) -> int | None:
    """An open descriptor that holds the lock `file` until it is closed; None if another holder has it.

    On a system or file system without locks, every caller gets one, and there is no protection.
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
    """Hold the lock `file` within a `with` block, and delete the file afterwards; yields whether it was free."""
    descriptor = take_lock(file)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            with suppress(OSError):  # Open files cannot be removed on Windows.
                file.unlink()
            os.close(descriptor)
