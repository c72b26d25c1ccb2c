"""Text-to-image diffusion models as guides: the protocol in `base.py`, and the models that satisfy it."""

from db3d_nerfstudio.guides.base import DiffusionGuide as DiffusionGuide
from db3d_nerfstudio.guides.base import DiffusionGuideConfig as DiffusionGuideConfig
from db3d_nerfstudio.guides.flow.flux2 import Flux2Guide as Flux2Guide
from db3d_nerfstudio.guides.flow.flux2 import Flux2GuideConfig as Flux2GuideConfig
from db3d_nerfstudio.guides.flow.sd3 import SD3Guide as SD3Guide
from db3d_nerfstudio.guides.flow.sd3 import SD3GuideConfig as SD3GuideConfig
from db3d_nerfstudio.guides.unet.deepfloyd import DeepFloydGuide as DeepFloydGuide
from db3d_nerfstudio.guides.unet.deepfloyd import DeepFloydGuideConfig as DeepFloydGuideConfig
from db3d_nerfstudio.guides.unet.sdxl import SDXLGuide as SDXLGuide
from db3d_nerfstudio.guides.unet.sdxl import SDXLGuideConfig as SDXLGuideConfig
from db3d_nerfstudio.guides.unet.stable_diffusion import StableDiffusionGuide as StableDiffusionGuide
from db3d_nerfstudio.guides.unet.stable_diffusion import StableDiffusionGuideConfig as StableDiffusionGuideConfig
