"""nerfstudio's trainer, made safe to kill: whole checkpoints, and a command that finishes what it began.

Three things of nerfstudio 1.1.5 are changed, each by a small override that calls super: it writes checkpoints in place
(a crash leaves half of one), it trains `max_num_iterations` more after a resume, and it never resumes by itself.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Annotated

import tyro
from nerfstudio.engine.trainer import Trainer, TrainerConfig

from db3d_nerfstudio.console import announce
from db3d_nerfstudio.errors import UserError, exit_on_user_error
from db3d_nerfstudio.photo_check import check_photos
from db3d_nerfstudio.results.report import write_report
from db3d_nerfstudio.run.folder import checkpoint_step, next_commands, same_settings, subject_of, try_lock
from db3d_nerfstudio.run.interventions import read_changes, stage_ends
from db3d_nerfstudio.run.progress import shown
from db3d_nerfstudio.training.pipeline import DreamBooth3DPipeline, DreamBooth3DPipelineConfig
from db3d_nerfstudio.training.viewer_panel import end_renders
from db3d_nerfstudio.words import parse_subject
from db3d_nerfstudio.workspace import publish


@dataclasses.dataclass
class DreamBooth3DTrainerConfig(TrainerConfig):
    """A run: its folder is found again by the same command until it is finished."""

    _target: type = dataclasses.field(default_factory=lambda: DreamBooth3DTrainer)
    pipeline: DreamBooth3DPipelineConfig = dataclasses.field(default_factory=DreamBooth3DPipelineConfig)
    """Data, NeRF, guide and stages."""
    resume: bool = True
    """Continue the newest unfinished run of the same command; False starts a new one."""
    example: Annotated[bool, tyro.conf.Suppress] = False
    """Whether a command without photos trains on the toy that comes with the package, if its prompt is of that toy."""

    def set_timestamp(self) -> None:
        """Called by `ns-train` before anything is written: check the input, and decide on the run folder."""
        with exit_on_user_error(ValueError):
            self._check_subject()
            self._check_learning_rates()
            self.output_dir = self.output_dir.absolute()
            self.max_num_iterations = min(self.max_num_iterations, self.pipeline.phases.total_steps())
            self._choose_run()
            self.max_num_iterations = self._steps_of(self.run_folder())
            self.pipeline.datamanager.dataparser.pseudo_views = self.run_folder() / "pseudo_views"

    def run_folder(self) -> Path:
        """Where the artifacts of the stages are: beside the checkpoints that training goes on from."""
        return self.load_dir.absolute().parent if self.load_dir else self.get_base_dir()

    def _check_subject(self) -> None:
        datamanager, model, phases = self.pipeline.datamanager, self.pipeline.model, self.pipeline.phases
        if self.example and datamanager.data is None:
            self._take_example()
        if datamanager.data is None and phases.needs_photos:
            raise UserError("no photos: give --data a folder with 3 to 6 photos of the subject")
        if model.prompt is None:
            raise UserError(
                f'no prompt: say what the photos show, as in --prompt "a photo of a {phases.identifier} robot"'
            )
        if phases.initial.steps < 1:
            raise UserError("the initial NeRF needs steps: set --pipeline.phases.initial.steps to 1 or more")
        if phases.needs_photos:
            parse_subject(model.prompt, phases.identifier, phases.class_noun)
        if datamanager.data is not None:
            datamanager.data = datamanager.data.expanduser().absolute()
            for line in check_photos(datamanager.data):
                announce(line)

    def _take_example(self) -> None:
        """Without photos, the bundled toy's: where there is no prompt, or one about a toy of its kind."""
        from db3d_nerfstudio.toybox.examples import default_subject

        model, phases = self.pipeline.model, self.pipeline.phases
        photos, prompt = default_subject()
        kind = parse_subject(prompt).class_noun
        model.prompt = model.prompt or f"a photo of a {phases.identifier} {kind}"
        if parse_subject(model.prompt, phases.identifier, phases.class_noun).class_noun == kind:
            announce(f"The photos are those of the bundled {kind}; --data FOLDER takes yours")
            self.pipeline.datamanager.data = photos

    def _check_learning_rates(self) -> None:
        scheduled = [name for name, optimizer in self.optimizers.items() if optimizer["scheduler"] is not None]
        if scheduled and self.pipeline.phases.learning_rate_left != 1:
            raise UserError(
                f"the scheduler of {' and '.join(scheduled)} and phases.learning_rate_left both set the learning rate: "
                "take the scheduler out, or set --pipeline.phases.learning-rate-left 1"
            )

    def _choose_run(self) -> None:
        if self.timestamp == "{timestamp}" and self.resume and not self.load_dir and not self.load_checkpoint:
            self.timestamp = self._unfinished_run() or self.timestamp
        super().set_timestamp()
        run = self.get_base_dir()
        try:
            run.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write to {run} ({error.strerror}): choose another --output-dir") from None
        other = subject_of(run)
        if other and other != (self.pipeline.datamanager.data, self.pipeline.model.prompt):
            raise UserError(
                f'{run} is the run of another subject ({other[0]}, "{other[1]}"): choose another --timestamp'
            )
        if not try_lock(run):
            raise UserError(f"another process is training in {run}: wait for it, or choose another --timestamp")

    def _steps_of(self, run: Path) -> int:
        """How many steps a run has in all, given the phases that were ended early in it."""
        return min(self.max_num_iterations, self.pipeline.phases.total_steps(stage_ends(read_changes(run))))

    def _unfinished_run(self) -> str | None:
        """The folder name of the newest run of the same command that was not trained to its end."""
        self.timestamp = "*"
        runs = self.get_base_dir()
        self.timestamp = "{timestamp}"
        for config in sorted(runs.parent.glob("*/config.yml"), key=os.path.getmtime, reverse=True):
            run = config.parent
            step = checkpoint_step(run / self.relative_model_dir) + 1
            if step < self._steps_of(run) and same_settings(self, run) and try_lock(run):
                announce(f"Continuing {run} at step {step} of {self._steps_of(run)} (--resume False starts afresh)")
                return run.name
        return None


class DreamBooth3DTrainer(Trainer):
    """Checkpoints that are whole, taken where a resumed run can go on as if nothing had happened."""

    config: DreamBooth3DTrainerConfig
    pipeline: DreamBooth3DPipeline
    _total_steps: int
    _save_due: bool = False

    def train(self) -> None:
        """Train what is left of the run, and show how far it is."""
        self.config.max_num_iterations = max(0, self._total_steps - self._start_step)
        with exit_on_user_error(), shown(self.pipeline.context.record.progress):
            try:
                super().train()
            finally:
                end_renders()

    def save_checkpoint(self, step: int) -> None:
        """Save as one move, and not between micro-steps whose gradients belong together: those are not saved."""
        accumulated = max(self.gradient_accumulation_steps.values(), default=1)
        step = min(step, self._total_steps - 1)  # nerfstudio counts one more when told to stop.
        self._save_due = (step + 1) % accumulated != 0 and step + 1 < self._total_steps
        if self._save_due:
            return
        folder, scratch = self.checkpoint_dir, self.base_dir / "checkpoint.tmp"
        self.checkpoint_dir = scratch
        try:
            super().save_checkpoint(step)
        finally:
            self.checkpoint_dir = folder
        name = f"step-{step:09d}.ckpt"
        publish(scratch / name, folder / name)
        scratch.rmdir()
        if self.config.save_only_latest_checkpoint:
            for older in set(folder.glob("*.ckpt")) - {folder / name}:
                older.unlink()

    def save_if_due(self, step: int) -> None:
        """Save what `save_checkpoint` put off."""
        if self._save_due:
            self.save_checkpoint(step)

    def _load_checkpoint(self) -> None:
        """Go on from the run's own checkpoint, if it has one."""
        if not self.config.load_dir and not self.config.load_checkpoint and checkpoint_step(self.checkpoint_dir) >= 0:
            self.config.load_dir = self.checkpoint_dir
        super()._load_checkpoint()
        self._total_steps = self.config.max_num_iterations
        self.step = max(0, self._start_step - 1)  # Of a run with nothing left to train, this is saved again at its end.

    def end_at(self, total_steps: int) -> None:
        """Stop after this many steps in all: called when they are done."""
        self._total_steps = total_steps
        self.stop_training = True

    def end_of_training(self, step: int) -> None:
        """The callback at the end of training: close the record, and say which commands work on this run."""
        run = self.config.run_folder()
        total = self.config.pipeline.phases.total_steps(stage_ends(read_changes(run)))
        self.pipeline.context.record.finish(self.step + 1 >= total)
        announce("What next:")
        for purpose, command in next_commands(self.base_dir):
            announce(f"  {purpose + ':':<18}{command}")
        with exit_on_user_error():
            write_report(run)
