"""The settings of rectified flows, for code that needs no guide."""

from dataclasses import dataclass
from typing import Literal

from db3d_nerfstudio.guides.config import DiffusersGuideConfig
from db3d_nerfstudio.ranges import Count


@dataclass
class FlowGuideConfig(DiffusersGuideConfig):
    """Settings common to rectified flows in diffusers' layout."""

    tuning: Literal["full", "lora"] = "lora"
    """What DreamBooth trains: the whole transformer, or a low-rank adapter on its attention layers."""
    resolution: Count = 512
    """Height and width in pixels of the images that the guide works on, a multiple of 16."""
    vae_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the VAE, whose gradient SDS needs."""
