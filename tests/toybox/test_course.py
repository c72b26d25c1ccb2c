"""The course of a training: killed it ends like an unbroken one, and its rate stays until a run of its own cools it."""

import math

import pytest
import torch
from torch import nn

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.toybox import course


def make(path, **settings) -> course.Course:
    torch.manual_seed(0)
    layers = nn.ModuleDict({"all": nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 1))})
    settings = {"batch_size": 4, "num_images": 32, "ema_decay": 0.9} | settings
    return course.Course(course.CourseConfig(path, **settings), layers, ends=("all.0", "all.2"))


def train(one: course.Course, workers: int = 0) -> list[float]:
    losses = []

    def step(x):
        torch.manual_seed(one.step)
        losses.append(one.move((one.modules["all"](x + 0.1 * torch.randn_like(x)) - x.sum(1, True)).square().mean()))
        return losses[-1]

    one.config.workers = workers
    course.run(one, lambda: (torch.randn(4, 3),), step, publish=lambda: "nothing")
    return losses


def weights(one: course.Course) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in one.modules.parameters()])


def test_a_killed_training_ends_bit_for_bit_like_an_unbroken_one(tmp_path):
    whole = make(tmp_path / "whole")
    losses = train(whole)
    first = make(tmp_path / "broken", num_images=12)
    begun = train(first)
    second = make(tmp_path / "broken")
    assert second.step == 3 and begun + train(second) == losses
    assert torch.equal(weights(whole), weights(second))
    with whole.average(), second.average():
        assert torch.equal(weights(whole), weights(second)) and not torch.equal(weights(whole), weights(first))


def test_batches_prepared_beside_the_training_are_the_same(tmp_path):
    assert train(make(tmp_path / "here")) == train(make(tmp_path / "beside"), workers=1)


def test_a_cooldown_starts_where_another_run_is_and_leaves_it_alone(tmp_path):
    long = make(tmp_path / "long")
    train(long)
    kept = (tmp_path / "long" / course.CHECKPOINT).read_bytes()
    settings = {"cooldown_from": tmp_path / "long", "cooldown_images": 16}
    cooled = make(tmp_path / "cooled", **settings)
    assert cooled.step == 8 and cooled.last_step == 12 and torch.equal(weights(cooled), weights(long))
    train(cooled)
    assert make(tmp_path / "cooled", **settings).step == 12
    assert (tmp_path / "long" / course.CHECKPOINT).read_bytes() == kept
    with pytest.raises(UserError, match="give the cooldown another --output"):
        make(tmp_path / "cooled")
    with pytest.raises(UserError, match="no checkpoint"):
        make(tmp_path / "other", cooldown_from=tmp_path / "nowhere")


def test_the_rate_warms_up_stays_and_in_a_cooldown_falls_to_nothing():
    assert course.rate_at(0, None) == pytest.approx(1 / 100)
    assert course.rate_at(99, None) == course.rate_at(10**9, None) == 1
    assert [course.rate_at(step, (1000, 4)) for step in range(1000, 1005)] == [1, 0.75, 0.5, 0.25, 0]


def test_the_rate_moves_the_weights(tmp_path):
    def moved(one):
        before = weights(one)
        one.move(one.modules["all"](torch.ones(1, 3)).square().mean())
        return (weights(one) - before).norm().item()

    warm, cold = make(tmp_path / "warm"), make(tmp_path / "cold")
    warm.step = 50
    assert moved(warm) == pytest.approx(51 * moved(cold), rel=0.02)


def test_a_loss_that_is_no_number_stops_the_training(tmp_path):
    with pytest.raises(FloatingPointError, match="lower the learning rates"):
        make(tmp_path).move(torch.tensor(math.nan, requires_grad=True))
