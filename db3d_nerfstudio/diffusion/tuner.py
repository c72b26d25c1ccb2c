"""DreamBooth of one subject: from a folder of photos to a saved and checked fine-tune."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from db3d_nerfstudio.diffusion.captions import photo_captions
from db3d_nerfstudio.diffusion.dreambooth import DreamBoothConfig, Progress, finetune, needs_prior
from db3d_nerfstudio.diffusion.guidance import standard_noise
from db3d_nerfstudio.diffusion.prior import class_images
from db3d_nerfstudio.diffusion.training_set import Prior, TrainingSet
from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.guides.base import DiffusionGuide
from db3d_nerfstudio.photos import load_masks, load_photos, photos_digest
from db3d_nerfstudio.words import Subject
from db3d_nerfstudio.workspace import Workspace


class Tuned(NamedTuple):
    """The outcome of a fine-tuning."""

    losses: list[float]
    change: float
    """How much it changed the guide's noise estimate, see `save_checked`."""


@dataclass
class SubjectTuner:
    """Fine-tunes a guide on photos of a subject. Captions and class images are made once, in the workspace."""

    guide: DiffusionGuide
    photos: Path
    """Folder of the photos."""
    subject: Subject
    config: DreamBoothConfig
    workspace: Workspace
    seed: int

    @cached_property
    def data(self) -> TrainingSet:
        """The photos with their captions and, if only the subject is to be learned, their masks."""
        side, words = self.guide.resolution, self.config.view_words
        captions = photo_captions(self.workspace, self.guide, self.photos, self.subject, words, self.seed)
        masks = load_masks(self.photos, side) if self.config.masked_loss else None
        return TrainingSet(load_photos(self.photos, side), captions, masks)

    @property
    def needs_prior(self) -> bool:
        """Whether images of the class are used."""
        return needs_prior(self.guide, self.config)

    def class_images(self, progress: Callable[[int], None] | None = None) -> Prior:
        """Images of the class by the guide's base model, which this restores."""
        return class_images(self.guide, self.subject.class_prompt, self.config, self.workspace, progress)

    def recipe(self) -> dict[str, Any]:
        """Everything but captions and iterations that decides a fine-tune."""
        return {
            "photos": photos_digest(self.photos),
            "guide": self._base,
            "class_prompt": self.subject.class_prompt,
            "dreambooth": asdict(self.config),
            "seed": self.seed,
        }

    @cached_property
    def _base(self) -> str:
        self.guide.load(None)
        return self.guide.fingerprint()

    def tune(
        self,
        path: Path,
        max_train_steps: int,
        data: TrainingSet,
        start: Path | None = None,
        progress: Progress | None = None,
    ) -> Tuned:
        """Fine-tune the guide from `start`, or from its base model, and save it in the folder `path` with its losses.

        Raises: what `finetune` and `save_checked` do.
        """
        self.guide.load(start)
        losses = finetune(self.guide, data, self.config, max_train_steps, self.seed, progress)
        change = save_checked(self.guide, path, self.subject.instance_prompt)
        (path / "losses.json").write_text(json.dumps(losses) + "\n", "utf8")
        return Tuned(losses, change)


@torch.no_grad()
def save_checked(guide: DiffusionGuide, path: Path, prompt: str) -> float:
    """Save a fine-tune, load it again and compare; return how much it changed the guide's estimate for the prompt.

    The estimate is `predict_noise` on fixed noise, and its change is relative to the base model's (root mean square).

    Raises:
        RuntimeError: the loaded fine-tune differs from the saved one.
        UserError: fine-tuning changed nothing.
    """
    tuned = _answer(guide, prompt)
    guide.save(path)
    guide.load(None)
    base = _answer(guide, prompt)
    guide.load(path)
    again, change = _answer(guide, prompt), (tuned - base).norm()
    if change == 0:
        raise UserError(
            f'Fine-tuning did not change the guide\'s estimate for "{prompt}": raise the learning rate or the '
            "number of iterations, and check that the prompt contains the subject."
        )
    if (again - tuned).norm() > 1e-3 * change:
        raise RuntimeError(f"The fine-tune in {path} was not saved faithfully: loaded again, it gives other estimates.")
    return (change / base.norm()).item()


def _answer(guide: DiffusionGuide, prompt: str) -> Float[Tensor, "1 c hz wz"]:
    noise = standard_noise((1, *guide.z_shape), guide.device, torch.Generator().manual_seed(0))
    t = torch.tensor([len(guide.alphas_cumprod) // 2], device=guide.device)
    return guide.predict_noise(noise, t, guide.embed([prompt]))
