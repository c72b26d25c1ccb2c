import pytest

from db3d_nerfstudio.errors import UserError, exit_on_user_error
from db3d_nerfstudio.workspace import Workspace, compare


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


def test_user_errors_end_the_program_in_one_line():
    with pytest.raises(SystemExit, match=r"^Error: give --data$"), exit_on_user_error():
        raise UserError("give\n  --data")
    with pytest.raises(ZeroDivisionError), exit_on_user_error():
        _ = 1 / 0


def test_a_stale_artifact_may_be_replaced(tmp_path):
    workspace = Workspace(tmp_path)
    workspace.once("a", {"steps": 3}, write("first"))
    for text, recipe in (("second", {"steps": 4}), ("third", {"steps": 4})):
        path = workspace.once("a", recipe, write(text), stale="replace")
    assert (path / "content").read_text() == "second"
    (path / "recipe.json").unlink()
    workspace.once("a", {"steps": 4}, write("fourth"), stale="replace")
    assert (path / "content").read_text() == "fourth"
