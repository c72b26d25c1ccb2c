"""The start of a run: check its input, then choose and lock its folder."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch

from db3d_nerfstudio.console import announce
from db3d_nerfstudio.diffusion.dreambooth import check_optimizer
from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.photo_check import check_photos
from db3d_nerfstudio.ranges import Range
from db3d_nerfstudio.results.asset import read_asset
from db3d_nerfstudio.results.report import FILE as REPORT
from db3d_nerfstudio.run.config import FILE, RunConfig, checkpoint_step
from db3d_nerfstudio.run.folder import same_settings, subject_of, try_lock
from db3d_nerfstudio.run.interventions import read_changes, stage_ends
from db3d_nerfstudio.run.manifest import read_manifest
from db3d_nerfstudio.training.phases import PhasesConfig
from db3d_nerfstudio.training.pipeline import DreamBooth3DPipelineConfig
from db3d_nerfstudio.training.pseudo_views import check_references, given_views
from db3d_nerfstudio.words import parse_subject, tidy
from db3d_nerfstudio.workspace import check_whole

ARTIFACTS = ("mesh_views", "initial", "dreambooth/partial", "dreambooth/full", "dreambooth/multiview", "pseudo_views")
"""Folders of a run that later stages read; class images are made again where they are not whole."""
BOUNDS = {
    "lr": Range(above=0),
    "eps": Range(least=0),
    "weight_decay": Range(least=0),
    "max_norm": Range(above=0),
    "max_num_iterations": Range(least=1),
    "gradient_accumulation_steps": Range(least=1),
    "seed": Range(0, 2**32 - 1),
    "num_devices": Range(1, 1),
    "num_machines": Range(1, 1),
    **{f"steps_per_{each}": Range(least=0) for each in ("save", "eval_batch", "eval_image", "eval_all_images")},
}
"""Bounds of nerfstudio's options; 0 steps are never."""


def check_input(pipeline: DreamBooth3DPipelineConfig) -> None:
    """Read prompt and photos as the stages will, and make the path of the photos absolute.

    Raises:
        UserError: something is missing or cannot be read.
    """
    datamanager, model, phases = pipeline.datamanager, pipeline.model, pipeline.phases
    if datamanager.data is None and phases.needs_photos:
        raise UserError("no photos: give --data a folder with 3 to 6 photos of the subject")
    if model.prompt is None:
        example = f"a photo of a {phases.identifier} robot" if phases.needs_photos else "a photo of a robot"
        raise UserError(f'no prompt: say what the subject is, as in --prompt "{example}"')
    model.prompt = tidy(model.prompt)
    if phases.initial.length < 1:
        raise UserError("the initial NeRF needs at least one step: set --pipeline.phases.initial.steps to 1 or more")
    if phases.needs_photos:
        subject = parse_subject(model.prompt, phases.identifier, phases.class_noun)
        announce(subject.introduction("--pipeline.phases.class-noun"))
        check_optimizer(phases.dreambooth)
    if datamanager.data is not None:
        datamanager.data = datamanager.data.expanduser().absolute()
        for line in check_photos(datamanager.data):
            announce(line)
    if phases.initial.mesh is not None:
        if phases.one_stage:
            raise UserError("a method of one stage has no use for a mesh: leave --pipeline.phases.initial.mesh out")
        phases.initial.mesh = phases.initial.mesh.expanduser().absolute()
        read_asset(phases.initial.mesh, phases.initial.mesh_up)
    check_references(phases.pseudo_views, model.guide)
    if phases.pseudo_views.images is not None:
        phases.pseudo_views.images = phases.pseudo_views.images.expanduser().absolute()
        given_views(phases.pseudo_views.images, datamanager.dataparser.num_views)


def take_example(pipeline: DreamBooth3DPipelineConfig) -> None:
    """Use the bundled toy's photos if none are given and there is no prompt, or one about a toy of its kind."""
    from db3d_nerfstudio.toybox.examples import default_subject

    if pipeline.datamanager.data is not None:
        return
    model, phases = pipeline.model, pipeline.phases
    photos, prompt = default_subject()
    kind = parse_subject(prompt).class_noun
    model.prompt = model.prompt or f"a photo of a {phases.identifier} {kind}"
    if parse_subject(model.prompt, phases.identifier, phases.class_noun).class_noun == kind:
        announce(f"Using the bundled photos of a {kind}; --data FOLDER uses yours")
        pipeline.datamanager.data = photos


def check_learning_rates(optimizers: Mapping[str, Any], phases: PhasesConfig) -> None:
    """Raise UserError if nerfstudio's schedulers and the phases would both set the learning rates."""
    scheduled = [name for name, optimizer in optimizers.items() if optimizer["scheduler"] is not None]
    if scheduled and phases.lr_final_fraction != 1:
        raise UserError(
            f"the scheduler of {' and '.join(scheduled)} and phases.lr_final_fraction both set the learning rate: "
            "remove the scheduler, or set --pipeline.phases.lr-final-fraction 1"
        )


def total_steps(config: RunConfig, run: Path) -> int:
    """Number of micro-steps of a run, given the phases that were ended early in it."""
    phases = cast(DreamBooth3DPipelineConfig, config.pipeline).phases
    return min(config.max_num_iterations, phases.total_steps(stage_ends(read_changes(run))))


def unfinished_run(config: RunConfig, runs: Path) -> str | None:
    """The name of the newest unfinished run in a folder that the same command started."""
    for file in sorted(runs.glob(f"*/{FILE}"), key=os.path.getmtime, reverse=True):
        run = file.parent
        if not same_settings(config, run):  # Files of other runs may be damaged.
            continue
        total, step = total_steps(config, run), checkpoint_step(run / config.relative_model_dir) + 1
        if step >= total and is_complete(run):
            continue
        if not try_lock(run):
            raise UserError(
                f"another process is training {run} by the same command: wait for it, or start a second run "
                "with --resume False"
            )
        announce(f"Continuing {run} at step {step} of {total} (--resume False starts a new run)")
        return run.name
    return None


def is_complete(run: Path) -> bool:
    """Whether nothing is missing of a run that was trained to its end: it is recorded as finished, and reported."""
    return read_manifest(run).get("state") == "finished" and (run / REPORT).exists()


def checkpoints_of(folder: Path) -> Path:
    """The folder of checkpoints that `--load-dir` names, itself or by the run that holds it.

    Raises:
        UserError: there are none.
    """
    for each in (folder, folder / "nerfstudio_models"):
        if checkpoint_step(each) >= 0:
            return each
    raise UserError(f"{folder} has no checkpoints: give --load-dir a run, or the nerfstudio_models/ in one")


def check_device(device_type: str) -> None:
    """Raises UserError if this machine has no such device."""
    if device_type == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no CUDA device: leave --machine.device-type out, or set it to cpu")
    if device_type == "mps" and not torch.backends.mps.is_available():
        raise UserError("there is no MPS device: leave --machine.device-type out, or set it to cpu")


def claim(run: Path, photos: Path | None, prompt: str | None) -> None:
    """Make the folder of a run and lock it.

    Raises:
        UserError: the folder is not writable, or belongs to another subject or another process.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {run} ({error.strerror}): choose another --output-dir") from None
    other = subject_of(run)
    if other and other != (photos, prompt):
        raise UserError(f'{run} is the run of another subject ({other[0]}, "{other[1]}"): choose another --timestamp')
    for name in ARTIFACTS:
        check_whole(run / name)
    if not try_lock(run):
        raise UserError(f"another process is training in {run}: wait for it, or choose another --timestamp")
