"""Presets in miniature: all three stages in seconds, by what `ns-train` calls after reading arguments."""

import copy
import importlib
from pathlib import Path
from typing import Any

from db3d_nerfstudio.training.trainer import DreamBooth3DTrainerConfig

VIEWS = 2
"""Number of pseudo views."""


def tiny_config(preset: str, model: Path, photos: Path | None, output: Path, **guide: Any) -> DreamBooth3DTrainerConfig:
    """The preset with everything small, and settings of its guide."""
    config = copy.deepcopy(importlib.import_module(f"db3d_nerfstudio.method_configs.{preset}").method.config)
    config.output_dir, config.data, config.vis = output, photos, "tensorboard"
    config.machine.device_type = "cpu"
    pipeline, phases = config.pipeline, config.pipeline.phases
    pipeline.model.prompt = "a photo of a sks dog"
    pipeline.model.guide.model = str(model)
    for name, value in {"variant": None, **guide}.items():
        setattr(pipeline.model.guide, name, value)
    pipeline.model.field.resolutions, pipeline.model.background.color = (4, 8), (1.0, 1.0, 1.0)
    pipeline.model.sampler.num_samples, pipeline.model.sampler.resolution = 16, 16
    pipeline.datamanager.random_cameras.resolution = ((0.0, 8), (0.4, 16))
    pipeline.datamanager.dataparser.resolution = 16
    pipeline.datamanager.dataparser.num_views = VIEWS
    pipeline.datamanager.train_num_rays_per_batch = 64
    phases.initial.steps, phases.final.steps = 4, 6
    phases.partial_steps, phases.full_steps, phases.multiview_steps = 2, 3, 1
    phases.dreambooth.num_class_images, phases.dreambooth.class_sampling.steps = 2, 2
    phases.pseudo_views.steps = 4
    config.steps_per_eval_batch = config.steps_per_eval_image = config.steps_per_eval_all_images = 1000
    return config
