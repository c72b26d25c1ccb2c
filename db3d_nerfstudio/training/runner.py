"""The work between the phases, as one readable method: `PhaseRunner.enter`.

Every result is a file in the run folder, made once:

    RUN/class_images/             what the untouched guide thinks of the class, for prior preservation
    RUN/dreambooth/partial/       D_partial; full/ and multiview/ beside it: fine-tuned guides in diffusers' format
    RUN/initial/                  the initial NeRF; `ns-viewer --load-config RUN/initial/config.yml` opens it
    RUN/pseudo_views/             its renders, translated into the subject
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from jaxtyping import Float
from torch import Tensor

from db3d_nerfstudio.console import announce
from db3d_nerfstudio.diffusion.prompt_bank import PromptBank
from db3d_nerfstudio.diffusion.sampling import translate
from db3d_nerfstudio.errors import UserError, exit_on_user_error
from db3d_nerfstudio.images import contact_sheet, tensor_to_image
from db3d_nerfstudio.run.folder import read_config
from db3d_nerfstudio.run.interventions import Interventions
from db3d_nerfstudio.run.progress import PSEUDO_VIEWS
from db3d_nerfstudio.training.datamanager import DreamBooth3DDataManager
from db3d_nerfstudio.training.fine_tunes import FineTunes, guide_task
from db3d_nerfstudio.training.phases import Phase, PhaseName, PhasesConfig, phase_at, seed_everything
from db3d_nerfstudio.training.pseudo_views import in_chunks, render, save_pseudo_views, widened
from db3d_nerfstudio.words import parse_subject, view_prompts
from db3d_nerfstudio.workspace import Workspace

if TYPE_CHECKING:
    from db3d_nerfstudio.guides.base import DiffusionGuide
    from db3d_nerfstudio.nerf.model import DreamBooth3DModel
    from db3d_nerfstudio.training.trainer import DreamBooth3DTrainer

INITIAL = "initial"
"""The folder of the initial NeRF in the run folder."""


class PhaseRunner:
    """Puts guide, data and model into the state that a phase trains in, making first what the run folder does not have.

    Its only memory, which phase was entered last, is a cache: entering again changes nothing.
    """

    def __init__(self, config: PhasesConfig, trainer: DreamBooth3DTrainer) -> None:
        self.config = config
        self.trainer = trainer
        self.workspace = Workspace(trainer.config.run_folder())
        self.seed = trainer.config.machine.seed
        self.fine_tunes = FineTunes(config, trainer, self.workspace, self.seed)
        self._entered: PhaseName | None = None
        model = self.model.config
        self.interventions = Interventions(self.workspace.root, model.prompt, model.guidance_scale)

    def before_step(self, step: int) -> None:
        """The callback before every training iteration; all that it does is a function of the step and of files."""
        self.trainer.save_if_due(step - 1)
        phase = self._phase_at(step)
        accumulated = max(self.trainer.gradient_accumulation_steps.values(), default=1)
        self.interventions.grant(step, self._check_prompt, (step // accumulated + 1) * accumulated, phase.name)
        self.model.set_guidance(*self.interventions.guidance_at(step))
        if phase.name != self._entered:
            with exit_on_user_error(FloatingPointError):
                self.enter(phase, step)
            self._entered = phase.name
            self.trainer.record.begin_nerf(phase.name, step - phase.start)
        seed_everything(self.seed, step)
        if phase.name == "final" and step == phase.start:
            self._start_second_nerf()
        self._set_learning_rates(phase)
        self.model.set_progress(phase.progress)
        self.datamanager.progress = phase.progress

    def after_step(self, step: int) -> None:
        """The callback after every training iteration."""
        phase = self._phase_at(step)
        self.trainer.record.nerf_step(step, step + 1 - phase.start, self.trainer.pipeline.losses)
        total = self.config.total_steps(self.interventions.ends)
        if step + 1 >= total:
            self.trainer.end_at(total)

    def enter(self, phase: Phase, step: int) -> None:
        """Find or make everything that the phase builds on, and hand it to the model and the data manager."""
        with self.model.guide_context():  # Loading takes long, and the viewer need not wait for it.
            self._check_guide()
        if phase.name == "initial":
            announce("Stage 1/3 initial: DreamBooth on the photos (partial), then the initial NeRF")
            self._use(self.fine_tunes.partial())
            return
        if step == phase.start:
            self.trainer.save_checkpoint(step - 1)  # What follows takes minutes, and nothing before it must be lost.
        initial = self._initial_nerf(phase, step)
        pseudo_views = self._pseudo_views(initial)
        announce("Stage 3/3 final: DreamBooth on photos and pseudo views (multiview), then the final NeRF")
        self._use(self.fine_tunes.multiview(pseudo_views, self._stage_2_prompt, self._pseudo_views_recipe()))
        seed_everything(self.seed, phase.start)  # The data manager caches its images in a random order.
        self.datamanager.load_pseudo_views()

    # What the phases are made of.

    def _initial_nerf(self, phase: Phase, step: int) -> Path:
        """The initial NeRF as a small run of its own, which every ns-* tool opens."""

        def make(path: Path) -> None:
            if step != phase.start:
                raise UserError(f"{INITIAL}/ is gone from the run folder and cannot be made again: use --resume False")
            config = read_config(self.workspace.root)
            config.relative_model_dir = Path(INITIAL, "nerfstudio_models")
            (path / "config.yml").write_text(yaml.dump(config), "utf8")
            (path / "nerfstudio_models").mkdir()
            state = {"step": step - 1, "pipeline": self.trainer.pipeline.state_dict()}
            torch.save(state, path / "nerfstudio_models" / f"step-{step - 1:09d}.ckpt")

        return self.workspace.once(INITIAL, {"steps": self._initial_steps}, make)

    def _pseudo_views(self, initial: Path) -> Path:
        """Renders of the initial NeRF, noised up to t_pseudo and denoised by D_full, each view by itself."""

        def make(path: Path) -> None:
            announce(
                "Stage 2/3 pseudo_views: DreamBooth on the photos (full), then the initial NeRF's renders translated"
            )
            full = self.fine_tunes.full()
            cameras, views = self.datamanager.config.dataparser.orbit()
            with self._showing(initial):
                renders, accumulation = render(self.model, cameras)
            self.guide.load(full)
            self._tune_details(path / "stage_2")
            bank = PromptBank(self.guide, self._stage_2_prompt, self.model.config.negative_prompt)
            conditioning = bank(views)
            generator = torch.Generator().manual_seed(self.seed)
            config = self.config.pseudo_views
            mask = None if config.margin is None else widened(accumulation, config.margin).to(self.guide.device)
            made: list[Tensor] = []
            with guide_task(self.trainer, PSEUDO_VIEWS) as progress:

                def translated(rgb: Float[Tensor, "c 3 h w"], part: slice) -> Float[Tensor, "c 3 ht wt"]:
                    result = translate(
                        self.guide,
                        rgb.to(self.guide.device),
                        conditioning[part],
                        config,
                        generator,
                        None if mask is None else mask[part],
                    )
                    prompts = conditioning[part]
                    result = self.guide.enlarge(result, prompts.text, prompts.uncond, generator)
                    made.append(result)
                    sheet = contact_sheet([self.fine_tunes.photos, renders[: part.stop], torch.cat(made)])
                    tensor_to_image(sheet).save(path / "contact_sheet.png")  # The viewer shows it as it grows.
                    progress(min(part.stop, len(renders)))
                    return result

                images = in_chunks(translated, renders, config.chunk)
            save_pseudo_views(path, cameras, self.fine_tunes.photos, renders.cpu(), images.cpu())
            self.trainer.record.picture("Pseudo views", contact_sheet([renders, images]), self.trainer.step)

        return self.workspace.once("pseudo_views", self._pseudo_views_recipe(), make)

    def _tune_details(self, path: Path) -> None:
        """A further stage of the guide, if it has one, learns the subject before it enlarges pseudo views."""
        photos, prompt = self.fine_tunes.photos_at, self.fine_tunes.subject.instance_prompt
        with self.model.guide_context():
            self.guide.tune_details(photos, prompt, self.config.dreambooth, self.seed, path)

    def _start_second_nerf(self) -> None:
        """Fresh weights in the same parameters, unless those of the initial NeRF are kept; optimizers that forget."""
        if self.config.fresh_final:
            self.model.reset_field()
        self.trainer.optimizers.zero_grad_all()
        for optimizer in self.trainer.optimizers.optimizers.values():
            optimizer.state.clear()

    def _set_learning_rates(self, phase: Phase) -> None:
        """A function of the step alone, as everything is: a scheduler of nerfstudio counts on into the second NeRF."""
        if self.config.learning_rate_left == 1:
            return  # They may be a scheduler's.
        left = self.config.learning_rate_left**phase.progress
        for name, optimizer in self.trainer.optimizers.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = left * self.trainer.config.optimizers[name]["optimizer"].lr

    # What these need.

    @property
    def model(self) -> DreamBooth3DModel:
        """The NeRF in training."""
        return self.trainer.pipeline.model

    @property
    def guide(self) -> DiffusionGuide:
        """The diffusion model, loaded on first use."""
        return self.model.guide

    @property
    def datamanager(self) -> DreamBooth3DDataManager:
        """The source of batches."""
        return self.trainer.pipeline.datamanager

    def _check_guide(self) -> None:
        """Load the guide and let it read every prompt, so that a wrong path or an unknown word ends the run at once."""
        with exit_on_user_error(ValueError, ImportError):
            prompts = [self.model.config.prompt]
            if self.config.needs_photos:
                subject = self.fine_tunes.subject
                prompts += [subject.class_prompt, *view_prompts(subject.instance_prompt).values()]
            with torch.no_grad():
                self.guide.embed(prompts)

    def _check_prompt(self, prompt: str) -> None:
        if self.config.needs_photos:
            parse_subject(prompt, self.config.identifier, self.config.class_noun)
        with torch.no_grad():
            self.guide.embed(list(view_prompts(prompt).values()))

    def _phase_at(self, step: int) -> Phase:
        return phase_at(self.config, step, self.interventions.ends)

    @property
    def _initial_steps(self) -> int:
        return self.interventions.ends.get("initial", self.config.initial.steps)

    @property
    def _stage_2_prompt(self) -> str:
        """The prompt that held when the initial NeRF was done."""
        return self.interventions.guidance_at(self._initial_steps)[0]

    def _use(self, weights: Path | None) -> None:
        self.guide.load(weights)
        self.model.load_prompts()

    @contextmanager
    def _showing(self, initial: Path) -> Iterator[None]:
        """The model with the initial NeRF's weights for a while, whatever it holds now."""
        present = {name: value.clone() for name, value in self.model.state_dict().items()}
        (checkpoint,) = (initial / "nerfstudio_models").iterdir()
        self.trainer.pipeline.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True)["pipeline"])
        try:
            yield
        finally:
            self.model.load_state_dict(present)

    def _pseudo_views_recipe(self) -> dict[str, Any]:
        config = asdict(self.config.pseudo_views)
        orbit = self.datamanager.config.dataparser
        cameras = {key: getattr(orbit, key) for key in ("num_views", "elevation", "radius", "fov", "resolution")}
        return {
            "prompt": self._stage_2_prompt,
            "initial_steps": self._initial_steps,
            "full_steps": self.config.full_steps,
            **config,
            "cameras": cameras,
            **self.fine_tunes.base_recipe(),
        }
