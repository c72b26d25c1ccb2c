"""The photos themselves as views of the asset, at poses that are found by comparing them with renders of it.

RUN/posed_photos/initial/        poses in the NeRF that is being trained; final/ beside it: in the initial NeRF
    images/000.png               the photos that are used, cut out
    transforms.json              their cameras
    poses.json                   for every photo, its pose and how well the asset fits it
    contact_sheet.png            photos; cut-outs; what the asset looks like from their poses

In training, poses are then refined together with the NeRF (BARF, 2104.06405); the checkpoint has by how much, and at
the NeRF's end the last row of the contact sheet shows it from the refined poses.

The paper uses photos for DreamBooth alone, as they have no poses. TIRE (2510.23605) starts from them too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from db3d_nerfstudio.cameras import look_at, square_cameras
from db3d_nerfstudio.console import announce
from db3d_nerfstudio.diffusion.captions import named_view
from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.foreground import SIDE, grabcut
from db3d_nerfstudio.images import contact_sheet, image_to_tensor, tensor_to_image
from db3d_nerfstudio.photos import load_alpha, load_photo, photo_paths, photos_digest
from db3d_nerfstudio.results.film import render_views
from db3d_nerfstudio.results.posed_images import PosedImages, load_posed, save_posed
from db3d_nerfstudio.training import initial_nerf
from db3d_nerfstudio.training.context import RunContext
from db3d_nerfstudio.training.dataparser import DreamBooth3DDataParserConfig
from db3d_nerfstudio.training.phases import PhasesConfig
from db3d_nerfstudio.training.pose_search import (
    STEP,
    CutOuts,
    Direction,
    direction_views,
    find_poses,
    pose_cameras,
)
from db3d_nerfstudio.words import DIRECTIONS, parse_subject
from db3d_nerfstudio.workspace import Workspace

INITIAL, FINAL = "posed_photos/initial", "posed_photos/final"
CONTACT_SHEET = "contact_sheet.png"
MAX_MISMATCH = 0.6
"""Photos that fit less well from every side are left out: the mask is wrong, or the asset is not the subject yet."""

Look = Callable[[Cameras], CutOuts]
"""The asset seen by cameras."""


class PosedPhotos:
    """Gives a run's data manager its photos, in two stages: poses are searched again in the finished initial NeRF."""

    def __init__(self, config: PhasesConfig, context: RunContext) -> None:
        self.config, self.context = config, context
        self.workspace = Workspace(context.folder)
        self._joined, self._folder = False, cast(Path | None, None)
        self._photos: PosedImages | None = None
        self._declined: set[str] = set()

    def wanted_at(self, step: int) -> bool:
        """Whether photos are reconstructed; ones of a blue duck would be in the way of a prompt for a green one."""
        if not self.config.reconstructs_photos:
            return False
        prompt, _ = self.context.interventions.guidance_at(step)
        subject = parse_subject(prompt, self.config.identifier, self.config.class_noun)
        if prompt == subject.instance_prompt or self.config.posed_photos.any_prompt:
            return True
        if prompt not in self._declined:
            announce(
                f'The prompt is not "{subject.instance_prompt}", so the NeRFs do not reconstruct photos: add '
                "--pipeline.phases.posed-photos.any-prompt True if the prompt adds nothing but surroundings"
            )
        self._declined.add(prompt)
        return False

    def follow_prompt(self, step: int) -> None:
        """Give the data manager the photos for as long as the prompt, which the viewer may change, asks for no more."""
        reconstructed = self._photos is not None and self.wanted_at(step)
        self.context.datamanager.photos = self._photos if reconstructed else None

    def join_initial(self, step: int) -> None:
        """Let the initial NeRF reconstruct the photos from the step on at which it can show their poses."""
        first = self.config.photos_join(self.context.accumulation)
        if self._joined or first is None or step < first or not self.wanted_at(first):
            return
        self._joined = True
        if step == first > 0:
            self.context.save(step - 1)  # Poses cannot be searched in the NeRF of any other step.

        def make_now(path: Path) -> None:
            if step != first:
                raise UserError(
                    f"{INITIAL}/ is missing in the run folder and cannot be made again: start a new run with --resume "
                    "False"
                )
            self._make(path)

        self._use(INITIAL, make_now, first)

    def join_final(self, initial: Path, steps: int) -> None:
        """Let the final NeRF reconstruct the photos at their poses in the initial NeRF, which has had `steps` steps."""
        self._photos = None
        if not self.wanted_at(steps):
            return

        def make_late(path: Path) -> None:
            with initial_nerf.showing(self.context.model, initial):
                self._make(path)

        self._use(FINAL, make_late, steps)

    def show_refined(self) -> None:
        """Show the NeRF from the refined poses in the contact sheet of the poses as found, if that is still there."""
        photos, folder = self._photos, self._folder
        if photos is None or photos.motions is None or folder is None or not (folder / CONTACT_SHEET).exists():
            return
        refined, places = self._look(photos.moved()), used(folder)
        seen = torch.ones(len(places), 3, *refined.shape[2:])
        seen[places] = _on_white(refined)
        row = tensor_to_image(contact_sheet([seen]))
        with Image.open(folder / CONTACT_SHEET) as image:
            sheet = image.convert("RGB")
        sheet.paste(row, (0, sheet.height - row.height))
        sheet.save(folder / CONTACT_SHEET)

    def _look(self, cameras: Cameras) -> CutOuts:
        rgb, alpha = render_views(self.context.model, cameras)
        background = self.context.model.background.color(rgb.device)[:, None, None]
        return torch.cat([(rgb - (1 - alpha) * background).clamp_min(0), alpha], 1).cpu()

    def _make(self, path: Path) -> None:
        data = self.context.datamanager.config
        make(cast(Path, data.data), data.dataparser, self._look, path)

    def _use(self, name: str, make: Callable[[Path], None], steps: int) -> None:
        data = self.context.datamanager
        orbit = {key: getattr(data.config.dataparser, key) for key in ("radius", "fov", "resolution")}
        recipe = {"photos": photos_digest(cast(Path, data.config.data)), "steps": steps, "cameras": orbit}
        path = self.workspace.once(name, recipe, make, for_people=(CONTACT_SHEET,))
        self._folder, photos = path, load(path, self.context.model.device)
        self._photos = None if photos is None else replace(photos, motions=self.context.photo_poses)
        data.photo_share = self.config.posed_photos.share


def make(folder: Path, orbit: DreamBooth3DDataParserConfig, look: Look, path: Path) -> None:
    """Find the poses of a folder's photos, and write those that fit into the empty folder `path`.

    Args:
        orbit: Distance, field of view and resolution of the renders.
    """

    def render(directions: Sequence[Direction]) -> CutOuts:
        views = direction_views(directions, orbit.radius, orbit.fov)
        zero = torch.zeros(len(directions), 3)
        return look(square_cameras(look_at(views, zero, zero, zero), views, orbit.resolution))

    paths = photo_paths(folder)
    photos = torch.stack([cut_out(photo, orbit.resolution) for photo in paths])
    poses = find_poses(render, photos, [azimuths_of(photo) for photo in paths])
    fits = [pose.mismatch <= MAX_MISMATCH for pose in poses]
    fitting = [pose for pose, fit in zip(poses, fits, strict=True) if fit]
    if fitting:
        cameras = pose_cameras(fitting, orbit.radius, orbit.fov, orbit.resolution)
        colors, alpha = photos[fits].split([3, 1], 1)
        save_posed(path, cameras, list(torch.cat([(colors / alpha.clamp_min(1e-4)).clamp(0, 1), alpha], 1)))
    named = {photo.name: {**asdict(pose), "used": fit} for photo, pose, fit in zip(paths, poses, fits, strict=True)}
    (path / "poses.json").write_text(json.dumps(named, indent=2) + "\n", "utf8")
    seen = look(pose_cameras(poses, orbit.radius, orbit.fov, orbit.resolution))
    whole = torch.stack([image_to_tensor(load_photo(photo, SIDE)) for photo in paths])
    tensor_to_image(contact_sheet([whole, _on_white(photos), _on_white(seen)])).save(path / CONTACT_SHEET)
    left_out = ", ".join(photo.name for photo, fit in zip(paths, fits, strict=True) if not fit)
    if left_out:
        announce(f"No view of the NeRF matches these photos, so they are not reconstructed: {left_out}")


def _on_white(cut_outs: CutOuts) -> Float[Tensor, "n 3 h w"]:
    return cut_outs[:, :3] + 1 - cut_outs[:, 3:]


def used(path: Path) -> list[bool]:
    """For every photo, whether it is reconstructed."""
    return [pose["used"] for pose in json.loads((path / "poses.json").read_text("utf8")).values()]


def load(path: Path, device: torch.device | str) -> PosedImages | None:
    """The photos that are used, with cameras on `device`; None if none is."""
    return load_posed(path, device) if any(used(path)) else None


def azimuths_of(photo: Path) -> list[float]:
    """Those that a photo may have: around the side that its file is named after, else the front half."""
    name = (named_view(photo, tells_sides=True) or "").removeprefix("overhead ")
    middle, reach = (360 / len(DIRECTIONS) * DIRECTIONS.index(name), 45.0) if name in DIRECTIONS else (0.0, 90.0)
    steps = int(reach / STEP)
    return [middle + STEP * step for step in range(-steps, steps + 1)]


def cut_out(photo: Path, resolution: int) -> Float[Tensor, "4 h w"]:
    """Colours times alpha, and alpha, of a photo's square; without transparency, GrabCut finds the subject."""
    image, alpha = load_photo(photo, SIDE), load_alpha(photo, SIDE)
    rgb, share = image_to_tensor(image), image_to_tensor(alpha or grabcut(image))[:1]
    colors = rgb * share if alpha is None else (rgb - (1 - share)).clamp_min(0)  # What is transparent is white.
    return interpolate(torch.cat([colors, share])[None], (resolution, resolution), mode="area")[0]
