"""Baseline: text only (DreamFusion, 2209.14988), with this package's NeRF, and no photos."""

from copy import deepcopy

from nerfstudio.plugins.types import MethodSpecification

from db3d_nerfstudio.method_configs import dreambooth3d
from db3d_nerfstudio.method_configs.dreambooth_fusion import in_one_stage

config = in_one_stage(deepcopy(dreambooth3d.method.config))
config.method_name = "dreamfusion"
config.pipeline.phases.full_steps = 0
config.pipeline.model.sds.guidance_scale, config.pipeline.model.sds.guidance_rescale = 100.0, 0.0  # threestudio.
config.pipeline.model.guide.train_text_encoder = False

method = MethodSpecification(config, description="Baseline: text only, no photos; the prompt needs no identifier.")
