"""A guide of a model's shapes with random weights and no words: what the model costs, without its weights.

On a real device it is timed; on the fake one of `guides.counting` its memory is counted. Shapes come from the model's
configuration files, or from `shapes.SHAPES`, the published ones of the presets' models.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar, cast
from unittest import mock

import torch
from torch import nn

from db3d_nerfstudio.guides import diffusers_guide
from db3d_nerfstudio.guides.config import DiffusersGuideConfig
from db3d_nerfstudio.guides.diffusers_guide import DiffusersGuide
from db3d_nerfstudio.guides.shapes import Shapes
from db3d_nerfstudio.guides.source import read_config

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

Config = TypeVar("Config", bound=DiffusersGuideConfig)


def skeleton(config: Config, shapes: Shapes | None = None) -> Config:
    """The config of the same guide without weights; its shapes, if not given, are those of `config.source`."""
    target = type(f"{config._target.__name__}Skeleton", (Skeleton, config._target), {"shapes": shapes})
    return replace(config, _target=target)


class Skeleton(DiffusersGuide):
    """Goes before a guide's class and reads nothing but configurations."""

    shapes: Shapes | None
    _vae_dtype: torch.dtype  # Of guides with a VAE.

    def __init__(self, config: DiffusersGuideConfig, device: torch.device | str = "cpu", **others: Any) -> None:
        with mock.patch.object(diffusers_guide, "check_device", lambda device: None):  # It may be fake.
            super().__init__(config, device, **others)
        self._text_digest = ""  # Of random weights: nothing is cached by it.

    def _checked_source(self) -> str:
        return self._unpacked(self.config.source)  # What it is was checked where it was chosen.

    def _read_schedule(self) -> None:
        self.alphas_cumprod = torch.linspace(0.999, 0.001, 1000, device=self.device)
        self.prediction_type = "epsilon"

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
    """A tokenizer for which every prompt is the same token, 77 times or as often as is asked for."""

    model_max_length = 77
    unk_token_id = eos_token_id = None

    def __call__(
        self, prompts: str | list[str], return_tensors: str | None = None, max_length: int = 77, **_: Any
    ) -> Any:
        if return_tensors is None:
            return SimpleNamespace(input_ids=[0])
        ids = torch.zeros(len(prompts), max_length, dtype=torch.long)
        return _Words(ids, torch.ones_like(ids))

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> str:
        return messages[0]["content"]

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
