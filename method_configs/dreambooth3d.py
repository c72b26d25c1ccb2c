"""The reference method: DreamBooth3D with Stable Diffusion, the paper's numbers, and its peers' where it has none."""

from nerfstudio.configs.base_config import LocalWriterConfig, LoggingConfig, ViewerConfig
from nerfstudio.plugins.types import MethodSpecification

from db3d_nerfstudio.guides.unet.stable_diffusion import StableDiffusionGuideConfig
from db3d_nerfstudio.nerf.model import DreamBooth3DModelConfig
from db3d_nerfstudio.training.datamanager import DreamBooth3DDataManagerConfig
from db3d_nerfstudio.training.dataparser import DreamBooth3DDataParserConfig
from db3d_nerfstudio.training.machine import AutoMachineConfig
from db3d_nerfstudio.training.optimizers import FusedAdamConfig
from db3d_nerfstudio.training.pipeline import DreamBooth3DPipelineConfig
from db3d_nerfstudio.training.trainer import DreamBooth3DTrainerConfig


def make_config() -> DreamBooth3DTrainerConfig:
    """The settings that every method of this package starts from."""
    return DreamBooth3DTrainerConfig(
        method_name="dreambooth3d",
        machine=AutoMachineConfig(),
        viewer=ViewerConfig(websocket_host="127.0.0.1", quit_on_train_completion=True, camera_frustum_scale=2.0),
        # An odd number, so that logged steps alternate between distillation and reconstruction.
        logging=LoggingConfig(steps_per_log=11, local_writer=LocalWriterConfig(enable=False), profiler="none"),
        vis="viewer",
        steps_per_save=100,
        mixed_precision=False,
        # One optimizer step sees two views for the guide, or one view and pixels of the pseudo views.
        gradient_accumulation_steps={"encodings": 2, "networks": 2, "camera_opt": 2},
        optimizers={
            "encodings": {"optimizer": FusedAdamConfig(lr=0.03, eps=1e-15), "scheduler": None},
            "networks": {"optimizer": FusedAdamConfig(lr=0.005, eps=1e-15), "scheduler": None},
            "camera_opt": {"optimizer": FusedAdamConfig(lr=0.005, eps=1e-15), "scheduler": None},
        },
        pipeline=DreamBooth3DPipelineConfig(
            datamanager=DreamBooth3DDataManagerConfig(dataparser=DreamBooth3DDataParserConfig()),
            model=DreamBooth3DModelConfig(guide=StableDiffusionGuideConfig()),
        ),
    )


def with_public_numbers(config: DreamBooth3DTrainerConfig) -> DreamBooth3DTrainerConfig:
    """What public systems set for latent diffusion models; nothing of it has been verified here."""
    model, data, phases = config.pipeline.model, config.pipeline.datamanager, config.pipeline.phases
    model.sds.guidance_scale, model.sds.guidance_rescale = 50.0, 0.5  # MVDream.
    model.recon_loss_mult = 60.0  # 6000 times sds_loss_mult: DreamCraft3D has 10,000, stable-dreamfusion 1000.
    model.field.resolutions = (16, 64, 128)  # threestudio: a hash grid up to 4096.
    model.sampler.num_samples, model.sampler.resolution = 256, 96  # threestudio: 512 samples a ray.
    model.eval_num_rays_per_chunk = 4096  # With more samples, fewer rays take the same memory.
    model.background.learned_prob = 0.5  # threestudio: an environment map beside random colours.
    data.random_cameras.elevation_range = (-10.0, 45.0)  # threestudio, dreamfusion-sd.
    data.random_cameras.resolution = ((0.0, 64), (0.5, 256))  # MVDream.
    data.dataparser.resolution = 256
    config.gradient_accumulation_steps = {"encodings": 4, "networks": 4, "camera_opt": 4}  # GaussianDreamer: 4 views.
    phases.dreambooth.view_words = "guess"  # PuzzleAvatar: sides in captions.
    phases.dreambooth.num_class_images = 200  # diffusers.
    return config


config = with_public_numbers(make_config())
config.pipeline.model.guide = StableDiffusionGuideConfig(
    train_text_encoder=True,  # ThemeStation; at a rate of 2e-6, the guide's own for it.
    gradient_checkpointing=True,  # It then fits 24 GB beside a desktop.
)

method = MethodSpecification(config, description="DreamBooth3D (arXiv 2303.13508) with Stable Diffusion.")
