"""What nerfstudio's trainer and viewer find in the pipeline."""

import threading
from types import SimpleNamespace

import pytest
from nerfstudio.engine.callbacks import TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.viewer.utils import parse_object
from nerfstudio.viewer.viewer_elements import ViewerControl
from tiny_run import START, tiny_run

from db3d_nerfstudio.training.pipeline import unlocked
from db3d_nerfstudio.training.runner import PhaseRunner

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


@pytest.fixture
def pipeline(config):
    return tiny_run(config).pipeline


def loop_of(config, pipeline):
    """What the pipeline uses of the trainer."""
    return SimpleNamespace(
        config=config,
        optimizers=pipeline.context.optimizers,
        gradient_accumulation_steps={"encodings": 4},
        training_state="training",
        train_lock=threading.Lock(),
        save_checkpoint=[].append,
        save_if_due=[].append,
        end_at=[].append,
        end_of_training=lambda step: None,
    )


def test_the_viewer_finds_the_panel_in_the_pipeline(pipeline):
    assert [control for _, control in parse_object(pipeline, ViewerControl, "")] == [pipeline.viewer_panel]


def test_the_context_is_what_the_trainer_has(config, pipeline):
    loop = loop_of(config, pipeline)
    saves = loop.save_if_due.__self__
    attributes = TrainingCallbackAttributes(loop.optimizers, None, pipeline, trainer=loop)
    callbacks = pipeline.get_training_callbacks(attributes)
    context = pipeline.context
    assert (context.folder, context.seed, context.accumulation) == (config.run_folder(), config.machine.seed, 4)
    assert len(context.record.progress.listeners) == 1, "the manifest; without a viewer the panel does not listen"
    assert not context.paused()
    loop.training_state = "paused"
    assert context.paused()
    loop.training_state = "training"
    with loop.train_lock:
        for callback in callbacks:
            callback.run_callback_at_location(START - 1, TrainingCallbackLocation.BEFORE_TRAIN_ITERATION)
        pipeline.get_train_loss_dict(START - 1)
    assert saves == [START - 2] and context.step == START - 1
    assert "opacity" in str(context.losses) and not any(loss.requires_grad for loss in context.losses.values())


def test_the_film_at_the_end_is_not_disturbed_by_the_viewer(config, pipeline, monkeypatch):
    loop, seen = loop_of(config, pipeline), []
    monkeypatch.setattr(PhaseRunner, "after_training", lambda _, step: seen.append((step, loop.train_lock.locked())))
    attributes = TrainingCallbackAttributes(loop.optimizers, None, pipeline, trainer=loop)
    for callback in pipeline.get_training_callbacks(attributes):
        callback.run_callback_at_location(7, TrainingCallbackLocation.AFTER_TRAIN)
    assert seen == [(7, True)] and not loop.train_lock.locked()


def test_the_viewer_may_render_while_the_guide_computes(pipeline):
    lock = threading.Lock()
    with lock:
        with unlocked(lock, pipeline):
            assert lock.acquire(blocking=False), "this is the viewer"
            pipeline.eval()
            lock.release()
        assert lock.locked() and pipeline.training
