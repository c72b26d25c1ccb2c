"""The DreamBooth3D panel in nerfstudio's viewer: the run's progress and pictures, and controls to change it.

nerfstudio passes the viewer to every `ViewerControl` that it finds in the pipeline. The panel's pictures are files of
the run folder, read again as the run goes on; so a finished run has them too.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import viser
import viser.transforms
from nerfstudio.viewer.render_state_machine import RenderStateMachine
from nerfstudio.viewer.viewer import VISER_NERFSTUDIO_SCALE_RATIO
from nerfstudio.viewer.viewer_elements import ViewerControl
from PIL import Image

from db3d_nerfstudio.cameras import orbit_cameras
from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.images import data_uri, tiled
from db3d_nerfstudio.nerf.model import DreamBooth3DModelConfig
from db3d_nerfstudio.photos import load_photo, photo_paths
from db3d_nerfstudio.run.progress import Event, RunProgress, time_left
from db3d_nerfstudio.training.context import RunContext
from db3d_nerfstudio.training.datamanager import DreamBooth3DDataManager
from db3d_nerfstudio.training.dataparser import DreamBooth3DDataParserConfig
from db3d_nerfstudio.training.phases import PhaseName, PhasesConfig
from db3d_nerfstudio.words import tidy

if TYPE_CHECKING:
    from nerfstudio.viewer.viewer import Viewer


SECONDS_BETWEEN_UPDATES = 0.5
START_BEHIND = 1.4
"""Distance of the first view, in radii of the orbit."""
TILE = 96
"""Side of the pictures in the sheets of the run folder, pixels."""
POSED, PAIRS = "Poses of photos", "Pseudo views (render | translated)"
NOTHING_YET = "*Not made yet.*"
PHASES: dict[str, PhaseName] = {"initial NeRF": "initial", "final NeRF": "final"}
"""The phases that can be ended early, by the kinds of their tasks."""


class ViewerPanel(ViewerControl):
    """The panel; nerfstudio sets it up once it has a viewer, and `follow` connects it to a run in training."""

    viewer: Viewer | None = None
    """nerfstudio sets it, if there is one."""

    def __init__(self) -> None:
        self._context: RunContext | None = None
        self._updated = 0.0
        self._shown: dict[str, float] = {}  # When the file behind each picture was written.

    def _setup(self, viewer: Viewer) -> None:
        super()._setup(viewer)
        wanted, host, port = viewer.config.websocket_port, viewer.config.websocket_host, self.viser_server.get_port()
        if len(viewer.viewer_info) == 1 and " or http" not in viewer.viewer_info[0]:  # It is not shared.
            viewer.viewer_info = [address_line(host, port, wanted)]
        self._datamanager = cast(DreamBooth3DDataManager, viewer.pipeline.datamanager)
        data = self._datamanager.config
        views = data.dataparser.pseudo_views
        self._run = viewer.log_filename.parent if views is None else views.parent
        self._look_from_the_front(data.dataparser)
        gui = self.viser_server.gui
        with gui.add_folder("DreamBooth3D", order=-1):
            self._status = gui.add_markdown("Setting up." if viewer.trainer else f"**{self._run.name}**")
            self._bar = gui.add_progress_bar(0.0, visible=viewer.trainer is not None)
            if viewer.trainer:
                self._add_controls(viewer)
            self._pictures = {}
            phases: PhasesConfig = cast(Any, viewer.pipeline).config.phases  # Its file imports this one.
            posed = [POSED] if phases.reconstructs_photos else []
            for name in ("Photos", "DreamBooth samples", *posed, PAIRS):
                with gui.add_folder(name):
                    self._pictures[name] = gui.add_markdown(NOTHING_YET, image_root=self._run)
        self._show_photos(data.data)
        self._show_pictures()

    def follow(self, context: RunContext) -> None:
        """Show the run's progress, and pass it the user's requests; does nothing without a viewer."""
        if self.viewer is not None:
            self._context = context
            context.record.progress.listeners.append(partial(self._on_progress, self.viewer, context))

    # What can be changed.

    def _add_controls(self, viewer: Viewer) -> None:
        gui, model = self.viser_server.gui, cast(DreamBooth3DModelConfig, viewer.pipeline.model.config)
        self._prompt = gui.add_text("Prompt", model.prompt or "", hint="The prompt of score distillation")
        self._scale = gui.add_number("Guidance scale", float(model.sds.guidance_scale), min=0.0, step=0.5)
        apply = gui.add_button("Use these from the next step on", hint="The prompt is embedded again before that step")
        apply.on_click(lambda _: self._request_guidance())
        self._end = gui.add_button("End this stage now", disabled=True, hint="A resumed run ends it at the same step")
        self._end.on_click(lambda _: self._request_end())
        self._answer = gui.add_markdown("")

    def _request_guidance(self) -> None:
        self._request(prompt=tidy(self._prompt.value), guidance_scale=float(self._scale.value))

    def _request_end(self) -> None:
        task = self._context and self._context.record.progress.task
        if task is not None and task.kind in PHASES:
            self._request(ends=PHASES[task.kind])

    def _request(self, **change: str | float) -> None:
        if self._context is not None:
            self._context.interventions.request(**change)
            self._answer.content = self._context.interventions.answer

    # What is shown.

    def _on_progress(self, viewer: Viewer, context: RunContext, progress: RunProgress, event: Event) -> None:
        if event == "update" and time.monotonic() < self._updated + SECONDS_BETWEEN_UPDATES:
            return
        self._updated = time.monotonic()
        task = progress.present
        if event == "begin":
            if task.kind == "final NeRF":
                self._show_pseudo_views(viewer, "paused" if context.paused() else "training")
            else:
                self._draw_cameras(viewer)
        loss = "" if progress.loss is None else f", loss {progress.loss:.4f}"
        self._status.content = (
            f"**Stage {task.stage}**\n\n{task.name}: {progress.done} of {task.total}{loss}\n\n{time_left(progress)}"
        )
        self._bar.value = min(100.0, 100 * progress.done / task.total)
        self._end.disabled = task.kind not in PHASES
        self._answer.content = context.interventions.answer
        self._show_pictures()

    def _show_photos(self, folder: Path | None) -> None:
        if folder is None:
            return
        try:
            photos = [load_photo(path, TILE) for path in photo_paths(folder)]
        except UserError as error:  # Of a run that is looked at elsewhere, or later.
            self._pictures["Photos"].content = f"*{error}*"
            return
        self._pictures["Photos"].content = _as_markdown(tiled(photos, columns=min(6, len(photos))), "photos")

    def _show_pictures(self) -> None:
        """Show the newest sheets of samples and pseudo views, the latter while they are being made."""
        self._show_newest("DreamBooth samples", "dreambooth/*/samples.png", lambda sheet: sheet)
        if POSED in self._pictures:
            self._show_newest(POSED, "posed_photos/*/contact_sheet.png", lambda sheet: sheet)
        pairs = "pseudo_views*/contact_sheet.png"
        self._show_newest(PAIRS, pairs, lambda sheet: tiled(render_and_translation(sheet), columns=4))

    def _show_newest(self, name: str, pattern: str, arrange: Callable[[Image.Image], Image.Image]) -> None:
        files = {file: file.stat().st_mtime for file in self._run.glob(pattern)}
        newest = max(files, key=lambda file: files[file], default=None)
        if newest is None or self._shown.get(name) == files[newest]:
            return
        try:
            with Image.open(newest) as image:
                self._pictures[name].content = _as_markdown(arrange(image.convert("RGB")), newest.parent.stem)
        except OSError:  # It is being written: the next time.
            return
        self._shown[name] = files[newest]

    # The scene.

    def _look_from_the_front(self, orbit: DreamBooth3DDataParserConfig) -> None:
        """Start behind the orbit's first cameras, between two of them; viser's default is inside the object."""
        start = orbit_cameras(
            1, orbit.elevation + 5.0, START_BEHIND * orbit.radius, orbit.fov, 1, 180 / orbit.num_views
        )
        position = start[0].camera_to_worlds[0, :, 3].numpy() * VISER_NERFSTUDIO_SCALE_RATIO

        @self.viser_server.on_client_connect
        def _(client: viser.ClientHandle) -> None:
            client.camera.up_direction = (0.0, 0.0, 1.0)
            client.camera.position = position
            client.camera.look_at = (0.0, 0.0, 0.0)
            client.camera.fov = math.radians(orbit.fov)

    def _show_pseudo_views(self, viewer: Viewer, state: Literal["training", "paused"]) -> None:
        """Replace the cameras by ones with the pseudo views in them."""
        data = self._datamanager
        viewer.init_scene(data.train_dataset, state, data.eval_dataset)

    def _draw_cameras(self, viewer: Viewer) -> None:
        """Replace nerfstudio's training cameras, whose pictures are not made yet, by ones without."""
        data = self._datamanager
        for i, pose in enumerate(data.train_dataset.cameras.camera_to_worlds.cpu().numpy()):
            turned = viser.transforms.SO3.from_matrix(pose[:, :3]) @ viser.transforms.SO3.from_x_radians(math.pi)
            viewer.camera_handles[i] = self.viser_server.scene.add_camera_frustum(
                f"/cameras/camera_{i:05d}",
                fov=math.radians(data.config.dataparser.fov),
                aspect=1.0,
                scale=viewer.config.camera_frustum_scale,
                wxyz=turned.wxyz,
                position=pose[:, 3] * VISER_NERFSTUDIO_SCALE_RATIO,
            )


def address_line(host: str, port: int, wanted: int | None) -> str:
    """Where the viewer is served, which is another port than `wanted` if that one is taken."""
    everywhere = host in ("0.0.0.0", "::", "")
    name = "localhost" if everywhere else f"[{host}]" if ":" in host else host
    taken = f" (port {wanted} is taken)" if wanted not in (None, port) else ""
    return f"Viewer: http://{name}:{port}{' (and at the other addresses of this machine)' * everywhere}{taken}"


def end_renders() -> None:
    """Wait for the viewer's threads to end: one that is inside torch when Python exits aborts the process."""
    renders = [thread for thread in threading.enumerate() if isinstance(thread, RenderStateMachine)]
    for render in renders:
        render.running = False
        render.interrupt_render_flag = True
    for render in renders:
        render.join()


def _as_markdown(image: Image.Image, name: str) -> str:
    return f"![{name}]({data_uri(image, 'JPEG', quality=90)})"


def render_and_translation(sheet: Image.Image) -> list[Image.Image]:
    """The second and third row of a contact sheet, column by column, without columns that are empty."""
    tiles = []
    for left in range(0, sheet.width, TILE):
        pair = [sheet.crop((left, top, left + TILE, top + TILE)) for top in (TILE, 2 * TILE)]
        if pair[1].getextrema() != ((255, 255),) * 3:
            tiles += pair
    return tiles
