"""The three fine-tuned guides of a run, and their data: photos, captions, images of the class.

RUN/photo_views/              the sides that the guide guesses for the photos, if captions name sides
RUN/class_images/             samples of the class by the untuned guide, for prior preservation
RUN/dreambooth/partial/       D_partial; full/ and multiview/ beside it: fine-tuned guides in diffusers' format
"""

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from db3d_nerfstudio.diffusion.sampling import SamplingConfig, draw
from db3d_nerfstudio.diffusion.training_set import Prior, TrainingSet
from db3d_nerfstudio.diffusion.tuner import SubjectTuner
from db3d_nerfstudio.guides.base import DiffusionGuide
from db3d_nerfstudio.guides.diffusers_guide import resize
from db3d_nerfstudio.images import contact_sheet, tensor_to_image
from db3d_nerfstudio.training.context import RunContext
from db3d_nerfstudio.training.phases import PhasesConfig
from db3d_nerfstudio.training.pseudo_views import load_pseudo_views
from db3d_nerfstudio.training.tasks import CLASS_IMAGES, dreambooth_task
from db3d_nerfstudio.words import Subject, nearest_prompts, parse_subject, seen_from
from db3d_nerfstudio.workspace import Workspace

SAMPLES = "samples.png"
"""A sheet of what a fine-tuned guide draws, beside its weights."""
FOR_PEOPLE = (SAMPLES, "losses.json")
"""Files of a fine-tuned guide that nothing reads but the report."""
SHEET_ROWS, SHEET_VIEWS = 2, ("front", "side", "back", "overhead")


class FineTunes:
    """Fine-tunes the guide of a run, each fine-tune once: those in the run folder are reused."""

    def __init__(self, config: PhasesConfig, context: RunContext) -> None:
        self.config, self.context = config, context
        self.photos_folder, self.prompt = context.datamanager.config.data, context.model.config.prompt
        self.workspace = Workspace(context.folder)
        self.seed = context.seed

    @cached_property
    def tuner(self) -> SubjectTuner:
        """The tuner that all fine-tunes share; loads the guide."""
        settings = self.config.dreambooth, self.workspace, self.seed
        photos = cast(Path, self.photos_folder)  # A run that tunes has photos: `check_input`.
        return SubjectTuner(self.guide, photos, self.subject, *settings)

    @property
    def guide(self) -> DiffusionGuide:
        """The diffusion model, loaded on first use."""
        return self.context.guide

    def partial(self) -> Path | None:
        """D_partial: a short fine-tuning on the photos."""
        if self.config.partial_steps == 0:
            return None
        return self._finetuned("partial", self.config.partial_steps, None, self._photos, {})

    def full(self) -> Path | None:
        """D_full: a long fine-tuning on the photos."""
        if self.config.full_steps == 0:
            return None
        return self._finetuned("full", self.config.full_steps, None, self._photos, {})

    def release_full(self) -> None:
        """Delete the weights of D_full, which nothing needs beside whole pseudo views."""
        self.workspace.release("dreambooth/full", FOR_PEOPLE)

    def multiview(self, pseudo_views: Path, prompt: str, recipe: dict[str, Any]) -> Path | None:
        """D_multi: D_partial, trained further on photos and pseudo views, with the side in the captions of the latter.

        Args:
            prompt: The prompt of the pseudo views.
            recipe: The recipe of the pseudo views.
        """
        _, views = self.context.datamanager.config.dataparser.orbit()
        sides = nearest_prompts(prompt, views, self.guide.tells_sides)
        images = resize(load_pseudo_views(pseudo_views), self.guide.resolution)
        data = self._photos.extended(images, [{side: 1.0} for side in sides])
        return self._finetuned("multiview", self.config.multiview_steps, self.partial(), data, {"pseudo_views": recipe})

    def _finetuned(
        self, name: str, max_train_steps: int, start: Path | None, data: TrainingSet, recipe: dict[str, Any]
    ) -> Path | None:
        """The folder of a fine-tuned guide, or the one it starts from if there is nothing to tune."""
        if max_train_steps == 0:
            return start

        def make(path: Path) -> None:
            complete = replace(data, prior=self._class_images) if self.tuner.needs_prior else data
            with self.context.task(dreambooth_task(name)) as progress:
                losses, _ = self.tuner.tune(path, max_train_steps, complete, start, progress)
                self._save_samples(name, path)
            self.context.record.number(
                f"{dreambooth_task(name)}/loss", sum(losses[-10:]) / len(losses[-10:]), self.context.step
            )

        made_of = {"start": start and start.name, "max_train_steps": max_train_steps, "captions": data.captions}
        made_of = {**made_of, **self.tuner.recipe(), **recipe}
        return self.workspace.once(f"dreambooth/{name}", made_of, make, for_people=FOR_PEOPLE)

    def _save_samples(self, name: str, path: Path) -> None:
        """Draw the subject from each side, with the same noise for every fine-tune."""
        config = SamplingConfig(self.config.dreambooth.class_sampling.steps, self.config.pseudo_views.guidance_scale)
        prompts = [seen_from(self.subject.instance_prompt, view) for view in SHEET_VIEWS]
        images = draw(self.guide, prompts * SHEET_ROWS, config, self.seed)
        sheet = contact_sheet(list(images.split(len(prompts))))
        tensor_to_image(sheet).save(path / SAMPLES)
        self.context.record.picture(f"{dreambooth_task(name)}/samples", sheet, self.context.step)

    @cached_property
    def subject(self) -> Subject:
        """The subject of the photos."""
        return parse_subject(cast(str, self.prompt), self.config.identifier, self.config.class_noun)

    @property
    def _photos(self) -> TrainingSet:
        """The photos, with captions that the guide may have to guess."""
        with self.context.unlocked():
            return self.tuner.data

    @cached_property
    def _class_images(self) -> Prior:
        with self.context.task(CLASS_IMAGES) as progress:
            return self.tuner.class_images(progress)
