"""Stable Diffusion 3 and 3.5 (Esser et al. 2024, arXiv 2403.03206): CLIP's and T5's tokens beside the image's."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.guides.flow.config import FlowGuideConfig
from db3d_nerfstudio.guides.flow.guide import FlowGuide

T5_TOKENS = 256
"""How many tokens of T5 the transformer is given, as in diffusers' pipeline."""


@dataclass
class SD3GuideConfig(FlowGuideConfig):
    """Configuration of a Stable Diffusion 3 guide. The models are gated: their licence must be accepted on the hub."""

    _target: type = field(default_factory=lambda: SD3Guide)
    model: str = "stabilityai/stable-diffusion-3.5-medium"
    """Hub id, or local folder in diffusers' layout."""
    t5: bool = True
    """Read prompts with T5-XXL (4.8 billion parameters) too; without, its tokens are zeros, as in diffusers."""

    @property
    def source(self) -> str:
        return self.model


class SD3Guide(FlowGuide):
    """Text is CLIP's tokens, then T5's, and one more row with the pooled text, padded with zeros."""

    config: SD3GuideConfig
    family = "Stable Diffusion 3"

    def __init__(self, config: SD3GuideConfig, device: torch.device | str = "cpu") -> None:
        super().__init__(config, device)
        self.tokenizer_2 = self._read_tokenizer("tokenizer_2")
        self.tokenizer_3 = self._read_tokenizer("tokenizer_3") if config.t5 else None
        shape = self.network.config
        self._dim, self._pooled_dim = shape.joint_attention_dim, shape.pooled_projection_dim
        patches, most = self.z_shape[1] // shape.patch_size, shape.pos_embed_max_size
        if patches > most:
            raise UserError(
                f"{self.source} has positions for {self.resolution * most // patches} pixels: set the guide's "
                f"resolution to that or less, not {self.resolution}."
            )

    @property
    def folders(self) -> tuple[str, ...]:
        names = ("transformer", "vae", "scheduler", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
        return (*names, "text_encoder_3", "tokenizer_3") if self.config.t5 else names

    def _transformer_class(self) -> type:
        from diffusers import SD3Transformer2DModel

        return SD3Transformer2DModel

    def _vae_class(self) -> type:
        from diffusers import AutoencoderKL

        return AutoencoderKL

    def _z_shape(self, side: int) -> tuple[int, int, int]:
        return self.vae.config.latent_channels, side, side

    def _lora_targets(self) -> tuple[str, ...]:
        own, of_text = ("to_k", "to_q", "to_v", "to_out.0"), ("add_k_proj", "add_q_proj", "add_v_proj", "to_add_out")
        return tuple(f"attn.{name}" for name in (*own, *of_text))

    def _text_encoder_classes(self) -> dict[str, type]:
        from transformers import CLIPTextModelWithProjection, T5EncoderModel

        clip: dict[str, type] = dict.fromkeys(("text_encoder", "text_encoder_2"), CLIPTextModelWithProjection)
        return {**clip, "text_encoder_3": T5EncoderModel} if self.config.t5 else clip

    def _encode_text(self, prompts: list[str]) -> Float[Tensor, "b n d"]:
        first = self._text["text_encoder"](self._token_ids(self.tokenizer, prompts), output_hidden_states=True)
        second = self._text["text_encoder_2"](self._token_ids(self.tokenizer_2, prompts), output_hidden_states=True)
        clip = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        pooled = torch.cat([first.text_embeds, second.text_embeds], dim=-1)
        rows = [pad(clip, (0, self._dim - clip.shape[-1])), self._t5_tokens(prompts)]
        return torch.cat([*rows, pad(pooled, (0, self._dim - pooled.shape[-1]))[:, None]], dim=1).float()

    def _t5_tokens(self, prompts: list[str]) -> Float[Tensor, "b n d"]:
        if self.tokenizer_3 is None:
            return torch.zeros(len(prompts), T5_TOKENS, self._dim, device=self.device)
        ids = self._token_ids(self.tokenizer_3, prompts, T5_TOKENS)
        return self._text["text_encoder_3"](ids).last_hidden_state

    def _velocity(
        self, x: Float[Tensor, "b c hz wz"], s: Float[Tensor, " b"], text: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b c hz wz"]:
        return self.network(
            hidden_states=x,
            timestep=s * self.schedule.num_train_timesteps,
            encoder_hidden_states=text[:, :-1],
            pooled_projections=text[:, -1, : self._pooled_dim],
        ).sample

    def draw_timesteps(self, num: int, generator: torch.Generator | None = None) -> Int[Tensor, " num"]:
        """Times that are logit-normal before the shift, as it was trained (arXiv 2403.03206, section 3.1)."""
        u = torch.randn(num, generator=generator).sigmoid()
        t = len(self.schedule) - (u * self.schedule.num_train_timesteps).long()
        return t.clamp(max=len(self.schedule) - 1).to(self.device)

    def encode(self, rgb: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c hz wz"]:
        return (self._encoded(rgb) - self.vae.config.shift_factor) * self.vae.config.scaling_factor

    def decode(self, z: Float[Tensor, "b c hz wz"]) -> Float[Tensor, "b 3 h w"]:
        return self._decoded(z / self.vae.config.scaling_factor + self.vae.config.shift_factor)
