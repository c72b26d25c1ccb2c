"""Stable Diffusion 1 and 2, and models fine-tuned from them: latents of a VAE, epsilon or v-prediction."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.guides.diffusers_guide import move, resize
from db3d_nerfstudio.guides.kinds import Family, check_file
from db3d_nerfstudio.guides.source import read_part, unpacked
from db3d_nerfstudio.guides.unet.config import UNetGuideConfig
from db3d_nerfstudio.guides.unet.guide import UNetGuide

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DiffusionPipeline


@dataclass
class StableDiffusionGuideConfig(UNetGuideConfig):
    """Configuration of a Stable Diffusion guide."""

    _target: type = field(default_factory=lambda: StableDiffusionGuide)
    model: str = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    """Hub id, local folder in diffusers' layout, or checkpoint in one .safetensors file (unpacked beside it)."""
    single_file_config: str | None = None
    """Folder or hub id with the configuration of a single-file checkpoint; by default it is looked up on the hub."""
    vae: str | None = None
    """Folder or hub id of a VAE in place of the model's own, such as madebyollin/sdxl-vae-fp16-fix."""
    vae_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the VAE, whose gradient SDS needs. In float16, SDXL's own VAE overflows."""

    @property
    def source(self) -> str:
        return self.model


class StableDiffusionGuide(UNetGuide):
    """A UNet over the latents of a VAE. The safety checker is not loaded, as it is not made for unfinished shapes."""

    config: StableDiffusionGuideConfig
    family: Family = "Stable Diffusion"
    folders = (*UNetGuide.folders, "vae")
    learning_rates = {"full": 5e-6, "lora": 1e-4, "textual_inversion": 5e-4}
    learning_rate_with_text = 2e-6
    """Of full fine-tuning together with the text encoder, as in diffusers and ThemeStation."""

    def __init__(self, config: StableDiffusionGuideConfig, device: torch.device | str = "cpu") -> None:
        super().__init__(config, device)
        if config.tuning == "full" and config.train_text_encoder:
            self.learning_rate = self.learning_rate_with_text
        self._vae_dtype = getattr(torch, config.vae_dtype)
        self.vae = self._read_vae()
        shape = self.vae.config
        channels = shape["latent_channels"]
        # Files of Stable Diffusion 1 and 2 do not have this entry: their VAEs run in float16.
        upcast = shape["force_upcast"] and "force_upcast" not in shape.get("_use_default_values", ())
        if self._vae_dtype == torch.float16 and upcast:
            raise UserError(
                f"The VAE of {config.vae or self.source} overflows in float16 by its own configuration "
                "(force_upcast): set vae_dtype to bfloat16 or float32, or vae to one made for float16 "
                "(madebyollin/sdxl-vae-fp16-fix)."
            )
        if channels != self.unet.config.in_channels:
            raise UserError(
                f"The VAE of {config.vae or self.source} has {channels} channels, the UNet "
                f"takes {self.unet.config.in_channels}: set vae to one of this model."
            )
        move(self.vae.eval().requires_grad_(False), self.device)
        self.vae.enable_slicing()  # Image by image: a batch at once needs more memory than all the rest.
        if config.gradient_checkpointing:
            self.vae.enable_gradient_checkpointing()
        side = self.unet.config.sample_size
        self.resolution = side * 2 ** (len(shape["block_out_channels"]) - 1)
        self.z_shape = channels, side, side

    def _unpacked(self, source: str) -> str:
        file = Path(source).expanduser()
        if not file.is_file():
            return source
        check_file(file, self.family)
        pipeline, parts = self._pipeline()
        return str(unpacked(file, pipeline, self.config.single_file_config, **parts))

    def _pipeline(self) -> tuple[type[DiffusionPipeline], dict[str, Any]]:
        """The class that unpacks single-file checkpoints, and what it shall leave out."""
        from diffusers import StableDiffusionPipeline

        return StableDiffusionPipeline, {"safety_checker": None, "feature_extractor": None}

    def _read_vae(self) -> AutoencoderKL:
        from diffusers import AutoencoderKL

        if self.config.vae is None:
            return self._read(AutoencoderKL, "vae", dtype=self._vae_dtype)
        return read_part(AutoencoderKL, self.config.vae, "", dtype=self._vae_dtype)

    def modules(self) -> dict[str, nn.Module]:
        return {**super().modules(), "vae": self.vae}

    def encode(self, rgb: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c hz wz"]:
        rgb = resize(rgb, self.resolution) * 2 - 1
        # The posterior's mode: its spread is far below the noise that is added next, and one image gives one z.
        return self.vae.encode(rgb.to(self._vae_dtype))[0].mode().float() * self.vae.config["scaling_factor"]

    def decode(self, z: Float[Tensor, "b c hz wz"]) -> Float[Tensor, "b 3 h w"]:
        rgb = self.vae.decode((z / self.vae.config["scaling_factor"]).to(self._vae_dtype))[0].float()
        return (rgb / 2 + 0.5).clamp(0, 1)
