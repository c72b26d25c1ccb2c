"""Time of a rectified flow (Liu et al. 2022, arXiv 2209.03003), and its steps, in the terms of the guides' protocol.

A flow is given x_s = (1 - s) z + s eps and predicts v = eps - z. With r^2 = (1 - s)^2 + s^2 it is the diffusion

    z_t = x_s / r,    alphas_cumprod = (1 - s)^2 / r^2,    eps = x_s + (1 - s) v,    z = x_s - s v.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from jaxtyping import Float, Real
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import FlowMatchEulerDiscreteScheduler


@dataclass(frozen=True)
class FlowSchedule:
    """The times s that a flow was trained at, one per timestep t; both ends, clean images and pure noise, are left out.

    Between two timesteps t is continuous.
    """

    shift: float = 1.0
    """How far times are moved towards noise, for the resolution (Esser et al. 2024, arXiv 2403.03206, eq. 23)."""
    num_train_timesteps: int = 1000

    def __len__(self) -> int:
        return self.num_train_timesteps - 1

    def time(self, t: Real[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """s at timesteps, 0 for the cleanest."""
        u = (t + 1) / self.num_train_timesteps
        return self.shift * u / (1 + (self.shift - 1) * u)

    def timestep(self, s: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """The inverse of `time`."""
        u = s / (self.shift - (self.shift - 1) * s)
        return u * self.num_train_timesteps - 1

    def abar(self, t: Real[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """alphas_cumprod at timesteps."""
        s = self.time(t)
        return (1 - s) ** 2 / length(s) ** 2


def length(s: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """r, the factor from z_t to x_s."""
    return ((1 - s) ** 2 + s**2).sqrt()


class Step(NamedTuple):
    """What a scheduler of diffusers returns."""

    prev_sample: Float[Tensor, "b c h w"]


class FlowSampler:
    """diffusers' Euler steps of a flow, from estimates of the noise in place of the velocity."""

    def __init__(self, scheduler: FlowMatchEulerDiscreteScheduler, schedule: FlowSchedule) -> None:
        """Args: `scheduler` with its timesteps set."""
        self._scheduler, self._schedule = cast(Any, scheduler), schedule  # Its own types are too narrow for tensors.
        # At s = 1 noise and x_s are the same, and the velocity could not be told from them.
        self.timesteps = schedule.timestep(self._scheduler.sigmas[:-1]).clamp(max=len(schedule) - 1)

    def step(
        self,
        eps: Float[Tensor, "b c h w"],
        t: Float[Tensor, ""],
        z_t: Float[Tensor, "b c h w"],
        generator: torch.Generator | None = None,
    ) -> Step:
        """z at the timestep after `t`, which is one of `timesteps`."""
        index = int((self.timesteps == t).nonzero()[0])
        s, (here, after) = self._schedule.time(t), self._scheduler.sigmas[index : index + 2]
        velocity = (eps - length(s) * z_t) / (1 - s)
        if self._scheduler.step_index is None:
            self._scheduler.set_begin_index(index)
        x = self._scheduler.step(velocity, self._scheduler.timesteps[index], length(here) * z_t).prev_sample
        return Step(x / length(after))
