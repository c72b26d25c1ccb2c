"""DreamBooth3D with Stable Diffusion 3.5 medium, a rectified flow: adapters, and distillation by its velocity."""

from nerfstudio.plugins.types import MethodSpecification

from db3d_nerfstudio.guides.flow.sd3 import SD3GuideConfig
from db3d_nerfstudio.method_configs.dreambooth3d import make_config, with_public_numbers
from db3d_nerfstudio.method_configs.dreambooth3d_sdxl import with_adapters
from db3d_nerfstudio.training.trainer import DreamBooth3DTrainerConfig


def with_flow_numbers(config: DreamBooth3DTrainerConfig) -> DreamBooth3DTrainerConfig:
    """What the public system for flows (RFDS, on SD3) and diffusers' scripts set; nothing is verified here."""
    model, data, dreambooth = config.pipeline.model, config.pipeline.datamanager, config.pipeline.phases.dreambooth
    model.sds.weighting, model.sds.guidance_scale, model.sds.guidance_rescale = "flow", 100.0, 0.0  # RFDS.
    model.recon_loss_mult = 750.0  # As much as 10 at scale 8; the weights of flows are six times as large.
    data.random_cameras.resolution = ((0.0, 128), (0.5, 256))  # RFDS: 256, then 512.
    dreambooth.snr_gamma = dreambooth.prior_snr_gamma = None  # diffusers.
    return config


config = with_flow_numbers(with_public_numbers(make_config()))
config.method_name = "dreambooth3d-sd3"
config.pipeline.model.guide = SD3GuideConfig(text_encoder_memory="free", gradient_checkpointing=True)
config = with_adapters(config)

method = MethodSpecification(config, description="DreamBooth3D with Stable Diffusion 3.5, a rectified flow.")
