"""The memory that a guide needs on its device, estimated from its configuration files before anything is loaded.

Weights, gradients and the optimizer's moments are counted exactly, on PyTorch's "meta" device, which has shapes only.
Activations are estimated as the outputs of all layers (kept for the backward pass) or, with gradient checkpointing, the
outputs of the blocks and of the largest block's layers; attention is assumed to be fused. Rendering is not included.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.guides.source import read_config
from db3d_nerfstudio.guides.unet.config import DiffusersGuideConfig
from db3d_nerfstudio.guides.unet.tuning.lora import lora_layers

GIB = 2**30
BATCH = 4
"""Images in a batch of DreamBooth: the default of two of the subject and two of the class."""
SUGGESTIONS: tuple[tuple[str, Any], ...] = (
    ("tuning", "lora"),
    ("gradient_checkpointing", True),
    ("dtype", "bfloat16"),
    ("text_encoder_memory", "offload"),
    ("vae_dtype", "bfloat16"),
)
"""What to change, the least harmful first, if a guide does not fit."""
CHECKPOINTED = ("ResnetBlock2D", "BasicTransformerBlock")
"""What diffusers computes again in backward passes with gradient checkpointing."""


@dataclass(frozen=True)
class Parts:
    """A guide's networks on the "meta" device."""

    unet: nn.Module
    text_encoders: tuple[nn.Module, ...]
    text_bytes: int = 4
    """Bytes per weight of the text encoders."""
    vae: nn.Module | None = None


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on the guide's device, by purpose."""

    weights: int
    training: int
    """Gradients and the optimizer's moments of what DreamBooth trains."""
    activations: int
    """Activations of a step, or text encoders that are loaded for a moment, whichever are larger."""

    @property
    def total(self) -> int:
        """Peak memory."""
        return self.weights + self.training + self.activations

    def __str__(self) -> str:
        parts = {"weights": self.weights, "gradients and moments": self.training, "activations": self.activations}
        listed = ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts.items())
        return f"{self.total / GIB:.1f} GiB ({listed})"


def estimate(config: DiffusersGuideConfig, parts: Parts, dtype: torch.dtype) -> MemoryEstimate:
    """The memory of a guide with this configuration and these networks, computing in `dtype`."""
    full = config.tuning == "full"
    unet_bytes = 4 if full else dtype.itemsize
    trained = 0  # Textual inversion moves one word.
    if full:
        trained = _size(parts.unet) + config.train_text_encoder * sum(map(_size, parts.text_encoders))
    elif config.tuning == "lora":
        trained = _adapter_size(parts.unet, config)
    text = sum(map(_size, parts.text_encoders)) * parts.text_bytes
    kept = config.text_encoder_memory == "keep"
    vae_bytes = getattr(torch, getattr(config, "vae_dtype", "float32")).itemsize
    vae = 0 if parts.vae is None else _size(parts.vae) * vae_bytes
    weights = _size(parts.unet) * unet_bytes + vae + kept * text + (0 if full else 4 * trained)
    tuning = _unet_activations(parts.unet, BATCH, config.gradient_checkpointing) * dtype.itemsize
    coding = 0
    if parts.vae is not None:
        side = parts.unet.config.sample_size * 2 ** (len(parts.vae.config.block_out_channels) - 1)
        image = torch.empty(1, 3, side, side, device="meta")
        checkpointed = config.gradient_checkpointing
        coding = _activations(parts.vae.encoder, checkpointed, image) * vae_bytes
    return MemoryEstimate(weights, 12 * trained, max(tuning, coding, (not kept) * text))


def check_fits(
    config: DiffusersGuideConfig, parts: Parts, dtype: torch.dtype, free: int, device: torch.device
) -> tuple[MemoryEstimate, str]:
    """The estimate, and what to change if it exceeds the `free` bytes of the device, else an empty string.

    Raises:
        UserError: weights, gradients and moments alone, which are certain, do not fit.
    """
    needed = estimate(config, parts, dtype)
    if needed.total <= free:
        return needed, ""
    advice = _advice(config, parts, dtype, free)
    sentence = f"The guide needs about {needed} on {device}, where {free / GIB:.1f} are free. {advice}"
    if needed.weights + needed.training > free:
        raise UserError(sentence)
    return needed, sentence


def _advice(config: DiffusersGuideConfig, parts: Parts, dtype: torch.dtype, free: int) -> str:
    changes = []
    for name, value in SUGGESTIONS:
        if getattr(config, name, value) == value or (name == "dtype" and dtype.itemsize == 2):
            continue
        config = replace(config, **{name: value})
        changes.append(f"{name} {value}")
        needed = estimate(config, parts, torch.bfloat16 if name == "dtype" else dtype)
        dtype = torch.bfloat16 if name == "dtype" else dtype
        if needed.total <= free:
            return f"Set the guide's {', '.join(changes)}: then it needs {needed.total / GIB:.1f}."
    return "Choose a smaller model, or set the guide's device to another one."


def read_parts(source: str, text_encoders: dict[str, type], text_dtype: torch.dtype, vae: str | None) -> Parts:
    """The networks of a model on the "meta" device, built from its configuration files.

    Args:
        text_encoders: Classes of transformers by the names of their folders.
        vae: Folder or hub id of the VAE, `source` for the model's own; None if there is none.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(read_config(UNet2DConditionModel, source, "unet"))
        texts = [
            part(part.config_class.from_pretrained(source, subfolder=folder)) for folder, part in text_encoders.items()
        ]
        folder = "vae" if vae == source else None
        autoencoder = vae and AutoencoderKL.from_config(read_config(AutoencoderKL, vae, folder))
    return Parts(unet, tuple(texts), text_dtype.itemsize, autoencoder)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _adapter_size(unet: nn.Module, config: DiffusersGuideConfig) -> int:
    """Parameters of the adapters: a layer of the same kind that puts out `lora_rank` channels, and a 1x1 one."""
    layers = [layer for layer in lora_layers("unet", unet, config.lora_targets) if hasattr(layer, "weight")]
    return sum(config.lora_rank * (layer.weight[0].numel() + len(layer.weight)) for layer in layers)


def _unet_activations(unet: nn.Module, batch: int, checkpointed: bool) -> int:
    config = unet.config
    z = torch.empty(batch, config.in_channels, config.sample_size, config.sample_size, device="meta")
    text = torch.empty(batch, 77, config.encoder_hid_dim or config.cross_attention_dim, device="meta")
    extra = {}
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        sizes = torch.empty(batch, 6, device="meta")
        extra["added_cond_kwargs"] = {"text_embeds": torch.empty(batch, pooled, device="meta"), "time_ids": sizes}
    if config.class_embed_type == "timestep":
        extra["class_labels"] = torch.zeros(batch, dtype=torch.long, device="meta")
    t = torch.zeros(batch, dtype=torch.long, device="meta")
    return _activations(unet, checkpointed, z, t, text, **extra)


@torch.no_grad()
def _activations(network: nn.Module, checkpointed: bool, *inputs: torch.Tensor, **extra: Any) -> int:
    """Number of values that a forward pass keeps for the backward pass, taken to be what its layers put out."""
    blocks = [name for name, module in network.named_modules() if type(module).__name__ in CHECKPOINTED]
    inside, put_out, outside = dict.fromkeys(blocks, 0), dict.fromkeys(blocks, 0), 0

    def count(name: str, module: nn.Module, output: Any) -> None:
        nonlocal outside
        values = output[0] if isinstance(output, tuple) else output
        owner = next((block for block in blocks if name.startswith(f"{block}.")), None)
        if name in put_out:
            put_out[name] = values.numel()
        elif owner is not None:
            inside[owner] += values.numel()
        else:
            outside += values.numel()

    handles = [
        module.register_forward_hook(lambda module, args, output, name=name: count(name, module, output))
        for name, module in network.named_modules()
        if name in put_out or not list(module.children())
    ]
    try:
        network(*inputs, **extra)
    finally:
        for handle in handles:
            handle.remove()
    if checkpointed:
        return outside + sum(put_out.values()) + max(inside.values())
    return outside + sum(inside.values())
