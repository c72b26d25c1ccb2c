"""The work between the phases, in one method: `PhaseRunner.enter`.

Every result is a file in the run folder, made once:

    RUN/class_images/             samples of the class by the untuned guide, for prior preservation
    RUN/dreambooth/partial/       D_partial; full/ and multiview/ beside it: fine-tuned guides in diffusers' format
    RUN/mesh_views/               a mesh from elsewhere that the initial NeRF is fitted to, if one is given
    RUN/posed_photos/             the photos and their poses, if the NeRFs reconstruct them
    RUN/initial/                  the initial NeRF; `ns-viewer --load-config RUN/initial/config.yml` opens it
    RUN/pseudo_views/             its renders, translated into the subject
    RUN/turntables/               films of the NeRFs at the end of their training
"""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch

from db3d_nerfstudio.console import announce
from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.guides.record import identity
from db3d_nerfstudio.photos import photos_digest
from db3d_nerfstudio.results.film import (
    TURNTABLE_FRAMES,
    TURNTABLE_SIZE,
    render_views,
    save_turntable,
    turntable_path,
)
from db3d_nerfstudio.results.posed_images import load_posed
from db3d_nerfstudio.run.config import read_config
from db3d_nerfstudio.run.interventions import FILE as INTERVENTIONS
from db3d_nerfstudio.threads import FreeThreads
from db3d_nerfstudio.training import initial_mesh, initial_nerf, pseudo_views
from db3d_nerfstudio.training.context import RunContext
from db3d_nerfstudio.training.duration import announce_duration
from db3d_nerfstudio.training.fine_tunes import FineTunes
from db3d_nerfstudio.training.machine import announce_disk, announce_memory
from db3d_nerfstudio.training.phases import Phase, PhaseName, PhasesConfig, phase_at, seed_everything
from db3d_nerfstudio.training.posed_photos import PosedPhotos
from db3d_nerfstudio.training.tasks import ONE, ONLY, THREE, TWO, nerf_task, stage_line
from db3d_nerfstudio.words import parse_subject, prompts_of_run
from db3d_nerfstudio.workspace import Workspace


class PhaseRunner:
    """Puts guide, data and model into the state of a phase, and makes what is missing in the run folder.

    Its only state, the phase that was entered last, is a cache: entering again changes nothing.
    """

    def __init__(self, config: PhasesConfig, context: RunContext) -> None:
        self.config, self.context = config, context
        self.workspace = Workspace(context.folder)
        self.fine_tunes = FineTunes(config, context)
        self._entered: PhaseName | None = None
        self.posed_photos = PosedPhotos(config, context)
        self._threads = FreeThreads()
        self._threads.begin()

    def before_step(self, step: int) -> None:
        """The callback before every training iteration, a function of the step and of files alone."""
        context, phase = self.context, self._phase_at(step)
        context.step = step
        self._threads.adapt()
        next_end = (step // context.accumulation + 1) * context.accumulation
        context.interventions.apply(step, self._check_prompt, next_end, phase.name)
        context.model.distillation.set_guidance(*context.interventions.guidance_at(step))
        if phase.name != self._entered:
            self.enter(phase, step)
            self._entered = phase.name
            context.record.progress.begin(nerf_task(self.config, phase.name), step - phase.start)
        if phase.name == "initial":
            self.posed_photos.join_initial(step)
        self.posed_photos.follow_prompt(step)
        seed_everything(context.seed, step)
        if phase.name == "final" and step == phase.start:
            self._start_second_nerf()
        self._set_learning_rates(phase)
        context.model.set_progress(phase.progress)
        context.datamanager.progress = phase.progress

    def after_step(self, step: int) -> None:
        """The callback after every training iteration."""
        phase = self._phase_at(step)
        self.context.record.nerf_step(step, step + 1 - phase.start, self.context.losses)
        total = self.config.total_steps(self.context.interventions.ends)
        if step + 1 >= total:
            self.context.end_at(total)

    def after_training(self, step: int) -> None:
        """The callback at the end of training, of the run or of this process: close the record and film the NeRF."""
        self.posed_photos.show_refined()
        self.context.record.finish(step + 1 >= self.config.total_steps(self.context.interventions.ends))
        self._film(self._phase_at(step).name)

    def enter(self, phase: Phase, step: int) -> None:
        """Find or make everything that the phase needs, and set it on the model and the data manager."""
        with self.context.unlocked():  # The viewer need not wait while the guide loads.
            self._check_guide()
        if phase.name == "initial":
            announce(stage_line(self.config, ONLY if self.config.one_stage else ONE))
            if self.config.initial.mesh is not None:
                self._use(None)
                self.context.datamanager.fitted = load_posed(self._mesh_views(), self.context.model.device)
                return
            self._use(self.fine_tunes.full() if self.config.one_stage else self.fine_tunes.partial())
            return
        if step == phase.start:  # Nothing may be lost if the run is killed in the minutes that follow.
            self.context.save(step - 1, between_nerfs=True)
        initial = self._initial_nerf(phase, step)
        if step == phase.start:
            self.posed_photos.show_refined()
        views = self._pseudo_views(initial)
        announce(stage_line(self.config, THREE))
        self._use(self.fine_tunes.multiview(views, self._stage_2_prompt, self._pseudo_views_recipe()))
        self.posed_photos.join_final(initial, self._initial_steps)
        seed_everything(self.context.seed, phase.start)  # The data manager caches its images in a random order.
        self.context.datamanager.load_pseudo_views()

    # What the phases are made of.

    def _mesh_views(self) -> Path:
        def make(path: Path) -> None:
            initial_mesh.make(self.context, self.config.initial, self.fine_tunes.subject.class_prompt, path)

        return self.workspace.once(initial_mesh.FOLDER, self._mesh_recipe(), make)

    def _mesh_recipe(self) -> dict[str, Any]:
        """What decides the renders of a mesh, and its front if the guide guesses that; nothing without a mesh."""
        config = self.config.initial
        if config.mesh is None:
            return {}
        recipe = initial_mesh.recipe(config, self.context.datamanager.config.dataparser)
        if config.mesh_front is None:
            made_by = self.fine_tunes.tuner.recipe()
            recipe |= {key: made_by[key] for key in ("guide", "class_prompt", "seed")}
        return recipe

    def _initial_nerf(self, phase: Phase, step: int) -> Path:
        def make(path: Path) -> None:
            if step != phase.start:
                raise UserError(
                    f"{initial_nerf.FOLDER}/ is missing in the run folder and cannot be made again: start a new run "
                    "with --resume False"
                )
            initial_nerf.save_initial(path, read_config(self.workspace.root), self.context.model, step - 1)

        made_of = {"steps": self._initial_steps, **self._mesh_recipe()}
        initial = self.workspace.once(initial_nerf.FOLDER, made_of, make)
        if step == phase.start or not self._turntable("initial").exists():
            with initial_nerf.showing(self.context.model, initial):
                self._film("initial")
        return initial

    def _turntable(self, phase: PhaseName) -> Path:
        return turntable_path(self.workspace.root, nerf_task(self.config, phase))

    def _film(self, phase: PhaseName) -> None:
        orbit = self.context.datamanager.config.dataparser
        cameras, _ = replace(orbit, num_views=TURNTABLE_FRAMES, resolution=TURNTABLE_SIZE).orbit()
        save_turntable(self.context.model, cameras, self._turntable(phase))

    def _first_renders(self, initial: Path) -> pseudo_views.Renders:
        """What the cameras of the pseudo views see: the initial NeRF, or the mesh that it is fitted to."""
        cameras, _ = self.context.datamanager.config.dataparser.orbit()
        if self.config.initial.mesh is not None:
            return initial_mesh.render(self.context, self.config.initial, self._mesh_views(), cameras)
        with initial_nerf.showing(self.context.model, initial):
            return render_views(self.context.model, cameras)

    def _pseudo_views(self, initial: Path) -> Path:
        def make(path: Path) -> None:
            announce(stage_line(self.config, TWO))
            first = self._first_renders(initial)
            given = self.config.pseudo_views.images
            if given is not None:
                pseudo_views.take(self.context, given, path, first, self.fine_tunes.tuner.data.images)
                return
            self.context.guide.load(self.fine_tunes.full())
            settings = self.config.pseudo_views, self._stage_2_prompt
            pseudo_views.make(self.context, *settings, path, first, self.fine_tunes.tuner)

        people = (pseudo_views.CONTACT_SHEET,)
        views = self.workspace.once("pseudo_views", self._pseudo_views_recipe(), make, for_people=people)
        if not self.config.keep_full:
            self.fine_tunes.release_full()
        return views

    def _start_second_nerf(self) -> None:
        """New weights in the same parameters, unless the initial NeRF's are kept, and reset optimizers.

        The photos' poses have just been searched again.
        """
        if self.config.reset_nerf:
            self.context.model.reset_field()
        if self.context.photo_poses is not None:
            torch.nn.init.zeros_(self.context.photo_poses.pose_adjustment)
        self.context.optimizers.zero_grad_all()
        for optimizer in self.context.optimizers.optimizers.values():
            optimizer.state.clear()

    def _set_learning_rates(self, phase: Phase) -> None:
        """Set the rates as a function of the step; nerfstudio's schedulers would count on into the second NeRF."""
        if self.config.lr_final_fraction == 1:
            return  # They may be a scheduler's.
        factor = self.config.lr_final_fraction**phase.progress
        optimizers = self.context.optimizers
        for name, optimizer in optimizers.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = factor * optimizers.config[name]["optimizer"].lr

    # What these need.

    def _check_guide(self) -> None:
        """Load the guide and check every prompt, so that a wrong path or an unknown word ends the run at once."""
        if self._entered is None:
            announce_memory(self.context, self.config)
            if self.context.step == 0:  # Counting takes a while, and a resumed run has shown it.
                announce_duration(self.context, self.config)
        if self.context.model.config.sds.gradient == "contrast":
            with self.context.guide.untuned():
                pass  # Whether it can be is known now, and needed after a fine-tuning.
        self._check_prompt(cast(str, self.context.model.config.prompt))
        for prompt in self.context.interventions.prompts:
            try:
                self._check_prompt(prompt)
            except UserError as error:
                file = self.workspace.root / INTERVENTIONS
                raise UserError(f"{error} It was set in the viewer: remove it from {file}") from None
        if self._entered is None:
            announce_disk(self.context, self.config)

    def _check_prompt(self, prompt: str) -> None:
        subject, guide = None, self.context.guide
        if self.config.needs_photos:
            parse_subject(prompt, self.config.identifier, self.config.class_noun)
            subject = self.fine_tunes.subject
        negative_prompt = self.context.model.config.sds.negative_prompt
        guide.check_prompts(prompts_of_run(prompt, subject, negative_prompt, guide.tells_sides))

    def _phase_at(self, step: int) -> Phase:
        return phase_at(self.config, step, self.context.interventions.ends)

    @property
    def _initial_steps(self) -> int:
        return self.context.interventions.ends.get("initial", self.config.initial.length)

    @property
    def _stage_2_prompt(self) -> str:
        """The prompt at the end of the initial NeRF."""
        return self.context.interventions.guidance_at(self._initial_steps)[0]

    def _use(self, weights: Path | None) -> None:
        model, guide = self.context.model, self.context.guide
        guide.load(weights)
        model.field.colors.fit(guide)  # What z looks like, if the field's colours are z.
        model.distillation.embed_prompts()

    def _pseudo_views_recipe(self) -> dict[str, Any]:
        config, upscaler = asdict(self.config.pseudo_views), self.config.pseudo_views.upscaler
        del config["chunk"]
        orbit = self.context.datamanager.config.dataparser
        cameras = {key: getattr(orbit, key) for key in ("num_views", "elevation", "radius", "fov", "resolution")}
        if self.config.pseudo_views.images is not None:
            return {"images": photos_digest(self.config.pseudo_views.images), "cameras": cameras}
        return {
            "prompt": self._stage_2_prompt,
            "initial_steps": self._initial_steps,
            "negative_prompt": self.context.model.config.sds.negative_prompt,
            **self._mesh_recipe(),
            "full_steps": self.config.full_steps,
            **config,
            "upscaler": None if upscaler is None else identity(upscaler),
            "cameras": cameras,
            **self.fine_tunes.tuner.recipe(),
        }
