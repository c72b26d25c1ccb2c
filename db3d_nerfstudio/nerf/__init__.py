"""The NeRF: the field, sampling of rays, light, losses, and the model that joins them."""

from db3d_nerfstudio.nerf.background import BackgroundConfig as BackgroundConfig
from db3d_nerfstudio.nerf.field import GridField as GridField
from db3d_nerfstudio.nerf.field import GridFieldConfig as GridFieldConfig
from db3d_nerfstudio.nerf.losses import LossWeights as LossWeights
from db3d_nerfstudio.nerf.model import DreamBooth3DModel as DreamBooth3DModel
from db3d_nerfstudio.nerf.model import DreamBooth3DModelConfig as DreamBooth3DModelConfig
from db3d_nerfstudio.nerf.render import Render as Render
from db3d_nerfstudio.nerf.render import render_rays as render_rays
