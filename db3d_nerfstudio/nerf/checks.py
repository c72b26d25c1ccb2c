"""Checks that end a run whose NeRF has diverged, before a checkpoint of it replaces a good one."""

from collections.abc import Iterable

import torch
from torch.nn import Parameter

from db3d_nerfstudio.errors import DivergedError
from db3d_nerfstudio.nerf.render import Render

__all__ = ["EMPTY", "check_finite", "check_not_empty"]

EMPTY = 0.1
"""Opacity that the densest ray of a training view has at least, if there is a NeRF."""


@torch.no_grad()
def check_finite(parameters: Iterable[Parameter]) -> None:
    """Raise if a parameter is infinite or not a number; call it after the optimizers have stepped."""
    if not torch.stack([parameter.sum() for parameter in parameters]).isfinite().all():
        raise DivergedError(
            "the NeRF's weights are not finite after this step: lower --optimizers.encodings.optimizer.lr and "
            "--optimizers.networks.optimizer.lr. The run keeps its last checkpoint"
        )


@torch.no_grad()
def check_not_empty(render: Render) -> None:
    """Raise if no ray of a training view meets matter, as an empty NeRF cannot recover."""
    if render.accumulation.max() < EMPTY:
        raise DivergedError(
            f"the NeRF is empty: no ray of this view is {EMPTY:.0%} opaque. Lower --pipeline.model.losses.opacity, or "
            "train with another --machine.seed. The run keeps its last checkpoint"
        )
