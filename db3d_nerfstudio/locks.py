"""Locks between processes and threads, which are released when their holder ends in any way."""

from __future__ import annotations

import errno
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""Errors of file systems that have no locks."""


def take_lock(file: Path) -> FileLock | None:
    """The lock `file`, held as long as the caller keeps it and no longer than its process; None if it is taken.

    On a file system without locks, every caller gets one, and there is no protection.
    """
    lock = FileLock(file, timeout=0, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        return None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return lock


@contextmanager
def locked(file: Path) -> Generator[bool, None, None]:
    """Hold the lock `file` within a `with` block, and delete the file afterwards; yields whether it was free."""
    lock = take_lock(file)
    try:
        yield lock is not None
    finally:
        if lock is not None:
            with suppress(OSError):  # Open files cannot be removed on Windows.
                file.unlink()
            lock.release()
