"""A mean and its confidence interval: percentile bootstrap over subjects, by SciPy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Estimate(NamedTuple):
    """A mean with its interval."""

    mean: float
    low: float | None
    """Lower end; None for a single value."""
    high: float | None
    """Upper end."""
    number: int
    """Number of values."""

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.mean:.3f}"
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap(values: list[float], confidence: float = 0.95) -> Estimate:
    """Mean of the values, and the interval that holds this share of the means of resamplings; the draws are fixed.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("a mean needs at least one value, got no values")
    mean = float(np.mean(values))
    if len(values) == 1:
        return Estimate(mean, None, None, 1)
    if max(values) == min(values):  # SciPy calls this degenerate, and warns.
        return Estimate(mean, mean, mean, len(values))
    from scipy.stats import bootstrap as resample

    result = resample(
        (np.array(values),), np.mean, confidence_level=confidence, n_resamples=9999, method="percentile",
        rng=np.random.default_rng(0),
    )  # fmt: skip
    interval = result.confidence_interval
    return Estimate(mean, float(interval.low), float(interval.high), len(values))
