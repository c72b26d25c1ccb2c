"""Baseline in the world of toys: text only."""

from copy import deepcopy

from nerfstudio.plugins.types import MethodSpecification

from db3d_nerfstudio.method_configs import dreambooth_fusion_toybox

config = deepcopy(dreambooth_fusion_toybox.method.config)
config.method_name = "dreamfusion-toybox"
config.example = False  # The bundled subject's prompt has an identifier.
config.pipeline.phases.full_steps = 0

method = MethodSpecification(config, description="Baseline on a CPU: text only, no photos.")
