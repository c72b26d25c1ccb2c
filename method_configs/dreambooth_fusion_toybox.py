"""Baseline in the world of toys: full DreamBooth, then score distillation with it; no stages."""

from copy import deepcopy

from nerfstudio.plugins.types import MethodSpecification

from db3d_nerfstudio.method_configs import dreambooth3d_toybox
from db3d_nerfstudio.method_configs.dreambooth_fusion import in_one_stage

config = in_one_stage(deepcopy(dreambooth3d_toybox.method.config))
config.method_name = "dreambooth-fusion-toybox"

method = MethodSpecification(config, description="Baseline on a CPU: full DreamBooth, then distillation; no stages.")
