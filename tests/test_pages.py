"""The pages of the repository: links and pictures, and the README's length, code, map and reading list."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("", ".github", "method_configs", "db3d_nerfstudio/*")
PAGES = sorted({page for folder in FOLDERS for page in ROOT.glob(f"{folder}/*.md".lstrip("/"))})
README = (ROOT / "README.md").read_text("utf8")


def links(page: Path) -> list[str]:
    found = re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf8"))
    return [link for link in found if not link.startswith(("http", "#"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    assert [link for link in links(page) if not (page.parent / link).exists()] == []


def test_every_picture_is_on_a_page() -> None:
    shown = {(page.parent / link).resolve() for page in PAGES for link in links(page)}
    assert {path.name for path in (ROOT / ".github/images").iterdir() if path.resolve() not in shown} == set()


def test_the_readme_is_short() -> None:
    assert len(README.split()) <= 1300 and len(README.splitlines()) <= 150


def test_the_reading_list_is_sixteen_files() -> None:
    words = re.search(r"The paper is sixteen files.*?: (.*?)\.\n\n", README, re.DOTALL)[1]
    rooms = [re.match(r"\s*`(\w+/)` (.*)", room, re.DOTALL).groups() for room in words.split(";")]
    files = {f"{room}{name.strip()}.py" for room, names in rooms for name in names.split(",")}
    assert len(files) == 16
    assert [file for file in files if not (ROOT / "db3d_nerfstudio" / file).exists()] == []


def test_the_code_for_researchers_runs() -> None:
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    assert code.count("max_train_steps=150") == 1
    names: dict = {}
    exec(code.replace("max_train_steps=150", "max_train_steps=1"), names)
    assert names["images"].grad.abs().sum() > 0


def test_every_room_is_in_the_readme() -> None:
    rooms = {path.parent.name for path in (ROOT / "db3d_nerfstudio").glob("*/__init__.py")}
    assert rooms <= set(re.findall(r"^  (\w+)/", README, re.MULTILINE))
