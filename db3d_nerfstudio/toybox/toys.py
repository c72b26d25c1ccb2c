"""Toys: how each class of the embedded world is built from primitives.

Every class has an unmistakable front and back: faces and tails, headlights and tail lights, a spout and a handle, a
door and a bare wall. Builders work in free units around the origin; `subjects.make_subject` scales the result.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import trimesh
from jaxtyping import Float
from numpy import ndarray
from numpy.random import Generator

from db3d_nerfstudio.toybox.shapes import Number, Vec3, place

Color = Float[ndarray, "3"]

PALETTE: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.10, 0.10),
    "orange": (0.96, 0.50, 0.08),
    "yellow": (0.96, 0.86, 0.12),
    "green": (0.13, 0.62, 0.20),
    "blue": (0.12, 0.28, 0.86),
    "purple": (0.50, 0.18, 0.68),
    "pink": (0.96, 0.55, 0.72),
    "brown": (0.42, 0.25, 0.12),
    "white": (0.95, 0.95, 0.95),
    "black": (0.10, 0.10, 0.10),
}
PALETTE_ARRAYS = {name: np.array(rgb) for name, rgb in PALETTE.items()}
INK = np.array((0.06, 0.06, 0.06))
GLASS = np.array((0.62, 0.85, 0.98))
LAMP = np.array((1.0, 0.98, 0.70))
TAIL_LIGHT = np.array((0.80, 0.05, 0.05))
BEAK = np.array((0.98, 0.60, 0.10))


class ToyBuilder:
    """Collects primitives; a class's function draws its shape parameters with `u` and adds its parts."""

    def __init__(self, rng: Generator, main: Color, accent: Color, state: str | None):
        self.rng, self.main, self.accent, self.state = rng, main, accent, state
        self.parts: list[tuple[trimesh.Trimesh, Color, bool]] = []
        self.top: Vec3 = (0, 0, 0)
        self.neck: tuple[Vec3, Number] = ((0, 0, 0), 0)

    def u(self, low: Number, high: Number) -> float:
        return float(self.rng.uniform(low, high))

    def add(self, kind: str, center: Vec3, half: Vec3, color: Color, tilt: Number = 0, axis: Vec3 = (0, 1, 0)) -> None:
        self.parts.append((place(kind, center, half, tilt, axis), color, color is self.main))

    def pair(self, kind: str, center: Vec3, half: Vec3, color: Color, tilt: Number = 0, axis: Vec3 = (0, 1, 0)) -> None:
        """The part and its mirror image in the x-z plane."""
        x, y, z = center
        for side in (1, -1):
            mirrored = (axis[0] * side, axis[1], axis[2] * side)
            self.add(kind, (x, y * side, z), half, color, tilt, mirrored)

    def face(self, x: float, z: float, r: float) -> None:
        """Two eyes on a head of radius r at (x, 0, z)."""
        self.pair("ball", (x + r * 0.78, r * 0.45, z + r * 0.35), (0.06, 0.06, 0.07), INK)


def _dog(b: ToyBuilder) -> None:
    length, width, leg = b.u(0.45, 0.62), b.u(0.2, 0.28), b.u(0.28, 0.42)
    sitting = b.state == "sitting"
    hr = b.u(0.22, 0.28)
    if sitting:
        b.add("ball", (-0.1, 0, 0.0), (width * 1.1, width, length * 0.9), b.main, 25)
        b.pair("ball", (-0.12, width * 0.9, -length * 0.62), (0.28, 0.13, 0.16), b.main)
        b.pair("rod", (0.28, width * 0.5, -length * 0.4), (0.075, 0.075, length * 0.45), b.main)
        hx, hz = 0.22, length * 0.95
        b.add("rod", (-0.48, 0, -length * 0.55), (0.05, 0.05, 0.22), b.accent, -70)
    else:
        b.add("ball", (0, 0, 0), (length, width, width), b.main)
        for x in (-length * 0.65, length * 0.65):
            b.pair("rod", (x, width * 0.6, -width * 0.4 - leg / 2), (0.08, 0.08, leg / 2 + 0.08), b.main)
        hx, hz = length + 0.04, 0.32
        b.add("rod", (-length - 0.1, 0, 0.2), (0.05, 0.05, 0.22), b.accent, -35)
    b.add("ball", (hx, 0, hz), (hr, hr * 0.92, hr), b.main)
    b.add("ball", (hx + hr * 0.95, 0, hz - 0.07), (hr * 0.6, hr * 0.45, hr * 0.4), b.accent)
    b.add("ball", (hx + hr * 1.5, 0, hz - 0.02), (0.07, 0.07, 0.06), INK)
    b.pair("ball", (hx - 0.03, hr * 0.92, hz + 0.02), (0.09, 0.06, b.u(0.18, 0.25)), b.accent)
    b.face(hx, hz, hr)
    b.top, b.neck = (hx, 0, hz + hr), ((hx - hr * 0.5, 0, hz - hr * 0.85), hr * 0.75)


def _rabbit(b: ToyBuilder) -> None:
    body, hr = b.u(0.34, 0.42), b.u(0.25, 0.3)
    sitting = b.state == "sitting"
    tall = 1.25 if sitting else 0.9
    b.add("ball", (0, 0, 0), (body if sitting else body * 1.3, body * 0.85, body * tall), b.main)
    hx, hz = (0.12 if sitting else body * 1.0), body * tall + hr * 0.55
    b.add("ball", (hx, 0, hz), (hr, hr * 0.95, hr * 0.9), b.main)
    b.pair("ball", (hx - 0.06, hr * 0.42, hz + hr * 1.5), (0.07, 0.1, b.u(0.32, 0.45)), b.accent, b.u(-15, 5))
    b.add("ball", (-body * (1.0 if sitting else 1.3), 0, -0.05), (0.15, 0.15, 0.15), b.accent)
    b.add("ball", (hx + hr * 0.97, 0, hz - 0.06), (0.05, 0.07, 0.05), PALETTE_ARRAYS["pink"])
    b.pair("ball", (body * 0.75, body * 0.5, -body * tall * 0.8), (0.26, 0.12, 0.11), b.main)
    b.face(hx, hz - 0.02, hr)
    b.top, b.neck = (hx, 0, hz + hr * 0.8), ((hx - 0.05, 0, hz - hr * 0.85), hr * 0.8)


def _duck(b: ToyBuilder) -> None:
    length, width, hr = b.u(0.48, 0.6), b.u(0.32, 0.4), b.u(0.23, 0.29)
    hx, hz = length * 0.6, b.u(0.42, 0.58)
    b.add("ball", (0, 0, -0.1), (length, width, width * 0.9), b.main)
    b.add("rod", (hx * 0.95, 0, hz * 0.5), (hr * 0.55, hr * 0.55, hz * 0.45), b.main)
    b.add("ball", (hx, 0, hz), (hr, hr, hr), b.main)
    b.add("ball", (hx + hr * 1.15, 0, hz - 0.04), (hr * 0.75, hr * 0.55, hr * 0.2), BEAK)
    raised = b.state == "flying"
    b.pair(
        "ball",
        (-0.05, width * (1.35 if raised else 0.9), 0.12 if raised else -0.05),
        (length * 0.6, width * 0.75 if raised else 0.09, 0.08 if raised else width * 0.55),
        b.accent,
        -25 if raised else 0,
        (1, 0, 0),
    )
    b.add("cone", (-length * 0.9, 0, 0.05), (0.14, 0.2, 0.2), b.accent, -60)
    b.face(hx, hz, hr)
    b.top, b.neck = (hx, 0, hz + hr * 0.9), ((hx * 0.97, 0, hz * 0.55), hr * 0.65)


def _wheels(b: ToyBuilder, xs, y: float, z: float, r: float) -> None:
    for x in xs:
        b.pair("rod", (x, y, z), (r, r, 0.08), INK, 90, (1, 0, 0))


def _car(b: ToyBuilder) -> None:
    length, width, height = b.u(0.75, 0.92), b.u(0.36, 0.44), b.u(0.15, 0.2)
    b.add("box", (0, 0, 0), (length, width, height), b.main)
    cab, cx = b.u(0.36, 0.48), b.u(-0.3, -0.1)
    b.add("box", (cx, 0, height + 0.16), (cab, width * 0.88, 0.17), b.accent)
    b.add("box", (cx + cab, 0, height + 0.15), (0.02, width * 0.72, 0.12), GLASS)
    _wheels(b, (-length * 0.6, length * 0.6), width, -height, b.u(0.18, 0.23))
    b.pair("ball", (length, width * 0.62, 0.03), (0.06, 0.1, 0.1), LAMP)
    b.pair("box", (-length, width * 0.62, 0.03), (0.03, 0.1, 0.07), TAIL_LIGHT)
    b.top = (cx, 0, height + 0.33)


def _train(b: ToyBuilder) -> None:
    length, r = b.u(0.55, 0.7), b.u(0.22, 0.27)
    b.add("box", (-0.05, 0, -0.28), (length + 0.25, 0.28, 0.08), INK)
    b.add("rod", (0.22, 0, 0), (r, r, length * 0.75), b.main, 90)
    b.add("box", (-length * 0.7, 0, 0.14), (0.26, 0.3, 0.38), b.main)
    b.add("box", (-length * 0.7, 0, 0.56), (0.34, 0.36, 0.06), b.accent)
    b.add("rod", (length * 0.72, 0, r + 0.16), (0.09, 0.09, 0.2), b.accent)
    b.add("ball", (0.22 + length * 0.75, 0, 0.02), (0.07, 0.12, 0.12), LAMP)
    b.add("cone", (length + 0.18, 0, -0.26), (0.12, 0.3, 0.14), TAIL_LIGHT)
    b.add("box", (-length * 0.7 - 0.26, 0, 0.2), (0.02, 0.14, 0.12), GLASS)
    _wheels(b, (-length * 0.75, 0.0, length * 0.65), 0.27, -0.36, b.u(0.15, 0.19))
    b.top = (-length * 0.7, 0, 0.62)


def _plane(b: ToyBuilder) -> None:
    length, r, span = b.u(0.75, 0.9), b.u(0.16, 0.21), b.u(0.75, 0.95)
    b.add("ball", (0, 0, 0), (length, r, r), b.main)
    b.add("box", (b.u(0.02, 0.18), 0, 0.0), (0.2, span, 0.035), b.accent)
    b.add("box", (-length * 0.85, 0, 0.03), (0.12, 0.34, 0.03), b.accent)
    b.add("box", (-length * 0.88, 0, 0.2), (0.12, 0.03, 0.22), b.main)
    b.add("ball", (length * 0.45, 0, r * 0.75), (0.2, 0.11, 0.11), GLASS)
    b.add("box", (length * 1.0, 0, 0), (0.025, 0.26, 0.04), INK)
    b.add("ball", (length * 1.0, 0, 0), (0.09, 0.07, 0.07), LAMP)
    b.top = (0, 0, r)


def _boat(b: ToyBuilder) -> None:
    length, width = b.u(0.55, 0.68), b.u(0.34, 0.42)
    b.add("box", (-0.12, 0, -0.2), (length * 0.75, width, 0.18), b.main)
    b.add("cone", (length * 0.6 + 0.12, 0, -0.2), (0.18, width, 0.36), b.main, 90)
    b.add("box", (-0.3, 0, 0.12), (0.24, width * 0.7, 0.16), PALETTE_ARRAYS["white"])
    b.add("box", (-0.05, 0, 0.14), (0.02, width * 0.5, 0.09), GLASS)
    height = b.u(0.42, 0.52)
    b.add("rod", (0.12, 0, height * 0.75), (0.04, 0.04, height), INK)
    b.add("box", (0.14, 0, height * 1.05), (0.03, b.u(0.34, 0.46), height * 0.5), b.accent)
    b.add("ball", (0.18, 0, height * 1.1), (0.03, 0.13, 0.13), b.main)
    b.add("box", (-length * 0.75 - 0.18, 0, -0.2), (0.07, 0.1, 0.17), INK)
    b.top = (0.12, 0, height * 1.75)


def _chair(b: ToyBuilder) -> None:
    w, back, leg = b.u(0.38, 0.48), b.u(0.42, 0.55), b.u(0.28, 0.38)
    b.add("box", (0, 0, 0), (w, w, 0.07), b.main)
    b.add("box", (-w + 0.06, 0, back + 0.05), (0.06, w, back), b.main)
    b.add("box", (0.04, 0, 0.1), (w * 0.85, w * 0.85, 0.06), b.accent)
    b.add("box", (-w + 0.14, 0, back + 0.15), (0.03, w * 0.75, back * 0.6), b.accent)
    for x in (-1, 1):
        b.pair("rod", (x * (w - 0.08), w - 0.08, -leg), (0.065, 0.065, leg), b.main)
    b.top = (-w + 0.06, 0, 2 * back + 0.05)


def _house(b: ToyBuilder) -> None:
    w, d, h = b.u(0.4, 0.5), b.u(0.4, 0.5), b.u(0.28, 0.36)
    roof = b.u(0.22, 0.32)
    b.add("box", (0, 0, 0), (d, w, h), b.main)
    b.add("roof", (0, 0, h + roof), (d * 1.15, w * 1.2, roof), b.accent)
    b.add("box", (d, 0, -h * 0.4), (0.03, 0.13, h * 0.6), INK)
    b.pair("box", (d, w * 0.6, h * 0.25), (0.03, 0.1, 0.1), GLASS)
    b.add("box", (-d * 0.5, w * 0.45, h + roof * 1.5), (0.08, 0.08, roof), b.main)
    b.top = (0, 0, h + 2 * roof)


def _mug(b: ToyBuilder) -> None:
    r, h = b.u(0.36, 0.46), b.u(0.4, 0.52)
    b.add("rod", (0, 0, 0), (r, r, h), b.main)
    b.add("rod", (0, 0, h), (r * 0.86, r * 0.86, 0.01), INK)
    b.add("rod", (0, 0, -h * 0.62), (r * 1.03, r * 1.03, b.u(0.06, 0.14)), b.accent)
    b.add("ring", (-r - 0.1, 0, 0), (0.25, 0.25, 0.28), b.main, 90, (1, 0, 0))
    b.add("ball", (r * 0.95, 0, h * 0.25), (0.07, 0.18, 0.18), b.accent)
    b.top = (0, 0, h)


def _teapot(b: ToyBuilder) -> None:
    r, h = b.u(0.42, 0.5), b.u(0.34, 0.42)
    b.add("ball", (0, 0, 0), (r, r, h), b.main)
    b.add("rod", (r + 0.14, 0, 0.1), (0.075, 0.075, 0.3), b.main, 50)
    b.add("ring", (-r - 0.08, 0, 0.04), (0.24, 0.24, 0.28), b.accent, 90, (1, 0, 0))
    lift = 0.22 if b.state == "open" else 0.0
    tilt = -35 if b.state == "open" else 0
    shift = -0.12 if b.state == "open" else 0.0
    b.add("rod", (shift, 0, h * 0.95 + lift), (r * 0.55, r * 0.55, 0.05), b.accent, tilt)
    b.add("ball", (shift * 1.4, 0, h * 0.95 + 0.13 + lift), (0.1, 0.1, 0.1), b.accent)
    if b.state == "open":
        b.add("rod", (0, 0, h * 0.93), (r * 0.42, r * 0.42, 0.03), INK)
    b.add("rod", (0, 0, -h * 0.95), (r * 0.6, r * 0.6, 0.06), b.accent)
    b.top = (shift * 1.4, 0, h * 0.95 + 0.2 + lift)


def _robot(b: ToyBuilder) -> None:
    w, h = b.u(0.25, 0.32), b.u(0.3, 0.38)
    b.add("box", (0, 0, 0), (w * 0.65, w, h), b.main)
    b.add("box", (0, 0, h + 0.23), (0.2, 0.23, 0.2), b.accent)
    b.add("box", (0.2, 0, h + 0.13), (0.02, 0.12, 0.03), INK)
    b.pair("ball", (0.2, 0.1, h + 0.28), (0.05, 0.07, 0.07), LAMP)
    arm = b.u(0.26, 0.34)
    b.pair(
        "rod",
        (0, w + 0.1, (0.3 if b.state == "waving" else 0.02)),
        (0.08, 0.08, arm),
        b.accent,
        -20 if b.state == "waving" else 0,
        (1, 0, 0),
    )
    b.pair("rod", (0, w * 0.5, -h - 0.2), (0.1, 0.1, 0.22), b.main)
    b.pair("box", (0.06, w * 0.5, -h - 0.42), (0.17, 0.12, 0.06), b.accent)
    b.add("rod", (w * 0.65, 0, 0.06), (0.13, 0.13, 0.03), LAMP, 90)
    b.add("box", (-w * 0.65 - 0.08, 0, 0.02), (0.09, w * 0.7, h * 0.6), INK)
    b.top, b.neck = (0, 0, h + 0.43), ((0, 0, h + 0.03), 0.22)


@dataclass(frozen=True)
class ToyClass:
    """A kind of toy and the words that go with it."""

    build: Callable[[ToyBuilder], None]
    accent_part: str
    """The word for the part in the accent colour."""
    state: str | None = None
    """The word for its other pose, if it has one."""
    accessories: tuple[str, ...] = ()
    """Accessories that it may have."""


CLASSES: dict[str, ToyClass] = {
    "dog": ToyClass(_dog, "ears", "sitting", ("hat", "scarf")),
    "rabbit": ToyClass(_rabbit, "ears", "sitting", ("scarf",)),
    "duck": ToyClass(_duck, "wings", "flying", ("hat", "scarf")),
    "robot": ToyClass(_robot, "head", "waving", ("hat", "scarf")),
    "car": ToyClass(_car, "roof", accessories=("flag",)),
    "train": ToyClass(_train, "roof"),
    "plane": ToyClass(_plane, "wings"),
    "boat": ToyClass(_boat, "sail"),
    "chair": ToyClass(_chair, "cushion", accessories=("hat",)),
    "house": ToyClass(_house, "roof", accessories=("flag",)),
    "mug": ToyClass(_mug, "badge", accessories=("hat",)),
    "teapot": ToyClass(_teapot, "lid", "open", ("hat",)),
}


def add_accessory(b: ToyBuilder, kind: str, color: Color) -> None:
    """A hat on top, a flag behind the top, or a scarf round the neck."""
    x, y, z = b.top
    if kind == "hat":
        b.add("rod", (x, y, z + 0.01), (0.27, 0.27, 0.03), color)
        b.add("cone", (x, y, z + 0.2), (0.19, 0.19, 0.22), color)
    elif kind == "flag":
        b.add("rod", (x, y, z + 0.22), (0.025, 0.025, 0.24), INK)
        b.add("box", (x - 0.15, y, z + 0.36), (0.15, 0.02, 0.1), color)
    else:
        (nx, ny, nz), r = b.neck
        b.add("ring", (nx, ny, nz), (r, r, 0.32), color)
        b.add("box", (nx + r * 1.1, 0.08, nz - 0.14), (0.05, 0.07, 0.17), color)
