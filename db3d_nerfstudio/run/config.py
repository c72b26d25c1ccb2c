"""`RUN/config.yml`: the settings of a run, which point at their own folder even after it was moved."""

import argparse
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import tyro
import yaml
from nerfstudio.engine.trainer import TrainerConfig

from db3d_nerfstudio.errors import UserError

FILE = "config.yml"


def checkpoints(folder: Path) -> dict[int, Path]:
    """The checkpoints in a folder by their steps, without other files that somebody put there."""
    found = ((re.fullmatch(r"step-(\d+)\.ckpt", path.name), path) for path in folder.glob("step-*.ckpt"))
    return {int(match[1]): path for match, path in found if match}


def checkpoint_step(folder: Path) -> int:
    """The step of the newest checkpoint in a folder, -1 if there is none."""
    return max(checkpoints(folder), default=-1)


@dataclass
class RunConfig(TrainerConfig):
    """The config of a run that may be moved, renamed or copied; nerfstudio's keeps the path that the run began with."""

    home: Annotated[Path | None, tyro.conf.Suppress] = None
    """The folder that the config was read from; by default OUTPUT_DIR/EXPERIMENT/METHOD/TIMESTAMP."""

    def get_base_dir(self) -> Path:
        """The run's folder."""
        return self.home or super().get_base_dir()

    def run_folder(self) -> Path:
        """The folder of the stages' artifacts, beside the checkpoints."""
        if self.load_dir is None or self.load_dir.absolute() == self.get_checkpoint_dir().absolute():
            return self.get_base_dir()
        return self.load_dir.absolute().parent

    def move_to(self, folder: Path) -> None:
        """Point at the folder that this config was read from, wherever the run lay when it was written."""
        parser = cast(Any, self.pipeline.datamanager).dataparser  # This package's own, of a layer above.
        if parser.pseudo_views is not None and self.load_dir is None:
            inside = os.path.relpath(parser.pseudo_views, self.get_base_dir())
            parser.pseudo_views = Path(os.path.normpath(folder / inside))
        self.home = folder
        step = checkpoint_step(self.get_checkpoint_dir())
        self.load_step = step if step >= 0 else None  # Looking for it, nerfstudio stumbles over other files.


Config = TypeVar("Config", bound=RunConfig)
_FORMER_NAMES = ("db3d_nerfstudio.trainer.DreamBooth3DTrainerConfig",)
"""What the class of a run's config was called in earlier versions."""
_OF_ANOTHER_VERSION = (yaml.YAMLError, AttributeError, ImportError, TypeError)
"""What YAML raises where a config names classes that are gone."""


def at_home_in_yaml(kind: type[Config]) -> type[Config]:
    """Make nerfstudio's programs open the run that they are given, and not the one that it is a copy of.

    They parse the text of `--load-config FILE` as YAML and open the folder that the config names. So a config that is
    built from YAML takes its folder from the command line. A run of another version ends them in one line.
    `read_config` needs no command line.
    """
    _add_constructor(f"{kind.__module__}.{kind.__qualname__}", partial(_construct, kind))
    for name in _FORMER_NAMES:
        _add_constructor(name, _refuse)
    return kind


def _add_constructor(name: str, constructor: Callable[[yaml.Loader, yaml.Node], Any]) -> None:
    yaml.add_constructor(f"tag:yaml.org,2002:python/object:{name}", constructor, yaml.Loader)


def _construct(kind: type[RunConfig], loader: yaml.Loader, node: yaml.Node) -> Iterator[RunConfig]:
    config = kind.__new__(kind)
    yield config
    try:
        values = loader.construct_mapping(cast(yaml.MappingNode, node), deep=True)
    except _OF_ANOTHER_VERSION:
        _refuse(loader, node)
        raise
    config.__dict__.update(cast(dict[str, Any], values))
    file = _file_on_command_line()
    if file is not None:
        config.move_to(file.absolute().parent)


def _refuse(loader: yaml.Loader, node: yaml.Node) -> None:
    """End the program if it was started with `--load-config`; else raise a `YAMLError`."""
    file = _file_on_command_line()
    if file is not None:
        raise SystemExit(f"Error: {_other_version(file.parent)}")
    raise yaml.YAMLError(f"{node.tag} is of another version")


def _file_on_command_line() -> Path | None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--load-config", "--load_config", type=Path)
    return parser.parse_known_args()[0].load_config


def _other_version(run: Path) -> str:
    return f"{run} was made by another version of db3d_nerfstudio: open it with that version"


def read_config(run: Path) -> RunConfig:
    """The config of a run, or of the `initial` in one.

    Raises:
        UserError: the folder is not a run, or a run of another version of this package.
    """
    try:
        config = yaml.load((run / FILE).read_text("utf8"), Loader=yaml.Loader)
    except OSError:
        raise UserError(f"{run} is not a run: give the folder that holds {FILE}") from None
    except _OF_ANOTHER_VERSION:
        raise UserError(_other_version(run)) from None
    if not isinstance(config, RunConfig):
        raise UserError(f"{run} was not made by a method of db3d_nerfstudio")
    config.move_to(run.absolute())
    return config
