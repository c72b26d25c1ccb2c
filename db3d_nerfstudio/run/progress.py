"""The progress of a run: its tasks in order, the time they took, and the time left.

One `RunProgress` counts everything that takes time: images of the class, fine-tunings, NeRF steps, pseudo views. The
terminal, the viewer's panel and the manifest subscribe to it.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from db3d_nerfstudio.console import CONSOLE, is_quiet

Event = Literal["begin", "update", "end"]
PACE_WINDOW = 100
"""How many of the last updates the pace is measured over."""
SECONDS_BETWEEN_LINES = 60.0
"""Without a terminal, a task that takes long reports this often at most."""


@dataclass(frozen=True)
class Task:
    """A piece of a run's work."""

    stage: str
    """The stage that it belongs to, as announced."""
    name: str
    """Its name for users."""
    kind: Literal["images", "tuning", "upscaling", "initial NeRF", "final NeRF"]
    """Tasks of one kind take the same time per unit."""
    total: int
    """Number of things that it makes or does."""
    units: int = 1
    """Units of work in each of them, such as sampler steps in an image."""


Listener = Callable[["RunProgress", Event], None]


class RunProgress:
    """The present task, and those to come.

    A task that is begun ends those before it: an artifact that was found on disk never begins.
    """

    def __init__(self, tasks: list[Task], clock: Callable[[], float] = time.monotonic) -> None:
        self.tasks = tasks
        self.task: Task | None = None
        self.done = 0
        self.loss: float | None = None
        self.listeners: list[Listener] = []
        self._began = 0.0
        self.clock = clock
        self._pace: dict[str, float] = {}  # Seconds per unit of each kind of task.
        self._recent: deque[tuple[float, int]] = deque(maxlen=PACE_WINDOW)

    @property
    def present(self) -> Task:
        """The present task.

        Raises:
            RuntimeError: none has begun.
        """
        if self.task is None:
            raise RuntimeError("no task has begun: call begin(name) first")
        return self.task

    def begin(self, name: str, done: int = 0) -> None:
        """Start the task of this name, or continue it in a resumed run."""
        (self.task,) = (task for task in self.tasks if task.name == name)
        self.done, self.loss, self._began = done, None, self.clock()
        self.restart_clock()
        self._notify("begin")

    def update(self, done: int, loss: float | None = None) -> None:
        """Set how many of the present task's things are done."""
        self.done = done
        self.loss = self.loss if loss is None else loss
        self._recent.append((self.clock(), done))
        (since, first), task = self._recent[0], self.present
        if done > first:
            self._pace[task.kind] = (self.clock() - since) / (done - first) / task.units
        self._notify("update")

    def end(self) -> None:
        """End the present task, whether it was worked on or its result was on disk."""
        self._notify("end")

    @property
    def seconds(self) -> float:
        """Seconds that the present task has taken in this process."""
        return self.clock() - self._began

    def restart_clock(self) -> None:
        """Forget when the last thing was done: a pause is not part of the pace."""
        self._recent.clear()
        self._recent.append((self.clock(), self.done))

    @contextmanager
    def during(self, name: str) -> Iterator[Callable[..., None]]:
        """Begin a task, and end it with the `with` block; yields `update`."""
        self.begin(name)
        yield self.update
        self.end()

    def seconds_left(self, whole_run: bool) -> tuple[float, bool]:
        """Seconds left of the present stage or of the run, and whether that includes all tasks.

        A kind of task cannot be estimated before the first of it has begun.
        """
        if self.task is None:
            return 0.0, False
        coming = self.tasks[self.tasks.index(self.task) :]
        coming = [task for task in coming if whole_run or task.stage == self.task.stage]
        seconds, complete = 0.0, True
        for task in coming:
            pace = self._pace_of(task)
            complete = complete and pace is not None
            left = task.total - self.done if task is self.task else task.total
            seconds += (pace or 0.0) * left * task.units
        return seconds, complete

    def _pace_of(self, task: Task) -> float | None:
        """Seconds per unit. The final NeRF is assumed to be as fast as the initial one until it has been timed."""
        likeness = {"final NeRF": "initial NeRF"}
        return self._pace.get(task.kind, self._pace.get(likeness.get(task.kind, "")))

    def _notify(self, event: Event) -> None:
        for listener in self.listeners:
            listener(self, event)


def clock_time(seconds: float) -> str:
    """Seconds as hours, minutes and seconds, like a clock."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def time_left(progress: RunProgress) -> str:
    """Time left of the stage and of the run; "over" if a part of it has not been timed yet."""
    parts = []
    for label, whole_run in (("stage", False), ("run", True)):
        seconds, complete = progress.seconds_left(whole_run)
        parts.append(f"{label} {'' if complete else 'over '}{clock_time(seconds)}")
    return f"{', '.join(parts)} left"


@contextmanager
def shown(progress: RunProgress, console: Console = CONSOLE) -> Iterator[None]:
    """Show progress on the terminal within a `with` block: a moving line, or a few plain lines."""
    style = _plain_lines if is_quiet(console) else _moving_line
    with style(progress, console) as listener:
        progress.listeners.append(listener)
        try:
            yield
        finally:
            progress.listeners.remove(listener)


@contextmanager
def _moving_line(progress: RunProgress, console: Console) -> Iterator[Listener]:
    columns = [TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn()]
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=console, transient=True) as line:
        row = line.add_task("Setting up", total=None, note="")

        def show(progress: RunProgress, event: Event) -> None:
            if event == "end":
                _say_end(progress, console)
                return
            task = progress.present
            loss = "" if progress.loss is None else f"loss {progress.loss:.4f}, "
            note = loss + time_left(progress)
            line.update(
                row, description=f"{task.stage}: {task.name}", total=task.total, completed=progress.done, note=note
            )

        yield show


@contextmanager
def _plain_lines(progress: RunProgress, console: Console) -> Iterator[Listener]:
    spoke = progress.clock()

    def report(progress: RunProgress, event: Event) -> None:
        nonlocal spoke
        now = progress.clock()
        if event == "end":
            _say_end(progress, console)
        elif event == "update" and progress.done < progress.present.total and now >= spoke + SECONDS_BETWEEN_LINES:
            task = progress.present
            _print(console, f"{task.name}: {progress.done} of {task.total}, {time_left(progress)}")
        else:
            return
        spoke = now

    yield report


def _say_end(progress: RunProgress, console: Console) -> None:
    if progress.done:
        loss = "" if progress.loss is None else f", loss {progress.loss:.4f}"
        _print(console, f"{progress.present.name}: {progress.done} in {clock_time(progress.seconds)}{loss}")


def _print(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
