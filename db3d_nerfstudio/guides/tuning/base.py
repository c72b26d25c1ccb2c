"""The interface of every way of tuning."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from db3d_nerfstudio.errors import UserError

if TYPE_CHECKING:
    from diffusers import ModelMixin
    from transformers import PreTrainedModel

    Network = ModelMixin | PreTrainedModel
    """What can be tuned: the network that denoises, or a text encoder."""


class Tuning(abc.ABC):
    """A way of tuning networks: made from frozen networks, it unfreezes what may be trained."""

    modules: Mapping[str, Network]
    """The networks with something to train, by the names of their folders."""
    can_forget: bool = True
    """Whether the images of other prompts may change."""

    @abc.abstractmethod
    def save(self, path: Path) -> None:
        """Write what is trained into the folder `path`, in diffusers' format."""

    @abc.abstractmethod
    def load(self, path: Path | None) -> None:
        """Overwrite what is trained, in place, with what `save` wrote or, for None, with its initial values."""

    def switched_off(self) -> AbstractContextManager[None]:
        """Within it, the networks are those of the base model."""
        raise UserError(
            "The contrast gradient needs tuning that can be switched off: set --pipeline.model.guide.tuning lora, "
            "or --pipeline.model.sds.gradient sds"
        )


def check_saved(path: Path, names: list[str]) -> None:
    """Raise if a saved fine-tune lacks a part."""
    missing = [name for name in names if not (path / name).exists()]
    if missing:
        raise FileNotFoundError(
            f"{path} has no {', '.join(missing)}: set the guide's tuning and train_text_encoder as when it was saved."
        )
