"""The work between the phases, as one readable method: `PhaseRunner.enter`.

Every result is a file in the run folder, made once:

    RUN/class_images/             what the untouched guide thinks of the class, for prior preservation
    RUN/dreambooth/partial/       D_partial; full/ and multiview/ beside it: fine-tuned guides in diffusers' format
    RUN/initial/                  the initial NeRF; `ns-viewer --load-config RUN/initial/config.yml` opens it
    RUN/pseudo_views/             its renders, translated into the subject
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from db3d_nerfstudio.console import announce
from db3d_nerfstudio.errors import UserError, exit_on_user_error
from db3d_nerfstudio.run.folder import read_config
from db3d_nerfstudio.run.progress import FINAL_NERF, INITIAL_NERF
from db3d_nerfstudio.training import initial_nerf, pseudo_views
from db3d_nerfstudio.training.context import RunContext
from db3d_nerfstudio.training.fine_tunes import FineTunes
from db3d_nerfstudio.training.phases import Phase, PhaseName, PhasesConfig, phase_at, seed_everything
from db3d_nerfstudio.words import parse_subject, view_prompts
from db3d_nerfstudio.workspace import Workspace


class PhaseRunner:
    """Puts guide, data and model into the state that a phase trains in, making first what the run folder does not have.

    Its only memory, which phase was entered last, is a cache: entering again changes nothing.
    """

    def __init__(self, config: PhasesConfig, context: RunContext) -> None:
        self.config, self.context = config, context
        self.workspace = Workspace(context.folder)
        self.fine_tunes = FineTunes(config, context)
        self._entered: PhaseName | None = None

    def before_step(self, step: int) -> None:
        """The callback before every training iteration; all that it does is a function of the step and of files."""
        context, phase = self.context, self._phase_at(step)
        context.step = step
        next_end = (step // context.accumulation + 1) * context.accumulation
        context.interventions.grant(step, self._check_prompt, next_end, phase.name)
        context.model.distillation.set_guidance(*context.interventions.guidance_at(step))
        if phase.name != self._entered:
            with exit_on_user_error(FloatingPointError):
                self.enter(phase, step)
            self._entered = phase.name
            task = {"initial": INITIAL_NERF, "final": FINAL_NERF}[phase.name]
            context.record.progress.begin(task, step - phase.start)
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

    def enter(self, phase: Phase, step: int) -> None:
        """Find or make everything that the phase builds on, and hand it to the model and the data manager."""
        with self.context.unlocked():  # Loading takes long, and the viewer need not wait for it.
            self._check_guide()
        if phase.name == "initial":
            announce("Stage 1/3 initial: DreamBooth on the photos (partial), then the initial NeRF")
            self._use(self.fine_tunes.partial())
            return
        if step == phase.start:
            self.context.save(step - 1)  # What follows takes minutes, and nothing before it must be lost.
        initial = self._initial_nerf(phase, step)
        views = self._pseudo_views(initial)
        announce("Stage 3/3 final: DreamBooth on photos and pseudo views (multiview), then the final NeRF")
        self._use(self.fine_tunes.multiview(views, self._stage_2_prompt, self._pseudo_views_recipe()))
        seed_everything(self.context.seed, phase.start)  # The data manager caches its images in a random order.
        self.context.datamanager.load_pseudo_views()

    # What the phases are made of.

    def _initial_nerf(self, phase: Phase, step: int) -> Path:
        def make(path: Path) -> None:
            if step != phase.start:
                raise UserError(
                    f"{initial_nerf.FOLDER}/ is gone from the run folder and cannot be made again: use --resume False"
                )
            initial_nerf.save_initial(path, read_config(self.workspace.root), self.context.model, step - 1)

        return self.workspace.once(initial_nerf.FOLDER, {"steps": self._initial_steps}, make)

    def _pseudo_views(self, initial: Path) -> Path:
        def make(path: Path) -> None:
            announce(
                "Stage 2/3 pseudo_views: DreamBooth on the photos (full), then the initial NeRF's renders translated"
            )
            self.context.guide.load(self.fine_tunes.full())
            settings = self.config.pseudo_views, self._stage_2_prompt
            pseudo_views.make(self.context, *settings, path, initial, self.fine_tunes.tuner)

        return self.workspace.once("pseudo_views", self._pseudo_views_recipe(), make)

    def _start_second_nerf(self) -> None:
        """Fresh weights in the same parameters, unless those of the initial NeRF are kept; optimizers that forget."""
        if self.config.fresh_final:
            self.context.model.reset_field()
        self.context.optimizers.zero_grad_all()
        for optimizer in self.context.optimizers.optimizers.values():
            optimizer.state.clear()

    def _set_learning_rates(self, phase: Phase) -> None:
        """A function of the step alone, as everything is: a scheduler of nerfstudio counts on into the second NeRF."""
        if self.config.learning_rate_left == 1:
            return  # They may be a scheduler's.
        left = self.config.learning_rate_left**phase.progress
        optimizers = self.context.optimizers
        for name, optimizer in optimizers.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = left * optimizers.config[name]["optimizer"].lr

    # What these need.

    def _check_guide(self) -> None:
        """Load the guide and let it read every prompt, so that a wrong path or an unknown word ends the run at once."""
        with exit_on_user_error(ValueError, ImportError):
            prompts = [self.context.model.config.prompt]
            if self.config.needs_photos:
                subject = self.fine_tunes.subject
                prompts += [subject.class_prompt, *view_prompts(subject.instance_prompt).values()]
            with torch.no_grad():
                self.context.guide.embed(prompts)

    def _check_prompt(self, prompt: str) -> None:
        if self.config.needs_photos:
            parse_subject(prompt, self.config.identifier, self.config.class_noun)
        with torch.no_grad():
            self.context.guide.embed(list(view_prompts(prompt).values()))

    def _phase_at(self, step: int) -> Phase:
        return phase_at(self.config, step, self.context.interventions.ends)

    @property
    def _initial_steps(self) -> int:
        return self.context.interventions.ends.get("initial", self.config.initial.steps)

    @property
    def _stage_2_prompt(self) -> str:
        """The prompt that held when the initial NeRF was done."""
        return self.context.interventions.guidance_at(self._initial_steps)[0]

    def _use(self, weights: Path | None) -> None:
        model, guide = self.context.model, self.context.guide
        guide.load(weights)
        model.field.colors.fit(guide)  # What z looks like, if the field's colours are z.
        model.distillation.embed_prompts()

    def _pseudo_views_recipe(self) -> dict[str, Any]:
        config = asdict(self.config.pseudo_views)
        orbit = self.context.datamanager.config.dataparser
        cameras = {key: getattr(orbit, key) for key in ("num_views", "elevation", "radius", "fov", "resolution")}
        return {
            "prompt": self._stage_2_prompt,
            "initial_steps": self._initial_steps,
            "full_steps": self.config.full_steps,
            **config,
            "cameras": cameras,
            **self.fine_tunes.tuner.recipe(),
        }
