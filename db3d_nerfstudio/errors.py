"""Mistakes only the user can put right, told in one line instead of a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """A wrong input; the message is one line that names the fix."""


@contextmanager
def one_line(*kinds: type[Exception]) -> Iterator[None]:
    """End the program with one line on stderr and exit status 1 for user errors, failing files and `kinds`."""
    try:
        yield
    except (UserError, OSError, *kinds) as error:
        raise SystemExit(f"Error: {' '.join(str(error).split())}") from None
