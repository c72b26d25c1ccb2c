"""DreamBooth3D with FLUX.2 klein, a rectified flow under an open licence: adapters on the 4B base model."""

from nerfstudio.plugins.types import MethodSpecification

from db3d_nerfstudio.guides.flow.flux2 import Flux2GuideConfig
from db3d_nerfstudio.method_configs.dreambooth3d import make_config, with_public_numbers
from db3d_nerfstudio.method_configs.dreambooth3d_sd3 import with_flow_numbers
from db3d_nerfstudio.method_configs.dreambooth3d_sdxl import with_adapters

config = with_flow_numbers(with_public_numbers(make_config()))  # SD3's: no public system distils klein.
config.method_name = "dreambooth3d-flux2"
config.pipeline.model.guide = Flux2GuideConfig(text_encoder_memory="free", gradient_checkpointing=True)
config = with_adapters(config)

method = MethodSpecification(config, description="DreamBooth3D with FLUX.2 klein, a rectified flow.")
