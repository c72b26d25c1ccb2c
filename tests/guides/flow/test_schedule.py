"""Time of flows against diffusers' scheduler, and against a flow with a closed form."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from db3d_nerfstudio.guides.flow.schedule import FlowSampler, FlowSchedule, length

SHIFTS = [1.0, 3.0]


@pytest.mark.parametrize("shift", SHIFTS)
def test_the_grid_is_that_of_training_without_its_ends(shift: float) -> None:
    schedule, theirs = FlowSchedule(shift), FlowMatchEulerDiscreteScheduler(shift=shift).sigmas
    s = schedule.time(torch.arange(len(schedule)))
    torch.testing.assert_close(s, theirs.flip(0)[:-1])
    assert 0 < s[0] and s[-1] < 1 and theirs[0] == 1
    torch.testing.assert_close(schedule.timestep(s), torch.arange(999.0), atol=1e-3, rtol=0)
    abar = schedule.abar(torch.arange(len(schedule)))
    torch.testing.assert_close((1 / abar - 1).sqrt(), s / (1 - s), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shift", SHIFTS)
def test_steps_are_those_of_diffusers(shift: float) -> None:
    """A velocity that is a function of x and s, stepped by diffusers in x_s and by us in z_t from its noise."""
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs.set_timesteps(7)
    schedule = FlowSchedule(shift)
    sampler = FlowSampler(theirs, schedule)
    x = torch.randn(2, 3, 4, 4)
    z_t = x.clone()
    for i, t in enumerate(sampler.timesteps):
        s = schedule.time(t)
        eps = length(s) * z_t + (1 - s) * torch.sin(3 * length(s) * z_t + s)
        z_t = sampler.step(eps, t, z_t).prev_sample
        here, after = theirs.sigmas[i : i + 2]
        x = x + (after - here) * torch.sin(3 * x + here)
        torch.testing.assert_close(length(after) * z_t, x, atol=5e-3, rtol=0)  # The first step is at s just below 1.
    assert len(sampler.timesteps) == 7 and sampler.timesteps[0] == 998


def test_steps_from_within_are_exact() -> None:
    theirs = FlowMatchEulerDiscreteScheduler(shift=3.0)
    theirs.set_timesteps(8)
    schedule = FlowSchedule(3.0)
    sampler, x = FlowSampler(theirs, schedule), torch.randn(2, 3, 4, 4)
    z_t = x / length(theirs.sigmas[4])
    for i in range(4, 8):
        s = schedule.time(sampler.timesteps[i])
        eps = length(s) * z_t + (1 - s) * torch.sin(3 * length(s) * z_t + s)
        z_t = sampler.step(eps, sampler.timesteps[i], z_t).prev_sample
        x = x + (theirs.sigmas[i + 1] - theirs.sigmas[i]) * torch.sin(3 * x + theirs.sigmas[i])
    torch.testing.assert_close(z_t, x, atol=1e-5, rtol=0)


@pytest.mark.parametrize("std", [0.05, 0.3])
def test_signs_by_an_analytic_flow(std: float) -> None:
    """Of z ~ N(0.7, std^2) the velocity is known: the clean estimate is nearer than x_s, the more so the less noise."""
    schedule, z, eps = FlowSchedule(3.0), 0.7 + std * torch.randn(1, 3, 32, 32), torch.randn(1, 3, 32, 32)
    errors: list[Tensor] = []
    for level in (0.3, 0.7):
        t = schedule.timestep(torch.tensor(level))
        s = schedule.time(t)
        x = (1 - s) * z + s * eps
        residual = (x - (1 - s) * 0.7) / ((1 - s) ** 2 * std**2 + s**2)
        velocity = s * residual - 0.7 - (1 - s) * std**2 * residual
        noise = x + (1 - s) * velocity  # What a guide answers.
        z_t, abar = x / length(s), schedule.abar(t)
        z_hat = (z_t - (1 - abar).sqrt() * noise) / abar.sqrt()
        torch.testing.assert_close(z_hat, x - s * velocity, atol=1e-5, rtol=0)
        assert (z_hat - z).norm() < (x - z).norm()
        errors.append((z_hat - z).norm())
    assert errors[0] < errors[1]
