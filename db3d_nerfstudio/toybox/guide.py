"""The embedded guide: a small text-to-image model of a world of toys, in pixel space, fast on a CPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.guides.unet.guide import DiffusersGuide, DiffusersGuideConfig, resize
from db3d_nerfstudio.toybox.sides import side, with_side

SHIPPED_MODEL = Path(__file__).parent / "weights" / "guide"


@dataclass
class ToyboxGuideConfig(DiffusersGuideConfig):
    """Configuration of the embedded guide."""

    _target: type = field(default_factory=lambda: ToyboxGuide)
    model: Path | None = None
    """Folder of the model; unset, the one that ships with the package."""

    @property
    def source(self) -> str:
        return str(self.model or SHIPPED_MODEL)


class ToyboxGuide(DiffusersGuide):
    """Pixels as z: patches become channels (space to depth), so that a CPU works on a small grid of many channels.

    The last row of a text says which side its prompt names (`sides.side`).
    """

    config: ToyboxGuideConfig
    z_bound = 1.0
    learning_rates = {"full": 1e-4, "lora": 1e-3, "textual_inversion": 1e-2}

    def __init__(self, config: ToyboxGuideConfig, device: torch.device | str = "cpu") -> None:
        super().__init__(config, device)
        read, written = self.unet.config.in_channels, self.unet.config.out_channels
        if read != written + 1:  # Models of before 2026-11-24 were not told sides.
            raise UserError(
                f"the toybox guide in {config.source} reads {read} channels and not {written + 1}, the last of which "
                "tells the side: train it again (python -m db3d_nerfstudio.toybox.train), or leave model unset for the "
                "one that ships with the package"
            )
        self._patch = isqrt(written // 3)
        self.resolution = self.unet.config.sample_size * self._patch
        self.tells_sides = "left" in self.tokenizer.get_vocab()

    def _check_words(self, prompts: list[str]) -> None:
        known = sorted(set(self.tokenizer.get_vocab()) - set(self.tokenizer.all_special_tokens))
        for prompt in prompts:
            encoded = self.tokenizer(prompt, return_offsets_mapping=True)
            for token, (start, end) in zip(encoded.input_ids, encoded.offset_mapping, strict=True):
                if token == self.tokenizer.unk_token_id:
                    word = prompt[start:end]
                    close = get_close_matches(word.lower(), known) or known
                    raise UserError(
                        f'The toybox guide does not know the word "{word}" in "{prompt}". '
                        f"Words it knows: {', '.join(close)}. "
                        'A subject of another kind is a "toy", as in "a photo of a sks toy".'
                    )

    def _encode_text(self, prompts: list[str]) -> Float[Tensor, "b n d"]:
        text = super()._encode_text(prompts)
        named = side(self._token_ids(self.tokenizer, prompts), self.tokenizer)
        return torch.cat([text, named[:, None, None].expand(-1, 1, text.shape[2])], 1)

    def _inputs(self, z_t: Float[Tensor, "b c hz wz"], text: Float[Tensor, "b n d"]) -> Float[Tensor, "b c2 hz wz"]:
        return with_side(z_t, text[:, -1, 0])

    def _conditions(self, text: Float[Tensor, "b n d"]) -> dict[str, Any]:
        return super()._conditions(text[:, :-1])

    def encode(self, rgb: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c hz wz"]:
        return pixel_unshuffle(resize(rgb, self.resolution) * 2 - 1, self._patch)

    def decode(self, z: Float[Tensor, "b c hz wz"]) -> Float[Tensor, "b 3 h w"]:
        return (pixel_shuffle(z, self._patch) / 2 + 0.5).clamp(0, 1)
