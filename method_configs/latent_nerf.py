"""Baseline: a NeRF of the guide's latents (Latent-NeRF, Metzer et al. 2022, 2211.07600), full DreamBooth, no stages.

DreamBooth3D (2303.13508, section 4) compares with it.
"""

from copy import deepcopy

from nerfstudio.plugins.types import MethodSpecification

from db3d_nerfstudio.method_configs import dreambooth3d
from db3d_nerfstudio.method_configs.dreambooth_fusion import in_one_stage
from db3d_nerfstudio.training.trainer import DreamBooth3DTrainerConfig


def in_latents(config: DreamBooth3DTrainerConfig, channels: int, resolution: int) -> DreamBooth3DTrainerConfig:
    """Render the guide's z with this many channels, at the resolution of its grid.

    Latents cannot be shaded: every view shows the albedo, as in Latent-NeRF. There is no coarser start, because the
    grid is coarse already.
    """
    config.pipeline.model.field.latent_channels = channels
    config.pipeline.model.shading.lambertian_prob = 0.0
    config.pipeline.datamanager.random_cameras.resolution = ((0.0, resolution),)
    return config


config = in_latents(in_one_stage(deepcopy(dreambooth3d.method.config)), channels=4, resolution=64)
config.method_name = "latent-nerf"
config.pipeline.model.sds.guidance_scale, config.pipeline.model.sds.guidance_rescale = 100.0, 0.0  # Latent-NeRF.

method = MethodSpecification(config, description="Baseline: full DreamBooth, then a NeRF of the guide's latents.")
