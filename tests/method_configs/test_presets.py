import dataclasses
import importlib
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
PRESETS = sorted(path.stem for path in (ROOT / "method_configs").glob("*.py") if path.stem != "__init__")


def load(preset):
    return importlib.import_module(f"db3d_nerfstudio.method_configs.{preset}").method


def test_every_preset_has_its_entry_point():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    expected = {p.replace("_", "-"): f"db3d_nerfstudio.method_configs.{p}:method" for p in PRESETS}
    assert declared["nerfstudio.method_configs"] == expected
    installed = {e.name: e.value for e in entry_points(group="nerfstudio.method_configs")}
    assert expected.items() <= installed.items(), "run pip install -e ."


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_named_like_its_command_and_survives_yaml(preset):
    config = load(preset).config
    assert config.method_name == preset.replace("_", "-"), "ns-eval looks a run's method up by this name"
    assert yaml.load(yaml.dump(config), Loader=yaml.Loader) == config


@pytest.mark.parametrize("preset", PRESETS)
def test_every_parameter_has_an_optimizer_and_accumulates(preset):
    config = load(preset).config
    groups = {*config.pipeline.model.field.setup().param_groups(), "camera_opt"}
    assert groups == config.optimizers.keys() == config.gradient_accumulation_steps.keys()


@pytest.mark.parametrize("preset", PRESETS)
def test_defaults_suit_a_machine_that_has_nothing_set_up(preset):
    config = load(preset).config
    assert config.vis == "viewer" and config.viewer.websocket_host == "127.0.0.1"
    assert config.viewer.quit_on_train_completion and not config.mixed_precision


def changeable(config) -> Iterator[object]:
    """Everything within a config that somebody could change in place."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        children = vars(config).values()
    elif isinstance(config, dict):
        children = config.values()
    elif isinstance(config, list | tuple):
        children = config
    else:
        return
    if not isinstance(config, tuple):
        yield config
    for child in children:
        yield from changeable(child)


def test_presets_share_nothing():
    """A preset is a changed copy of another: what they had in common would be changed in both."""
    parts = [{id(part) for part in changeable(load(preset).config)} for preset in PRESETS]
    assert all(len(ids) > 20 for ids in parts)
    assert sum(map(len, parts)) == len(set().union(*parts))


def test_importing_presets_is_light():
    """A slow or failing import would slow down or break every ns-* command, whatever its method."""
    program = ";".join(f"import db3d_nerfstudio.method_configs.{preset}" for preset in PRESETS)
    heavy = "{'diffusers', 'transformers', 'peft', 'open3d', 'trimesh'}"
    program += f"; import sys; print(sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
