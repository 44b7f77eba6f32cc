"""How many requests of each side of a comparison failed, and how sure their share is."""

import numpy as np
from msgspec import Struct

from llmbench.measure.autocorrelation import effective_n
from llmbench.measure.likeness import Side
from llmbench.measure.statistics import wilson


class Failures(Struct, frozen=True, kw_only=True):
    """``failed`` of ``n`` requests; failures that come together count as fewer in ``ci95``."""

    failed: int
    n: int
    ci95: tuple[float, float]

    @property
    def share(self) -> float:
        return self.failed / self.n if self.n else 0.0


def failures(side: Side) -> Failures:
    """Those of all runs of ``side``, by Wilson's interval of what the requests are worth."""
    failed = n = 0
    worth = 0.0
    for _, requests in side.measured():
        lost = requests.lost.astype(np.float64)
        failed, n = failed + int(lost.sum()), n + len(lost)
        worth += effective_n(lost, 0.0)
    ci95 = wilson(failed / n * worth, worth) if n else (0.0, 1.0)
    return Failures(failed=failed, n=n, ci95=ci95)
