"""A guide of a model's shapes with random weights and no words: what the model costs, without its weights.

On a real device it is timed; on the fake one of `guides.counting` its memory is counted. Shapes come from the model's
configuration files, or from `SHAPES`, the published ones of the presets' models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar, cast
from unittest import mock

import torch
from torch import nn

from db3d_nerfstudio.guides.source import read_config
from db3d_nerfstudio.guides.unet import guide
from db3d_nerfstudio.guides.unet.config import DiffusersGuideConfig
from db3d_nerfstudio.guides.unet.guide import DiffusersGuide

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

Config = TypeVar("Config", bound=DiffusersGuideConfig)
Shapes = Mapping[str, dict[str, Any]]
"""Arguments of a model's networks, by the names of their folders."""

_CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
_T5_XXL = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
}
_SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "transformer_layers_per_block": (1, 2, 10),
}
_IF = {
    "sample_size": 64,
    "in_channels": 3,
    "out_channels": 6,
    "layers_per_block": 3,
    "block_out_channels": (704, 1408, 2112, 2816),
    "down_block_types": ("ResnetDownsampleBlock2D", *("SimpleCrossAttnDownBlock2D",) * 3),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": (*("SimpleCrossAttnUpBlock2D",) * 3, "ResnetUpsampleBlock2D"),
    "cross_attention_dim": 2816,
    "encoder_hid_dim": 4096,
    "attention_head_dim": 64,
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 64,
    "cross_attention_norm": "group_norm",
    "resnet_time_scale_shift": "scale_shift",
    "resnet_skip_time_act": True,
    "act_fn": "gelu",
}
SHAPES: dict[str, Shapes] = {
    "sd15": {
        "unet": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
        "vae": _VAE,
        "text_encoder": {"vocab_size": 49408, **_CLIP_L},
    },
    "sdxl": {
        "unet": _SDXL,
        "vae": _VAE,
        "text_encoder": {"vocab_size": 49408, **_CLIP_L},
        "text_encoder_2": {"vocab_size": 49408, "projection_dim": 1280, **_CLIP_G},
        "": {"force_zeros_for_empty_prompt": True},
    },
    "if": {"unet": _IF, "text_encoder": {"vocab_size": 32128, "feed_forward_proj": "gated-gelu", **_T5_XXL}},
}
"""Stable Diffusion 1.5, Stable Diffusion XL, and DeepFloyd IF-I-XL."""


def skeleton(config: Config, shapes: Shapes | None = None) -> Config:
    """The config of the same guide without weights; its shapes, if not given, are those of `config.source`."""
    target = type(f"{config._target.__name__}Skeleton", (Skeleton, config._target), {"shapes": shapes})
    return replace(config, _target=target)


class Skeleton(DiffusersGuide):
    """Goes before a guide's class and reads nothing but configurations."""

    shapes: Shapes | None
    _vae_dtype: torch.dtype  # Of guides with a VAE.

    def __init__(self, config: DiffusersGuideConfig, device: torch.device | str = "cpu") -> None:
        # What a model is was checked where it was chosen; device and schedule may be fake.
        unasked: dict[str, Any] = {
            "check_device": lambda device: None,
            "check_source": lambda source, *_: source,
            "check_schedule": lambda *_: None,
            "read_config": lambda *_: {},
            "above_zero": lambda alphas_cumprod, prediction_type: alphas_cumprod,
        }
        with mock.patch.multiple(guide, **unasked):
            super().__init__(config, device)
        self._text_digest = ""  # Of random weights: nothing is cached by it.

    def _read(self, part: Any, folder: str, dtype: torch.dtype = torch.float32, **kwargs: Any) -> Any:
        shape = self._read_config(part, folder)
        if not issubclass(part, nn.Module):
            return part.from_config(shape)
        part = cast(Any, part)
        waits = hasattr(part, "config_class") and self.config.text_encoder_memory == "offload"
        with torch.device("cpu" if waits else self.device), _default_dtype(dtype):
            if hasattr(part, "config_class"):  # transformers'
                return part(part.config_class(**shape))
            return part.from_config(shape)

    def _read_config(self, part: type, folder: str) -> dict[str, Any]:
        if self.shapes is not None:
            return dict(self.shapes.get(folder, {}))
        if hasattr(part, "config_class"):
            return part.config_class.from_pretrained(self.source, subfolder=folder).to_dict()
        return read_config(part, self.source, folder or None)

    def _read_vae(self) -> AutoencoderKL:
        from diffusers import AutoencoderKL

        other = getattr(self.config, "vae", None)
        if other is None or self.shapes is not None:
            return self._read(AutoencoderKL, "vae", dtype=self._vae_dtype)
        with torch.device(self.device), _default_dtype(self._vae_dtype):
            return cast(AutoencoderKL, AutoencoderKL.from_config(read_config(AutoencoderKL, other, None)))

    def _read_tokenizer(self, folder: str) -> NoWords:
        return NoWords()


class NoWords:
    """A tokenizer for which every prompt is 77 times the same token."""

    model_max_length = 77
    unk_token_id = eos_token_id = None

    def __call__(self, prompts: str | list[str], return_tensors: str | None = None, **_: Any) -> Any:
        if return_tensors is None:
            return SimpleNamespace(input_ids=[0])
        ids = torch.zeros(len(prompts), self.model_max_length, dtype=torch.long)
        return _Words(ids, torch.ones_like(ids))

    def get_vocab(self) -> dict[str, int]:
        return {}

    def add_tokens(self, word: str) -> None:
        """A new word is the same token, too."""

    def convert_tokens_to_ids(self, word: str) -> int:
        return 0


class _Words(SimpleNamespace):
    def __init__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> None:
        super().__init__(input_ids=input_ids, attention_mask=attention_mask)

    def to(self, device: torch.device) -> _Words:
        return _Words(self.input_ids.to(device), self.attention_mask.to(device))


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
