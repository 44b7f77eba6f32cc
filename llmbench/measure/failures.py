"""How many requests of each side of a comparison failed, and how sure their share is."""

from msgspec import Struct

from llmbench.measure.likeness import Side
from llmbench.measure.shared import Shared, share_worth
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
    for cell, requests in side.measured():
        lost = requests.lost
        failed, n = failed + int(lost.sum()), n + len(lost)
        worth += share_worth(lost, Shared.of(cell, requests))
    ci95 = wilson(failed / n * worth, worth) if n else (0.0, 1.0)
    return Failures(failed=failed, n=n, ci95=ci95)
