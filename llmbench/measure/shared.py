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
from llmbench.plan.segments import FEWEST

Worths = Callable[[float], Worth]
"""What a sample is worth at a quantile, by that quantile's value."""


class Shared(NamedTuple):
    """What requests in the order of time share beside their neighbours in time: the run and the
    segment of each, where there are several, and the batch, ``unit`` of them together."""

    runs: Int32s | None = None
    segments: Int32s | None = None
    unit: int = 1

    @classmethod
    def of(cls, requests: Requests, batch_size: int | None) -> "Shared":
        """What ``requests`` share; ``batch_size`` is that of static batches."""
        runs, segments = requests.run, requests.segment
        return cls(
            runs if runs.any() else None,
            segments if segments.any() else None,
            batch_size or 1,
        )

    @property
    def clusters(self) -> Ints | None:
        """The number of each request's cluster, from 0, where there are enough of them to tell what
        a sample is worth."""
        if self.runs is None and self.segments is None:
            return None
        both = np.stack([each for each in (self.runs, self.segments) if each is not None])
        found, numbers = np.unique(both, axis=1, return_inverse=True)
        return np.asarray(numbers).reshape(-1) if found.shape[1] >= FEWEST else None

    def of_known(self, known: Mask) -> "Shared":
        """The same of those requests alone that are ``known``."""
        return Shared(
            None if self.runs is None else self.runs[known],
            None if self.segments is None else self.segments[known],
            self.unit,
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
            alone = Dependence(values, self.unit).worth
            return lambda value: Worth(alone(value))
        series = [Dependence(values[self.runs == run], self.unit) for run in np.unique(self.runs)]
        return lambda value: Worth(sum(each.worth(value) for each in series))


ALONE = Shared()
