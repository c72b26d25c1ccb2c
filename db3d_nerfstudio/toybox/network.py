"""The embedded text-to-image model: its parts, untrained, in diffusers' layout; one of pixels, one of latents.

Of pixels: images of 64 x 64 become 48 channels on a 16 x 16 grid (space to depth by 4), where a CPU convolves near its
full speed. One more channel marks the left and the right side, if the caption names one (`sides.py`). The network
predicts the clean image ("sample"): on patches, predictions of noise or v leave noise in the samples.

Of latents: a small Stable Diffusion, with the latents of `vae.py` (16 channels on an 8 x 8 grid) and v-prediction.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from db3d_nerfstudio.toybox.captions import MAX_TOKENS, words
from db3d_nerfstudio.toybox.sides import HINTS
from db3d_nerfstudio.toybox.vae import CHANNELS, channels_last

if TYPE_CHECKING:
    from diffusers import AutoencoderDC, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, PreTrainedTokenizerFast

PATCH = 4
"""Pixels of a patch's side."""
GRID = 16
"""Patches of an image's side."""
TEXT_WIDTH = 128
"""Width of the text embeddings."""
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")


@cache
def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word: the captions' vocabulary and the identifiers."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *words()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", vocabulary["<s>"]), ("</s>", vocabulary["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        model_max_length=MAX_TOKENS,
    )  # fmt: skip


def make_text_encoder() -> CLIPTextModel:
    """A two-layer transformer over the words, trained with the UNet."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(SPECIAL) + len(words()), hidden_size=TEXT_WIDTH, intermediate_size=2 * TEXT_WIDTH,
            num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=MAX_TOKENS,
            projection_dim=TEXT_WIDTH, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip


def make_unet() -> UNet2DConditionModel:
    """6.0 M parameters; attention to the text on the 8 x 8 and 4 x 4 grids.

    The pooled text also scales and shifts every block's features, as in DeepFloyd IF: with cross-attention alone, a
    model this small learns to ignore its captions.
    """
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=GRID, in_channels=3 * PATCH**2 + 1, out_channels=3 * PATCH**2, block_out_channels=(64, 96, 128),
        layers_per_block=1, cross_attention_dim=TEXT_WIDTH, attention_head_dim=4, norm_num_groups=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        addition_embed_type="text", addition_embed_type_num_heads=4, resnet_time_scale_shift="scale_shift",
    )  # fmt: skip
    return channels_last(unet)


def make_latent_unet() -> UNet2DConditionModel:
    """12 M parameters over the latents of `vae.py`, with channels for side and view (`sides.py`); predicts v."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=8, in_channels=CHANNELS + HINTS, out_channels=CHANNELS, block_out_channels=(128, 192),
        layers_per_block=1, cross_attention_dim=TEXT_WIDTH, attention_head_dim=4, norm_num_groups=16,
        down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
        addition_embed_type="text", addition_embed_type_num_heads=4, resnet_time_scale_shift="scale_shift",
    )  # fmt: skip
    return channels_last(unet)


def make_scheduler(prediction_type: Literal["sample", "v_prediction"] = "sample") -> DDPMScheduler:
    """The cosine schedule (Nichol and Dhariwal 2021, arXiv 2102.09672)."""
    from diffusers import DDPMScheduler

    return DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type=prediction_type, clip_sample=False)


def save_guide(
    folder: Path, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, vae: AutoencoderDC | None = None
) -> None:
    """Write the model as `ToyboxGuide` reads it: of latents if it has a VAE, else of pixels."""
    unet.save_pretrained(folder / "unet")
    text_encoder.save_pretrained(folder / "text_encoder")
    make_tokenizer().save_pretrained(folder / "tokenizer")
    make_scheduler("sample" if vae is None else "v_prediction").save_pretrained(folder / "scheduler")
    if vae is not None:
        vae.save_pretrained(folder / "vae")


def read_vae(guide: Path) -> AutoencoderDC | None:
    """The codec of a saved guide; None if that is one of pixels."""
    from diffusers import AutoencoderDC

    return AutoencoderDC.from_pretrained(guide / "vae") if (guide / "vae").exists() else None
