"""The embedded text-to-image model, a small Stable Diffusion: its parts, untrained, in diffusers' layout.

Its UNet predicts v over the latents of `vae.py`, 16 channels on an 8 x 8 grid. Further channels mark side and view
(`sides.py`).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from db3d_nerfstudio.toybox.captions import MAX_TOKENS, words
from db3d_nerfstudio.toybox.sides import HINTS
from db3d_nerfstudio.toybox.vae import CHANNELS, channels_last

if TYPE_CHECKING:
    from diffusers import AutoencoderDC, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, PreTrainedTokenizerFast

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
    """12 M parameters; attention to the text on both grids, 8 x 8 and 4 x 4.

    The pooled text also scales and shifts every block's features, as in DeepFloyd IF: with cross-attention alone, a
    model this small learns to ignore its captions.
    """
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=8, in_channels=CHANNELS + HINTS, out_channels=CHANNELS, block_out_channels=(128, 192),
        layers_per_block=1, cross_attention_dim=TEXT_WIDTH, attention_head_dim=4, norm_num_groups=16,
        down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
        addition_embed_type="text", addition_embed_type_num_heads=4, resnet_time_scale_shift="scale_shift",
    )  # fmt: skip
    return channels_last(unet)


def make_scheduler() -> DDPMScheduler:
    """The cosine schedule (Nichol and Dhariwal 2021, arXiv 2102.09672)."""
    from diffusers import DDPMScheduler

    return DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=False)


def save_guide(folder: Path, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, vae: AutoencoderDC) -> None:
    """Write the model as `ToyboxGuide` reads it."""
    unet.save_pretrained(folder / "unet")
    text_encoder.save_pretrained(folder / "text_encoder")
    make_tokenizer().save_pretrained(folder / "tokenizer")
    make_scheduler().save_pretrained(folder / "scheduler")
    vae.save_pretrained(folder / "vae")
