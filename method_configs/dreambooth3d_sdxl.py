"""DreamBooth3D with Stable Diffusion XL: adapters on half-precision weights, for a GPU with 24 GB."""

from nerfstudio.plugins.types import MethodSpecification

from db3d_nerfstudio.guides.unet.sdxl import SDXLGuideConfig
from db3d_nerfstudio.method_configs.dreambooth3d import make_config

config = make_config()
config.method_name = "dreambooth3d-sdxl"
config.pipeline.model.guide = SDXLGuideConfig(tuning="lora", text_encoder_memory="offload", gradient_checkpointing=True)

method = MethodSpecification(config, description="DreamBooth3D with Stable Diffusion XL.")
