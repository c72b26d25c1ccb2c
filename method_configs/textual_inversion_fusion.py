"""Baseline: the subject as one new word (Gal et al. 2022, 2208.01618), all weights frozen, then score distillation."""

from copy import deepcopy
from typing import cast

from nerfstudio.plugins.types import MethodSpecification

from db3d_nerfstudio.guides.unet.config import UNetGuideConfig
from db3d_nerfstudio.method_configs import dreambooth3d
from db3d_nerfstudio.method_configs.dreambooth_fusion import in_one_stage
from db3d_nerfstudio.training.trainer import DreamBooth3DTrainerConfig


def as_a_new_word(config: DreamBooth3DTrainerConfig) -> DreamBooth3DTrainerConfig:
    """Learn the identifier as a new word, and nothing else."""
    guide = cast(UNetGuideConfig, config.pipeline.model.guide)
    guide.tuning = "textual_inversion"
    guide.train_text_encoder = False
    config.pipeline.phases.identifier = guide.new_token
    config.pipeline.phases.dreambooth.learning_rate = None  # The guide's for a word.
    return config


config = as_a_new_word(in_one_stage(deepcopy(dreambooth3d.method.config)))
config.method_name = "textual-inversion-fusion"
config.pipeline.phases.full_steps = 3000  # diffusers.

method = MethodSpecification(config, description='Baseline: textual inversion, distillation; the prompt says "<sks>".')
