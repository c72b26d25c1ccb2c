"""Baseline: a NeRF of the guide's latents (Latent-NeRF, Metzer et al. 2022, 2211.07600), full DreamBooth, no stages.

DreamBooth3D (2303.13508, section 4) compares with it. Guidance scale, weights and schedules stay those of the other
baselines here, so that what differs is where the NeRF lives.
"""

from nerfstudio.plugins.types import MethodSpecification

from db3d_nerfstudio.method_configs.dreambooth3d import make_config
from db3d_nerfstudio.method_configs.dreambooth_fusion import in_one_stage
from db3d_nerfstudio.training.trainer import DreamBooth3DTrainerConfig


def in_latents(config: DreamBooth3DTrainerConfig, channels: int, resolution: int) -> DreamBooth3DTrainerConfig:
    """Colours are the guide's z, of so many channels, and views have the size of its grid.

    Latents cannot be lit: every view shows what DreamFusion calls the albedo, as in Latent-NeRF. The grid is coarse
    enough to begin with.
    """
    config.pipeline.model.field.latent_channels = channels
    config.pipeline.model.shading.lambertian_prob = 0.0
    config.pipeline.datamanager.resolution = resolution
    config.pipeline.datamanager.random_cameras.coarse_until = 0.0
    return config


config = in_latents(in_one_stage(make_config()), channels=4, resolution=64)
config.method_name = "latent-nerf"

method = MethodSpecification(config, description="Baseline: full DreamBooth, then a NeRF of the guide's latents.")
