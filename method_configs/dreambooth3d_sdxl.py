"""DreamBooth3D with Stable Diffusion XL: adapters on half-precision weights, for a GPU with 24 GB."""

from typing import cast

from nerfstudio.plugins.types import MethodSpecification

from db3d_nerfstudio.guides.config import DiffusersGuideConfig
from db3d_nerfstudio.guides.unet.sdxl import SDXLGuideConfig
from db3d_nerfstudio.method_configs.dreambooth3d import make_config, with_public_numbers
from db3d_nerfstudio.training.trainer import DreamBooth3DTrainerConfig


def with_adapters(config: DreamBooth3DTrainerConfig) -> DreamBooth3DTrainerConfig:
    """What adapters of large models need: more iterations than the paper's, which moved all weights."""
    guide = cast(DiffusersGuideConfig, config.pipeline.model.guide)
    guide.tuning, guide.lora_rank = "lora", 16
    phases = config.pipeline.phases
    phases.partial_steps, phases.full_steps, phases.multiview_steps = 500, 1200, 300  # diffusers: 500 of 4 images.
    return config


config = with_public_numbers(make_config())
config.method_name = "dreambooth3d-sdxl"
config.pipeline.model.guide = SDXLGuideConfig(
    variant="fp16", text_encoder_memory="offload", gradient_checkpointing=True
)
config.pipeline.datamanager.random_cameras.resolution = ((0.0, 128), (0.5, 256))  # It is used to 1024 pixels.
config = with_adapters(config)

method = MethodSpecification(config, description="DreamBooth3D with Stable Diffusion XL.")
