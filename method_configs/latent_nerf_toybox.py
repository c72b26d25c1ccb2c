"""Baseline in the world of toys: a NeRF of the guide's latents; each ray yields a patch of 8 x 8 pixels."""

from copy import deepcopy

from nerfstudio.plugins.types import MethodSpecification

from db3d_nerfstudio.method_configs import dreambooth_fusion_toybox
from db3d_nerfstudio.method_configs.latent_nerf import in_latents

config = in_latents(deepcopy(dreambooth_fusion_toybox.method.config), channels=16, resolution=8)
config.method_name = "latent-nerf-toybox"

method = MethodSpecification(config, description="Baseline on a CPU: full DreamBooth, a NeRF of the guide's latents.")
