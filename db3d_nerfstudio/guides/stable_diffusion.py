"""Stable Diffusion 1 and 2, and whatever was fine-tuned from them: latents of a VAE, epsilon or v prediction."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from db3d_nerfstudio.guides.diffusers_guide import DiffusersGuide, DiffusersGuideConfig, resize


@dataclass
class StableDiffusionGuideConfig(DiffusersGuideConfig):
    """Configuration of a Stable Diffusion guide."""

    _target: type = field(default_factory=lambda: StableDiffusionGuide)
    model: str = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    """Hub id, or local folder in diffusers' layout."""
    vae_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the VAE. In float16 some VAEs overflow, and SDS needs its gradient."""

    @property
    def source(self) -> str:
        return self.model


class StableDiffusionGuide(DiffusersGuide):
    """A UNet over the latents of a VAE. The safety checker is never loaded: it would judge half-made shapes."""

    config: StableDiffusionGuideConfig
    folders = (*DiffusersGuide.folders, "vae")
    learning_rates = {"full": 5e-6, "lora": 1e-4, "textual_inversion": 5e-4}

    def __init__(self, config: StableDiffusionGuideConfig, device: torch.device | str = "cpu") -> None:
        from diffusers import AutoencoderKL

        super().__init__(config, device)
        self._vae_dtype = getattr(torch, config.vae_dtype)
        self.vae = self._read(AutoencoderKL, "vae", dtype=self._vae_dtype)
        self.vae.eval().requires_grad_(False).to(self.device)
        self.resolution = self.unet.config.sample_size * 2 ** (len(self.vae.config.block_out_channels) - 1)

    def modules(self) -> dict[str, nn.Module]:
        return {**super().modules(), "vae": self.vae}

    def encode(self, rgb: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c hz wz"]:
        rgb = resize(rgb, self.resolution) * 2 - 1
        # The posterior's mode: its spread is far below the noise that is added next, and one image gives one z.
        return self.vae.encode(rgb.to(self._vae_dtype)).latent_dist.mode().float() * self.vae.config.scaling_factor

    def decode(self, z: Float[Tensor, "b c hz wz"]) -> Float[Tensor, "b 3 h w"]:
        rgb = self.vae.decode((z / self.vae.config.scaling_factor).to(self._vae_dtype)).sample.float()
        return (rgb / 2 + 0.5).clamp(0, 1)
