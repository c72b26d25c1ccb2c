"""FLUX.2 klein: prompts read by Qwen3, latents in patches of 2 x 2, and photos as references beside the image's tokens.

The base models alone: the distilled ones have no classifier-free guidance.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.guides.flow.config import FlowGuideConfig
from db3d_nerfstudio.guides.flow.guide import FlowGuide

MAX_TOKENS = 512
"""How many tokens of a prompt and its chat template the transformer is given."""
TEXT_LAYERS = (9, 18, 27)
"""The hidden states of Qwen3 that are the text, side by side."""
REFERENCE_SPACING = 10
"""Distance in time between the positions of the image and of each reference."""


@dataclass
class Flux2GuideConfig(FlowGuideConfig):
    """Configuration of a FLUX.2 klein guide."""

    _target: type = field(default_factory=lambda: Flux2Guide)
    model: str = "black-forest-labs/FLUX.2-klein-base-4B"
    """Hub id, or local folder in diffusers' layout."""

    @property
    def source(self) -> str:
        return self.model


class Flux2Guide(FlowGuide):
    """Tokens have positions of four axes: time, row, column, and place in the text."""

    config: Flux2GuideConfig
    family = "FLUX.2 klein"
    sees_references = True
    folders = ("transformer", "vae", "scheduler", "text_encoder", "tokenizer")

    def __init__(self, config: Flux2GuideConfig, device: torch.device | str = "cpu") -> None:
        super().__init__(config, device)
        self._mean = self.vae.bn.running_mean.float()[:, None, None]
        self._std = (self.vae.bn.running_var.float() + self.vae.config.batch_norm_eps).sqrt()[:, None, None]
        self._references: Float[Tensor, "m c hz wz"] | None = None

    def _transformer_class(self) -> type:
        from diffusers import Flux2Transformer2DModel

        return Flux2Transformer2DModel

    def _vae_class(self) -> type:
        from diffusers import AutoencoderKLFlux2

        return AutoencoderKLFlux2

    def _z_shape(self, side: int) -> tuple[int, int, int]:
        return 4 * self.vae.config.latent_channels, side // 2, side // 2

    def _lora_targets(self) -> tuple[str, ...]:
        singles = range(self.network.config.num_single_layers)
        outs = tuple(f"single_transformer_blocks.{i}.attn.to_out" for i in singles)
        return ("to_k", "to_q", "to_v", "to_out.0", "to_qkv_mlp_proj", *outs)

    def _text_encoder_classes(self) -> dict[str, type]:
        from transformers import Qwen3ForCausalLM

        return {"text_encoder": Qwen3ForCausalLM}

    def _as_message(self, prompt: str) -> str:
        message = [{"role": "user", "content": prompt}]
        return self.tokenizer.apply_chat_template(
            message, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )

    def _check_length(self, prompt: str) -> None:
        tokens = len(self.tokenizer(self._as_message(prompt)).input_ids)
        if tokens > MAX_TOKENS:
            raise UserError(f'The prompt "{prompt}" has {tokens} tokens, but the model reads {MAX_TOKENS}: shorten it.')

    def _encode_text(self, prompts: list[str]) -> Float[Tensor, "b n d"]:
        words = self.tokenizer(
            [self._as_message(prompt) for prompt in prompts],
            padding="max_length",
            max_length=MAX_TOKENS,
            return_tensors="pt",
        ).to(self.device)
        # Without the head of the language model, whose logits are larger than all else.
        states = self.text_encoder.model(
            input_ids=words.input_ids, attention_mask=words.attention_mask, output_hidden_states=True, use_cache=False
        ).hidden_states
        return torch.cat([states[layer] for layer in TEXT_LAYERS], dim=-1).float()

    def _velocity(
        self, x: Float[Tensor, "b c hz wz"], s: Float[Tensor, " b"], text: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b c hz wz"]:
        tokens, positions = x.flatten(2).mT, _positions(x, 0)
        length = tokens.shape[1]
        if self._references is not None:
            shown = self._references.to(x.dtype)
            seen = torch.cat([reference.flatten(1).mT for reference in shown])
            tokens = torch.cat([tokens, seen.expand(len(x), -1, -1)], dim=1)
            times = range(REFERENCE_SPACING, REFERENCE_SPACING * (len(shown) + 1), REFERENCE_SPACING)
            positions = torch.cat([positions, *(_positions(shown, time) for time in times)])
        words = torch.arange(text.shape[1], device=x.device)
        velocity = self.network(
            hidden_states=tokens,
            timestep=s,
            encoder_hidden_states=text,
            img_ids=positions,
            txt_ids=torch.stack([*(torch.zeros_like(words),) * 3, words], dim=-1),
        ).sample
        return velocity[:, :length].mT.reshape(x.shape)

    @contextmanager
    def references(self, rgb: Float[Tensor, "m 3 h w"]) -> Iterator[None]:
        with torch.no_grad():
            self._references = torch.cat([self.encode(image[None].to(self.device)) for image in rgb])
        try:
            yield
        finally:
            self._references = None

    def _shift_of(self, steps: int) -> dict[str, Any]:
        import numpy as np
        from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

        sigmas = np.linspace(1.0, 1 / steps, steps)
        return {"sigmas": sigmas, "mu": compute_empirical_mu(self.z_shape[1] * self.z_shape[2], steps)}

    def encode(self, rgb: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c hz wz"]:
        return (pixel_unshuffle(self._encoded(rgb), 2) - self._mean) / self._std

    def decode(self, z: Float[Tensor, "b c hz wz"]) -> Float[Tensor, "b 3 h w"]:
        return self._decoded(pixel_shuffle(z * self._std + self._mean, 2))


def _positions(z: Float[Tensor, "b c hz wz"], time: int) -> Int[Tensor, "n 4"]:
    """Time, row, column and 0 of each token of an image."""
    rows, columns = (torch.arange(length, device=z.device) for length in z.shape[2:])
    at = torch.full((1,), time, device=z.device)
    return torch.cartesian_prod(at, rows, columns, torch.zeros_like(at))
