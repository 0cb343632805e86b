"""Percentiles of waiting times, and growth: a straight line through measurements."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that ``share`` (0 to 1) of all do not exceed (nearest rank). Raises ValueError for none."""
    if not values:
        raise ValueError("there is nothing to measure")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


@dataclass(frozen=True)
class Trend:
    """A development: its median, and its growth, in its own unit."""

    median: float
    growth: float
    """The line's growth from the first to the last counted moment."""
    per_hour: float

    def is_flat(self, slack: float, share: float = 0.05) -> bool:
        """Return True if it grew by at most ``slack``, or by that share of itself."""
        return self.growth <= max(slack, share * self.median)


def trend(samples: Sequence[tuple[float, float]]) -> Trend:
    """Return the line through (seconds, value): the median of the slopes between all pairs (Theil and Sen).

    A few outliers, such as a restarted server's first moments, do not bend it. The first half is warm-up and does
    not count. Raises ValueError for fewer than eight samples.
    """
    if len(samples) < 8:
        raise ValueError("too few samples")
    counted = samples[len(samples) // 2 :]
    slopes = [
        (later[1] - earlier[1]) / (later[0] - earlier[0])
        for number, earlier in enumerate(counted)
        for later in counted[number + 1 :]
    ]
    slope = statistics.median(slopes)
    return Trend(
        median=statistics.median(value for _, value in counted),
        growth=slope * (counted[-1][0] - counted[0][0]),
        per_hour=slope * 3600,
    )
