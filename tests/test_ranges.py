"""Options out of range."""

from dataclasses import dataclass, field
from typing import Annotated

import pytest
import tyro

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.ranges import Count, NonNegative, Positive, Range, Share, ShareInterval, check_ranges


@dataclass
class Inner:
    rate: Positive = 0.1
    shares: tuple[Share, Share] = (0.0, 1.0)
    interval: ShareInterval = (0.2, 0.2)


@dataclass
class Outer:
    num_steps: Count = 25
    margin: NonNegative | None = None
    name: str = "x"
    flag: bool = False
    free: float = float("inf")
    inner: Inner = field(default_factory=Inner)


def test_defaults_pass() -> None:
    check_ranges(Outer())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Outer(num_steps=0), "--num-steps is 0: it must be at least 1"),
        (Outer(margin=-0.5), "--margin is -0.5: it must be at least 0"),
        (Outer(inner=Inner(rate=0.0)), "--inner.rate is 0.0: it must be above 0"),
        (Outer(inner=Inner(rate=float("nan"))), "--inner.rate is nan"),
        (Outer(inner=Inner(rate=float("inf"))), "--inner.rate is inf"),
        (Outer(inner=Inner(shares=(0.5, 1.5))), r"--inner.shares is \(0.5, 1.5\): it must be from 0 to 1"),
        (
            Outer(inner=Inner(interval=(0.9, 0.1))),
            r"--inner.interval is \(0.9, 0.1\): it must be two numbers, the smaller",
        ),
        (Outer(num_steps=-3, margin=-1.0), "--num-steps is -3.*; --margin is -1.0"),
    ],
)
def test_what_is_out_of_range_is_named_as_the_command_line_names_it(config: Outer, message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        check_ranges(config)


@dataclass
class Foreign:
    lr: float = 0.1
    options: dict = field(default_factory=dict)


def test_options_without_bounds_get_those_of_others_also_in_dictionaries() -> None:
    bounds = {"lr": Range(above=0), "options": Range(least=1)}
    config = Foreign(options={"first": {"its_optimizer": Foreign(lr=float("nan")), "scheduler": None}, "second": 2})
    check_ranges(config)
    with pytest.raises(UserError, match=r"^--options.first.its-optimizer.lr is nan: it must be above 0$"):
        check_ranges(config, others=bounds)
    with pytest.raises(UserError, match=r"^--options.second is 0: it must be at least 1$"):
        check_ranges(Foreign(options={"second": 0}), others=bounds)


def test_the_command_line_still_reads_them() -> None:
    config = tyro.cli(Outer, args=["--num-steps", "3", "--inner.shares", "0.1", "0.2", "--margin", "None"])
    assert config == Outer(num_steps=3, inner=Inner(shares=(0.1, 0.2)))


@dataclass
class Renamed:
    inner: Annotated[Inner, tyro.conf.arg(name="")] = field(default_factory=Inner)
    num: Annotated[Count, tyro.conf.arg(name="num_images")] = 1


@pytest.mark.parametrize(("option", "value"), [("--rate", "0"), ("--num-images", "0")])
def test_an_option_is_named_as_it_was_typed(option: str, value: str) -> None:
    with pytest.raises(UserError, match=f"^{option} is"):
        check_ranges(tyro.cli(Renamed, args=[option, value]))
