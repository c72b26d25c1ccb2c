"""The guides that a command can choose from."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.guides.config import DiffusersGuideConfig
from db3d_nerfstudio.guides.flow.flux2 import Flux2GuideConfig
from db3d_nerfstudio.guides.flow.sd3 import SD3GuideConfig
from db3d_nerfstudio.guides.record import RECORD_FILE, read_record
from db3d_nerfstudio.guides.tuning.lora_file import Adapter, adapter_file, read_adapter
from db3d_nerfstudio.guides.tuning.word import EMBEDDING_FILE
from db3d_nerfstudio.guides.unet.config import UNetGuideConfig
from db3d_nerfstudio.guides.unet.deepfloyd import DeepFloydGuideConfig
from db3d_nerfstudio.guides.unet.sdxl import SDXLGuideConfig
from db3d_nerfstudio.guides.unet.stable_diffusion import StableDiffusionGuideConfig
from db3d_nerfstudio.toybox.guide import ToyboxGuideConfig
from db3d_nerfstudio.workspace import is_released

GUIDES: dict[str, type[DiffusersGuideConfig]] = {
    "toybox": ToyboxGuideConfig,
    "stable-diffusion": StableDiffusionGuideConfig,
    "sdxl": SDXLGuideConfig,
    "sd3": SD3GuideConfig,
    "flux2": Flux2GuideConfig,
    "deepfloyd": DeepFloydGuideConfig,
}
"""Configs by their names on the command line."""

if TYPE_CHECKING:
    GuideChoice = DiffusersGuideConfig
else:
    GuideChoice = tyro.extras.subcommand_type_from_defaults(
        {name: config() for name, config in GUIDES.items()}, prefix_names=False
    )
"""The type of a command's field `guide`: a subcommand, whose options are the guide's."""


def guide_of(personalised: Path | None, given: DiffusersGuideConfig) -> DiffusersGuideConfig:
    """The config of the guide that a personalised folder belongs to; `given` without a folder or a record in it.

    Settings that do not change the guide's output, such as device and precision, come from `given` if the kinds match.
    """
    if personalised is None:
        return given
    if not personalised.exists():
        raise UserError(f"there is no {personalised}: give --personalised the folder that `db3d dreambooth` printed")
    if is_released(personalised):
        raise UserError(
            f"the weights in {personalised} were deleted (--pipeline.phases.keep-full False): give --personalised "
            "another fine-tuned guide of that run, such as dreambooth/partial"
        )
    record = read_record(personalised)
    if record is None:
        return _settings_of_another_tool(personalised, given)
    kinds = {config.__name__: config for config in GUIDES.values()}
    if record["guide"] not in kinds:
        raise UserError(f"{personalised} needs the guide {record['guide']}: this version has {', '.join(kinds)}")
    kind = kinds[record["guide"]]
    types = typing.get_type_hints(kind)
    settings = {key: _restored(types[key], value) for key, value in record["settings"].items() if key in types}
    return dataclasses.replace(given if type(given) is kind else kind(), **settings)


def _settings_of_another_tool(personalised: Path, given: DiffusersGuideConfig) -> DiffusersGuideConfig:
    """The given guide, with an adapter like the one in a file that another program wrote."""
    if adapter_file(personalised) is None:
        _check_fine_tune(personalised)
        return given
    adapter = read_adapter(personalised)
    _check_family(personalised, adapter, given)
    text = {"train_text_encoder": adapter.has_text} if isinstance(given, UNetGuideConfig) else {}
    return dataclasses.replace(
        given, tuning="lora", lora_rank=adapter.rank, lora_targets=adapter.targets or None, **text
    )


_PARTS = ("unet", "transformer", "text_encoder", EMBEDDING_FILE)
"""What a folder holds of which at least one was tuned."""


def _check_fine_tune(folder: Path) -> None:
    """Raise if nothing in a folder is a fine-tuned guide; name those below it."""
    if any((folder / part).exists() for part in _PARTS):
        return
    below = sorted(file.parent for file in [*folder.glob(f"*/{RECORD_FILE}"), *folder.glob(f"*/*/{RECORD_FILE}")])
    instead = f"give {', '.join(map(str, below))}" if below else "give the folder that `db3d dreambooth` printed"
    raise UserError(f"{folder} is not a fine-tuned guide: {instead}, or a LoRA")


def _check_family(personalised: Path, adapter: Adapter, given: DiffusersGuideConfig) -> None:
    is_sdxl = isinstance(given, SDXLGuideConfig)
    if adapter.for_sdxl and not is_sdxl:
        raise UserError(f"{personalised} is a LoRA for SDXL: give the guide sdxl")
    if adapter.has_text and is_sdxl:
        raise UserError(
            f"{personalised} changes the text encoders of SDXL, which are not tuned here: give a LoRA of the UNet alone"
        )


def _restored(kind: Any, value: Any) -> Any:
    """A value as it was before it became JSON, which has neither paths nor tuples."""
    if isinstance(value, list):
        return tuple(value)
    return Path(value) if isinstance(value, str) and Path in typing.get_args(kind) else value
