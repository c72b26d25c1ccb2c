"""Files and functions stay short, and few arguments travel together."""

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

import db3d_nerfstudio

PACKAGE = Path(db3d_nerfstudio.__file__).parent
MEDIAN_FILE, LONGEST_FILE, LONGEST_FUNCTION, MOST_ARGUMENTS = 100, 300, 50, 6

FOREIGN = {"fused_attention"}
"""Functions with the signature of a library's function that they stand in for."""


def sources() -> list[Path]:
    """Every Python file of the package and of its presets."""
    return [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "method_configs").glob("*.py")]


def functions(source: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method, nested ones too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def num_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the last statement."""
    return (function.end_lineno or 0) - function.lineno + 1


def num_arguments(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Arguments besides `self` and `cls`; `*args` and `**kwargs` are one each."""
    signature = function.args
    named = [*signature.posonlyargs, *signature.args, *signature.kwonlyargs, signature.vararg, signature.kwarg]
    return sum(argument is not None and argument.arg not in ("self", "cls") for argument in named)


def test_files_are_short():
    lengths = {path: len(path.read_text("utf8").splitlines()) for path in sources()}
    assert statistics.median(lengths.values()) <= MEDIAN_FILE
    assert not {path for path, lines in lengths.items() if lines > LONGEST_FILE}


def test_functions_are_short_and_take_few_arguments():
    found = [(path.name, function) for path in sources() for function in functions(path.read_text("utf8"))]
    assert not {(name, function.name) for name, function in found if num_lines(function) > LONGEST_FUNCTION}
    assert FOREIGN == {function.name for _, function in found if num_arguments(function) > MOST_ARGUMENTS}


def test_the_walk_counts():
    method = "    async def f(self, a, /, b, *c, d, **e):\n        def g(x=1):\n            return x\n        g()\n"
    outer, inner = functions("class A:\n" + method)
    assert (num_lines(outer), num_arguments(outer)) == (4, 5)
    assert (num_lines(inner), num_arguments(inner)) == (2, 1)
