"""A destroyed NeRF is noticed in the step that destroys it."""

import dataclasses

import pytest
import torch
from nerfstudio.engine.callbacks import TrainingCallbackAttributes
from tiny_model import FIELD, build, guided_batch, losses_of, pixels

from db3d_nerfstudio.errors import DivergedError


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("group", ["encodings", "networks"])
def test_weights_that_are_not_finite_are_noticed_after_the_step(value, group):
    model = build()
    (callback,) = model.get_training_callbacks(TrainingCallbackAttributes(None, None, None, None))
    callback.run_callback(0)
    model.get_param_groups()[group][-1].data.view(-1)[-1] = value
    with pytest.raises(DivergedError, match="not finite.*optimizer.lr"):
        callback.run_callback(1)


@pytest.mark.parametrize("batch", [None, pixels])
def test_an_empty_nerf_is_noticed(batch):
    model = build()
    losses_of(model, batch)
    model.get_param_groups()["networks"][-1].data[0] -= 50
    with pytest.raises(DivergedError, match="empty.*--pipeline.model.losses.opacity"):
        losses_of(model, batch)


def test_a_thin_nerf_is_not_empty():
    model, (rays, _) = build(field=dataclasses.replace(FIELD, density_scale=0.05)), guided_batch()
    assert 0.1 < model(rays)["accumulation"].max() < 0.5
    losses_of(model)
