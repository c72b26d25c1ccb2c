"""The way of tuning a UNet that a configuration asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.guides.tuning.base import Tuning
from db3d_nerfstudio.guides.tuning.full import FullTuning
from db3d_nerfstudio.guides.tuning.lora import LoraTuning
from db3d_nerfstudio.guides.tuning.word import WordTuning
from db3d_nerfstudio.guides.unet.config import UNetGuideConfig

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from transformers import PreTrainedModel

    from db3d_nerfstudio.guides.tuning.base import Network


def prepare_tuning(
    config: UNetGuideConfig,
    unet: UNet2DConditionModel,
    text_encoders: dict[str, PreTrainedModel],
    tokenizer: Any,
    read_base: Callable[..., Any],
) -> Tuning:
    """Unfreeze of the frozen networks what the config asks to train.

    Args:
        read_base: Reads a network of the base model again, given its class, its folder's name and a dtype.
    """
    if config.tuning == "textual_inversion":
        if config.train_text_encoder:
            raise UserError("Textual inversion trains one word only: set train_text_encoder to False.")
        if len(text_encoders) != 1:
            raise UserError(f"{config.source} has several text encoders: set the guide's tuning to lora.")
        return WordTuning(text_encoders["text_encoder"], tokenizer, config.new_token, config.new_token_like)
    tuned: dict[str, Network] = {"unet": unet}
    if config.train_text_encoder:
        tuned["text_encoder"] = text_encoders["text_encoder"]
    return LoraTuning(tuned, config) if config.tuning == "lora" else FullTuning(tuned, read_base)
