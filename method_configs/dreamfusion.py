"""Baseline: text only (DreamFusion, 2209.14988), with this package's NeRF, and no photos."""

from nerfstudio.plugins.types import MethodSpecification

from db3d_nerfstudio.method_configs.dreambooth3d import make_config
from db3d_nerfstudio.method_configs.dreambooth_fusion import in_one_stage

config = in_one_stage(make_config())
config.method_name = "dreamfusion"
config.pipeline.phases.full_steps = 0

method = MethodSpecification(config, description="Baseline: text only, no photos; the prompt needs no identifier.")
