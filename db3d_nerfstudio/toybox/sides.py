"""View words as channels of the embedded guide's input.

Text changes features everywhere alike, and a picture is as likely as its mirror image, so a small network hardly learns
left and right from text. A slope across the picture differs on either side, and mirrors with the picture. The channels
of the four view words are constant over the picture.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from db3d_nerfstudio.words import VIEW_NAMES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

HINTS = 1 + len(VIEW_NAMES)
"""The side, and each view's word."""


def token_ids(words: Iterable[str], tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The tokens of words; that of unknown words for those without one."""
    return cast(list[int], tokenizer.convert_tokens_to_ids(list(words)))  # A number for a string alone.


def side(tokens: Int[Tensor, "b n"], tokenizer: PreTrainedTokenizerFast) -> Float[Tensor, " b"]:
    """1 for captions with "left", -1 for those with "right", else 0."""
    left, right = token_ids(["left", "right"], tokenizer)
    return ((tokens == left).sum(1) - (tokens == right).sum(1)).float()


def hints(tokens: Int[Tensor, "b n"], tokenizer: PreTrainedTokenizerFast) -> Float[Tensor, "b k"]:
    """The side, then 1 for each of `VIEW_NAMES` that a caption says and 0 for each that it does not."""
    words = token_ids(VIEW_NAMES, tokenizer)
    said = [(tokens == word).any(1) & (word != tokenizer.unk_token_id) for word in words]
    return torch.stack([side(tokens, tokenizer), *(word.float() for word in said)], 1)


def with_hints(z: Float[Tensor, "b c h w"], hints: Float[Tensor, "b k"]) -> Float[Tensor, "b d h w"]:
    """Append a channel a hint: a slope from -side at the left edge to side at the right one, then constants."""
    slope = torch.linspace(-1, 1, z.shape[3], device=z.device, dtype=z.dtype)
    channels = hints.to(z)[:, :, None, None].expand(-1, -1, *z.shape[2:])
    channels = torch.cat([channels[:, :1] * slope, channels[:, 1:]], 1)
    return torch.cat([z, channels], 1).contiguous(memory_format=torch.channels_last)
