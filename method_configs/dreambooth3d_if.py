"""DreamBooth3D in pixel space, as in the paper: DeepFloyd IF in place of Imagen."""

from nerfstudio.plugins.types import MethodSpecification

from db3d_nerfstudio.guides.unet.deepfloyd import DeepFloydGuideConfig
from db3d_nerfstudio.method_configs.dreambooth3d import make_config, with_public_numbers
from db3d_nerfstudio.method_configs.dreambooth3d_sdxl import with_adapters

config = with_public_numbers(make_config())
config.method_name = "dreambooth3d-if"
config.pipeline.model.guide = DeepFloydGuideConfig(variant="fp16", gradient_checkpointing=True)
config.pipeline.model.sds.guidance_scale, config.pipeline.model.sds.guidance_rescale = 20.0, 0.0  # threestudio.
config.pipeline.model.recon_loss_mult = 25.0  # In proportion to the guidance scale.
config.pipeline.datamanager.random_cameras.elevation_range = (-10.0, 85.0)  # threestudio, dreamfusion-if.
config.pipeline.datamanager.random_cameras.resolution = ((0.0, 64),)  # All that it sees.
config.pipeline.datamanager.dataparser.resolution = 64
config = with_adapters(config)

method = MethodSpecification(config, description="DreamBooth3D with DeepFloyd IF, in pixel space as in the paper.")
