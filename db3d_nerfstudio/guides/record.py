"""The record of a saved fine-tune: a small file beside the weights that names the guide and its base model.

With it, `db3d sample --personalised FOLDER --prompt TEXT` needs no further settings, and an adapter of another base
model is refused instead of drawing nonsense. Folders made by other tools have no record and are loaded unchecked.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from torch import nn

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.guides.config import DiffusersGuideConfig

RECORD_FILE = "guide.json"
_PROBES = 64
_SAME = 1e-3
"""Relative difference of norms that rounding to half precision stays below, and another model does not."""
_INCIDENTAL = ("_target", "dtype", "vae_dtype", "device", "variant", "gradient_checkpointing", "text_encoder_memory")


def write_record(path: Path, config: DiffusersGuideConfig, network: nn.Module) -> None:
    """Write the settings that decide the guide's output, and a probe of the base weights."""
    record = {"guide": type(config).__name__, "settings": identity(config), "base_norms": base_norms(network)}
    (path / RECORD_FILE).write_text(json.dumps(record, indent=2, default=str) + "\n", "utf8")


def identity(config: DiffusersGuideConfig) -> dict[str, Any]:
    """The settings that decide a guide's output; not those of device, precision and memory."""
    settings = {key: value for key, value in dataclasses.asdict(config).items() if key not in _INCIDENTAL}
    if settings.get("model") is not None and Path(settings["model"]).exists():
        settings["model"] = str(Path(settings["model"]).resolve())
    return settings


def read_record(path: Path) -> dict | None:
    """The record in a folder; None if there is none."""
    try:
        record = json.loads((path / RECORD_FILE).read_text("utf8"))
        if not isinstance(record, dict) or not {"guide", "settings", "base_norms"} <= record.keys():
            raise ValueError("something is missing in it")
        return record
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path / RECORD_FILE} cannot be read ({error}): delete it to load the folder without a check"
        ) from None


def check_base(path: Path, config: DiffusersGuideConfig, network: nn.Module) -> None:
    """Raise if a fine-tune was made with another base model than the guide's."""
    record = read_record(path)
    if record is None:
        return
    tuning = record["settings"].get("tuning")
    if tuning != config.tuning:
        raise UserError(f"The fine-tune in {path} was saved with another tuning: set the guide's to {tuning}.")
    theirs, ours = record["base_norms"], base_norms(network)
    same_kind = record["guide"] == type(config).__name__ and len(theirs) == len(ours)
    if not same_kind or any(abs(a - b) > _SAME * abs(a) for a, b in zip(theirs, ours, strict=True)):
        model = record["settings"].get("model") or "the one that ships with the package"
        raise UserError(
            f"The fine-tune in {path} was made with another base model ({record['guide']}, {model}) than "
            f"{config.source}: set the guide's model to that one."
        )


def base_norms(network: nn.Module) -> list[float]:
    """Norms of some of the frozen matrices: equal for the same base model in every precision, on every device."""
    frozen = [p for name, p in network.named_parameters() if p.ndim > 1 and not p.requires_grad and "lora_" not in name]
    chosen = frozen[:: max(1, len(frozen) // _PROBES)]
    return [float(f"{tensor.detach().float().norm().item():.6g}") for tensor in chosen]
