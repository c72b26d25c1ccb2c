"""Transformers that predict the velocity of a rectified flow: what SD3 and FLUX.2 share.

A model's guide names the classes of its networks, and has the text, the codec's scale and the transformer's call.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast

import torch
from jaxtyping import Float, Real
from torch import Tensor, nn

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.guides.diffusers_guide import DiffusersGuide, resize
from db3d_nerfstudio.guides.flow.config import FlowGuideConfig
from db3d_nerfstudio.guides.flow.schedule import FlowSampler, FlowSchedule, length
from db3d_nerfstudio.guides.kinds import Family, check_pipeline
from db3d_nerfstudio.guides.source import check_source, read_index
from db3d_nerfstudio.guides.tuning.base import Tuning
from db3d_nerfstudio.guides.tuning.full import FullTuning
from db3d_nerfstudio.guides.tuning.lora import LoraTuning


class FlowGuide(DiffusersGuide):
    """A transformer over the latents of a VAE."""

    config: FlowGuideConfig
    family: Family
    network_folder = "transformer"
    prediction_type = "velocity"
    learning_rates = {"full": 1e-5, "lora": 1e-4}
    schedule = FlowSchedule()
    _scheduler_config: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, config: FlowGuideConfig, device: torch.device | str = "cpu") -> None:
        super().__init__(config, device)
        self._vae_dtype = getattr(torch, config.vae_dtype)
        self.vae = self._read(self._vae_class(), "vae", dtype=self._vae_dtype)
        self.vae.eval().requires_grad_(False).to(self.device)
        self.vae.enable_slicing()  # Image by image: a batch at once needs more memory than all the rest.
        if config.gradient_checkpointing:
            self.vae.enable_gradient_checkpointing()
        pixels = 2 ** (len(self.vae.config.block_out_channels) - 1)
        if config.resolution % (2 * pixels):
            raise UserError(
                f"The guide's resolution is {config.resolution}: it must be a multiple of {2 * pixels}, such as 512."
            )
        self.resolution = config.resolution
        self.z_shape = self._z_shape(config.resolution // pixels)

    @abc.abstractmethod
    def _transformer_class(self) -> type:
        """The class of the transformer."""

    @abc.abstractmethod
    def _vae_class(self) -> type:
        """The class of the VAE."""

    @abc.abstractmethod
    def _z_shape(self, side: int) -> tuple[int, int, int]:
        """Channels, height and width of z where the VAE's latents are `side` wide."""

    @abc.abstractmethod
    def _lora_targets(self) -> tuple[str, ...]:
        """Ends of the names of the layers that get an adapter by default: those of diffusers' training script."""

    @abc.abstractmethod
    def _velocity(
        self, x: Float[Tensor, "b c hz wz"], s: Float[Tensor, " b"], text: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b c hz wz"]:
        """What the transformer predicts for x_s."""

    def _checked_source(self) -> str:
        source = self.config.source
        check_pipeline(source, read_index(source), self.family)
        return check_source(source, self.folders)

    def _read_schedule(self) -> None:
        from diffusers import FlowMatchEulerDiscreteScheduler

        scheduler = self._read(FlowMatchEulerDiscreteScheduler, "scheduler")
        self._scheduler_config = scheduler.config
        # Shifts that depend on the resolution are those of the sampler alone, as in diffusers' training scripts.
        shift = 1.0 if scheduler.config.use_dynamic_shifting else scheduler.config.shift
        self.schedule = FlowSchedule(shift, scheduler.config.num_train_timesteps)
        self.alphas_cumprod = self.abar(torch.arange(len(self.schedule), device=self.device))

    def _read_network(self) -> nn.Module:
        return self._read(self._transformer_class(), "transformer", dtype=self._network_dtype)

    def _prepare_tuning(self) -> Tuning:
        tuned = {"transformer": self.network}
        if self.config.tuning == "full":
            return FullTuning(tuned, self._read)
        return LoraTuning(tuned, self.config, {"transformer": self._lora_targets()})

    @property
    def _text_dtype(self) -> torch.dtype:
        return self.dtype

    def modules(self) -> dict[str, nn.Module]:
        return {**super().modules(), "vae": self.vae}

    def abar(self, t: Real[Tensor, " b"]) -> Float[Tensor, " b"]:
        return self.schedule.abar(t)

    def predict_noise(
        self, z_t: Float[Tensor, "b c hz wz"], t: Real[Tensor, " b"], text: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b c hz wz"]:
        s = self.schedule.time(t)
        wide = s[:, None, None, None]
        x = length(wide) * z_t
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            velocity = self._velocity(x.to(self._network_dtype), s, text.to(self._network_dtype))
        return x + (1 - wide) * velocity.float()

    def sampler(self, steps: int) -> FlowSampler:
        """diffusers' flow-match Euler, with the shift of the model's scheduler."""
        from diffusers import FlowMatchEulerDiscreteScheduler

        scheduler = FlowMatchEulerDiscreteScheduler.from_config(dict(self._scheduler_config))
        scheduler = cast(FlowMatchEulerDiscreteScheduler, scheduler)  # Not the pair of `return_unused_kwargs`.
        scheduler.set_timesteps(steps, device=self.device, **self._shift_of(steps))
        return FlowSampler(scheduler, self.schedule)

    def _shift_of(self, steps: int) -> dict[str, Any]:
        """Arguments of `set_timesteps` beside the number of steps."""
        return {}

    def _encoded(self, rgb: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h2 w2"]:
        """The VAE's latents, without their scale."""
        rgb = resize(rgb, self.resolution) * 2 - 1
        # The posterior's mode: its spread is far below the noise that is added next, and one image gives one z.
        return self.vae.encode(rgb.to(self._vae_dtype)).latent_dist.mode().float()

    def _decoded(self, latents: Float[Tensor, "b c h2 w2"]) -> Float[Tensor, "b 3 h w"]:
        """The image of such latents."""
        return (self.vae.decode(latents.to(self._vae_dtype)).sample.float() / 2 + 0.5).clamp(0, 1)
