"""A command line as `ns-train` has read it, and the beginning of its run."""

import copy
from pathlib import Path

from nerfstudio.configs.base_config import MachineConfig

from db3d_nerfstudio.guides.base import DiffusionGuideConfig
from db3d_nerfstudio.nerf.model import DreamBooth3DModelConfig
from db3d_nerfstudio.training.pipeline import DreamBooth3DPipelineConfig
from db3d_nerfstudio.training.trainer import DreamBooth3DTrainerConfig


def typed_command(photos: Path, output: Path) -> DreamBooth3DTrainerConfig:
    """What `ns-train` has made of a command line when it calls `set_timestamp`."""
    config = DreamBooth3DTrainerConfig(
        method_name="m",
        machine=MachineConfig(device_type="cpu"),
        output_dir=output,
        gradient_accumulation_steps={"encodings": 2},
        pipeline=DreamBooth3DPipelineConfig(model=DreamBooth3DModelConfig(guide=DiffusionGuideConfig())),
    )
    config.pipeline.datamanager.data = photos
    config.pipeline.model.prompt = "a photo of a sks robot"
    config.pipeline.phases.initial.steps = 4
    config.pipeline.phases.final.steps = 6
    return config


def begin(config: DreamBooth3DTrainerConfig, reached: int | None = None) -> DreamBooth3DTrainerConfig:
    """Start a run from a copy of `config` as `ns-train` does; let it save a checkpoint of step `reached`."""
    config = copy.deepcopy(config)
    config.set_timestamp()
    config.save_config()
    if reached is not None:
        config.get_checkpoint_dir().mkdir(exist_ok=True)
        (config.get_checkpoint_dir() / f"step-{reached:09d}.ckpt").touch()
    return config
