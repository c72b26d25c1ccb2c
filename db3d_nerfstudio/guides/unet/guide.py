"""UNets conditioned on text, on a discrete schedule: what Stable Diffusion, SDXL, DeepFloyd IF and the toybox share.

A model's guide sets what `guides/diffusers_guide.py` names. Where its UNet differs it replaces `_inputs` and
`_conditions`, what the UNet is given.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from db3d_nerfstudio.guides.base import PredictionType
from db3d_nerfstudio.guides.diffusers_guide import DiffusersGuide
from db3d_nerfstudio.guides.source import check_schedule, check_source, read_config
from db3d_nerfstudio.guides.tuning.base import Tuning
from db3d_nerfstudio.guides.unet.config import UNetGuideConfig
from db3d_nerfstudio.guides.unet.prepare import prepare_tuning


class UNetGuide(DiffusersGuide):
    """A UNet conditioned on a CLIP text encoder."""

    config: UNetGuideConfig
    folders: tuple[str, ...] = ("unet", "text_encoder", "tokenizer", "scheduler")
    network_folder = "unet"
    memory_format = torch.channels_last
    channels: int = 4
    """What the UNet of such a model takes."""

    @property
    def unet(self) -> Any:
        """The network."""
        return self.network

    def _checked_source(self) -> str:
        from diffusers import DDPMScheduler

        source = check_source(self._unpacked(self.config.source), self.folders, self.family, self.channels)
        check_schedule(source, read_config(DDPMScheduler, source, "scheduler"))
        return source

    def _read_schedule(self) -> None:
        from diffusers import DDPMScheduler

        scheduler = self._read(DDPMScheduler, "scheduler")
        self.prediction_type = self.config.prediction_type or scheduler.config.prediction_type
        self.alphas_cumprod = above_zero(scheduler.alphas_cumprod, self.prediction_type).to(self.device)

    def _read_network(self) -> nn.Module:
        from diffusers import UNet2DConditionModel

        return self._read(UNet2DConditionModel, "unet", dtype=self._network_dtype)

    def _prepare_tuning(self) -> Tuning:
        return prepare_tuning(self.config, self.unet, self._text, self.tokenizer, self._read)

    def _text_encoder_classes(self) -> dict[str, type]:
        from transformers import CLIPTextModel

        return {"text_encoder": CLIPTextModel}

    def _encode_text(self, prompts: list[str]) -> Float[Tensor, "b n d"]:
        return self.text_encoder(self._token_ids(self.tokenizer, prompts)).last_hidden_state

    def predict_noise(
        self, z_t: Float[Tensor, "b c hz wz"], t: Int[Tensor, " b"], text: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b c hz wz"]:
        inputs = self._inputs(z_t, text).to(self._network_dtype, memory_format=torch.channels_last)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            output = self.network(inputs, t, **self._conditions(text.to(self._network_dtype))).sample
        output = output[:, : z_t.shape[1]]  # Networks that learned their variance give it in further channels.
        output = output.float()
        abar = self.alphas_cumprod[t][:, None, None, None]
        match self.prediction_type:
            case "epsilon":
                return output
            case "v_prediction":
                return (1 - abar).sqrt() * z_t + abar.sqrt() * output
            case "sample":
                return (z_t - abar.sqrt() * output) / (1 - abar).sqrt()
        raise ValueError(f'The scheduler of {self.source} has the unknown prediction_type "{self.prediction_type}".')

    def _inputs(self, z_t: Float[Tensor, "b c hz wz"], text: Float[Tensor, "b n d"]) -> Float[Tensor, "b c2 hz wz"]:
        """The input of the UNet."""
        return z_t

    def _conditions(self, text: Float[Tensor, "b n d"]) -> dict[str, Any]:
        """The inputs of the UNet besides z_t and t."""
        return {"encoder_hidden_states": text}


def above_zero(alphas_cumprod: Float[Tensor, " T"], prediction_type: PredictionType) -> Float[Tensor, " T"]:
    """The schedule without an end of pure noise, at which an estimate of it says nothing of the image.

    Zero terminal SNR (Lin et al. 2023, arXiv 2305.08891) ends at exactly 0. That of v and x0 still holds next to it;
    one of the noise does not, and repeats the step before.
    """
    least = alphas_cumprod[alphas_cumprod > 0].min() if prediction_type == "epsilon" else torch.tensor(2.0**-24)
    return torch.where(alphas_cumprod > 0, alphas_cumprod, least.to(alphas_cumprod.dtype))
