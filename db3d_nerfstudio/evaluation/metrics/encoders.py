"""Encoders of pictures and sentences: vectors that metrics can compare.

Nothing is loaded or downloaded before one of the functions that make an encoder is called.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from db3d_nerfstudio.errors import UserError

if TYPE_CHECKING:
    from db3d_nerfstudio.toybox.judge import Judge

CLIP_BACKBONES = {
    "ViT-B/16": "openai/clip-vit-base-patch16",
    "ViT-B/32": "openai/clip-vit-base-patch32",
    "ViT-L/14": "openai/clip-vit-large-patch14",
}
"""The three backbones of the paper's table (2303.13508, table 1) and where the hub keeps them."""
DINO_BACKBONE = "facebook/dino-vits16"
"""ViT-S/16, the backbone of DreamBooth's DINO metric (2208.12242, section 4.1)."""
DINOV2_SIDE = 224
"""Side of the pictures that DINOv2 is evaluated on, pixels; its weights are configured for 518."""

Images = Float[Tensor, "b 3 h w"]
Features = Float[Tensor, "b d"]


@dataclass(frozen=True)
class Encoder:
    """Maps pictures in [0, 1], and sentences if it has a text tower, to vectors of length 1."""

    name: str
    """Prefix of its metrics' names."""
    images: Callable[[Images], Features]
    """Pictures to vectors."""
    texts: Callable[[list[str]], Features] | None = None
    """Sentences to vectors of the same space."""


def prepare(rgb: Images, side: int) -> Float[Tensor, "b 3 s s"]:
    """The central square, resized to `side` pixels by an antialiased bicubic filter, in [0, 1]."""
    edge = min(rgb.shape[-2:])
    top, left = (rgb.shape[-2] - edge) // 2, (rgb.shape[-1] - edge) // 2
    square = rgb[..., top : top + edge, left : left + edge]
    if edge == side:
        return square
    return interpolate(square, (side, side), mode="bicubic", antialias=True).clamp(0, 1)


def judge_encoder(judge: Judge) -> Encoder:
    """The embedded judge: a CLIP of the toybox's world, for pictures of 64 pixels."""

    @torch.no_grad()
    def images(rgb: Images) -> Features:
        return judge.look(prepare(rgb, 64)).embedding

    return Encoder("judge", images, torch.no_grad()(judge.read))


def clip_encoder(backbone: str, device: torch.device | str = "cpu") -> Encoder:
    """CLIP (Radford et al. 2021, arXiv 2103.00020).

    Args:
        backbone: A key of `CLIP_BACKBONES`, another hub id, or a local folder in transformers' layout.

    Raises:
        UserError: it is neither on this machine nor to be had from the hub.
    """
    from transformers import AutoTokenizer, CLIPModel
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    source = CLIP_BACKBONES.get(backbone, backbone)
    model = _frozen(CLIPModel, source, device)
    tokenizer = _read(AutoTokenizer, source)

    @torch.no_grad()
    def images(rgb: Images) -> Features:
        pixels = _standardise(prepare(rgb, model.config.vision_config.image_size), OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
        return normalize(model.get_image_features(pixel_values=pixels.to(device)).pooler_output, dim=-1).cpu()

    @torch.no_grad()
    def texts(sentences: list[str]) -> Features:
        tokens = tokenizer(sentences, padding=True, truncation=True, return_tensors="pt").to(device)
        return normalize(model.get_text_features(**tokens).pooler_output, dim=-1).cpu()

    return Encoder(f"clip {backbone}", images, texts)


def dino_encoder(source: str = DINO_BACKBONE, device: torch.device | str = "cpu") -> Encoder:
    """The class token of DINO's vision transformer (Caron et al. 2021, arXiv 2104.14294) or of DINOv2's (Oquab et al.
    2023, arXiv 2304.07193), with or without registers.

    Args:
        source: A hub id, such as `facebook/dinov2-base`, or a local folder in transformers' layout.

    Raises:
        UserError: it is neither on this machine nor to be had from the hub.
    """
    from transformers import AutoConfig, AutoModel
    from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    second = _read(AutoConfig, source).model_type.startswith("dinov2")
    model = _frozen(AutoModel, source, device, **({} if second else {"add_pooling_layer": False}))
    side = min(DINOV2_SIDE, model.config.image_size) if second else model.config.image_size

    @torch.no_grad()
    def images(rgb: Images) -> Features:
        pixels = _standardise(prepare(rgb, side), IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        return normalize(model(pixels.to(device)).last_hidden_state[:, 0], dim=-1).cpu()

    return Encoder(f"dino {source.rsplit('/', 1)[-1]}", images)


def _standardise(rgb: Images, mean: list[float], std: list[float]) -> Images:
    return (rgb - rgb.new_tensor(mean)[:, None, None]) / rgb.new_tensor(std)[:, None, None]


def _frozen(part: type, source: str, device: torch.device | str, **kwargs: Any) -> Any:
    return _read(part, source, dtype=torch.float32, **kwargs).eval().requires_grad_(False).to(device)


def _read(part: type, source: str, **kwargs: Any) -> Any:
    try:
        return part.from_pretrained(source, **kwargs)
    except OSError:
        raise UserError(
            f'the encoder "{source}" is neither a local folder nor on the hub: '
            "check the spelling and the network, or give a local folder in transformers' layout"
        ) from None
