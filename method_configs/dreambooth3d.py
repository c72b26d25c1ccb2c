"""The reference method: DreamBooth3D with a Stable Diffusion guide and the paper's published numbers."""

import torch
from nerfstudio.configs.base_config import LocalWriterConfig, LoggingConfig, MachineConfig, ViewerConfig
from nerfstudio.plugins.types import MethodSpecification

from db3d_nerfstudio.guides.unet.stable_diffusion import StableDiffusionGuideConfig
from db3d_nerfstudio.nerf.model import DreamBooth3DModelConfig
from db3d_nerfstudio.training.datamanager import DreamBooth3DDataManagerConfig
from db3d_nerfstudio.training.dataparser import DreamBooth3DDataParserConfig
from db3d_nerfstudio.training.optimizers import FusedAdamConfig
from db3d_nerfstudio.training.pipeline import DreamBooth3DPipelineConfig
from db3d_nerfstudio.training.trainer import DreamBooth3DTrainerConfig


def make_config() -> DreamBooth3DTrainerConfig:
    """The settings that every method of this package starts from."""
    return DreamBooth3DTrainerConfig(
        method_name="dreambooth3d",
        machine=MachineConfig(device_type="cuda" if torch.cuda.is_available() else "cpu"),
        viewer=ViewerConfig(websocket_host="127.0.0.1", quit_on_train_completion=True, camera_frustum_scale=2.0),
        # An odd number, so that logged steps alternate between distillation and reconstruction.
        logging=LoggingConfig(steps_per_log=11, local_writer=LocalWriterConfig(enable=False), profiler="none"),
        vis="viewer",
        steps_per_save=100,
        mixed_precision=False,
        # One optimizer step sees two views for the guide, or one view and pixels of the pseudo views.
        gradient_accumulation_steps={"encodings": 2, "networks": 2},
        optimizers={
            "encodings": {"optimizer": FusedAdamConfig(lr=0.03, eps=1e-15), "scheduler": None},
            "networks": {"optimizer": FusedAdamConfig(lr=0.005, eps=1e-15), "scheduler": None},
        },
        pipeline=DreamBooth3DPipelineConfig(
            datamanager=DreamBooth3DDataManagerConfig(dataparser=DreamBooth3DDataParserConfig()),
            model=DreamBooth3DModelConfig(guide=StableDiffusionGuideConfig()),
        ),
    )


method = MethodSpecification(make_config(), description="DreamBooth3D (arXiv 2303.13508) with Stable Diffusion.")
