"""The command line: its table of commands, and what a wrong command says."""

from importlib import import_module

import pytest

from db3d_nerfstudio import cli


def test_every_command_has_its_config_and_main():
    for command in cli.COMMANDS.values():
        module = import_module(f"db3d_nerfstudio.{command.module}")
        assert callable(module.main) and getattr(module, command.config).__doc__


def test_unknown_command_is_answered_with_the_list(capsys):
    with pytest.raises(SystemExit, match='no command "fly"'):
        cli.main(["fly"])
    cli.main([])
    assert "usage: db3d COMMAND" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [["evaluate", "--run"], ["report"], ["user-study", "--benchmark"], ["export"], ["turntable"]]
)
def test_a_folder_that_is_not_the_right_one_is_answered_in_one_line(words, tmp_path):
    with pytest.raises(SystemExit, match=f"Error: {tmp_path} (is no run|has no results|is not)") as end:
        cli.main([*words, str(tmp_path)])
    assert "\n" not in end.value.code
