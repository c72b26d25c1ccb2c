"""What every way of tuning has to offer."""

import abc
from pathlib import Path

from torch import nn


class Tuning(abc.ABC):
    """A way of tuning networks; made from networks that are frozen, it frees what may move."""

    modules: dict[str, nn.Module]
    """The networks that have something to move, by the names of their folders."""
    can_forget: bool = True
    """Whether what other prompts mean may change."""

    @abc.abstractmethod
    def save(self, path: Path) -> None:
        """Write what may move into the folder `path`, in diffusers' format."""

    @abc.abstractmethod
    def load(self, path: Path | None) -> None:
        """Overwrite in place what may move, by what `save` wrote or, for None, by what it was at first."""


def check_saved(path: Path, names: list[str]) -> None:
    """Raise if a saved fine-tune lacks a part."""
    missing = [name for name in names if not (path / name).exists()]
    if missing:
        raise FileNotFoundError(
            f"{path} holds no {', '.join(missing)}: it was saved with another tuning or train_text_encoder than is set."
        )
