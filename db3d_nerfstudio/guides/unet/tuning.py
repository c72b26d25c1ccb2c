"""What DreamBooth moves of a guide: all weights, an adapter, or the embedding of one new word; and its files."""

from __future__ import annotations

import abc
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.guides.unet import adapters
from db3d_nerfstudio.guides.unet.textual_inversion import EMBEDDING_FILE, add_word, load_word, save_word

if TYPE_CHECKING:
    from db3d_nerfstudio.guides.unet.guide import DiffusersGuideConfig


class Tuning(abc.ABC):
    """A way of tuning networks; made from networks that are frozen, it frees what may move."""

    modules: dict[str, nn.Module]
    """The networks that have something to move, by the names of their folders."""
    can_forget: bool = True
    """Whether what other prompts mean may change."""

    @abc.abstractmethod
    def save(self, path: Path) -> None:
        """Write what may move into the folder `path`, in diffusers' format."""

    @abc.abstractmethod
    def load(self, path: Path | None) -> None:
        """Overwrite in place what may move, by what `save` wrote or, for None, by what it was at first."""


class FullTuning(Tuning):
    """All weights."""

    def __init__(self, modules: dict[str, nn.Module], read_base: Callable[..., Any]) -> None:
        self.modules, self._read_base = modules, read_base
        for module in modules.values():
            module.requires_grad_(True)

    def save(self, path: Path) -> None:
        for name, module in self.modules.items():
            module.save_pretrained(path / name)

    def load(self, path: Path | None) -> None:
        if path is not None:
            _check_saved(path, list(self.modules))
        for name, module in self.modules.items():
            if path is None:
                saved = self._read_base(type(module), name, dtype=torch.float32)
            else:
                saved = type(module).from_pretrained(path, subfolder=name, dtype=torch.float32)
            theirs, ours = saved.state_dict(), module.state_dict()
            if {key: value.shape for key, value in theirs.items()} != {key: v.shape for key, v in ours.items()}:
                raise UserError(f"{path}/{name} is another architecture: set the guide's model to that it came from.")
            module.load_state_dict(theirs)


class AdapterTuning(Tuning):
    """Low-rank adapters."""

    def __init__(self, modules: dict[str, nn.Module], config: DiffusersGuideConfig) -> None:
        self.modules, self._base = modules, config.source
        alpha = float(config.lora_rank) if config.lora_alpha is None else config.lora_alpha
        for name, module in modules.items():
            targets = config.lora_targets if name == "unet" else None
            adapters.add_adapter(name, module, config.lora_rank, alpha, targets)
        self._fresh = {
            name: {key: value.clone() for key, value in adapters.adapter_state(module).items()}
            for name, module in modules.items()
        }

    def save(self, path: Path) -> None:
        adapters.save_adapters(self.modules, self._base, path)

    def load(self, path: Path | None) -> None:
        if path is None:
            for name, module in self.modules.items():
                adapters.copy_into(adapters.adapter_state(module), self._fresh[name])
        else:
            _check_saved(path, [adapters.ADAPTER_FILE])
            adapters.load_adapters(self.modules, path)


class WordTuning(Tuning):
    """Textual Inversion."""

    can_forget = False

    def __init__(self, text_encoder: nn.Module, tokenizer: Any, word: str, like: str) -> None:
        self.modules, self._word = {"text_encoder": text_encoder}, word
        self._embedding = add_word(tokenizer, text_encoder, word, like)

    def save(self, path: Path) -> None:
        save_word(self._word, self._embedding, path)

    def load(self, path: Path | None) -> None:
        if path is not None:
            _check_saved(path, [EMBEDDING_FILE])
        load_word(self._word, self._embedding, path)


def moves_text(config: DiffusersGuideConfig) -> bool:
    """Whether what prompts mean changes with training."""
    return config.train_text_encoder or config.tuning == "textual_inversion"


def prepare_tuning(
    config: DiffusersGuideConfig,
    unet: nn.Module,
    text_encoders: dict[str, nn.Module],
    tokenizer: Any,
    read_base: Callable[..., Any],
) -> Tuning:
    """Freeze the networks but for what the config wants to move.

    Args:
        read_base: Reads a network of the base model again, given its class, its folder's name and a dtype.
    """
    for module in (unet, *text_encoders.values()):
        module.eval().requires_grad_(False)
    if config.tuning == "textual_inversion":
        if config.train_text_encoder:
            raise UserError("Textual inversion moves one word alone: set train_text_encoder to False.")
        if len(text_encoders) != 1:
            raise UserError(f"{config.source} has several text encoders: set the guide's tuning to lora.")
        return WordTuning(text_encoders["text_encoder"], tokenizer, config.new_token, config.new_token_like)
    tuned = {"unet": unet}
    if config.train_text_encoder:
        tuned["text_encoder"] = text_encoders["text_encoder"]
    return AdapterTuning(tuned, config) if config.tuning == "lora" else FullTuning(tuned, read_base)


def _check_saved(path: Path, names: list[str]) -> None:
    missing = [name for name in names if not (path / name).exists()]
    if missing:
        raise FileNotFoundError(
            f"{path} holds no {', '.join(missing)}: it was saved with another tuning or train_text_encoder than is set."
        )
