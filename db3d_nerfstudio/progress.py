"""What a user sees while something other than NeRF steps goes on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from nerfstudio.utils.rich_utils import CONSOLE
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def announce(line: str) -> None:
    """One line that is not wrapped, so that it can be searched for and its paths copied."""
    CONSOLE.print(line, soft_wrap=True, markup=False, highlight=False, style="bold")


@contextmanager
def progress_bar(label: str, total: int) -> Iterator[Callable[[int, float | None], None]]:
    """A progress bar; call what it yields with the number of things done, and the loss if there is one."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=CONSOLE) as bar:
        task = bar.add_task(label, total=total, note="")

        def update(done: int, loss: float | None = None) -> None:
            bar.update(task, completed=done, note="" if loss is None else f"loss {loss:.4f}")

        yield update
