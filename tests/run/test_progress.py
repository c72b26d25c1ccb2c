"""How far a run is, with a clock that the tests turn."""

import io

import pytest
from rich.console import Console

from db3d_nerfstudio.console import is_quiet
from db3d_nerfstudio.run.progress import RunProgress, clock_time, shown, time_left
from db3d_nerfstudio.training.phases import InitialPhaseConfig, NerfPhaseConfig, PhasesConfig, PseudoViewsConfig
from db3d_nerfstudio.training.tasks import run_tasks

PHASES = PhasesConfig(
    initial=InitialPhaseConfig(steps=100),
    final=NerfPhaseConfig(steps=50),
    pseudo_views=PseudoViewsConfig(strength=0.5, steps=20),
    partial_steps=10,
    full_steps=40,
    multiview_steps=10,
)
PHASES.dreambooth.num_class_images, PHASES.dreambooth.class_sampling.steps = 8, 5


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def progress(clock):
    return RunProgress(run_tasks(PHASES, num_views=4), clock)


def work(progress, clock, name, seconds_each, upto):
    """Do a task at an even pace."""
    progress.begin(name)
    for done in range(1, upto + 1):
        clock.now += seconds_each
        progress.update(done, 0.5)


def test_what_is_left_follows_from_the_pace_of_each_kind(progress, clock):
    work(progress, clock, "Class images", 5.0, 8)
    assert progress.seconds_left(whole_run=False) == (0.0, False), "nothing is known of the rest"
    progress.end()
    work(progress, clock, "DreamBooth partial", 2.0, 10)
    work(progress, clock, "Initial NeRF", 0.5, 20)
    assert progress.seconds_left(whole_run=False) == pytest.approx((80 * 0.5, True))
    # 40 + 10 iterations of 2 s; 4 views of 10 sampler steps of 1 s (a class image of 5 took 5 s); 50 NeRF steps.
    left, complete = progress.seconds_left(whole_run=True)
    assert complete and left == pytest.approx(40 + 100 + 40 + 25)
    assert time_left(progress) == "stage 0:40, run 3:25 left"


def test_the_pace_is_the_recent_one_and_knows_no_pauses(progress, clock):
    work(progress, clock, "Initial NeRF", 0.1, 10)
    clock.now += 3600
    progress.restart_clock()
    for done in range(11, 21):
        clock.now += 0.3
        progress.update(done)
    assert progress.seconds_left(whole_run=False)[0] == pytest.approx(80 * 0.3)


def test_a_resumed_run_counts_what_was_done_before(progress, clock):
    progress.begin("Final NeRF", done=30)
    clock.now += 2.0
    progress.update(31)
    assert progress.seconds_left(whole_run=True) == pytest.approx((19 * 2.0, True))


def test_without_a_terminal_there_are_few_plain_lines(progress, clock):
    out = io.StringIO()
    console = Console(file=out, width=60)
    with shown(progress, console):
        work(progress, clock, "Class images", 0.1, 0)
        progress.end()
        work(progress, clock, "Initial NeRF", 2.0, 100)
        progress.end()
    progress.update(100)
    lines = out.getvalue().splitlines()
    assert lines[0] == "Initial NeRF: 30 of 100, stage 2:20, run over 4:00 left"
    assert lines[-1] == "Initial NeRF: 100 in 3:20, loss 0.5000"
    assert len(lines) == 4, "one a minute, and the end; nothing of images found on disk"
    assert "\x1b" not in out.getvalue()


def test_on_a_terminal_one_line_moves(progress, clock, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    out = io.StringIO()
    console = Console(file=out, width=120, force_terminal=True, color_system=None)
    with shown(progress, console):
        work(progress, clock, "DreamBooth partial", 2.0, 7)
    assert "1/3 initial: DreamBooth partial" in out.getvalue()
    assert "7/10" in out.getvalue() and "loss 0.5000, stage over 0:06, run over 1:46 left" in out.getvalue()
    assert not progress.listeners


def test_ci_is_quiet_even_with_a_terminal(monkeypatch):
    console = Console(file=io.StringIO(), force_terminal=True)
    monkeypatch.setenv("CI", "true")
    assert is_quiet(console)
    monkeypatch.delenv("CI")
    assert not is_quiet(console) and is_quiet(Console(file=io.StringIO()))


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0:00"), (61.0, "1:01"), (3599.6, "1:00:00"), (7322.0, "2:02:02")])
def test_clock_time(seconds, text):
    assert clock_time(seconds) == text
