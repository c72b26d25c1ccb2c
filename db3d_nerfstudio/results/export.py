"""`db3d export`: a run as a textured mesh and a page that shows it, or as views (`views.py`), for other programs."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import numpy as np
import tyro

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.nerf.occupancy import RADIUS
from db3d_nerfstudio.paths import command
from db3d_nerfstudio.ranges import Count, Natural, NonNegative
from db3d_nerfstudio.results.mesh import decimate, density_grid, extract_surface, surface_level, y_up_unit
from db3d_nerfstudio.results.posed_images import load_posed
from db3d_nerfstudio.results.texture import bake, device_of
from db3d_nerfstudio.results.views import export_views
from db3d_nerfstudio.run.config import read_config
from db3d_nerfstudio.workspace import publish

if TYPE_CHECKING:
    from nerfstudio.pipelines.base_pipeline import Pipeline
    from trimesh import Trimesh

    from db3d_nerfstudio.nerf.field import GridField

Format = Literal["glb", "obj", "ply"]
ASSETS = Path(__file__).parent / "assets"
PREVIEW = "preview.html"
STEPS = 4
"""Steps from a field to a mesh."""


@dataclass
class ExportConfig:
    """Turn a run into a textured mesh, y up, and into a page that shows it without a network; or into views."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run's folder; RUN/initial for the initial NeRF."""
    format: Format = "glb"
    """glb: one file; obj: with a material and a texture beside it; ply: colours at the vertices."""
    output: Path | None = None
    """Folder for the files; by default RUN/exports."""
    resolution: Count = 128
    """Vertices along each edge of the grid that the surface is extracted from."""
    max_faces: Count = 20_000
    """The mesh is simplified to this many triangles."""
    texture_size: Count = 1024
    """Side of the texture, pixels."""
    refine_texture: Natural = 0
    """Steps in which the texture is fitted to the run's pseudo views after it was baked; 0 leaves it as the NeRF has
    it."""
    refine_size: Count = 512
    """Side of the views in which it is fitted, pixels."""
    refine_guidance: NonNegative = 0.0
    """Weight of score distillation by the run's tuned guide in this, relative to that in training; 0 needs no guide."""
    views: Count | None = None
    """Write this many views from all round in place of a mesh: pictures with alpha, masks and poses, for image-to-3D
    models, nerfstudio and COLMAP."""
    size: Count = 512
    """Side of a view, pixels."""


def build_mesh(
    field: GridField,
    resolution: int,
    max_faces: int,
    texture_size: int,
    report: Callable[[str], None] = lambda step: None,
    refine: Callable[[Trimesh], Trimesh] = lambda mesh: mesh,
) -> Trimesh:
    """A field as a textured mesh, y up and of unit size.

    Args:
        report: Called with each of the `STEPS` as it begins.
        refine: Changes the texture of the mesh, which is in scene units then.

    Raises:
        UserError: the scene is empty, or a setting is too small to make a mesh.
    """
    smallest = {"--resolution": (resolution, 8), "--max-faces": (max_faces, 20), "--texture-size": (texture_size, 16)}
    for name, (value, least) in smallest.items():
        if value < least:
            raise UserError(f"{name} {value} is too small: give at least {least}")
    spacing = 2 * RADIUS / (resolution - 1)
    report("density")
    grid = density_grid(field.density, resolution, device_of(field))
    report("surface")
    surface = extract_surface(grid, surface_level(grid, spacing))
    report("simplification")
    surface = decimate(surface, max_faces)
    report("texture")
    return y_up_unit(refine(bake(surface, field, texture_size, depth=2 * spacing)))


def files_of(mesh: Trimesh, kind: Format) -> dict[str, bytes]:
    """The mesh as files, the one to open first."""
    from trimesh.exchange.gltf import export_glb
    from trimesh.exchange.obj import export_obj
    from trimesh.exchange.ply import export_ply

    if kind == "glb":
        return {"mesh.glb": export_glb(mesh.scene(), include_normals=True)}
    if kind == "ply":
        coloured = mesh.copy()
        coloured.visual = cast(Any, mesh.visual).to_color()  # Of a mesh with a texture.
        coloured.merge_vertices(merge_tex=True, merge_norm=True)
        return {"mesh.ply": export_ply(coloured, vertex_normal=True)}
    text, others = export_obj(mesh, include_normals=True, return_texture=True, mtl_name="mesh.mtl")
    return {"mesh.obj": text.encode(), **others}


def preview_page(glb: bytes, title: str) -> str:
    """One HTML page that shows a glb: model-viewer and the mesh are part of it, so it needs no network."""
    page = (ASSETS / "preview.html").read_text("utf8")
    page = page.replace("{title}", html.escape(title))
    page = page.replace("{mesh}", base64.b64encode(glb).decode())
    return page.replace("{model_viewer}", (ASSETS / "model-viewer-umd.min.js").read_text("utf8"))


def check(path: Path) -> str:
    """A line about a written mesh, read back as another program would read it.

    Raises:
        ValueError: what was written has no faces or no colours.
    """
    import trimesh

    mesh = trimesh.load_scene(path).to_mesh()
    if mesh.visual.kind == "texture":
        material = mesh.visual.material
        image = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
        colours = f"texture {image.width} x {image.height}" if image else None
    else:
        colours = "colours at the vertices" if mesh.visual.kind == "vertex" else None
    if len(mesh.faces) == 0 or colours is None:
        raise ValueError(f"{path} was written without faces or without colours")
    mesh.merge_vertices(merge_tex=True, merge_norm=True)  # Seams of the texture are no holes.
    _, uses = np.unique(np.sort(mesh.edges, axis=1), axis=0, return_counts=True)
    tight = "watertight" if mesh.is_watertight else f"not watertight: {(uses != 2).sum()} edges without two faces"
    size = path.stat().st_size / 1e6
    return f"{path}: {len(mesh.faces):,} faces, {len(mesh.vertices):,} vertices, {tight}, {colours}, {size:.1f} MB"


def write(folder: Path, files: dict[str, bytes]) -> None:
    """Write files, each of which appears whole or not at all."""
    for name, content in files.items():
        scratch = folder / f"{name}.tmp"
        scratch.write_bytes(content)
        publish(scratch, folder / name)


def refined(config: ExportConfig, pipeline: Pipeline, mesh: Trimesh) -> Trimesh:
    """The mesh, in scene units, with its texture fitted to the run's pseudo views.

    Raises:
        UserError: the run has no pseudo views.
    """
    from db3d_nerfstudio.results.refine import refine_texture, tuned_guidance

    folder = config.run / "pseudo_views"
    if not folder.exists():
        raise UserError(f"{config.run} has no pseudo views to fit a texture to: leave --refine-texture out")
    guidance = None
    if config.refine_guidance > 0:
        guidance = tuned_guidance(config.run, pipeline, config.refine_guidance)
    return refine_texture(mesh, load_posed(folder, "cpu"), config.refine_texture, config.refine_size, guidance)


def main(config: ExportConfig) -> None:
    """Write the mesh and its page, or the views, and print what they are."""
    from rich.progress import Progress

    from db3d_nerfstudio.console import CONSOLE, announce, is_quiet
    from db3d_nerfstudio.results.open_run import exports_folder, open_run

    pipeline = open_run(config.run)
    if config.views is not None:
        checkpoints = read_config(config.run).get_checkpoint_dir()
        folder = exports_folder(config.run, config.output)
        views = export_views(pipeline, checkpoints, folder, config.views, config.size)
        announce(f"{views}: {config.views} views with alpha, masks, transforms.json and sparse/0 for COLMAP")
        return
    field = cast("GridField", pipeline.model.field)
    with Progress(console=CONSOLE, disable=is_quiet(), transient=True) as progress:
        task = progress.add_task("Mesh", total=STEPS, completed=-1)
        mesh = build_mesh(
            field,
            config.resolution,
            config.max_faces,
            config.texture_size,
            lambda step: progress.update(task, description=f"Mesh: {step}", advance=1),
            lambda mesh: refined(config, pipeline, mesh) if config.refine_texture else mesh,
        )
    folder = exports_folder(config.run, config.output)
    files = files_of(mesh, config.format)
    glb = files.get("mesh.glb") or files_of(mesh, "glb")["mesh.glb"]
    write(folder, {**files, PREVIEW: preview_page(glb, config.run.absolute().name).encode()})
    announce(check(folder / next(iter(files))))
    announce(f"Open {folder / PREVIEW} in a browser. A turntable: {command('db3d', 'turntable', config.run)}")
