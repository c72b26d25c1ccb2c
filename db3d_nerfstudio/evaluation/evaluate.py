"""`db3d evaluate`: measure a finished run, its initial and its final NeRF, and film it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.ranges import Count
from db3d_nerfstudio.run.interventions import guidance_at, read_changes
from db3d_nerfstudio.words import drop_identifier
from db3d_nerfstudio.workspace import write_json

if TYPE_CHECKING:
    from trimesh import Trimesh

    from db3d_nerfstudio.evaluation.metrics.measure import Photos, Reference
    from db3d_nerfstudio.evaluation.metrics.retrieval import Gallery
    from db3d_nerfstudio.nerf.field import GridField
    from db3d_nerfstudio.nerf.model import DreamBooth3DModel
    from db3d_nerfstudio.toybox.subjects import Subject
    from db3d_nerfstudio.training.trainer import DreamBooth3DTrainerConfig

EVALUATION = "evaluation"
"""The folder in the run folder that the results go to."""
METRICS, TURNTABLE, VIEWS, REDRAWN = "metrics.json", "turntable.webp", "views.png", "redrawn.png"
NUM_OTHERS, FIRST_OTHER = 9, 50_000_000
"""Toys among which a toy is looked for, and the seed of the first."""
PHOTO_SIZE = 256
"""Pixels of a photo's side, before an encoder resizes it."""


@dataclass
class EvaluateConfig:
    """Measure a finished run: likeness to photos and prompt, faces, colours, and distance from the true toy if known.

    Runs of the embedded guide are measured by the embedded judge. CLIP and DINO are used if they are named.
    """

    run: Path
    """The run's folder."""
    toy: int | None = None
    """Seed of the toy in the photos; by default the bundled toy if the run was trained on it."""
    toy_class: str | None = None
    """Kind of that toy; by default the seed decides."""
    photos: Path | None = None
    """Folder of the subject's photos; by default those that the run was trained on."""
    cutouts: Path | None = None
    """Folder of the photos with everything but the subject transparent; adds likeness without background, and
    over-saturation."""
    pool: Path | None = None
    """Text file of prompts for R-precision, without identifier, one per line; the embedded guide has a default."""
    clip: tuple[str, ...] = ()
    """CLIP backbones: "ViT-B/16", "ViT-B/32", "ViT-L/14", other hub ids, or local folders."""
    dino: tuple[str, ...] = ()
    """DINO and DINOv2 backbones: hub ids, such as facebook/dino-vits16 and facebook/dinov2-base, or local folders."""
    others: tuple[Path, ...] = ()
    """Folders with photos of other subjects of the class: adds the share of views that find their own subject among
    these. A toy is looked for among other toys of its kind by default."""
    mesh: bool = False
    """Measure the mesh of `db3d export` too: adds its chamfer distance and F-score to the true toy."""
    mesh_file: Path | None = None
    """Measure this mesh in place of that one: a glb or obj of `db3d export`."""
    redrawn: bool = False
    """Translate true views of the toy as stage 2 does: adds their PSNR, and RUN/evaluation/redrawn.png, for runs that
    have a D_full."""
    resolution: Count | None = None
    """Side of the views in pixels; by default 64 for runs of the embedded guide and 224 for others."""
    turntable_frames: Count = 36
    """Frames of the turntable."""


def main(config: EvaluateConfig) -> None:
    """Write metrics, views and turntable into RUN/evaluation, and print the metrics."""
    from db3d_nerfstudio.console import announce
    from db3d_nerfstudio.evaluation.metrics.measure import measure
    from db3d_nerfstudio.evaluation.metrics.renders import render_orbit
    from db3d_nerfstudio.images import contact_sheet, save_animation, tensor_to_image
    from db3d_nerfstudio.results.open_run import open_run
    from db3d_nerfstudio.run.config import read_config

    settings = cast("DreamBooth3DTrainerConfig", read_config(config.run))
    reference = make_reference(config, settings)
    resolution = config.resolution or (64 if reference.judge is not None else 224)
    folder, table, rows = config.run / EVALUATION, {}, []
    folder.mkdir(exist_ok=True)
    stages = {"initial": config.run / "initial", "final": config.run}
    models = {stage: cast("DreamBooth3DModel", open_run(run).model) for stage, run in stages.items() if run.exists()}
    for stage, model in models.items():
        renders = render_orbit(model, resolution)
        table[stage], truth = measure(renders, reference)
        rows = rows or ([] if truth is None else [truth])
        rows += [renders.albedo, renders.textureless]
    turning = render_orbit(models["final"], 2 * resolution, config.turntable_frames)
    save_animation(turning.lambertian, folder / TURNTABLE)
    tensor_to_image(contact_sheet(rows, resolution)).save(folder / VIEWS)
    write_json(folder / METRICS, table)
    if config.mesh or config.mesh_file is not None:
        table["final"] |= measure_mesh(models["final"].field, reference.subject, config.mesh_file)
    if config.redrawn:
        table["final"] |= measure_redrawing(config, settings, reference.subject)
    write_json(folder / METRICS, table)
    print(json.dumps(table, indent=2))
    announce(f"Look at {folder / VIEWS} and {folder / TURNTABLE}.")


def make_reference(config: EvaluateConfig, settings: DreamBooth3DTrainerConfig) -> Reference:
    """The reference for a run, from its own settings and those of the evaluation."""
    from db3d_nerfstudio.evaluation.benchmark.subjects import toybox_pool
    from db3d_nerfstudio.evaluation.metrics.encoders import clip_encoder, dino_encoder, judge_encoder
    from db3d_nerfstudio.evaluation.metrics.measure import Reference
    from db3d_nerfstudio.evaluation.metrics.pixels import load_lpips
    from db3d_nerfstudio.toybox.guide import ToyboxGuideConfig
    from db3d_nerfstudio.toybox.judge import load_judge

    of_toys = isinstance(settings.pipeline.model.guide, ToyboxGuideConfig)
    judge = load_judge() if of_toys else None
    prompt = final_prompt(config.run, settings)
    pool = list(toybox_pool()) if of_toys else []
    if config.pool is not None:
        pool = [line.strip() for line in config.pool.read_text("utf8").splitlines() if line.strip()]
    if pool and prompt not in pool:
        pool.append(prompt)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    photos, subject = read_photos(config, settings), true_toy(config, settings)
    return Reference(
        prompt=prompt,
        pool=pool,
        encoders=(
            *([judge_encoder(judge)] if judge else []),
            *(clip_encoder(name, device) for name in config.clip),
            *(dino_encoder(name, device) for name in config.dino),
        ),
        judge=judge,
        photos=photos,
        subject=subject,
        gallery=make_gallery(config, photos, subject),
        lpips=load_lpips(),
    )


def final_prompt(run: Path, settings: DreamBooth3DTrainerConfig) -> str:
    """The prompt that a run ended with, without the identifier: it may have been changed in the viewer."""
    pipeline = settings.pipeline
    prompt, _ = guidance_at(read_changes(run), sys.maxsize, pipeline.model.prompt or "", 0.0)
    return drop_identifier(prompt, pipeline.phases.identifier)


def read_photos(config: EvaluateConfig, settings: DreamBooth3DTrainerConfig) -> Photos | None:
    """The subject's photos and masks; None for a text-only run."""
    from db3d_nerfstudio.evaluation.metrics.measure import Photos
    from db3d_nerfstudio.photos import load_masks, load_photos

    folder = config.photos or settings.pipeline.datamanager.data
    if folder is None:
        return None
    masks = None if config.cutouts is None else load_masks(config.cutouts, PHOTO_SIZE)[:, 0]
    return Photos(load_photos(folder, PHOTO_SIZE, config.cutouts), masks)


def make_gallery(config: EvaluateConfig, photos: Photos | None, subject: Subject | None) -> Gallery | None:
    """The subject among others: given photos, or toys of its kind seen by the cameras of the evaluation."""
    from db3d_nerfstudio.evaluation.metrics.fidelity import photograph_truth
    from db3d_nerfstudio.evaluation.metrics.retrieval import Gallery
    from db3d_nerfstudio.photos import load_photos
    from db3d_nerfstudio.toybox.scene import Studio
    from db3d_nerfstudio.toybox.subjects import make_subject

    if config.others and photos is not None:
        return Gallery(photos.images, tuple(load_photos(folder, PHOTO_SIZE) for folder in config.others))
    if subject is None:
        return None
    toys = [subject, *(make_subject(FIRST_OTHER + i, subject.traits.class_noun) for i in range(NUM_OTHERS))]
    own, *others = (photograph_truth(Studio(toy))[0].permute(0, 3, 1, 2) for toy in toys)
    return Gallery(own, tuple(others))


def true_toy(config: EvaluateConfig, settings: DreamBooth3DTrainerConfig) -> Subject | None:
    """The toy in the photos, if it is known, with what the prompt changes in it: its colour, a hat, a pose."""
    from db3d_nerfstudio.toybox.captions import asked_changes
    from db3d_nerfstudio.toybox.examples import DEFAULT_SEED, DEFAULT_TRAITS, default_subject
    from db3d_nerfstudio.toybox.subjects import make_subject

    if config.toy is not None:
        make = partial(make_subject, config.toy, config.toy_class)
    elif settings.pipeline.datamanager.data == default_subject()[0]:
        make = partial(make_subject, DEFAULT_SEED, traits=DEFAULT_TRAITS)
    else:
        return None
    prompt = final_prompt(config.run, settings)
    return make(changes=asked_changes(prompt, make().traits))


def measure_redrawing(
    config: EvaluateConfig, settings: DreamBooth3DTrainerConfig, subject: Subject | None
) -> dict[str, float]:
    """PSNR of true views after stage 2's translation, which a picture in the run folder shows; empty without D_full.

    Raises:
        UserError: the true toy is not known.
    """
    from db3d_nerfstudio.console import announce
    from db3d_nerfstudio.evaluation.redrawing import full_of, redraw
    from db3d_nerfstudio.images import contact_sheet, tensor_to_image
    from db3d_nerfstudio.workspace import is_released

    if subject is None:
        raise UserError("true views are those of a toy: name the toy's seed with --toy")
    if not full_of(config.run).is_dir() or is_released(full_of(config.run)):
        announce(f"{full_of(config.run)} has no weights, so that nothing can be redrawn")
        return {}
    psnr, truth, redrawn = redraw(config.run, settings.pipeline, subject, settings.machine.seed)
    sheet = contact_sheet([views.permute(0, 3, 1, 2) for views in (truth, redrawn)])
    tensor_to_image(sheet).save(config.run / EVALUATION / REDRAWN)
    return {"redrawn psnr": psnr}


def measure_mesh(field: GridField, subject: Subject | None, file: Path | None = None) -> dict[str, float]:
    """Compare the mesh exported from a field, or the one in a file, with the true toy.

    Raises:
        UserError: the true toy is not known, or there is no such file.
    """
    from db3d_nerfstudio.evaluation.metrics.shape import compare

    if subject is None:
        raise UserError("a mesh is measured against the true toy: name the toy's seed with --toy")
    mesh = exported(field) if file is None else read_mesh(file)
    if mesh is None:
        return {"mesh f_score": 0.0}
    fidelity, _ = compare(mesh, subject)
    return {f"mesh {name}": value for name, value in asdict(fidelity).items()}


def exported(field: GridField) -> Trimesh | None:
    """The mesh of a field; None if the scene is empty: nothing is like no shape at all, and at no distance from it."""
    from db3d_nerfstudio.results.export import build_mesh

    try:
        return build_mesh(field, resolution=128, max_faces=20_000, texture_size=512)
    except UserError:
        return None


def read_mesh(file: Path) -> Trimesh:
    """A mesh as `db3d export` writes it.

    Raises:
        UserError: there is no such file.
    """
    import trimesh

    if not file.is_file():
        raise UserError(f"{file} does not exist: give --mesh-file a glb or obj of db3d export")
    return trimesh.load_scene(file).to_mesh()
