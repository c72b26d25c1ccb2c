"""What all guides stored in diffusers' folder layout share: a network, text encoders, and what DreamBooth may move.

A subclass is a family of networks, `unet/` or `flow/`. It reads the network and its noise schedule (`_read_network`,
`_read_schedule`, `_checked_source`), prepares the tuning, and answers `predict_noise`. A model of the family adds
`learning_rates`, `resolution`, `z_shape`, the text encoders and the codec, and where it differs replaces
    `folders`, `_unpacked`, `_read_tokenizer`, `_text_dtype`                 what is read
    `_check_words`, `_check_length`, `_encode_text`                          how prompts become text
    `modules`                                                                further networks

Networks are always in eval mode: none of those in use has dropout, and fine-tuning stays a function of its seed.
Attention is PyTorch's scaled_dot_product_attention, diffusers' default, which needs no slicing.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import Parameter

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.guides.base import DiffusionGuide, digest
from db3d_nerfstudio.guides.config import DiffusersGuideConfig
from db3d_nerfstudio.guides.kinds import Family
from db3d_nerfstudio.guides.record import check_base, write_record
from db3d_nerfstudio.guides.source import read_config, read_part
from db3d_nerfstudio.guides.tuning.base import Tuning

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class DiffusersGuide(DiffusionGuide):
    """A network conditioned on text encoders, with adapters or whole weights that DreamBooth may move."""

    config: DiffusersGuideConfig
    needs_gpu = True
    folders: tuple[str, ...]
    """What the model's folder must contain."""
    family: Family | None = None
    """Which models the guide is for; None where it has its own way to say so."""
    learning_rates: dict[str, float]
    """Learning rate of each kind of tuning."""
    network_folder: str
    """The folder of the network that denoises."""
    memory_format: torch.memory_format = torch.preserve_format
    """How the network's weights are laid out."""
    _text_dtype = torch.float32

    def __init__(self, config: DiffusersGuideConfig, device: torch.device | str = "cpu") -> None:
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # Of reading files; downloads keep theirs.
        self.config = config
        self.device = torch.device(config.device or device)
        check_device(self.device)
        self.dtype = choose_dtype(config.dtype, self.device)
        if config.tuning not in self.learning_rates:
            raise UserError(f"This guide has no {config.tuning}: set its tuning to {' or '.join(self.learning_rates)}.")
        self.learning_rate = self.learning_rates[config.tuning]
        self.source = self._checked_source()
        self._network_dtype = torch.float32 if config.tuning == "full" else self.dtype
        self._read_schedule()
        self.tokenizer = self._read_tokenizer("tokenizer")
        self.network = self._read_network()
        self._embeddings: dict[str, Float[Tensor, "n d"]] = {}
        self._text_digest: str | None = None
        self._text: dict[str, PreTrainedModel] = {}
        if config.text_encoder_memory != "free":
            self._text = self._read_text_encoders()
        if config.moves_text and config.text_encoder_memory != "keep":
            raise UserError('A text encoder that is trained must stay: set text_encoder_memory to "keep".')
        for module in (self.network, *self._text.values()):
            module.eval().requires_grad_(False)
        self._tuning = self._prepare_tuning()
        self.can_forget = self._tuning.can_forget
        if config.gradient_checkpointing:
            self.network.enable_gradient_checkpointing()
        self.network.to(self.device, memory_format=self.memory_format)
        if config.text_encoder_memory == "keep":
            for module in self._text.values():
                move(module, self.device)

    @abc.abstractmethod
    def _checked_source(self) -> str:
        """The folder or hub id to read from; raise for a model of another kind."""

    def _unpacked(self, source: str) -> str:
        """The source as a folder, where it is a file that this guide can unpack."""
        return source

    @abc.abstractmethod
    def _read_schedule(self) -> None:
        """Set `alphas_cumprod` and `prediction_type`."""

    @abc.abstractmethod
    def _read_network(self) -> Any:
        """The network that denoises, in `_network_dtype`."""

    @abc.abstractmethod
    def _prepare_tuning(self) -> Tuning:
        """Unfreeze what the config asks to train."""

    def _read(self, part: type, folder: str, **kwargs):
        """One part of the model from its folder or hub id, or an error that names the fix."""
        if "dtype" in kwargs:
            kwargs["variant"] = self.config.variant
        return read_part(part, self.source, folder, **kwargs)

    def _read_config(self, part: type, folder: str) -> dict[str, Any]:
        """The configuration of one part; of the pipeline where the folder has no name."""
        return read_config(part, self.source, folder or None)

    def _read_tokenizer(self, folder: str):
        from transformers import AutoTokenizer

        return self._read(AutoTokenizer, folder)

    @abc.abstractmethod
    def _text_encoder_classes(self) -> dict[str, type]:
        """Classes of the text encoders, by the names of their folders."""

    def _read_text_encoders(self) -> dict[str, PreTrainedModel]:
        classes = self._text_encoder_classes()
        return {name: self._read(part, name, dtype=self._text_dtype) for name, part in classes.items()}

    @property
    def text_encoder(self) -> PreTrainedModel:
        """The (first) text encoder."""
        return self._text["text_encoder"]

    def _check_words(self, prompts: list[str]) -> None:
        """Raise for words that the tokenizer has no tokens for; byte-pair encodings have tokens for all."""

    def modules(self) -> dict[str, nn.Module]:
        """All loaded networks, tuned or frozen, that the guide's output depends on."""
        return {self.network_folder: self.network, **self._text}

    def check_prompts(self, prompts: list[str]) -> None:
        self._check_words(prompts)
        for prompt in prompts:
            self._check_length(prompt)

    def embed(self, prompts: list[str]) -> Float[Tensor, "b n d"]:
        self.check_prompts(prompts)
        if self.config.moves_text:
            return self._encode_text(prompts)
        if not self._embeddings.keys() >= set(prompts):
            with self._text_encoders_at_hand():
                for prompt in prompts:  # One by one: an embedding must not depend on the number of other prompts.
                    self._embeddings[prompt] = self._encode_text([prompt])[0]
        return torch.stack([self._embeddings[prompt] for prompt in prompts])

    def _check_length(self, prompt: str) -> None:
        length, tokens = self.tokenizer.model_max_length, len(self.tokenizer(prompt, verbose=False).input_ids)
        if tokens > length:  # Cutting it off would cost the view at its end, unnoticed.
            raise UserError(f'The prompt "{prompt}" has {tokens} tokens, but the model reads {length}: shorten it.')

    @abc.abstractmethod
    def _encode_text(self, prompts: list[str]) -> Float[Tensor, "b n d"]:
        """Embed prompts that the tokenizer has passed, with the loaded text encoders."""

    def _token_ids(self, tokenizer, prompts: list[str], length: int | None = None) -> Int[Tensor, "b n"]:
        """Args: `length` to pad to; by default what the tokenizer says that the model reads."""
        length = tokenizer.model_max_length if length is None else length
        padded = tokenizer(prompts, padding="max_length", max_length=length, return_tensors="pt")
        return padded.input_ids.to(self.device)

    @contextmanager
    def _text_encoders_at_hand(self) -> Iterator[None]:
        """Load frozen text encoders onto the device within a `with` block; then do what the config asks for."""
        if not self._text:
            self._text = {name: m.eval().requires_grad_(False) for name, m in self._read_text_encoders().items()}
        for module in self._text.values():
            move(module, self.device)
        if self._text_digest is None:
            self._text_digest = digest(_named_parameters(self._text))
        yield
        if self.config.text_encoder_memory == "free":
            self._text = {}
        elif self.config.text_encoder_memory == "offload":
            for module in self._text.values():
                module.cpu()
        if self.config.text_encoder_memory != "keep" and self.device.type == "cuda":
            torch.cuda.empty_cache()

    def parameters(self) -> list[Parameter]:
        return [p for module in self._tuning.modules.values() for p in module.parameters() if p.requires_grad]

    def save(self, path: Path) -> None:
        self._tuning.save(path)
        write_record(path, self.config, self.network)

    def load(self, path: Path | None) -> None:
        if path is not None:
            check_base(path, self.config, self.network)
        self._tuning.load(path)

    def untuned(self) -> AbstractContextManager[None]:
        return self._tuning.switched_off()

    def fingerprint(self) -> str:
        if self.config.moves_text:
            return digest(_named_parameters(self.modules()))
        if self._text_digest is None:
            with self._text_encoders_at_hand():
                pass
        others = {name: module for name, module in self.modules().items() if name not in self._text}
        return f"{digest(_named_parameters(others))}-{self._text_digest}"


def move(module: nn.Module, device: torch.device) -> None:
    """`module.to(device)`, which has lost its types in the classes of diffusers and transformers."""
    module.to(device)


def _named_parameters(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, Tensor]]:
    for name, module in modules.items():
        for key, tensor in module.named_parameters():
            yield f"{name}.{key}", tensor


def check_device(device: torch.device) -> None:
    """Raise if this machine has no such device."""
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"There is no CUDA device for {device}: leave the device out, or set it to cpu.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"There is no {device}: this machine has cuda:0 to cuda:{torch.cuda.device_count() - 1}.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("There is no MPS device: set the device to cpu.")


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The precision that a config names, `auto` resolved for the device."""
    if name == "float16" and device.type == "cpu":
        raise UserError("CPUs lack most operations in float16: set the guide's dtype to float32 or bfloat16.")
    if name != "auto":
        return getattr(torch, name)
    if device.type != "cuda":
        return torch.float32
    # PyTorch counts emulation as support, and cards before Ampere have neither bfloat16 nor convolutions of it.
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def resize(rgb: Float[Tensor, "b 3 h w"], resolution: int) -> Float[Tensor, "b 3 h2 w2"]:
    """The image at `resolution` squared, by a filter that neither aliases nor blocks the gradient."""
    if rgb.shape[-2:] == (resolution, resolution):
        return rgb
    return nn.functional.interpolate(rgb, (resolution, resolution), mode="bilinear", antialias=True)
