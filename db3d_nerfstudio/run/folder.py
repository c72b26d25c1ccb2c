"""Run folders: the command that started them, their progress, and the commands that work on them."""

import dataclasses
from pathlib import Path
from typing import Any

from filelock import FileLock
from nerfstudio.engine.trainer import TrainerConfig

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.locks import take_lock
from db3d_nerfstudio.paths import command
from db3d_nerfstudio.run.config import FILE, read_config

# Where, when and how closely a run is watched; none of these changes the result.
_INCIDENTAL = {
    *("timestamp", "output_dir", "vis", "viewer", "logging", "machine", "project_name", "resume", "data", "prompt"),
    *("load_dir", "load_step", "load_config", "load_checkpoint", "start_paused", "log_gradients", "max_num_iterations"),
    *("steps_per_save", "steps_per_eval_batch", "steps_per_eval_image", "steps_per_eval_all_images"),
    *("save_only_latest_checkpoint", "example", "home"),
}
FREE_TO_CHANGE = (
    "datamanager.dataparser.pseudo_views",
    "phases.keep_full",
    "phases.pseudo_views.chunk",
    "model.eval_num_rays_per_chunk",
    "model.guide.device",
    "model.guide.gradient_checkpointing",
    "model.guide.text_encoder_memory",
    "phases.pseudo_views.upscaler.device",
    "phases.pseudo_views.upscaler.gradient_checkpointing",
    "phases.pseudo_views.upscaler.text_encoder_memory",
)
"""Settings of place, memory and disk space: a run may continue with others."""
_held_locks: dict[Path, FileLock] = {}


def settings(config: TrainerConfig) -> dict[str, Any]:
    """Everything in a config that decides the result of a run."""
    values = dataclasses.asdict(config)
    for setting in FREE_TO_CHANGE:
        *parents, name = setting.split(".")
        inside = values["pipeline"]
        for parent in parents:
            inside = inside.get(parent) or {}
        inside.pop(name, None)
    identity = {key: value for key, value in values.items() if key not in _INCIDENTAL}
    return {**identity, "seed": config.machine.seed}


def same_settings(config: TrainerConfig, run: Path) -> bool:
    """Whether a run was started with the same settings."""
    try:
        return settings(read_config(run)) == settings(config)
    except (UserError, AttributeError, KeyError):  # A config of an older version lacks fields.
        return False


def subject_of(run: Path) -> tuple[Path | None, str | None] | None:
    """Photos folder and prompt of a run; None for a folder that is not a run yet."""
    if not (run / FILE).exists():
        return None
    pipeline = read_config(run).pipeline
    return pipeline.datamanager.data, pipeline.model.prompt


def try_lock(run: Path) -> bool:
    """Lock the run for this process until it ends in any way; False if another process holds the lock.

    Raises:
        UserError: nothing can be written there.
    """
    if run not in _held_locks:
        try:
            lock = take_lock(run / ".lock")
        except OSError as error:
            raise UserError(
                f"cannot write to {run} ({error.strerror}): copy the run to another disk, or set another --output-dir"
            ) from None
        if lock is None:
            return False
        _held_locks[run] = lock
    return True


def next_commands(run: Path) -> list[tuple[str, str]]:
    """Commands for a finished run, which need neither a guide nor a GPU."""
    config, initial = run / "config.yml", run / "initial" / "config.yml"
    return [
        ("look at it", command("ns-viewer", "--load-config", config)),
        ("a mesh", command("db3d", "export", run)),
        ("a turntable", command("db3d", "turntable", run)),
        ("figures", command("ns-eval", "--load-config", config, "--output-path", run / "eval.json")),
        *([("the initial NeRF", command("ns-viewer", "--load-config", initial))] if initial.exists() else []),
        ("all in one page", command("python", "-m", "webbrowser", run / "report.html")),
    ]
