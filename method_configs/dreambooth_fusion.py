"""Baseline: full DreamBooth, then score distillation with it; no stages (DreamBooth+Fusion of 2303.13508, table 1)."""

from copy import deepcopy

from nerfstudio.plugins.types import MethodSpecification

from db3d_nerfstudio.method_configs import dreambooth3d
from db3d_nerfstudio.training.trainer import DreamBooth3DTrainerConfig


def in_one_stage(config: DreamBooth3DTrainerConfig) -> DreamBooth3DTrainerConfig:
    """One NeRF, guided by D_full, for as long as the two are trained together."""
    phases = config.pipeline.phases
    phases.initial.steps += phases.final.steps
    phases.final.steps = 0
    return config


config = in_one_stage(deepcopy(dreambooth3d.method.config))
config.method_name = "dreambooth-fusion"

method = MethodSpecification(config, description="Baseline: full DreamBooth, then score distillation; no stages.")
