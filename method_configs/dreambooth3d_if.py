"""DreamBooth3D in pixel space, as in the paper: DeepFloyd IF in place of Imagen."""

from nerfstudio.plugins.types import MethodSpecification

from db3d_nerfstudio.guides.unet.deepfloyd import DeepFloydGuideConfig
from db3d_nerfstudio.method_configs.dreambooth3d import make_config

config = make_config()
config.method_name = "dreambooth3d-if"
config.pipeline.model.guide = DeepFloydGuideConfig(variant="fp16", gradient_checkpointing=True)
config.pipeline.model.sds.guidance_scale = 20.0

method = MethodSpecification(config, description="DreamBooth3D with DeepFloyd IF, in pixel space as in the paper.")
