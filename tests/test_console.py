"""The terminal: what is kept off it, and what never is."""

import warnings

import pytest
from nerfstudio.utils import rich_utils

from db3d_nerfstudio import console

# What torch 2.14.1, nerfstudio 1.1.5 and nerfacc 0.5.2 print on a normal run, and in which file.
SEEN = [
    (
        FutureWarning,
        "torch.jit._script",
        "`torch.jit.script` is deprecated. Please switch to `torch.compile` or `torch.export`.",
    ),
    (
        FutureWarning,
        "nerfstudio.field_components.activations",
        "`torch.cuda.amp.custom_fwd(args...)` is deprecated. Please use `torch.amp.custom_fwd(args...)` instead.",
    ),
    (
        FutureWarning,
        "nerfstudio.field_components.activations",
        "`torch.cuda.amp.custom_bwd(args...)` is deprecated. Please use `torch.amp.custom_bwd(args...)` instead.",
    ),
    (
        FutureWarning,
        "nerfstudio.engine.trainer",
        "`torch.cuda.amp.GradScaler(args...)` is deprecated. Please use `torch.amp.GradScaler('cuda')` instead.",
    ),
    (
        UserWarning,
        "nerfstudio.cameras.cameras",
        "Using a non-tuple sequence for multidimensional indexing is deprecated and will be changed in pytorch 2.9",
    ),
    (
        UserWarning,
        "nerfstudio.utils.writer",
        "Converting a tensor with requires_grad=True to a scalar may lead to unexpected behavior.",
    ),
    (UserWarning, "torch.utils.data.dataloader", "This DataLoader will create 4 worker processes in total."),
    (SyntaxWarning, "/venv/lib/python3.12/site-packages/nerfacc/volrend", "invalid escape sequence '\\s'"),
]


def given(category: type[Warning], module: str, text: str) -> int:
    """How many warnings reach the user."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        console.ignore_known_warnings()
        warnings.warn_explicit(text, category, "file.py", 1, module=module)
    return len(caught)


@pytest.mark.parametrize(("category", "module", "text"), SEEN)
def test_only_known_warnings_of_known_modules_are_ignored(category, module, text):
    assert given(category, module, text) == 0
    assert given(category, "db3d_nerfstudio.nerf.model", text) == 1
    assert given(category, module, f"the loss is nan: {text}") == 1


def test_every_ignored_warning_is_one_that_was_seen():
    assert len({module for _, module, _ in SEEN}) == len(console.KNOWN_WARNINGS)


def test_nerfstudio_is_silent_for_a_while_and_this_package_is_not(capsys):
    with console.nerfstudio_silenced():
        rich_utils.CONSOLE.print("Setting up training dataset...")
        console.announce("Stage 1/3")
    rich_utils.CONSOLE.print("afterwards")
    assert capsys.readouterr().out == "Stage 1/3\nafterwards\n"
    with pytest.raises(OSError), console.nerfstudio_silenced():
        raise OSError
    assert not rich_utils.CONSOLE.quiet


def test_announced_lines_are_not_wrapped(capsys):
    console.announce(f"Look at {'/long' * 60}.")
    assert capsys.readouterr().out.count("\n") == 1
