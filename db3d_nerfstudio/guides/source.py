"""Where a guide's parts come from: a folder in diffusers' layout, a hub id, or a checkpoint in a single file.

Whatever goes wrong on the way ends in one line that says what to do.
"""

from __future__ import annotations

import json
import re
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.guides.hub import MIRRORS, explain
from db3d_nerfstudio.guides.kinds import SINGLE_FILE, Family, check_folder, check_unet, read_header
from db3d_nerfstudio.workspace import Workspace, digest_of

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def check_source(source: str, folders: tuple[str, ...], family: Family | None = None, channels: int = 4) -> str:
    """The source as given, if it is a folder with all parts of a model or can be a hub id; else raise.

    Args:
        family: What its UNet must be conditioned like; None for any way.
        channels: What that UNet takes.
    """
    root = Path(source).expanduser()
    if root.is_dir():
        _check_family(str(root), family, channels)
        check_folder(root, folders)
        return str(root)
    if root.is_file():
        raise UserError(f"{root} is a file: this guide reads folders in diffusers' layout and hub ids")
    if _HUB_ID.fullmatch(source) and not root.suffix.lower() == SINGLE_FILE:
        _check_family(source, family, channels)
        return source
    beside = [path.name for path in root.parent.iterdir()] if root.parent.is_dir() else []
    close = get_close_matches(root.name, beside, n=1)
    meant = f" Is {root.parent / close[0]} meant?" if close else ""
    raise FileNotFoundError(
        f"The guide's model {source} does not exist: give a folder in diffusers' layout, a hub id, or a checkpoint "
        f"in one {SINGLE_FILE} file.{meant}"
    )


def _check_family(source: str, family: Family | None, channels: int) -> None:
    if family is None or (Path(source).is_dir() and not Path(source, "unet", "config.json").is_file()):
        return
    from diffusers import UNet2DConditionModel

    check_unet(source, read_config(UNet2DConditionModel, source, "unet"), family, channels)


def read_part(part: type, source: str, folder: str, **kwargs):
    """One part of a model by its class's `from_pretrained`, or an OSError or UserError that names the fix."""
    try:
        return part.from_pretrained(source, subfolder=folder, **kwargs)
    except (OSError, ImportError, ValueError) as error:
        if "tokenizer" in folder and not isinstance(error, OSError):
            missing = "is not installed" if find_spec("sentencepiece") is None else "does not fit the protobuf here"
            raise UserError(
                f'The tokenizer of {source} needs sentencepiece, which {missing}: pip install "db3d_nerfstudio[if]"'
            ) from error
        if isinstance(error, OSError):
            raise OSError(explain(source, folder, error)) from error
        raise


def read_index(source: str) -> dict[str, Any]:
    """What a model in diffusers' layout says of itself in `model_index.json`; empty if it is not in that layout."""
    root = Path(source).expanduser()
    if root.is_dir() and not (root / "model_index.json").is_file():
        return {}
    if not root.is_dir() and not _HUB_ID.fullmatch(source):
        return {}
    from diffusers import DiffusionPipeline

    return read_config(DiffusionPipeline, str(root) if root.is_dir() else source)


def read_config(part: type, source: str, folder: str | None = None) -> dict[str, Any]:
    """The configuration of a part by its class's `load_config`, or of the pipeline: a small file, and no weights."""
    try:
        config = part.load_config(source, subfolder=folder)
        if not isinstance(config, dict):
            raise OSError("it is not a JSON object")
        return config
    except (OSError, AttributeError) as error:  # The latter where diffusers meets JSON that is no object.
        raise OSError(explain(source, folder or "model_index.json", error)) from error


def unpacked(file: Path, pipeline: type[DiffusionPipeline], config: str | None, **parts) -> Path:
    """A single-file model as a folder in diffusers' layout, made once, beside the file and as large.

    Args:
        config: A folder or hub id with the configuration of such a model. By default, diffusers recognises the weights
            and fetches it from the hub, a few kilobytes.
        parts: Passed to the pipeline: None leaves one out.
    """
    tensors = read_header(file)

    def make(path: Path) -> None:
        try:
            extras = {"config": config} if config else {}
            model = cast(Any, pipeline).from_single_file(str(file), **parts, **extras)  # Of diffusers' mixin.
        except OSError as error:
            raise OSError(_explain_unpacking(file, config, error)) from error
        except Exception as error:  # Of many kinds, and all of them say that these are not the weights looked for.
            raise UserError(
                f"{file} is not a checkpoint of the kind this guide reads ({type(error).__name__}): choose the guide, "
                "or the single_file_config, of its architecture."
            ) from error
        model.save_pretrained(path)
        if "v_pred" in tensors:  # Trainers mark what they changed by tensors without content.
            _set_schedule(path, prediction_type="v_prediction", rescale_betas_zero_snr="ztsnr" in tensors)

    workspace = Workspace(file.parent, instead="set the guide's model to another file")
    recipe = {"file": file.name, "bytes": file.stat().st_size, "digest": digest_of(file), "config": config}
    return workspace.once(f"{file.stem}.diffusers", recipe, make, stale="replace")


def _set_schedule(folder: Path, **settings: Any) -> None:
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf8")) | settings, indent=2) + "\n", "utf8")


def _explain_unpacking(file: Path, config: str | None, error: OSError) -> str:
    if config and not Path(config).is_dir():
        return explain(config, "model_index.json", error)
    withdrawn = next((name for name in MIRRORS if name in str(error)), None)
    if withdrawn:
        return (
            f'{file} is described by "{withdrawn}", which was withdrawn from the Hugging Face hub: set '
            f"single_file_config to {MIRRORS[withdrawn]}, and prediction_type to v_prediction if it makes 768 pixels."
        )
    return (
        f"{file} could not be unpacked: {error}. Without a network, set single_file_config to a local folder of a "
        "model of its kind."
    )


def check_schedule(source: str, config: dict[str, Any]) -> None:
    """Raise for a scheduler's configuration that is not a schedule of diffusion in discrete steps."""
    name = config.get("_class_name", "")
    if "FlowMatch" in name or "EDM" in name:
        raise UserError(f"{source} was trained on the schedule of {name}, which this guide does not read")
    if config.get("prediction_type", "epsilon") not in ("epsilon", "v_prediction", "sample"):
        raise UserError(
            f'The scheduler of {source} has the unknown prediction_type "{config["prediction_type"]}": set the '
            "guide's prediction_type."
        )
