"""Bounds of options, written in their types and checked before anything begins: `steps: Count = 25`."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple

from db3d_nerfstudio.errors import UserError


class Range(NamedTuple):
    """Bounds of a number, which must be finite in any case."""

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    """Exclusive lower bound."""

    def __contains__(self, value: Any) -> bool:
        return math.isfinite(value) and self.least <= value <= self.most and value > self.above

    def __str__(self) -> str:
        if math.isfinite(self.least) and math.isfinite(self.most):
            return f"from {self.least:g} to {self.most:g}"
        bounds = [
            f"{word} {bound:g}"
            for word, bound in zip(("at least", "at most", "above"), self, strict=True)
            if math.isfinite(bound)
        ]
        return " and ".join(bounds) or "finite"


class Ordered(NamedTuple):
    """Of two numbers the first is not above the second."""

    def __str__(self) -> str:
        return "two numbers, the smaller one first"

    def __contains__(self, value: object) -> bool:
        return not isinstance(value, tuple) or value[0] <= value[1]


Count = Annotated[int, Range(least=1)]
"""How many: one or more."""
Natural = Annotated[int, Range(least=0)]
"""How many: none or more."""
Positive = Annotated[float, Range(above=0)]
NonNegative = Annotated[float, Range(least=0)]
Share = Annotated[float, Range(0, 1)]
"""A part of a whole."""
ShareInterval = Annotated[tuple[Share, Share], Ordered()]
Steps = Annotated[int, Range(1, 1000)]
"""Steps of a sampler; noise schedules have a thousand."""
FieldOfView = Annotated[float, Range(above=0, most=179)]
"""Degrees between the edges of a picture."""
Angle = Annotated[float, Range(-360, 360)]
"""Degrees."""

AngleInterval = Annotated[tuple[Angle, Angle], Ordered()]
FieldOfViewInterval = Annotated[tuple[FieldOfView, FieldOfView], Ordered()]
PositiveInterval = Annotated[tuple[Positive, Positive], Ordered()]


def check_ranges(config: Any, prefix: str = "--") -> None:
    """Check the numbers of a config dataclass and of those inside it.

    Args:
        prefix: Prefix of the options of the config's fields on the command line.

    Raises:
        UserError: some are out of range; the message lists these options with their bounds.
    """
    wrong = [f"{name} is {value}: it must be {bounds}" for name, value, bounds in _outside(config, prefix)]
    if wrong:
        raise UserError("; ".join(wrong))


def _outside(config: Any, prefix: str) -> Iterator[tuple[str, Any, Range | Ordered]]:
    hints = typing.get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), _option_name(field.name, hints[field.name])
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from _outside(value, f"{prefix}{name}." if name else prefix)
            continue
        values = value if isinstance(value, tuple) else (value,)
        for bounds in _bounds(hints[field.name]):
            numbers = (value,) if isinstance(bounds, Ordered) else values
            if any(isinstance(number, int | float | tuple) and number not in bounds for number in numbers):
                yield f"{prefix}{name}", value, bounds
                break


def _option_name(field: str, hint: Any) -> str:
    """The name that tyro gives the option of a field: `tyro.conf.arg(name=...)` changes it, "" leaves it out."""
    names = (getattr(entry, "name", None) for entry in getattr(hint, "__metadata__", ()))
    return next((name for name in names if name is not None), field).replace("_", "-")


def _bounds(hint: Any) -> Iterator[Range | Ordered]:
    """The bounds in a type, which may be a union or a tuple of types that have some."""
    yield from (entry for entry in getattr(hint, "__metadata__", ()) if isinstance(entry, Range | Ordered))
    for part in typing.get_args(hint):
        yield from _bounds(part)
