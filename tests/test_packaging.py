"""What a wheel holds: every package, and every file that the package reads."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "db3d_nerfstudio"
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))["tool"]["setuptools"]


def dotted(folder: Path) -> str:
    return ".".join(folder.relative_to(ROOT).parts)


def test_every_folder_of_code_is_a_listed_package():
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert sorted(SETUPTOOLS["packages"]) == sorted([*map(dotted, folders), "db3d_nerfstudio.method_configs"])
    assert all((folder / "__init__.py").exists() for folder in [*folders, ROOT / "method_configs"])


def test_every_file_that_is_not_code_is_listed_as_data():
    listed = {
        path
        for package, patterns in SETUPTOOLS["package-data"].items()
        for pattern in patterns
        for path in ROOT.joinpath(*package.split(".")).glob(pattern)
    }
    code_and_pages = {".py", ".pyc", ".md"}
    files = {path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in code_and_pages}
    assert files and files == {path for path in listed if path.is_file() and path.suffix not in code_and_pages}
