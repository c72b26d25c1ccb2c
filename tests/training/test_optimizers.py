"""The optimizer's settings reach torch."""

import pytest
import torch

from db3d_nerfstudio.training.optimizers import FusedAdamConfig


@pytest.mark.parametrize("config", [FusedAdamConfig(lr=0.1), FusedAdamConfig(lr=0.1, fused=False, betas=(0.5, 0.9))])
def test_settings_reach_torch(config):
    optimizer = config.setup(params=[torch.nn.Parameter(torch.zeros(2))])
    assert optimizer.defaults["betas"] == config.betas and optimizer.defaults["fused"] == config.fused
