"""The three fine-tuned guides of a run, and what they are made from: photos, captions, images of the class.

RUN/photo_views/              which sides the guide takes the photos to show, if their captions are to say so
RUN/class_images/             what the untouched guide thinks of the class, for prior preservation
RUN/dreambooth/partial/       D_partial; full/ and multiview/ beside it: fine-tuned guides in diffusers' format
"""

import json
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from db3d_nerfstudio.diffusion.captions import Captions, photo_captions
from db3d_nerfstudio.diffusion.dreambooth import Prior, finetune, needs_prior, save_checked
from db3d_nerfstudio.diffusion.prior import class_images
from db3d_nerfstudio.diffusion.sampling import SamplingConfig
from db3d_nerfstudio.guides.base import DiffusionGuide
from db3d_nerfstudio.images import tensor_to_image
from db3d_nerfstudio.photos import load_masks, load_photos, photos_digest
from db3d_nerfstudio.run.progress import CLASS_IMAGES, tuning
from db3d_nerfstudio.training.context import RunContext
from db3d_nerfstudio.training.phases import PhasesConfig
from db3d_nerfstudio.training.pseudo_views import load_pseudo_views
from db3d_nerfstudio.training.samples import FILE as SAMPLES
from db3d_nerfstudio.training.samples import sample_sheet
from db3d_nerfstudio.words import Subject, nearest_prompts, parse_subject
from db3d_nerfstudio.workspace import Workspace


class FineTunes:
    """Fine-tunes the guide of a run, each time once: what is in the run folder is used again."""

    def __init__(self, config: PhasesConfig, context: RunContext) -> None:
        self.config, self.context = config, context
        self.photos_folder, self.prompt = context.datamanager.config.data, context.model.config.prompt
        self.workspace = Workspace(context.folder)
        self.seed = context.seed

    @property
    def guide(self) -> DiffusionGuide:
        """The diffusion model, loaded on first use."""
        return self.context.guide

    def partial(self) -> Path | None:
        """D_partial: a short fine-tuning on the photos."""
        if not self.config.needs_photos:
            return None
        return self._finetuned("partial", self.config.partial_steps, None, self.photos, self._photo_captions, {})

    def full(self) -> Path | None:
        """D_full: a long one."""
        return self._finetuned("full", self.config.full_steps, None, self.photos, self._photo_captions, {})

    def multiview(self, pseudo_views: Path, prompt: str, recipe: dict[str, Any]) -> Path | None:
        """D_partial, trained further on photos and pseudo views; the latter say which side they show.

        Args:
            prompt: What the pseudo views show.
            recipe: How they were made.
        """
        _, views = self.context.datamanager.config.dataparser.orbit()
        sides = nearest_prompts(prompt, views, self.guide.tells_sides)
        images = torch.cat([self.photos, _resized(load_pseudo_views(pseudo_views), self.guide.resolution)])
        captions = self._photo_captions + [{side: 1.0} for side in sides]
        return self._finetuned(
            "multiview", self.config.multiview_steps, self.partial(), images, captions, {"pseudo_views": recipe}
        )

    def _finetuned(
        self,
        name: str,
        steps: int,
        start: Path | None,
        images: Float[Tensor, "n 3 h w"],
        captions: list[Captions],
        recipe: dict[str, Any],
    ) -> Path | None:
        """The folder of a fine-tuned guide, or the one it starts from if there is nothing to tune."""
        if steps == 0:
            return start

        def make(path: Path) -> None:
            prior = self.class_images if needs_prior(self.guide, self.config.dreambooth) else None
            masks = self.photo_masks
            if masks is not None:  # Pseudo views teach everywhere.
                masks = torch.cat([masks, masks.new_ones(len(images) - len(masks), *masks.shape[1:])])
            self.guide.load(start)
            with self.context.task(tuning(name)) as progress:
                losses = finetune(
                    self.guide,
                    images,
                    captions,
                    prior,
                    steps=steps,
                    config=self.config.dreambooth,
                    seed=self.seed,
                    masks=masks,
                    progress=progress,
                )
                save_checked(self.guide, path, self.subject.instance_prompt)
                self._save_samples(name, path)
            (path / "losses.json").write_text(json.dumps(losses) + "\n", "utf8")
            self.context.record.number(f"{tuning(name)}/loss", sum(losses[-10:]) / len(losses[-10:]), self.context.step)

        recipe = {"start": start and start.name, "steps": steps, "captions": captions, **self.base_recipe(), **recipe}
        return self.workspace.once(f"dreambooth/{name}", recipe, make)

    def _save_samples(self, name: str, path: Path) -> None:
        """Show what the guide draws now, beside its weights."""
        config = SamplingConfig(self.config.dreambooth.class_sample_steps, self.config.pseudo_views.guidance_scale)
        sheet = sample_sheet(self.guide, self.subject.instance_prompt, config, self.seed)
        tensor_to_image(sheet).save(path / SAMPLES)
        self.context.record.picture(f"{tuning(name)}/samples", sheet, self.context.step)

    @cached_property
    def subject(self) -> Subject:
        """What the photos show."""
        return parse_subject(self.prompt, self.config.identifier, self.config.class_noun)

    @cached_property
    def photos(self) -> Float[Tensor, "n 3 h w"]:
        """The subject's photos at the guide's resolution."""
        return self.photos_at(self.guide.resolution)

    def photos_at(self, resolution: int) -> Float[Tensor, "n 3 h w"]:
        """The subject's photos at a resolution in pixels."""
        return load_photos(self.photos_folder, resolution)

    @property
    def photo_masks(self) -> Float[Tensor, "n 1 h w"] | None:
        """Where the photos show the subject, if only that is to be learned."""
        wanted = self.config.dreambooth.masked_loss
        return load_masks(self.photos_folder, self.guide.resolution) if wanted else None

    @cached_property
    def _photo_captions(self) -> list[Captions]:
        view_words, seed = self.config.dreambooth.view_words, self.seed
        with self.context.unlocked():
            return photo_captions(self.workspace, self.guide, self.photos_folder, self.subject, view_words, seed)

    @cached_property
    def class_images(self) -> Prior:
        """Samples of the class by the guide as it came, for prior preservation."""
        folder, config = self.workspace.root / "class_images", self.config.dreambooth
        with self.context.task(CLASS_IMAGES) as progress:
            return class_images(self.guide, self.subject.class_prompt, config, folder, progress)

    @cached_property
    def _fingerprint(self) -> str:
        self.guide.load(None)
        return self.guide.fingerprint()

    def base_recipe(self) -> dict[str, Any]:
        """What all artifacts of the guide depend on."""
        return {
            "photos": photos_digest(self.photos_folder),
            "guide": self._fingerprint,
            "class_prompt": self.subject.class_prompt,
            "dreambooth": asdict(self.config.dreambooth),
            "seed": self.seed,
        }


def _resized(rgb: Float[Tensor, "b 3 h w"], side: int) -> Float[Tensor, "b 3 s s"]:
    return torch.nn.functional.interpolate(rgb, (side, side), mode="bilinear", antialias=True)
