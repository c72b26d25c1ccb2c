"""Mistakes that only the user can put right, reported in one line without a traceback."""

import errno
from collections.abc import Generator
from contextlib import contextmanager

_FULL_DISK = ("No space left", "os error 28", "os error 122", "PytorchStreamWriter failed", "unexpected pos")
"""Parts of what safetensors and PyTorch say, in errors of their own, where a disk is full."""


class UserError(ValueError):
    """A wrong input; the message is one line that names the fix."""


class DivergedError(UserError):
    """Training diverged and cannot recover; the message is one line that names what to change."""


@contextmanager
def exit_on_user_error(*kinds: type[Exception]) -> Generator[None, None, None]:
    """End the program with one line on stderr and exit status 1 for user errors, failing files, full disks and `kinds`.

    Any other exception is a defect of the program and keeps its traceback.
    """
    try:
        yield
    except Exception as error:
        if is_disk_full(error) and not isinstance(error, UserError):
            message = f"no space is left on the disk ({error}): free some, and start the same command again"
        elif isinstance(error, UserError | OSError) or isinstance(error, kinds):
            message = str(error)
        else:
            raise
        raise SystemExit(f"Error: {' '.join(message.split())}") from None


def is_disk_full(error: Exception) -> bool:
    """Whether a file could not be written for want of space."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(
        part in str(error) for part in _FULL_DISK
    )
