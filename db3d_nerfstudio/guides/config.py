"""The settings that all guides in diffusers' layout share, for code that needs no guide."""

from dataclasses import dataclass
from typing import Literal

from db3d_nerfstudio.guides.base import DiffusionGuideConfig
from db3d_nerfstudio.ranges import Count, Positive


@dataclass
class DiffusersGuideConfig(DiffusionGuideConfig):
    """Settings common to guides in diffusers' layout."""

    tuning: Literal["full", "lora", "textual_inversion"] = "full"
    """What DreamBooth trains: the whole network, a low-rank adapter on its layers, or the embedding of one new word."""
    lora_rank: Count = 4
    """Rank of the adapters."""
    lora_alpha: Positive | None = None
    """Adapters have the strength lora_alpha / lora_rank; by default 1."""
    lora_targets: tuple[str, ...] | None = None
    """Name suffixes of the network's layers with an adapter; by default the projections of all attention layers."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the network's forward pass; auto is bfloat16 on GPUs that have it, float16 on
    older ones, float32 on a CPU.

    Weights that DreamBooth trains are kept in float32 in any case.
    """
    variant: str | None = None
    """Variant of the weight files, such as fp16, which halves the download. The model must have it."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: much less memory, a little more time."""
    text_encoder_memory: Literal["keep", "offload", "free"] = "keep"
    """A frozen text encoder after use: keep on the device, offload to main memory, or free and read again."""
    device: str | None = None
    """Device of the guide, such as cuda:1; by default that of the NeRF."""

    @property
    def source(self) -> str:
        """The folder or hub id that holds the model."""
        raise NotImplementedError

    @property
    def moves_text(self) -> bool:
        """Whether what prompts mean changes with training."""
        return False
