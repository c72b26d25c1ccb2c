"""A run in miniature with an analytic guide, and its stages without a trainer."""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from nerfstudio.configs.base_config import MachineConfig
from nerfstudio.engine.optimizers import AdamOptimizerConfig, Optimizers
from tiny import GaussianGuideConfig

from db3d_nerfstudio.diffusion.dreambooth import DreamBoothConfig
from db3d_nerfstudio.diffusion.sampling import SamplingConfig
from db3d_nerfstudio.nerf.field import GridFieldConfig
from db3d_nerfstudio.nerf.model import DreamBooth3DModelConfig
from db3d_nerfstudio.run.interventions import Interventions
from db3d_nerfstudio.run.manifest import describe
from db3d_nerfstudio.run.record import RunRecord
from db3d_nerfstudio.training.context import RunContext
from db3d_nerfstudio.training.phases import InitialPhaseConfig, NerfPhaseConfig, PhasesConfig, PseudoViewsConfig
from db3d_nerfstudio.training.pipeline import DreamBooth3DPipeline, DreamBooth3DPipelineConfig
from db3d_nerfstudio.training.runner import PhaseRunner
from db3d_nerfstudio.training.tasks import contents, run_tasks
from db3d_nerfstudio.training.trainer import DreamBooth3DTrainerConfig

START = 3
"""The first step of the final NeRF."""


def tiny_config(photos: Path | None, output: Path) -> DreamBooth3DTrainerConfig:
    """Three stages of a few steps each, as `ns-train` has them before it calls `set_timestamp`."""
    phases = PhasesConfig(
        initial=InitialPhaseConfig(steps=START),
        final=NerfPhaseConfig(steps=4),
        pseudo_views=PseudoViewsConfig(guidance_scale=2.0, steps=4, chunk=2),
        dreambooth=DreamBoothConfig(num_class_images=2, class_sampling=SamplingConfig(2, 4.0)),
        partial_steps=2,
        full_steps=8,
        multiview_steps=3,
    )
    model = DreamBooth3DModelConfig(guide=GaussianGuideConfig(mean=0.3), field=GridFieldConfig(resolutions=(4,)))
    config = DreamBooth3DTrainerConfig(
        method_name="m",
        machine=MachineConfig(device_type="cpu"),
        output_dir=output,
        timestamp="run",
        pipeline=DreamBooth3DPipelineConfig(model=model, phases=phases),
    )
    config.pipeline.datamanager.dataparser.num_views = 3
    config.pipeline.datamanager.dataparser.resolution = 8
    config.pipeline.datamanager.data = photos
    config.pipeline.model.prompt = "a photo of a sks robot wearing a hat"
    return config


@dataclass
class TinyRun:
    """The stages of a run, as in a freshly started process."""

    pipeline: DreamBooth3DPipeline
    context: RunContext
    runner: PhaseRunner
    saved: list[int]
    """Steps of the checkpoints."""
    ends: list[int]
    """Numbers of steps at which training was ended."""

    @property
    def shift(self) -> float:
        """What DreamBooth has done to the analytic guide."""
        return self.context.guide.shift.item()


def tiny_run(config: DreamBooth3DTrainerConfig) -> TinyRun:
    """The run of a config that `set_timestamp` has been called on."""
    torch.manual_seed(0)
    config, saved, ends = copy.deepcopy(config), [], []
    config.save_config()
    pipeline, folder = config.pipeline.setup(device="cpu"), config.run_folder()
    model, phases = config.pipeline.model, config.pipeline.phases
    adam = {"optimizer": AdamOptimizerConfig(lr=0.1), "scheduler": None}
    groups = pipeline.get_param_groups()
    context = pipeline.context = RunContext(
        model=pipeline.model,
        datamanager=pipeline.datamanager,
        optimizers=Optimizers(dict.fromkeys(groups, adam), groups),
        record=RunRecord(folder, describe(config, contents(phases)), run_tasks(phases, 3), total_steps=7),
        interventions=Interventions(folder, model.prompt, model.sds.guidance_scale),
        folder=folder,
        seed=config.machine.seed,
        save=lambda step, **_: saved.append(step),
        end_at=ends.append,
        photo_poses=pipeline.photo_poses,
        accumulation=2,
    )
    return TinyRun(pipeline, context, PhaseRunner(phases, context), saved, ends)
