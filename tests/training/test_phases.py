import random

import numpy as np
import pytest
import torch
import tyro

from db3d_nerfstudio.diffusion.upscaler import UpscalerConfig
from db3d_nerfstudio.training.phases import (
    InitialPhaseConfig,
    NerfPhaseConfig,
    PhasesConfig,
    PseudoViewsConfig,
    phase_at,
    seed_everything,
)


@pytest.fixture
def config():
    return PhasesConfig(initial=InitialPhaseConfig(steps=4), final=NerfPhaseConfig(steps=8))


def test_every_step_belongs_to_one_phase_and_progress_grows_within_it(config):
    phases = [phase_at(config, step) for step in range(config.total_steps())]
    assert [phase.name for phase in phases] == ["initial"] * 4 + ["final"] * 8
    assert [phase.start for phase in phases] == [0] * 4 + [4] * 8
    assert [phase.progress for phase in phases] == [i / 4 for i in range(4)] + [i / 8 for i in range(8)]


def test_steps_beyond_the_end_belong_to_the_last_phase(config):
    assert phase_at(config, 1000) == ("final", 4, 7 / 8)


def test_a_method_without_stages_has_one_phase(config):
    config.final.steps = 0
    assert phase_at(config, 1000) == ("initial", 0, 3 / 4)
    assert config.total_steps() == 4


def test_the_paper_s_numbers_are_the_defaults():
    config = PhasesConfig()
    assert (config.partial_steps, config.full_steps, config.multiview_steps) == (150, 800, 150)


def test_draws_are_a_function_of_seed_and_step():
    def draws(seed, step):
        seed_everything(seed, step)
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    first = draws(0, 5)
    assert draws(0, 5) == first
    for other in [draws(0, 6), draws(1, 5)]:
        assert all(a != b for a, b in zip(first, other, strict=True))


def test_a_phase_that_is_ended_early_keeps_its_schedule(config):
    ends = {"initial": 2}
    assert [phase_at(config, step, ends) for step in (0, 1)] == [phase_at(config, step) for step in (0, 1)]
    assert phase_at(config, 2, ends) == ("final", 2, 0.0) and phase_at(config, 4, ends).progress == 2 / 8
    assert config.total_steps(ends) == 10
    assert config.total_steps({"initial": 2, "final": 6}) == 6 and config.total_steps({"final": 6}) == 6
    config.final.steps = 0
    assert config.total_steps(ends) == 2 and phase_at(config, 2, ends).name == "initial"


def test_an_upscaler_is_turned_on_at_the_end_of_a_command():
    arguments = ["--strength", "0.4", "upscaler:upscaler-config", "--upscaler.max-train-steps", "3"]
    config = tyro.cli(PseudoViewsConfig, args=arguments)
    assert config == PseudoViewsConfig(strength=0.4, upscaler=UpscalerConfig(max_train_steps=3))
    assert tyro.cli(PseudoViewsConfig, args=[]).upscaler is None
