"""Work of the guide is paused from the viewer, which renders meanwhile."""

import threading
import time
from functools import partial

import pytest
from tiny_run import tiny_run

from db3d_nerfstudio.training.pipeline import unlocked

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


def test_the_pause_button_pauses_fine_tunings_and_the_viewer_renders_meanwhile(config):
    run, lock, resumed = tiny_run(config), threading.Lock(), threading.Event()
    run.context.unlocked = partial(unlocked, lock, run.pipeline)
    run.context.paused = lambda: not resumed.is_set()
    progress = run.context.record.progress

    def train():
        with lock:
            run.runner.before_step(0)

    work = threading.Thread(target=train, daemon=True)
    work.start()
    while progress.done == 0 and work.is_alive():
        time.sleep(0.01)
    assert lock.acquire(timeout=5), "this is the viewer"
    lock.release()
    time.sleep(0.2)
    assert progress.task.name == "Class images" and work.is_alive()
    resumed.set()
    work.join(timeout=30)
    assert (run.context.folder / "dreambooth" / "partial").exists()
