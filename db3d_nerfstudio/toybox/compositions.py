"""Toys of no named kind: random compositions of primitives, with a front and a back.

Captions call them a "toy", which gives a name and a prior to subjects of a kind that the guide was not trained on.
"""

from db3d_nerfstudio.toybox.shapes import Number, Vec3
from db3d_nerfstudio.toybox.toys import BEAK, GLASS, INK, LAMP, TAIL_LIGHT, ToyBuilder, ToyClass

SOLIDS = ("ball", "box", "rod", "cone", "roof")
"""Primitives that bodies, heads and limbs are made of."""


def _solid(b: ToyBuilder, center: Vec3, half: Vec3, main: bool) -> None:
    """A random primitive on the toy's plane of symmetry, upright or with its top to the front."""
    kind, color = str(b.rng.choice(SOLIDS)), b.main if main else b.accent
    if kind in ("rod", "cone") and b.rng.random() < 0.4:
        length, width, height = half
        b.add(kind, center, (height, width, length), color, 90)
    else:
        b.add(kind, center, half, color)


def _limbs(b: ToyBuilder, length: Number, width: Number, height: Number) -> None:
    """One pair at the sides, like wings, arms or fins."""
    kind, color = str(b.rng.choice(("ball", "box", "rod", "cone"))), b.accent if b.rng.random() < 0.6 else b.main
    half = (b.u(0.05, 0.6) * length, b.u(0.06, 0.4), b.u(0.05, 0.7) * height)
    center = (b.u(-0.6, 0.6) * length, width + half[1] * 0.8, b.u(-0.4, 0.6) * height)
    b.pair(kind, center, half, color, b.u(-40, 40) if b.rng.random() < 0.5 else 0, (1, 0, 0))


def _feet(b: ToyBuilder, length: Number, width: Number, height: Number) -> None:
    """Legs, wheels, a plate, or nothing below."""
    kind, tall = b.rng.integers(4), b.u(0.12, 0.32)
    if kind == 0:
        for x in (-0.6, 0.6):
            b.pair("rod", (x * length, width * 0.6, -height * 0.7 - tall / 2), (0.08, 0.08, tall / 2 + 0.1), b.main)
    elif kind == 1:
        for x in (-0.6, 0.6):
            b.pair("rod", (x * length, width, -height), (tall * 0.7, tall * 0.7, 0.07), INK, 90, (1, 0, 0))
    elif kind == 2:
        b.add("rod" if b.rng.random() < 0.5 else "box", (0, 0, -height), (length * 0.9, width * 1.2, 0.06), b.accent)


def _front(b: ToyBuilder, x: Number, width: Number, z: Number) -> None:
    """Marks of the front: eyes, lamps, a window or a beak."""
    kind = b.rng.integers(4)
    if kind == 0:
        b.pair("ball", (x, width * 0.45, z + 0.06), (0.07, 0.07, 0.08), INK)
    elif kind == 1:
        b.pair("ball", (x, width * 0.5, z), (0.06, 0.1, 0.1), LAMP)
    elif kind == 2:
        b.add("box", (x, 0, z), (0.04, width * 0.6, 0.11), GLASS)
    else:
        b.add("cone", (x + 0.08, 0, z), (0.1, 0.12, 0.14), BEAK, 90)


def _back(b: ToyBuilder, x: Number, width: Number, z: Number) -> None:
    """Marks of the back: tail lights, a dark box or a tail."""
    kind = b.rng.integers(3)
    if kind == 0:
        b.pair("box", (-x, width * 0.5, z), (0.05, 0.1, 0.08), TAIL_LIGHT)
    elif kind == 1:
        b.add("box", (-x, 0, z), (0.08, width * 0.55, 0.14), INK)
    else:
        b.add("rod", (-x - 0.08, 0, z + 0.1), (0.06, 0.06, 0.24), b.accent, b.u(-70, -20))


def compose(b: ToyBuilder) -> None:
    """A body of one or two solids, a head, limbs, feet, and marks of front and back."""
    length, width, height = b.u(0.3, 0.65), b.u(0.25, 0.42), b.u(0.24, 0.48)
    _solid(b, (0, 0, 0), (length, width, height), main=True)
    if b.rng.random() < 0.5:
        part = b.u(0.5, 0.8)
        _solid(b, (b.u(-0.9, 0.2) * length, 0, height * 0.8), (length * part, width * part, height * 0.5), main=True)
    size = b.u(0.15, 0.28)
    hx, hz = b.u(-0.3, 1.0) * length, height + size * 0.7
    _solid(b, (hx, 0, hz), (size, size * b.u(0.8, 1.1), size), main=False)
    if b.rng.random() < 0.75:
        _limbs(b, length, width, height)
    _feet(b, length, width, height)
    on_head = b.rng.random() < 0.5
    _front(b, *((hx + size * 0.85, size, hz) if on_head else (length * 0.92, width, b.u(-0.1, 0.2) * height)))
    _back(b, length * 0.92, width, b.u(-0.1, 0.3) * height)
    b.top = (hx, 0, hz + size)


TOY = ToyClass(compose, "head", accessories=("hat",))
