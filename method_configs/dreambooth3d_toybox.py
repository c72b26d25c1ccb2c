"""DreamBooth3D in the world of toys: the embedded guide, no download, a CPU is enough."""

from db3d_nerfstudio.method_configs.dreambooth3d import make_config
from nerfstudio.plugins.types import MethodSpecification

from db3d_nerfstudio.guides.toybox import ToyboxGuideConfig

config = make_config()
config.method_name = "dreambooth3d-toybox"
config.example = True
config.pipeline.model.guide = ToyboxGuideConfig()
config.pipeline.phases.initial.steps = 1500
config.pipeline.phases.final.steps = 2500
config.pipeline.phases.pseudo_views.guidance_scale = 4.0
config.pipeline.phases.pseudo_views.sample_steps = 25

method = MethodSpecification(config, description="DreamBooth3D on a CPU in minutes: the embedded guide of toys.")
