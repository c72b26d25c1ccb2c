"""No file imports one of a higher layer, no files import each other in a circle, and the house is not too tall.

Every import counts: those within functions, and those for type checkers only.
"""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import db3d_nerfstudio

PACKAGE = Path(db3d_nerfstudio.__file__).parent
ROOT = PACKAGE.name

# From the bottom up; rooms of one layer do not import each other. "ground" is the modules beside the rooms.
LAYERS = [
    {"ground"},
    {"guides"},
    {"diffusion"},
    {"nerf", "toybox"},
    {"run"},
    {"results"},
    {"training"},
    {"method_configs"},
    {"personalisation", "timing"},
    {"evaluation"},
]
MOST_FLOORS = 8


def modules() -> dict[str, Path]:
    """The file of every module of the package, by its dotted name."""
    folders = {ROOT: PACKAGE, f"{ROOT}.method_configs": PACKAGE.parent / "method_configs"}
    found = {}
    for prefix, folder in folders.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join([prefix, *parts]).removesuffix(".__init__")] = path
    return found


def imported_names(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, wherever in the file it does so."""
    for node in ast.walk(ast.parse(path.read_text("utf8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute in this package"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def imports() -> dict[str, set[str]]:
    """The modules of the package that each one imports."""
    known = modules()
    graph: dict[str, set[str]] = {}
    for module, path in known.items():
        names = (name if name in known else name.rpartition(".")[0] for name in imported_names(path))
        graph[module] = {name for name in names if name in known and name != module}
    return graph


def room(module: str) -> str:
    """The folder of a module within the package."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and any(parts[1] in layer for layer in LAYERS) else "ground"


def room_or_file(module: str) -> str:
    """The folder of a module, or the module itself on the ground."""
    return module if room(module) == "ground" else room(module)


def breaks_a_layer(importer: str, imported: str) -> bool:
    """Whether the imported module lies in a higher layer, or in another room of the same one."""
    here, there = room(importer), room(imported)
    level = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    return here != there and level[here] <= level[there]


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of one circle of imports, or none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def floors(graph: dict[str, set[str]]) -> dict[str, int]:
    """The floor of each room: 1, or one above the highest that it imports. A module of the ground is its own room."""
    below: dict[str, set[str]] = {}
    for module, found in graph.items():
        here = room_or_file(module)
        below.setdefault(here, set()).update({room_or_file(other) for other in found} - {here})
    numbers: dict[str, int] = {}
    for name in TopologicalSorter(below).static_order():
        numbers[name] = 1 + max((numbers[other] for other in below[name]), default=0)
    return numbers


def test_every_folder_of_the_package_has_its_layer():
    rooms = {module.split(".")[1] for module, path in modules().items() if path.name == "__init__.py" and "." in module}
    assert rooms | {"ground"} == set().union(*LAYERS)


def test_no_file_imports_from_a_higher_layer():
    assert not {(a, b) for a, found in imports().items() for b in found if breaks_a_layer(a, b)}


def test_no_circle_of_files():
    assert not circle(imports())


def test_the_house_is_not_too_tall():
    heights = floors(imports())
    assert max(heights.values()) <= MOST_FLOORS, sorted(heights.items(), key=lambda entry: entry[1])


def test_the_walk_finds_imports_of_every_kind(tmp_path):
    file = tmp_path / "file.py"
    file.write_text(
        "import a\nfrom b import c\nif TYPE_CHECKING:\n    from d.e import f\ndef g():\n    import h.i as j\n"
    )
    assert set(imported_names(file)) == {"a", "b.c", "d.e.f", "h.i"}
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) and not circle({"a": {"b", "c"}, "b": {"c"}})
    assert breaks_a_layer(f"{ROOT}.guides.base", f"{ROOT}.diffusion.sds")
    assert breaks_a_layer(f"{ROOT}.nerf.model", f"{ROOT}.toybox.guide")
    assert not breaks_a_layer(f"{ROOT}.diffusion.sds", f"{ROOT}.guides.base")
    assert not breaks_a_layer(f"{ROOT}.training.pipeline", f"{ROOT}.words")
    assert floors(
        {f"{ROOT}.a": set(), f"{ROOT}.b": {f"{ROOT}.a"}, f"{ROOT}.nerf.c": {f"{ROOT}.b", f"{ROOT}.nerf.d"}}
    ) == {
        f"{ROOT}.a": 1,
        f"{ROOT}.b": 2,
        "nerf": 3,
    }
