"""Mistakes that only the user can put right, reported in one line without a traceback."""

from collections.abc import Generator
from contextlib import contextmanager


class UserError(ValueError):
    """A wrong input; the message is one line that names the fix."""


class DivergedError(UserError):
    """Training diverged and cannot recover; the message is one line that names what to change."""


@contextmanager
def exit_on_user_error(*kinds: type[Exception]) -> Generator[None, None, None]:
    """End the program with one line on stderr and exit status 1 for user errors, failing files and `kinds`.

    Any other exception is a defect of the program and keeps its traceback.
    """
    try:
        yield
    except (UserError, OSError, *kinds) as error:
        raise SystemExit(f"Error: {' '.join(str(error).split())}") from None
