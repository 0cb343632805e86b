"""What a running gateway counts and times of itself, for whoever wants to know how it does: numbers, never names."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

OTHER = "other"
"""What a label says where there would be too many different values, or one that nobody knows."""

SHORT = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Bounds, in seconds, for what a program waits for."""

LONG = (5.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 90.0, 120.0, 300.0, 900.0)
"""Bounds, in seconds, for what a person waits for."""

Labels = tuple[str, ...]


@dataclass(frozen=True)
class Counter:
    """Counts what happens in this process, from 0 at its start on. ``name`` ends in ``_total``.

    ``begins`` are the values of the labels that are shown from the start on, so that the first time can be seen as a
    rise; ``most`` is how many combinations there may be: all beyond are counted as ``other``.
    """

    name: str
    text: str
    labels: Labels = ()
    begins: tuple[Labels, ...] = ()
    most: int = 500


@dataclass(frozen=True)
class Histogram:
    """How long something took in this process, in seconds: so many up to each of ``bounds``, and beyond."""

    name: str
    text: str
    labels: Labels = ()
    bounds: tuple[float, ...] = SHORT
    most: int = 200


@dataclass(frozen=True)
class Gauge:
    """How something stands at this moment."""

    name: str
    text: str
    labels: Labels = ()


Value = tuple[Gauge, Labels, float]
"""A gauge, the values of its labels, and what it shows."""


@dataclass
class Timed:
    """What a histogram has seen for one combination of labels: so many in each class, and the seconds in all."""

    classes: list[int]
    seconds: float = 0.0


@dataclass
class Meter:
    """Counts and times, in this process and for one gateway. Counting costs next to nothing and cannot fail."""

    _counts: dict[Counter, dict[Labels, float]] = field(default_factory=dict[Counter, dict[Labels, float]])
    _times: dict[Histogram, dict[Labels, Timed]] = field(default_factory=dict[Histogram, dict[Labels, Timed]])

    def know(self, measures: Iterable[Counter | Histogram]) -> None:
        """Show these from now on, before anything has happened."""
        for measure in measures:
            if isinstance(measure, Counter):
                self.expect(measure, measure.begins if measure.labels else ((),))
            else:
                self._times.setdefault(measure, {})

    def expect(self, counter: Counter, combinations: Iterable[Labels]) -> None:
        """Show a counter for these values of its labels from now on, as those in its ``begins``."""
        counts = self._counts.setdefault(counter, {})
        for labels in combinations:
            counts.setdefault(labels, 0.0)

    def count(self, counter: Counter, *labels: str, by: float = 1) -> None:
        """Something has happened."""
        counts = self._counts.setdefault(counter, {})
        if labels not in counts and len(counts) >= counter.most:
            labels = (OTHER,) * len(counter.labels)
        counts[labels] = counts.get(labels, 0.0) + by

    def time(self, histogram: Histogram, seconds: float, *labels: str) -> None:
        """Something took so long."""
        times = self._times.setdefault(histogram, {})
        if labels not in times and len(times) >= histogram.most:
            labels = (OTHER,) * len(histogram.labels)
        timed = times.get(labels)
        if timed is None:
            timed = times[labels] = Timed([0] * (len(histogram.bounds) + 1))
        timed.classes[bisect_left(histogram.bounds, seconds)] += 1
        timed.seconds += seconds

    def counted(self) -> Iterator[tuple[Counter, Sequence[tuple[Labels, float]]]]:
        """Every counter with what it has counted."""
        for counter, counts in self._counts.items():
            yield counter, list(counts.items())

    def timed(self) -> Iterator[tuple[Histogram, Sequence[tuple[Labels, Timed]]]]:
        """Every histogram with what it has seen."""
        for histogram, times in self._times.items():
            yield histogram, list(times.items())
