"""Stable Diffusion XL: two text encoders, a pooled text, and conditions on the size and crop of images."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.guides.unet.stable_diffusion import StableDiffusionGuide, StableDiffusionGuideConfig

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass
class SDXLGuideConfig(StableDiffusionGuideConfig):
    """Configuration of a Stable Diffusion XL guide."""

    _target: type = field(default_factory=lambda: SDXLGuide)
    model: str = "stabilityai/stable-diffusion-xl-base-1.0"
    """Hub id, local folder in diffusers' layout, or checkpoint in one .safetensors file (unpacked beside it)."""


class SDXLGuide(StableDiffusionGuide):
    """Text is the two encoders' tokens side by side, and one more row with the pooled text, padded with zeros."""

    config: SDXLGuideConfig
    family = "SDXL"
    folders = (*StableDiffusionGuide.folders, "text_encoder_2", "tokenizer_2")

    def __init__(self, config: SDXLGuideConfig, device: torch.device | str = "cpu") -> None:
        from diffusers import StableDiffusionXLPipeline

        if config.train_text_encoder:
            raise UserError("The text encoders of SDXL are not trained: set train_text_encoder to False.")
        super().__init__(config, device)
        self.tokenizer_2 = self._read_tokenizer("tokenizer_2")
        # SDXL was trained with zeros in place of captions that were dropped; its pipeline's configuration says so.
        pipeline = self._read_config(StableDiffusionXLPipeline, "")
        self._empty_is_zero = pipeline["force_zeros_for_empty_prompt"]
        sizes = 6 * self.unet.config.addition_time_embed_dim
        self._pooled_dim = self.unet.config.projection_class_embeddings_input_dim - sizes
        side = self.resolution
        self._sizes = torch.tensor([[side, side, 0, 0, side, side]], device=self.device)

    def _pipeline(self) -> tuple[type[DiffusionPipeline], dict[str, Any]]:
        from diffusers import StableDiffusionXLPipeline

        return StableDiffusionXLPipeline, {}

    def _text_encoder_classes(self) -> dict[str, type]:
        from transformers import CLIPTextModelWithProjection

        return {**super()._text_encoder_classes(), "text_encoder_2": CLIPTextModelWithProjection}

    def _encode_text(self, prompts: list[str]) -> Float[Tensor, "b n d"]:
        first = self._text["text_encoder"](self._token_ids(self.tokenizer, prompts), output_hidden_states=True)
        second = self._text["text_encoder_2"](self._token_ids(self.tokenizer_2, prompts), output_hidden_states=True)
        tokens = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        pooled = pad(second.text_embeds, (0, tokens.shape[-1] - self._pooled_dim))
        text = torch.cat([tokens, pooled[:, None]], dim=1)
        if self._empty_is_zero:
            text[[not prompt for prompt in prompts]] = 0
        return text

    def _conditions(self, text: Float[Tensor, "b n d"]) -> dict[str, Any]:
        pooled, sizes = text[:, -1, : self._pooled_dim], self._sizes.expand(len(text), -1)
        return {
            "encoder_hidden_states": text[:, :-1],
            "added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes},
        }
