"""How the embedded guide tells the left side from the right: the word becomes a slope across the picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def side(tokens: Int[Tensor, "b n"], tokenizer: PreTrainedTokenizerFast) -> Float[Tensor, " b"]:
    """1 for captions that say "left", -1 for those that say "right", else 0."""
    left, right = tokenizer.convert_tokens_to_ids(["left", "right"])
    return ((tokens == left).sum(1) - (tokens == right).sum(1)).float()


def with_side(z: Float[Tensor, "b c h w"], side: Float[Tensor, " b"]) -> Float[Tensor, "b d h w"]:
    """Append a channel that rises from -side at the left edge to side at the right one.

    A caption changes features everywhere alike, and a picture and its mirror image are as likely: from text alone the
    network had not begun to tell the left side from the right after 200,000 images. A slope it can follow, and a
    mirrored one means the mirror image.
    """
    slope = torch.linspace(-1, 1, z.shape[3], device=z.device, dtype=z.dtype)
    channel = side.to(z)[:, None, None, None] * slope.expand(len(z), 1, *z.shape[2:])
    return torch.cat([z, channel], 1).contiguous(memory_format=torch.channels_last)
