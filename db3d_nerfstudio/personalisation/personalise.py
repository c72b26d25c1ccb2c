"""`db3d dreambooth`: fine-tune a text-to-image model on a subject, and draw sheets of its applications.

DreamBooth on its own (Ruiz et al. 2022, arXiv 2208.12242). Every result is a folder, made once; if it is interrupted,
the same command continues:

    OUTPUT/class_images/          images of the class by the untouched model, for prior preservation
    OUTPUT/personalised/          the fine-tune in diffusers' format, and guide.json, which records its guide
    OUTPUT/sheets/NAME/           the applications of the paper's section 4.4: sheet.png, and its images one by one
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from db3d_nerfstudio.console import announce
from db3d_nerfstudio.diffusion.dreambooth import DreamBoothConfig, check_optimizer
from db3d_nerfstudio.diffusion.footprint import Work, announce_needs
from db3d_nerfstudio.diffusion.sampling import SamplingConfig, draw
from db3d_nerfstudio.diffusion.tuner import SubjectTuner
from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.guides.diffusers_guide import DiffusersGuide
from db3d_nerfstudio.guides.record import identity
from db3d_nerfstudio.guides.unet.config import UNetGuideConfig
from db3d_nerfstudio.images import labelled_sheet, tensor_to_image
from db3d_nerfstudio.paths import command
from db3d_nerfstudio.personalisation.choice import GuideChoice
from db3d_nerfstudio.personalisation.draw import COLUMNS
from db3d_nerfstudio.personalisation.uses import USES, Use, UseName, uses
from db3d_nerfstudio.photo_check import check_photos
from db3d_nerfstudio.photos import load_photos
from db3d_nerfstudio.ranges import Count, Natural
from db3d_nerfstudio.run.progress import RunProgress, Task, shown
from db3d_nerfstudio.threads import FreeThreads
from db3d_nerfstudio.toybox.guide import ToyboxGuideConfig
from db3d_nerfstudio.training.tasks import CLASS_IMAGES, dreambooth_task
from db3d_nerfstudio.words import Subject, parse_subject, prompts_of_run, tidy
from db3d_nerfstudio.workspace import Workspace

PERSONALISED = "personalised"


@dataclass
class PersonaliseConfig:
    """Fine-tune a text-to-image model on a subject, and draw it in other places, poses, colours, clothes and styles."""

    data: Path | None = None
    """Folder of 3 to 6 photos of one subject; by default the bundled photos of a toy duck."""
    prompt: str | None = None
    """Prompt that names the subject by a rare word, the identifier, and a class noun: "a photo of a sks robot"."""
    identifier: str = "sks"
    """The identifier in the prompt; `db3d tokens` checks whether a word is a good one."""
    class_noun: str | None = None
    """What kind of thing the subject is; by default the words after the identifier."""
    max_train_steps: Count = 800
    """Iterations of fine-tuning."""
    output: Path | None = None
    """Folder for all results; by default outputs/dreambooth/ and the name of the photos' folder."""
    uses: tuple[UseName, ...] = USES
    """Sheets to draw."""
    num: Count = COLUMNS
    """Images per prompt on a sheet."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How the images of the sheets are drawn."""
    seed: Natural = 0
    """Seed of the fine-tuning and of the sheets."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Device to run on."""
    dreambooth: DreamBoothConfig = field(default_factory=DreamBoothConfig)
    """Settings of the fine-tuning."""
    guide: GuideChoice = field(default_factory=ToyboxGuideConfig)
    """The text-to-image model."""


def main(config: PersonaliseConfig) -> None:
    """Make what is missing, and print where everything is."""
    data, subject = _subject(config)
    announce(subject.introduction("--class-noun"))
    FreeThreads().begin()
    for line in check_photos(data):
        announce(line)
    check_optimizer(config.dreambooth)
    output = config.output or Path("outputs", "dreambooth", data.resolve().name)
    job = Personaliser(config, data, subject, output)
    with shown(job.progress):
        personalised = job.personalised()
        sheets = [job.sheet(use, personalised) for use in job.uses]
    announce(f"\nThe personalised model is in {personalised}. What it can do:")
    for use, sheet in zip(job.uses, sheets, strict=True):
        announce(f"  {use.name:<22}{sheet / 'sheet.png'}")
    prompt = f"{subject.instance_prompt} on a table"
    announce(f"Next: {command('db3d', 'sample', '--personalised', personalised, '--prompt', prompt)}")


def _subject(config: PersonaliseConfig) -> tuple[Path, Subject]:
    """The photos' folder, and the subject that they show."""
    from db3d_nerfstudio.toybox.examples import default_subject

    data, prompt = default_subject() if config.data is None else (config.data, config.prompt)
    prompt = config.prompt or prompt
    if prompt is None:
        raise UserError(
            f'What do the photos show? Add --prompt "a photo of a {config.identifier} robot", or another noun.'
        )
    subject = parse_subject(tidy(prompt), config.identifier, config.class_noun)
    if isinstance(config.guide, UNetGuideConfig) and config.guide.tuning == "textual_inversion":
        subject = replace(subject, identifier=config.guide.new_token)
    return data, subject


class Personaliser:
    """Makes the missing parts of the output folder."""

    def __init__(self, config: PersonaliseConfig, data: Path, subject: Subject, output: Path) -> None:
        self.config, self.data, self.subject = config, data, subject
        toys = isinstance(config.guide, ToyboxGuideConfig)
        self.uses = [use for use in uses(subject, toys) if use.name in config.uses]
        self.workspace = Workspace(output, instead="give another --output")
        announce_needs(config.guide, config.device, Work(config.dreambooth))
        self.guide: DiffusersGuide = config.guide.setup(device=config.device)
        # Unknown words end the run here and not after the fine-tuning.
        of_tuning = prompts_of_run(subject.instance_prompt, subject, sided=self.guide.tells_sides)
        self.guide.check_prompts([*of_tuning, *(prompt for use in self.uses for prompt in use.prompts)])
        self._tuner = SubjectTuner(self.guide, data, subject, config.dreambooth, self.workspace, config.seed)
        self.progress = RunProgress(self._tasks())

    def _tasks(self) -> list[Task]:
        config, tasks = self.config, []
        if self._tuner.needs_prior:
            number, units = config.dreambooth.num_class_images, config.dreambooth.class_sampling.steps
            tasks.append(Task("1/2 personalise", CLASS_IMAGES, "images", number, units))
        tasks.append(Task("1/2 personalise", dreambooth_task(PERSONALISED), "tuning", config.max_train_steps))
        for use in self.uses:
            tasks.append(Task("2/2 sheets", use.title, "images", config.num * len(use.prompts), config.sampling.steps))
        return tasks

    def personalised(self) -> Path:
        """The folder of the fine-tune."""
        return self.workspace.once(PERSONALISED, self._recipe(), self._personalise, for_people=("losses.json",))

    def _personalise(self, path: Path) -> None:
        data = self._tuner.data
        if self._tuner.needs_prior:
            with self.progress.during(CLASS_IMAGES) as update:
                data = replace(data, prior=self._tuner.class_images(update))
        with self.progress.during(dreambooth_task(PERSONALISED)) as update:
            tuned = self._tuner.tune(path, self.config.max_train_steps, data, progress=update)
        prompt = self.subject.instance_prompt
        announce(
            f'Saved, and the same when loaded again; noise estimates for "{prompt}" changed by {tuned.change:.1%}.'
        )

    def sheet(self, use: Use, personalised: Path) -> Path:
        """The folder of an application's sheet and images."""
        config = self.config

        def make(path: Path) -> None:
            self.guide.load(personalised)
            with self.progress.during(use.title) as update:
                prompts = [prompt for prompt in use.prompts for _ in range(config.num)]
                images = draw(self.guide, prompts, config.sampling, config.seed, progress=update)
            for i, image in enumerate(images):
                tensor_to_image(image).save(path / f"{i // config.num:02d}-{i % config.num}.png")
            rows = [("photos", load_photos(self.data, self.guide.resolution)[: config.num])]
            rows += zip(use.prompts, images.split(config.num), strict=True)
            labelled_sheet(f"{use.title}: {self.subject.identifier} {self.subject.class_noun}", rows).save(
                path / "sheet.png"
            )

        settings = {"prompts": use.prompts, "num": config.num, "sampling": asdict(config.sampling)}
        return self.workspace.once(f"sheets/{use.name}", {**self._recipe(), **settings}, make)

    def _recipe(self) -> dict[str, Any]:
        """All that the fine-tune depends on."""
        return {
            **self._tuner.recipe(),
            "captions": self._tuner.data.captions,
            "max_train_steps": self.config.max_train_steps,
            "settings": identity(self.config.guide),
        }
