"""What the requests of a sample have in common, and so how many independent ones they are worth.

Segments of a window whose streams were set off anew are independent of each other, as runs are:
where there are enough of them they are clusters, and how far they lie apart tells everything.
Where there are not, what neighbours in time have in common must tell (``autocorrelation``).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from llmbench.measure import statistics as stats
from llmbench.measure.autocorrelation import Dependence
from llmbench.measure.requests import Int32s, Mask, Requests
from llmbench.measure.statistics import Floats, Ints, Worth
from llmbench.plan.segments import TELLING
from llmbench.records import Cell

Worths = Callable[[float], Worth]
"""What a sample is worth at a quantile, by that quantile's value."""


class Shared(NamedTuple):
    """What requests in the order of time share beside their neighbours in time: the run and the
    segment of each, where there are several, and the batch, ``unit`` of them together. Where
    several streams wait for each other they may be ``in_step``, and repeat themselves; in an open
    loop they wait ``in_bursts``."""

    runs: Int32s | None = None
    segments: Int32s | None = None
    unit: int = 1
    in_step: bool = False
    in_bursts: bool = False

    @classmethod
    def of(cls, cell: Cell, requests: Requests) -> "Shared":
        """What ``requests`` of ``cell`` share."""
        runs, segments = requests.run, requests.segment
        return cls(
            runs if runs.any() else None,
            segments if segments.any() else None,
            cell.batch_size or 1,
            can_step(cell),
            cell.arrivals is not None,
        )

    @property
    def clusters(self) -> Ints | None:
        """The number of each request's cluster, from 0, where there are enough of them to tell what
        a sample is worth."""
        if self.runs is None and self.segments is None:
            return None
        both = np.stack([each for each in (self.runs, self.segments) if each is not None])
        found, numbers = np.unique(both, axis=1, return_inverse=True)
        return np.asarray(numbers).reshape(-1) if found.shape[1] >= TELLING else None

    def of_known(self, known: Mask) -> "Shared":
        """The same of those requests alone that are ``known``."""
        return self._replace(
            runs=None if self.runs is None else self.runs[known],
            segments=None if self.segments is None else self.segments[known],
        )

    def worth(self, values: Floats) -> Worths:
        """The worth of ``values``, one a request; what it is by their runs as clusters, where these
        are farther apart than what is in each of them tells."""
        within = self.worth_within(values)
        if self.runs is None:
            return within
        runs = np.unique(self.runs, return_inverse=True)[1]

        def worth(value: float) -> Worth:
            inside = within(value)
            between = stats.effective_size(values, runs, value)
            return inside if inside.n <= between else inside._replace(n=between)

        return worth

    def worth_within(self, values: Floats) -> Worths:
        """The worth of ``values`` by what is in each run."""
        clusters = self.clusters
        if clusters is not None:
            sizes = np.bincount(clusters)

            def by_clusters(value: float) -> Worth:
                hits = np.bincount(clusters, weights=values <= value, minlength=len(sizes))
                return stats.cluster_worth(hits, sizes)

            return by_clusters
        if self.runs is None:
            alone = self._series(values).worth
            return lambda value: Worth(alone(value))
        series = [self._series(values[self.runs == run]) for run in np.unique(self.runs)]
        return lambda value: Worth(sum(each.worth(value) for each in series))

    def _series(self, values: Floats) -> Dependence:
        return Dependence(values, self.unit, in_step=self.in_step, in_bursts=self.in_bursts)


def can_step(cell: Cell) -> bool:
    """Whether the streams of ``cell`` can be in step: a closed loop's that are several, and whose
    requests are of one kind. The turns of a conversation repeat themselves by what they are."""
    several = cell.arrivals is None and not cell.batch_size and (cell.concurrency or 1) > 1
    return several and cell.cache_asked != "session"


ALONE = Shared()


def share_worth(hits: Mask, shared: Shared) -> float:
    """How many independent requests tell as much of the share of them that are ``hits``."""
    if not len(hits):
        return 0.0
    return min(shared.worth_within(hits.astype(np.float64))(0.0).sure, float(len(hits)))
