"""Bounds of options, written in their types and checked before anything begins: `steps: Count = 25`."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterator, Mapping
from types import MappingProxyType
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
        if self.least == self.most:
            return f"{self.least:g}"
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
NO_OTHERS: Mapping[str, Range] = MappingProxyType({})


def check_ranges(config: Any, prefix: str = "--", others: Mapping[str, Range] = NO_OTHERS) -> None:
    """Check the numbers of a config dataclass and of those inside it, also in dictionaries.

    Args:
        prefix: Prefix of the options of the config's fields on the command line.
        others: Bounds of fields, by their names, whose types have none.

    Raises:
        UserError: some are out of range; the message lists these options with their bounds.
    """
    wrong = [f"{name} is {value}: it must be {bounds}" for name, value, bounds in _outside(config, prefix, others)]
    if wrong:
        raise UserError("; ".join(wrong))


def _outside(config: Any, prefix: str, others: Mapping[str, Range]) -> Iterator[tuple[str, Any, Range | Ordered]]:
    hints = typing.get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        name = _option_name(field.name, hints[field.name])
        every = [*_bounds(hints[field.name])] or [bounds for key, bounds in others.items() if key == field.name]
        for option, value in _values(getattr(config, field.name), f"{prefix}{name}"):
            if dataclasses.is_dataclass(value) and not isinstance(value, type):
                yield from _outside(value, f"{option}." if name else prefix, others)
                continue
            values = value if isinstance(value, tuple) else (value,)
            for bounds in every:
                numbers = (value,) if isinstance(bounds, Ordered) else values
                if any(isinstance(number, int | float | tuple) and number not in bounds for number in numbers):
                    yield option, value, bounds
                    break


def _values(value: Any, option: str) -> Iterator[tuple[str, Any]]:
    """The value of an option or, of a dictionary, those in it, with the options that set them."""
    if not isinstance(value, dict):
        yield option, value
        return
    for key, entry in value.items():
        yield from _values(entry, f"{option}.{key}".replace("_", "-"))


def _option_name(field: str, hint: Any) -> str:
    """The name that tyro gives the option of a field: `tyro.conf.arg(name=...)` changes it, "" leaves it out."""
    names = (getattr(entry, "name", None) for entry in getattr(hint, "__metadata__", ()))
    return next((name for name in names if name is not None), field).replace("_", "-")


def _bounds(hint: Any) -> Iterator[Range | Ordered]:
    """The bounds in a type, which may be a union or a tuple of types that have some."""
    yield from (entry for entry in getattr(hint, "__metadata__", ()) if isinstance(entry, Range | Ordered))
    for part in typing.get_args(hint):
        yield from _bounds(part)
