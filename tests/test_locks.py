"""Locks between processes."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from db3d_nerfstudio.locks import locked, take_lock


def test_a_lock_has_one_holder_at_a_time(tmp_path: Path) -> None:
    with locked(tmp_path / "lock") as first, locked(tmp_path / "lock") as second:
        assert first and not second
    with locked(tmp_path / "lock") as again:
        assert again
    assert not list(tmp_path.iterdir())


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    program = "import sys; from pathlib import Path; from db3d_nerfstudio.locks import take_lock; "
    program += "lock = take_lock(Path(sys.argv[1])); print(lock, flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", program, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline().strip() != "None"
        assert take_lock(tmp_path / "lock") is None
        holder.kill()
    with locked(tmp_path / "lock") as free:
        assert free


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_no_obstacle(tmp_path: Path, monkeypatch, error: int) -> None:
    def flock(*_):
        raise OSError(error, "no locks")

    monkeypatch.setattr("fcntl.flock", flock)
    with locked(tmp_path / "lock") as free:
        assert free
