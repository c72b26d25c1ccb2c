"""DeepFloyd IF stage I, a public model like the paper's Imagen: 64 x 64 pixels, prompts encoded by a frozen T5."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.guides.base import Scheduler
from db3d_nerfstudio.guides.diffusers_guide import resize
from db3d_nerfstudio.guides.unet.config import UNetGuideConfig
from db3d_nerfstudio.guides.unet.guide import UNetGuide

MAX_TOKENS = 77
"""How many tokens of a prompt IF reads."""


@dataclass
class DeepFloydGuideConfig(UNetGuideConfig):
    """Configuration of a DeepFloyd IF guide. The models are gated: their licence must be accepted on the hub."""

    _target: type = field(default_factory=lambda: DeepFloydGuide)
    model: str = "DeepFloyd/IF-I-XL-v1.0"
    """Hub id, or local folder in diffusers' layout."""
    tuning: Literal["full", "lora"] = "lora"
    """What DreamBooth trains: the whole UNet (69 GB for IF-I-XL), or a low-rank adapter on its attention layers."""
    text_encoder_memory: Literal["keep", "offload", "free"] = "free"
    """T5-XXL (4.8 billion parameters) after use: keep it on the device, offload it to main memory, or free it."""

    @property
    def source(self) -> str:
        return self.model


class DeepFloydGuide(UNetGuide):
    """Pixels in [-1, 1] as z. The network also predicts a variance, which no loss trains and no sampler uses."""

    config: DeepFloydGuideConfig
    family, channels = "DeepFloyd IF", 3
    z_bound = 1.0
    learning_rates = {"full": 1e-7, "lora": 2e-5}  # diffusers' DreamBooth of IF, in batches of 4.

    def __init__(self, config: DeepFloydGuideConfig, device: torch.device | str = "cpu") -> None:
        from diffusers import DDPMScheduler

        if config.train_text_encoder:
            raise UserError("The T5 of DeepFloyd IF is not trained: set train_text_encoder to False.")
        super().__init__(config, device)
        self._schedule = self._read_config(DDPMScheduler, "scheduler")
        self.resolution = self.unet.config.sample_size
        self.z_shape = 3, self.resolution, self.resolution

    def _read_tokenizer(self, folder: str):
        tokenizer = super()._read_tokenizer(folder)
        tokenizer.model_max_length = MAX_TOKENS
        return tokenizer

    def _text_encoder_classes(self) -> dict[str, type]:
        from transformers import T5EncoderModel

        return {"text_encoder": T5EncoderModel}

    @property
    def _text_dtype(self) -> torch.dtype:
        return self.dtype

    def _encode_text(self, prompts: list[str]) -> Float[Tensor, "b n d"]:
        words = self.tokenizer(
            [prompt.lower().strip() for prompt in prompts],  # As IF was trained.
            padding="max_length",
            max_length=MAX_TOKENS,
            return_tensors="pt",
        ).to(self.device)
        return self.text_encoder(words.input_ids, attention_mask=words.attention_mask).last_hidden_state.float()

    def sampler(self, steps: int) -> Scheduler:
        """IF's own: ancestral, with dynamic thresholding and a fixed variance, as the network's is not kept."""
        from diffusers import DDPMScheduler

        scheduler = DDPMScheduler.from_config(
            self._schedule, variance_type="fixed_small", prediction_type="epsilon", timestep_spacing="trailing"
        )
        scheduler = cast(DDPMScheduler, scheduler)  # Not the pair that `return_unused_kwargs` gives.
        scheduler.set_timesteps(steps, device=self.device)
        return scheduler

    def encode(self, rgb: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c hz wz"]:
        return resize(rgb, self.resolution) * 2 - 1

    def decode(self, z: Float[Tensor, "b c hz wz"]) -> Float[Tensor, "b 3 h w"]:
        return (z / 2 + 0.5).clamp(0, 1)
