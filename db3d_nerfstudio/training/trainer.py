"""nerfstudio's trainer, made safe to interrupt: whole checkpoints, and a command that resumes its run.

Three things of nerfstudio 1.1.5 are changed, each by a small override that calls super: it writes checkpoints in place
(a crash leaves half of one), it trains `max_num_iterations` more after a resume, and it never resumes by itself.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from nerfstudio.engine.trainer import Trainer

from db3d_nerfstudio.console import announce, nerfstudio_silenced
from db3d_nerfstudio.errors import UserError, exit_on_user_error
from db3d_nerfstudio.paths import expand_home
from db3d_nerfstudio.ranges import check_ranges
from db3d_nerfstudio.results.report import write_report
from db3d_nerfstudio.run.config import RunConfig, at_home_in_yaml, checkpoint_step, checkpoints
from db3d_nerfstudio.run.folder import next_commands
from db3d_nerfstudio.run.progress import RunProgress, shown
from db3d_nerfstudio.training import start
from db3d_nerfstudio.training.machine import check_precision, choose_device
from db3d_nerfstudio.training.out_of_memory import advice
from db3d_nerfstudio.training.pipeline import DreamBooth3DPipeline, DreamBooth3DPipelineConfig
from db3d_nerfstudio.training.viewer_panel import end_renders
from db3d_nerfstudio.workspace import publish


@dataclasses.dataclass
class FirstOptions:
    """What `ns-train METHOD --help` lists first: a dataclass takes the order of its fields from its last base on."""

    data: Path | None = None
    prompt: str | None = None
    resume: bool = True
    """Continue the newest unfinished run of the same command; False starts a new one."""
    pipeline: DreamBooth3DPipelineConfig = dataclasses.field(default_factory=DreamBooth3DPipelineConfig)


@at_home_in_yaml
@dataclasses.dataclass
class DreamBooth3DTrainerConfig(RunConfig, FirstOptions):
    """A run, which the same command resumes until it is finished."""

    _target: type = dataclasses.field(default_factory=lambda: DreamBooth3DTrainer)
    pipeline: DreamBooth3DPipelineConfig = dataclasses.field(default_factory=DreamBooth3DPipelineConfig)
    """Data, NeRF, guide and stages."""
    example: Annotated[bool, tyro.conf.Suppress] = False
    """Whether a command without photos trains on the bundled toy, if its prompt is about that toy."""

    def print_to_terminal(self) -> None:
        """Nothing: the settings are in RUN/config.yml."""

    def save_config(self) -> None:
        """Write RUN/config.yml, without a line about it."""
        with nerfstudio_silenced():
            super().save_config()

    def setup(self, **kwargs: Any) -> Trainer:
        """The trainer, made without a line about it."""
        with nerfstudio_silenced():
            return super().setup(**kwargs)

    def set_timestamp(self) -> None:
        """Called by `ns-train` before anything is written: check the input, and choose the run folder."""
        with exit_on_user_error():
            expand_home(self)
            check_ranges(self, others=start.BOUNDS)
            start.check_device(self.machine.device_type)
            if self.load_dir is not None:
                self.load_dir = start.checkpoints_of(self.load_dir)
            else:
                self.load_step = None  # Of the run that `--load-config` names.
            if self.example:
                start.take_example(self.pipeline)
            start.check_input(self.pipeline)
            start.check_learning_rates(self.optimizers, self.pipeline.phases)
            check_precision(self.mixed_precision, self.use_grad_scaler)
            choose_device(self.machine, self.pipeline.model.guide, self.pipeline.phases)
            self.output_dir = self.output_dir.absolute()
            self.max_num_iterations = min(self.max_num_iterations, self.pipeline.phases.total_steps())
            if self.timestamp == "{timestamp}" and self.resume and not self.load_dir and not self.load_checkpoint:
                self.timestamp = start.unfinished_run(self, self.get_base_dir().parent) or self.timestamp
            super().set_timestamp()
            start.claim(self.get_base_dir(), self.pipeline.datamanager.data, self.pipeline.model.prompt)
            self.max_num_iterations = start.total_steps(self, self.run_folder())
            self.pipeline.datamanager.dataparser.pseudo_views = self.run_folder() / "pseudo_views"


@contextmanager
def exit_on_failure(config: RunConfig, progress: RunProgress) -> Iterator[None]:
    """End the program with one line for errors that a user can correct: input, a non-finite loss, memory.

    Nothing is lost, as the same command continues the run.
    """
    try:
        with exit_on_user_error(FloatingPointError):
            yield
    except torch.OutOfMemoryError as error:
        raise SystemExit(f"Error: {advice(error, config, progress.task)}") from None


@contextmanager
def damage_named(config: RunConfig) -> Iterator[None]:
    """Raise a UserError where the checkpoint to load is damaged, or is that of another run."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise  # Of the device: the file is whole.
    except Exception as error:  # Damaged files raise errors of many kinds.
        file = config.load_checkpoint or (config.load_dir or Path()) / f"step-{config.load_step or 0:09d}.ckpt"
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"the checkpoint {file} cannot be loaded ({reason}): put it back, or delete it, and the same command "
            "continues from the one before it, or from the first step with the fine-tuned guides that are there"
        ) from None


class DreamBooth3DTrainer(Trainer):
    """Writes whole checkpoints, at steps from which a resumed run continues as an unbroken one does.

    On a CPU it does so to the last bit if the number of threads is fixed (OMP_NUM_THREADS).
    """

    config: DreamBooth3DTrainerConfig
    pipeline: DreamBooth3DPipeline
    _total_steps: int
    _save_due: bool = False

    def setup(self, test_mode: Literal["test", "val", "inference"] = "val") -> None:
        """nerfstudio's, of which only the viewer prints: its address."""
        with nerfstudio_silenced():
            super().setup(test_mode)

    def train(self) -> None:
        """Train the rest of the run, and show its progress."""
        self.config.max_num_iterations = max(0, self._total_steps - self._start_step)
        progress = self.pipeline.context.record.progress
        with exit_on_failure(self.config, progress), shown(progress):
            try:
                super().train()
            finally:
                end_renders()

    def _after_train(self) -> None:
        """nerfstudio's, without its table of paths, which `end_of_training` names; a viewer that stays open says so."""
        with nullcontext() if not self.config.viewer.quit_on_train_completion else nerfstudio_silenced():
            super()._after_train()

    def save_checkpoint(self, step: int, between_nerfs: bool = False) -> None:
        """Save in one move, and not between micro-steps that share an optimizer step, as gradients are not saved.

        Args:
            between_nerfs: The next step begins the next NeRF, which has no use for these gradients.
        """
        accumulated = math.lcm(*self.gradient_accumulation_steps.values())
        step = min(step, self._total_steps - 1)  # nerfstudio counts one more when it is stopped.
        self._save_due = (step + 1) % accumulated != 0 and step + 1 < self._total_steps and not between_nerfs
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
            for older in checkpoints(folder).values():
                if older.name != name:
                    older.unlink()

    def save_if_due(self, step: int) -> None:
        """Save a checkpoint that `save_checkpoint` postponed."""
        if self._save_due:
            self.save_checkpoint(step)

    def _load_checkpoint(self) -> None:
        """Resume from the run's own checkpoint, if it has one."""
        if not self.config.load_dir and not self.config.load_checkpoint and checkpoint_step(self.checkpoint_dir) >= 0:
            self.config.load_dir = self.checkpoint_dir
        if self.config.load_dir and self.config.load_step is None:
            self.config.load_step = checkpoint_step(self.config.load_dir)  # nerfstudio prints that it looks for it.
        with exit_on_user_error(), damage_named(self.config):
            super()._load_checkpoint()
        self._total_steps = self.config.max_num_iterations
        self.step = max(0, self._start_step - 1)  # Of a run with nothing left to train, this is saved again at its end.

    def end_at(self, total_steps: int) -> None:
        """Stop training; called after this many steps in all."""
        self._total_steps = total_steps
        self.stop_training = True

    def end_of_training(self, step: int) -> None:
        """The callback at the end of training: list the commands that work on this run, and write its report."""
        announce("What next:")
        for purpose, command in next_commands(self.base_dir):
            announce(f"  {purpose + ':':<18}{command}")
        with exit_on_user_error():
            write_report(self.config.run_folder())
