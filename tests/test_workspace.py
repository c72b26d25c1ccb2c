import errno
import json
import os
import threading

import pytest

from db3d_nerfstudio.errors import UserError, exit_on_user_error
from db3d_nerfstudio.workspace import Workspace, check_whole, compare, digest_of, is_released, write_json


def write(text):
    return lambda path: (path / "content").write_text(text)


def test_an_artifact_is_made_once(tmp_path):
    workspace = Workspace(tmp_path)
    path = workspace.once("a/b", {"steps": 3}, write("first"))
    assert workspace.once("a/b", {"steps": 3}, write("second")) == path
    assert (path / "content").read_text() == "first"
    assert not list(tmp_path.rglob("*.tmp"))


def test_what_a_crash_leaves_behind_is_made_again(tmp_path):
    def crash(path):
        (path / "half").write_text("half")
        raise KeyboardInterrupt

    workspace = Workspace(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        workspace.once("a", {}, crash)
    assert not (tmp_path / "a").exists()
    path = workspace.once("a", {}, write("whole"))
    assert sorted(file.name for file in path.iterdir()) == ["content", "recipe.json"]


def test_another_recipe_is_an_error_that_names_the_difference_and_keeps_the_artifact(tmp_path):
    workspace = Workspace(tmp_path)
    workspace.once("a", {"steps": 3, "guide": {"model": "x", "tuning": "full"}}, write("first"))
    with pytest.raises(UserError, match=r"guide.tuning: full -> lora; steps: 3 -> 4.*delete that folder"):
        workspace.once("a", {"steps": 4, "guide": {"model": "x", "tuning": "lora"}}, write("second"))
    assert (tmp_path / "a" / "content").read_text() == "first"


def test_a_folder_without_a_recipe_is_not_taken_for_an_artifact(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match=r"no readable recipe.json"):
        Workspace(tmp_path).once("a", {}, write("content"))


def test_recipes_are_compared_as_json(tmp_path):
    workspace = Workspace(tmp_path)
    recipe = {"range": (0.0, 1.0), "path": tmp_path}
    workspace.once("a", recipe, write("content"))
    workspace.once("a", recipe, write("content"))
    assert compare({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}, "d": 4}) == ["b.c: 2 -> 3", "d: None -> 4"]


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (lambda file: file.unlink(), "content is gone"),
        (lambda file: file.write_text("first, cut off"), "content has changed"),
        (lambda file: file.write_text("farst"), "content has changed"),
    ],
)
def test_files_that_are_gone_or_changed_are_named_with_the_fix(tmp_path, harm, named):
    workspace = Workspace(tmp_path)
    path = workspace.once("a", {}, write("first"))
    harm(path / "content")
    with pytest.raises(UserError, match=f"in {path}, {named}: put it back, or delete the folder"):
        workspace.once("a", {}, write("second"))
    assert workspace.once("a", {}, write("second"), for_people=("content",)) == path


def test_files_that_somebody_added_are_named_and_kept(tmp_path, capsys):
    def images(path):
        (path / "images").mkdir()
        (path / "images" / "0.png").write_text("made")

    workspace = Workspace(tmp_path)
    path = workspace.once("a", {}, images)
    for name in ("images/1.png", "images/.DS_Store", "notes.txt", "exports.png"):
        (path / name).write_text("added")
    workspace.once("a", {}, images)
    assert f"{path} has files that are not used: images/1.png\n" in capsys.readouterr().out
    assert (path / "images" / "1.png").read_text() == "added"


def test_damage_to_a_large_file_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr("db3d_nerfstudio.workspace.SAMPLE", 16)
    file = tmp_path / "large"
    file.write_bytes(bytes(10_000))
    before = digest_of(file)
    file.write_bytes(bytes(5_000) + bytes([1]) * 200 + bytes(4_800))
    assert digest_of(file) != before


def test_a_released_artifact_keeps_what_people_look_at_and_is_made_again(tmp_path, capsys):
    def make(text):
        def fill(path):
            (path / "unet").mkdir()
            (path / "unet" / "weights").write_text(text)
            (path / "samples.png").write_text(text)

        return fill

    workspace, people = Workspace(tmp_path), ("samples.png",)
    path = workspace.once("a", {"steps": 3}, make("first"), for_people=people)
    assert not is_released(path)
    for _ in range(2):
        workspace.release("a", people)
        assert sorted(file.name for file in path.iterdir()) == ["recipe.json", "samples.png"] and is_released(path)
    check_whole(path)
    with pytest.raises(UserError, match="steps: 3 -> 4"):
        workspace.once("a", {"steps": 4}, make("other"), for_people=people)
    workspace.once("a", {"steps": 3}, make("second"), for_people=people)
    assert f"{path} is made again" in capsys.readouterr().out
    assert (path / "unet" / "weights").read_text() == "second" and not is_released(path)
    workspace.release("not there")


def test_two_at_one_artifact_do_not_destroy_each_others_work(tmp_path):
    begun, go_on = threading.Event(), threading.Event()

    def slow(path):
        begun.set()
        assert go_on.wait(10)
        (path / "content").write_text("first")

    first = threading.Thread(target=lambda: Workspace(tmp_path).once("b/a", {}, slow))
    first.start()
    begun.wait(10)
    with pytest.raises(UserError, match=r"another process is making .*a: wait for it, or choose another output"):
        Workspace(tmp_path).once("b/a", {}, write("second"))
    go_on.set()
    first.join()
    assert (tmp_path / "b" / "a" / "content").read_text() == "first"


def test_a_place_that_cannot_be_written_to_is_named(tmp_path, monkeypatch):
    def read_only(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system", str(tmp_path / "a"))

    monkeypatch.setattr("os.open", read_only)
    with pytest.raises(UserError, match=r"cannot write .*a \(Read-only file system\): choose another output"):
        Workspace(tmp_path).once("a", {}, write("first"))


def test_user_errors_end_the_program_in_one_line():
    with pytest.raises(SystemExit, match=r"^Error: give --data$"), exit_on_user_error():
        raise UserError("give\n  --data")
    with pytest.raises(ZeroDivisionError), exit_on_user_error():
        _ = 1 / 0


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file data/3: file write failed"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_one_line_whoever_says_so(error):
    with pytest.raises(SystemExit, match=r"^Error: no space is left on the disk .*: free some"), exit_on_user_error():
        raise error


@pytest.mark.parametrize("harm", [lambda file: file.unlink(), lambda file: file.write_text("cut")])
def test_a_damaged_artifact_that_may_be_replaced_is_made_again(tmp_path, capsys, harm):
    workspace = Workspace(tmp_path)
    path = workspace.once("a", {}, write("first"), stale="replace")
    harm(path / "content")
    workspace.once("a", {}, write("second"), stale="replace")
    assert (path / "content").read_text() == "second" and f"{path} is made again" in capsys.readouterr().out
    assert [file.name for file in tmp_path.iterdir() if not file.name.startswith(".")] == ["a"]


def test_what_somebody_added_outlives_a_replacement(tmp_path, capsys):
    workspace = Workspace(tmp_path)
    path = workspace.once("a", {}, lambda path: (path / "0.png").write_text("made"), stale="replace")
    (path / "1.png").write_text("mine")
    workspace.once("a", {"steps": 1}, write("second"), stale="replace")
    assert (tmp_path / "a.old-1" / "1.png").read_text() == "mine"
    assert f"What was in {path} before is kept in {path}.old-1" in capsys.readouterr().out


def test_a_stale_artifact_may_be_replaced(tmp_path):
    workspace = Workspace(tmp_path)
    workspace.once("a", {"steps": 3}, write("first"))
    for text, recipe in (("second", {"steps": 4}), ("third", {"steps": 4})):
        path = workspace.once("a", recipe, write(text), stale="replace")
    assert (path / "content").read_text() == "second"
    (path / "recipe.json").unlink()
    workspace.once("a", {"steps": 4}, write("fourth"), stale="replace")
    assert (path / "content").read_text() == "fourth"


def test_a_json_file_is_replaced_in_one_move(tmp_path, monkeypatch):
    file = tmp_path / "folder" / "table.json"
    file.parent.mkdir()
    write_json(file, {"a": 1})
    monkeypatch.setattr(os, "replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_json(file, {"a": 2})
    assert json.loads(file.read_text()) == {"a": 1}


def a_file_where_the_output_goes(root):
    root.write_text("")


def a_link_to_nothing(root):
    root.mkdir()
    (root / "a").symlink_to(root / "unmounted" / "disk")


@pytest.mark.parametrize("obstacle", [a_file_where_the_output_goes, a_link_to_nothing])
def test_what_is_in_the_way_is_named(tmp_path, obstacle):
    obstacle(tmp_path / "out")
    with pytest.raises(UserError, match="^cannot write .*out.*: choose another output"):
        Workspace(tmp_path / "out").once("a", {}, lambda path: None)


def test_whatever_an_attempt_has_left_is_replaced(tmp_path):
    (tmp_path / "a.tmp").write_text("a file")
    (tmp_path / "b.tmp").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").touch()
    for name in "ab":
        assert Workspace(tmp_path).once(name, {}, lambda path: (path / "made").touch()).is_dir()
    assert (tmp_path / "elsewhere" / "kept").exists() and not (tmp_path / "b").is_symlink()
