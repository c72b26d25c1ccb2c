"""Tildes, quotes, and folders that cannot be written to."""

import shlex
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.paths import command, expand_home, output_folder


@dataclass
class Inner:
    model: str | Path | None = None


@dataclass
class Outer:
    output: Path | None = None
    answers: tuple[Path, ...] = ()
    prompt: str = "~ 5 dogs"
    inner: Inner = field(default_factory=Inner)


def test_a_tilde_is_the_home_folder_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    config = Outer(Path("~/runs"), (Path("~/a.json"), Path("b.json")), inner=Inner("~/models/sd"))
    expand_home(config)
    expected = (Path("/home/me/runs"), (Path("/home/me/a.json"), Path("b.json")), Inner("/home/me/models/sd"))
    assert (config.output, config.answers, config.inner) == expected
    assert config.prompt == "~ 5 dogs"
    plain = Outer(inner=Inner("owner/model"))
    expand_home(plain)
    assert plain == Outer(inner=Inner("owner/model"))


def test_a_printed_command_can_be_pasted() -> None:
    run = Path("/data/My Dog's photos (v1.2)/run $1")
    assert shlex.split(command("db3d", "export", run)) == ["db3d", "export", str(run)]
    assert command("db3d", "export", "/plain/run") == "db3d export /plain/run"


def test_a_folder_that_cannot_be_written_to_is_named_with_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert output_folder(tmp_path / "new" / "folder").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write to .*file \(.*\): choose another --output"):
        output_folder(tmp_path / "file")
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(UserError, match="cannot write to .*new: choose another --output"):
        output_folder(tmp_path / "new")
