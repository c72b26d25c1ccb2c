"""The embedded guide: a small Stable Diffusion of a world of toys, fast on a CPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.guides.diffusers_guide import resize
from db3d_nerfstudio.guides.unet.config import UNetGuideConfig
from db3d_nerfstudio.guides.unet.guide import UNetGuide
from db3d_nerfstudio.toybox.sides import HINTS, hints, with_hints

SHIPPED_MODEL = Path(__file__).parent / "weights" / "guide"


@dataclass
class ToyboxGuideConfig(UNetGuideConfig):
    """Configuration of the embedded guide."""

    _target: type = field(default_factory=lambda: ToyboxGuide)
    model: Path | None = None
    """Folder of the model; by default the one in the package."""

    @property
    def source(self) -> str:
        return str(self.model or SHIPPED_MODEL)


class ToyboxGuide(UNetGuide):
    """A UNet over the latents of a small autoencoder, with channels of its own for side and view.

    The last row of a text holds these channels' values for its prompt (`sides.hints`).
    """

    config: ToyboxGuideConfig
    folders = (*UNetGuide.folders, "vae")
    needs_gpu = False
    z_bound = 5.0  # The standard deviation is 1: fewer than one latent in ten thousand is larger.
    learning_rates = {"full": 1e-4, "lora": 1e-3, "textual_inversion": 1e-2}

    def __init__(self, config: ToyboxGuideConfig, device: torch.device | str = "cpu") -> None:
        from diffusers import AutoencoderDC

        super().__init__(config, device)
        shape = self.unet.config
        if shape.in_channels - shape.out_channels != HINTS:
            raise UserError(
                f"the toybox guide in {config.source} reads {shape.in_channels} channels and not "
                f"{shape.out_channels + HINTS}, the last {HINTS} of which mark side and view: train it again "
                "(python -m db3d_nerfstudio.toybox.train_unet), or leave model unset for the one that ships with the "
                "package"
            )
        vae = self._read(AutoencoderDC, "vae", dtype=torch.float32).eval().requires_grad_(False)
        self.vae = vae.to(self.device, memory_format=torch.channels_last)
        self.z_shape = shape.out_channels, shape.sample_size, shape.sample_size
        self.resolution = shape.sample_size * self.vae.spatial_compression_ratio
        self.tells_sides = "left" in self.tokenizer.get_vocab()

    def modules(self) -> dict[str, nn.Module]:
        return {**super().modules(), "vae": self.vae}

    def _check_words(self, prompts: list[str]) -> None:
        from db3d_nerfstudio.toybox.subjects import CLASS_NOUNS
        from db3d_nerfstudio.toybox.toys import PALETTE

        known = sorted(word for word in self.tokenizer.get_vocab() if word.isalpha())
        for prompt in prompts:
            encoded = self.tokenizer(prompt, return_offsets_mapping=True, verbose=False)
            for token, (start, end) in zip(encoded.input_ids, encoded.offset_mapping, strict=True):
                if token == self.tokenizer.unk_token_id:
                    word = prompt[start:end]
                    close = get_close_matches(word.lower(), known) or [*CLASS_NOUNS, *PALETTE]
                    raise UserError(
                        f'The toybox guide has no token for the word "{word}" in "{prompt}". '
                        f"It has tokens for: {', '.join(close)}. "
                        'A subject of another kind is a "toy", as in "a photo of a sks toy".'
                    )

    def _encode_text(self, prompts: list[str]) -> Float[Tensor, "b n d"]:
        text = super()._encode_text(prompts)
        named = hints(self._token_ids(self.tokenizer, prompts), self.tokenizer)
        row = nn.functional.pad(named, (0, text.shape[2] - HINTS))
        return torch.cat([text, row[:, None]], 1)

    def _inputs(self, z_t: Float[Tensor, "b c hz wz"], text: Float[Tensor, "b n d"]) -> Float[Tensor, "b c2 hz wz"]:
        return with_hints(z_t, text[:, -1, :HINTS])

    def _conditions(self, text: Float[Tensor, "b n d"]) -> dict[str, Any]:
        return super()._conditions(text[:, :-1])

    def encode(self, rgb: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c hz wz"]:
        rgb = resize(rgb, self.resolution) * 2 - 1
        return self.vae.encode(rgb)[0] * self.vae.config["scaling_factor"]

    def decode(self, z: Float[Tensor, "b c hz wz"]) -> Float[Tensor, "b 3 h w"]:
        rgb = self.vae.decode(z / self.vae.config["scaling_factor"])[0]
        return (rgb / 2 + 0.5).clamp(0, 1)
