"""What a user sees on the terminal: announced lines, and whether anybody watches."""

import os

from nerfstudio.utils.rich_utils import CONSOLE
from rich.console import Console


def announce(line: str) -> None:
    """One line that is not wrapped, so that it can be searched for and its paths copied."""
    CONSOLE.print(line, soft_wrap=True, markup=False, highlight=False, style="bold")


def is_quiet(console: Console = CONSOLE) -> bool:
    """Whether nobody watches: a few plain lines are better than a display that moves."""
    return bool(os.environ.get("CI")) or not console.is_terminal
