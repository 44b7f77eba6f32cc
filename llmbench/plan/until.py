"""Stop when figures are certain enough: as ``--until ttft.p50=5%`` says or, by default, when TTFT
p50 and tok/s are.

Looking often enough finds any figure certain by chance. So the looks are declared beforehand: five,
each at twice as many requests as the one before, and each at a fifth of the error (Bonferroni). The
interval at a look is a 99% one; the cell's own stay 95%. By default the looks are at sixths of the
time that the cell has.
"""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from msgspec import Struct

from llmbench.errors import UserError
from llmbench.measure.rates import rate_reach
from llmbench.measure.shared import ALONE, Shared
from llmbench.measure.statistics import (
    Floats,
    fewest,
    interval,
    quantile,
    ratio_reach,
)
from llmbench.plan.lengths import shown

LOOKS = 5
ENOUGH = 0.05
FEWEST_A_STREAM = 2
"""A closed loop that has a budget of time goes on until each stream had so many requests."""

_ERROR = 0.05
_QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
_RULE = re.compile(r"(?:ci|(ttft)\.(p\d+))\s*=\s*(\d+(?:\.\d+)?)%")


class Seen(NamedTuple):
    """What a cell saw of the requests that ended, in the order of time: their TTFT, in seconds (+∞
    where they failed), and the segment of each; of a cell with a budget of time how long they took,
    too, and what they brought, in any unit."""

    ttft_s: Sequence[float]
    segment: Sequence[float] = ()
    took_s: Sequence[float] = ()
    brought: Sequence[float] = ()

    @property
    def shared(self) -> Shared:
        if not len(self.segment):
            return ALONE
        return Shared(segments=np.asarray(self.segment, dtype=np.int32))


class Until(Struct, frozen=True):
    """The 95% interval of a quantile of TTFT within ``share`` of it on either side."""

    quantile: str
    share: float

    def sizes(self, most: int) -> list[int]:
        """The declared looks, in measured requests; the last is at ``most``."""
        return [max(most // 2**step, 1) for step in range(LOOKS - 1, -1, -1)]

    @property
    def fewest(self) -> int:
        """The fewest requests that can tell."""
        return fewest(_QUANTILES[self.quantile], 1 - _ERROR / LOOKS)

    def half_width(self, seen: Seen, confidence: float) -> float | None:
        """The greater side of the interval as a share of the quantile, where there is one. Requests
        that depend on each other count for fewer."""
        if not len(seen.ttft_s):
            return None
        in_order = np.asarray(seen.ttft_s, dtype=np.float64)
        ordered, p = np.sort(in_order), _QUANTILES[self.quantile]
        value = quantile(ordered, p)
        bounds = interval(ordered, p, seen.shared.worth(in_order)(value), confidence)
        if bounds is None or not 0 < value < math.inf:
            return None
        low, high = bounds
        return max(value - low, high - value) / value

    def certain(self, seen: Seen) -> bool:
        """Whether what was ``seen`` is enough, at one of the declared looks."""
        width = self.half_width(seen, 1 - _ERROR / LOOKS)
        return width is not None and width <= self.share

    def remark(self, seen: Seen, looked: int, certain: bool) -> str:
        """How it ended, in words."""
        width = self.half_width(seen, 1 - _ERROR / LOOKS)
        reached = "no interval" if width is None else f"±{100 * width:.2g}%"
        fate = "reached" if certain else "not reached"
        asked = f"TTFT {self.quantile} within ±{100 * self.share:g}%"
        told = f"{reached} (99%) by {len(seen.ttft_s)} requests"
        return f"{asked} {fate} at look {looked} of {LOOKS}: {told}"


class Enough(Struct, frozen=True):
    """TTFT p50 and, of a closed loop, tok/s within ±5%. Where p95 would have an interval by the end
    of the time too, that is waited for."""

    budget_s: float
    rates: bool

    def due_s(self, look: int) -> float:
        """When look number ``look`` (from 0) is, from the opening of the window."""
        return self.budget_s * (look + 1) / (LOOKS + 1)

    def certain(self, seen: Seen, age_s: float) -> bool:
        """Whether what was ``seen`` until ``age_s`` is enough."""
        count, wanted = len(seen.ttft_s), fewest(_QUANTILES["p95"])
        if count < wanted <= count * self.budget_s / age_s:
            return False
        if not Until("p50", ENOUGH).certain(seen):
            return False
        if not self.rates:
            return True
        took_s, brought = np.asarray(seen.took_s), np.asarray(seen.brought)
        good = np.isfinite(took_s)
        reach = self._reach(brought[good], took_s[good], seen.shared.of_known(good))
        return reach is not None and reach <= ENOUGH

    def _reach(self, brought: Floats, took_s: Floats, shared: Shared) -> float | None:
        """How far the interval of the rate reaches on each side, as a share of it."""
        confidence, clusters = 1 - _ERROR / LOOKS, shared.clusters
        if clusters is None or not len(brought):
            return rate_reach(brought, took_s, 1, confidence)
        of_clusters = [np.bincount(clusters, weights=each) for each in (brought, took_s)]
        return ratio_reach(of_clusters[0], of_clusters[1], confidence)


def read_until(text: str, where: str = "--until") -> Until:
    """``ci=5%`` (of TTFT p50) or ``ttft.p95=5%``. Raises ``UserError`` for anything else."""
    rule = _RULE.fullmatch(text.strip())
    if rule is None or (rule[2] or "p50") not in _QUANTILES:
        raise UserError(
            f"{where} '{shown(text)}': write ci=5% (for TTFT p50), or ttft.p95=5%; of p50, p90, "
            "p95, p99"
        )
    share = float(rule[3]) / 100
    if not 0 < share < 1:
        raise UserError(f"{where} '{shown(text)}': the width must lie between 0% and 100%")
    return Until(rule[2] or "p50", share)
