"""Output on the terminal: announced lines, without the notices that other packages print on every run."""

import os
import warnings
from collections.abc import Generator
from contextlib import contextmanager

from nerfstudio.utils import rich_utils
from rich.console import Console

CONSOLE = Console(soft_wrap=True)
"""Where this package prints. nerfstudio has its own console, which `nerfstudio_silenced` can therefore switch off."""

KNOWN_WARNINGS: tuple[tuple[type[Warning], str, str], ...] = (
    (FutureWarning, r"torch\.jit\._script", r"`torch\.jit\.script` is deprecated"),
    (FutureWarning, r"nerfstudio\.field_components\.activations", r"`torch\.cuda\.amp\.custom_(fwd|bwd)"),
    (FutureWarning, r"nerfstudio\.engine\.trainer", r"`torch\.cuda\.amp\.GradScaler"),
    (UserWarning, r"nerfstudio\.cameras\.cameras", r"Using a non-tuple sequence for multidimensional indexing"),
    (UserWarning, r"nerfstudio\.utils\.writer", r"Converting a tensor with requires_grad=True to a scalar"),
    (UserWarning, r"torch\.utils\.data\.dataloader", r"This DataLoader will create"),
    (SyntaxWarning, r".*nerfacc", r"invalid escape sequence"),
)
"""Category, module and beginning of each warning of other packages on a normal run: nothing a user can act on."""


def ignore_known_warnings() -> None:
    """Keep the `KNOWN_WARNINGS` of this process, and no others, off the terminal."""
    for category, module, text in KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", text, category, module)


@contextmanager
def nerfstudio_silenced() -> Generator[None, None, None]:
    """Keep nerfstudio's prints off the terminal within a `with` block; its exceptions still pass."""
    quiet = rich_utils.CONSOLE.quiet
    rich_utils.CONSOLE.quiet = True
    try:
        yield
    finally:
        rich_utils.CONSOLE.quiet = quiet


def announce(line: str) -> None:
    """One line that is not wrapped, so that it can be searched for and its paths copied."""
    CONSOLE.print(line, markup=False, highlight=False, style="bold")


def is_quiet(console: Console = CONSOLE) -> bool:
    """Whether the output is not a terminal, so that a few plain lines are better than a moving display."""
    return bool(os.environ.get("CI")) or not console.is_terminal
