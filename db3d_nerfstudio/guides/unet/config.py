"""The settings of UNets, for code that needs no guide."""

from dataclasses import dataclass
from typing import Literal

from db3d_nerfstudio.guides.config import DiffusersGuideConfig


@dataclass
class UNetGuideConfig(DiffusersGuideConfig):
    """Settings common to UNets in diffusers' layout."""

    tuning: Literal["full", "lora", "textual_inversion"] = "full"
    """What DreamBooth trains: the whole UNet, a low-rank adapter on its layers, or the embedding of one new word."""
    new_token: str = "<sks>"
    """The word that textual inversion learns; prompts must use it as their identifier."""
    new_token_like: str = "toy"
    """A word of one token to initialise the new one with; best, the class noun."""
    train_text_encoder: bool = False
    """Train the text encoder too: more likeness, but it overfits sooner."""
    prediction_type: Literal["epsilon", "v_prediction", "sample"] | None = None
    """What the network predicts, where the model's scheduler says something else; unset, what that says."""

    @property
    def moves_text(self) -> bool:
        return self.train_text_encoder or self.tuning == "textual_inversion"
