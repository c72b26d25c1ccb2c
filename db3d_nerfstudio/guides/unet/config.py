"""The settings that all guides in diffusers' layout share; below the guides, for what reads settings only."""

from dataclasses import dataclass
from typing import Literal

from db3d_nerfstudio.guides.base import DiffusionGuideConfig


@dataclass
class DiffusersGuideConfig(DiffusionGuideConfig):
    """Settings common to guides in diffusers' layout."""

    tuning: Literal["full", "lora", "textual_inversion"] = "full"
    """What DreamBooth moves: the whole UNet, a low-rank adapter on its layers, or the embedding of one new word."""
    lora_rank: int = 4
    """Rank of the adapters."""
    lora_alpha: float | None = None
    """Adapters act with strength lora_alpha / lora_rank; unset, with strength 1."""
    lora_targets: tuple[str, ...] | None = None
    """Ends of the names of the UNet's layers that get an adapter; unset, the projections of all attention layers."""
    new_token: str = "<sks>"
    """The word that textual inversion learns; prompts must have it as their identifier."""
    new_token_like: str = "toy"
    """A word of one token that the new one means at first; best, the class noun."""
    train_text_encoder: bool = False
    """DreamBooth moves the text encoder as well: more likeness, sooner overfit."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the UNet's forward pass; auto is bfloat16 on GPUs that have it, else float32.

    Weights that DreamBooth moves are kept in float32 whatever this is.
    """
    variant: str | None = None
    """Variant of the weights' files, such as fp16: half the download. They must exist."""
    gradient_checkpointing: bool = False
    """Compute activations again in backward passes, in place of keeping them: much less memory, some more time."""
    text_encoder_memory: Literal["keep", "offload", "free"] = "keep"
    """A frozen text encoder after use: stays on the device, waits in main memory, or is read again when needed."""
    device: str | None = None
    """Device of the guide, such as cuda:1; unset, that of the NeRF."""

    @property
    def source(self) -> str:
        """The folder or hub id that holds the model."""
        raise NotImplementedError

    @property
    def moves_text(self) -> bool:
        """Whether what prompts mean changes with training."""
        return self.train_text_encoder or self.tuning == "textual_inversion"
