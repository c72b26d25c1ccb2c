"""All weights of the networks, kept in the folders that diffusers' `from_pretrained` reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.guides.base import digest
from db3d_nerfstudio.guides.source import read_part
from db3d_nerfstudio.guides.tuning.base import Tuning, check_saved

if TYPE_CHECKING:
    from db3d_nerfstudio.guides.tuning.base import Network


class FullTuning(Tuning):
    """All weights."""

    def __init__(self, modules: dict[str, Network], read_base: Callable[..., Any]) -> None:
        self.modules, self._read_base = modules, read_base
        for module in modules.values():
            module.requires_grad_(True)
        self._loaded: tuple[list[tuple[int, int]], str] | None = None

    def save(self, path: Path) -> None:
        for name, module in self.modules.items():
            module.save_pretrained(path / name)

    def load(self, path: Path | None) -> None:
        if path is not None:
            check_saved(path, list(self.modules))
        if self._loaded is not None and self._loaded == self._state(path):
            return  # Gigabytes need not be read again.
        for name, module in self.modules.items():
            if path is None:
                saved = self._read_base(type(module), name, dtype=torch.float32)
            else:
                saved = read_part(type(module), str(path), name, dtype=torch.float32)
            theirs, ours = saved.state_dict(), module.state_dict()
            if {key: value.shape for key, value in theirs.items()} != {key: v.shape for key, v in ours.items()}:
                raise UserError(
                    f"{path}/{name} has another architecture: set the guide's model to the one it was tuned from."
                )
            module.load_state_dict(theirs)
        self._loaded = self._state(path)

    def _state(self, path: Path | None) -> tuple[list[tuple[int, int]], str]:
        """Which files are meant, wherever they are moved to, and what the parameters are now.

        Parameters do not count how often they are written to: fused optimizers leave that out.
        """
        files = [] if path is None else [file.stat() for name in self.modules for file in (path / name).iterdir()]
        parameters = [(f"{name}.{key}", p) for name, m in self.modules.items() for key, p in m.named_parameters()]
        return sorted((file.st_ino, file.st_mtime_ns) for file in files), digest(parameters)
