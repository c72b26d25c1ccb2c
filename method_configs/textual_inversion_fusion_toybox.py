"""Baseline in the world of toys: the subject as one new word, then score distillation."""

from copy import deepcopy

from nerfstudio.plugins.types import MethodSpecification

from db3d_nerfstudio.method_configs import dreambooth_fusion_toybox
from db3d_nerfstudio.method_configs.textual_inversion_fusion import as_a_new_word

config = as_a_new_word(deepcopy(dreambooth_fusion_toybox.method.config))
config.method_name = "textual-inversion-fusion-toybox"
config.pipeline.phases.full_steps = 800
config.example = False  # The bundled subject's prompt has another identifier.

method = MethodSpecification(config, description='Baseline on a CPU: textual inversion; the prompt says "<sks>".')
