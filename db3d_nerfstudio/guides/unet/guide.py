"""What all guides stored in diffusers' folder layout share: `unet/`, `text_encoder/`, `tokenizer/`, `scheduler/`.

A subclass sets `learning_rates`, `resolution` and `z_shape`, and adds the codec, `encode` and `decode`. Where its model
differs it replaces
    `folders`, `_read_tokenizer`, `_text_encoder_classes`, `_text_dtype`     what is read
    `_check_words`, `_encode_text`                                           how prompts become text
    `_inputs`, `_conditions`                                                 what the UNet is given
    `modules`, `_unpacked`                                    further networks, other sources

Networks are always in eval mode: none of those in use has dropout, and fine-tuning stays a function of its seed.
Attention is PyTorch's scaled_dot_product_attention, diffusers' default, which needs no slicing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import Parameter

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.guides.base import DiffusionGuide, PredictionType, digest
from db3d_nerfstudio.guides.kinds import Family
from db3d_nerfstudio.guides.record import check_base, write_record
from db3d_nerfstudio.guides.source import check_schedule, check_source, read_config, read_part
from db3d_nerfstudio.guides.unet.config import DiffusersGuideConfig
from db3d_nerfstudio.guides.unet.tuning.prepare import prepare_tuning

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class DiffusersGuide(DiffusionGuide):
    """A UNet conditioned on a CLIP text encoder, with adapters or whole weights that DreamBooth may move."""

    config: DiffusersGuideConfig
    needs_gpu = True
    folders: tuple[str, ...] = ("unet", "text_encoder", "tokenizer", "scheduler")
    """What the model's folder must contain."""
    family: Family | None = None
    """Which models the guide is for; None where it has its own way to say so."""
    channels: int = 4
    """What the UNet of such a model takes."""
    learning_rates: dict[str, float]
    """Learning rate of each kind of tuning."""
    _text_dtype = torch.float32

    def __init__(self, config: DiffusersGuideConfig, device: torch.device | str = "cpu") -> None:
        from diffusers import DDPMScheduler, UNet2DConditionModel
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # Of reading files; downloads keep theirs.
        self.config = config
        self.device = torch.device(config.device or device)
        check_device(self.device)
        self.dtype = choose_dtype(config.dtype, self.device)
        if config.tuning not in self.learning_rates:
            raise UserError(f"This guide has no {config.tuning}: set its tuning to {' or '.join(self.learning_rates)}.")
        self.learning_rate = self.learning_rates[config.tuning]
        self.source = check_source(self._unpacked(config.source), self.folders, self.family, self.channels)
        check_schedule(self.source, read_config(DDPMScheduler, self.source, "scheduler"))
        self._unet_dtype = torch.float32 if config.tuning == "full" else self.dtype
        scheduler = self._read(DDPMScheduler, "scheduler")
        self.tokenizer = self._read_tokenizer("tokenizer")
        self.prediction_type = config.prediction_type or scheduler.config.prediction_type
        self.alphas_cumprod = above_zero(scheduler.alphas_cumprod, self.prediction_type).to(self.device)
        self.unet = self._read(UNet2DConditionModel, "unet", dtype=self._unet_dtype)
        self._embeddings: dict[str, Float[Tensor, "n d"]] = {}
        self._text_digest: str | None = None
        self._text: dict[str, PreTrainedModel] = {}
        if config.text_encoder_memory != "free":
            self._text = self._read_text_encoders()
        if config.moves_text and config.text_encoder_memory != "keep":
            raise UserError('A text encoder that is trained must stay: set text_encoder_memory to "keep".')
        self._tuning = prepare_tuning(config, self.unet, self._text, self.tokenizer, self._read)
        self.can_forget = self._tuning.can_forget
        if config.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        self.unet.to(self.device, memory_format=torch.channels_last)
        if config.text_encoder_memory == "keep":
            for module in self._text.values():
                move(module, self.device)

    def _unpacked(self, source: str) -> str:
        """The source as a folder, where it is a file that this guide can unpack."""
        return source

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

    def _text_encoder_classes(self) -> dict[str, type]:
        """Classes of the text encoders, by the names of their folders."""
        from transformers import CLIPTextModel

        return {"text_encoder": CLIPTextModel}

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
        return {"unet": self.unet, **self._text}

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

    def _encode_text(self, prompts: list[str]) -> Float[Tensor, "b n d"]:
        """Embed prompts that the tokenizer has passed, with the loaded text encoders."""
        return self.text_encoder(self._token_ids(self.tokenizer, prompts)).last_hidden_state

    def _token_ids(self, tokenizer, prompts: list[str]) -> Int[Tensor, "b n"]:
        padded = tokenizer(prompts, padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt")
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

    def predict_noise(
        self, z_t: Float[Tensor, "b c hz wz"], t: Int[Tensor, " b"], text: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b c hz wz"]:
        inputs = self._inputs(z_t, text).to(self._unet_dtype, memory_format=torch.channels_last)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            output = self.unet(inputs, t, **self._conditions(text.to(self._unet_dtype))).sample
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

    def parameters(self) -> list[Parameter]:
        return [p for module in self._tuning.modules.values() for p in module.parameters() if p.requires_grad]

    def save(self, path: Path) -> None:
        self._tuning.save(path)
        write_record(path, self.config, self.unet)

    def load(self, path: Path | None) -> None:
        if path is not None:
            check_base(path, self.config, self.unet)
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


def above_zero(alphas_cumprod: Float[Tensor, " T"], prediction_type: PredictionType) -> Float[Tensor, " T"]:
    """The schedule without an end of pure noise, at which an estimate of it says nothing of the image.

    Zero terminal SNR (Lin et al. 2023, arXiv 2305.08891) ends at exactly 0. That of v and x0 still holds next to it;
    one of the noise does not, and repeats the step before.
    """
    least = alphas_cumprod[alphas_cumprod > 0].min() if prediction_type == "epsilon" else torch.tensor(2.0**-24)
    return torch.where(alphas_cumprod > 0, alphas_cumprod, least.to(alphas_cumprod.dtype))


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
