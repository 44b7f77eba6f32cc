"""P(turn within budget): the stages of a turn, summed by Monte Carlo, with the LLM as measured.

A turn takes the sum of its stages (speech to text, speech synthesis, the network) and of the time
to the LLM's first speakable chunk. Percentiles do not add: the slow ends of independent stages
seldom meet. So their distributions are added, by drawing from each.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from msgspec import Struct
from numpy.random import Generator, default_rng

from llmbench.errors import UserError
from llmbench.measure import statistics as stats
from llmbench.measure.statistics import Floats, Ints
from llmbench.plan.lengths import Law, Seconds, read_seconds, shown

DRAWS = 100_000
GRID = 10_000
"""How many equally likely values stand for a distribution: the middles of as many equal parts."""

PSEUDO = 2
"""Of turns that are in budget, and of turns that are not, that a variance adds (``_worth``)."""

ROUNDING = 1e-12
_TERMS = 60
_Z95 = NormalDist().inv_cdf(0.95)


# ---- stages


class Stage(NamedTuple):
    """One stage of a turn. ``values_s`` are equally likely, in ascending order; where they are
    ``sampled``, they are themselves a measurement, which another day would have come out otherwise.
    """

    name: str
    text: str
    values_s: Floats
    sampled: bool = False

    @property
    def fixed(self) -> bool:
        return len(self.values_s) == 1

    def quantile_s(self, p: float) -> float:
        return stats.quantile(self.values_s, p)


def read_stage(name: str, text: str, where: str = "--stage") -> Stage:
    """``150ms``, ``120ms/300ms`` (p50/p95: the lognormal through both) or ``lognormal(0.15,0.5)``
    (seconds) as a stage."""
    place = f"{where} {name}"
    p50, slash, p95 = text.partition("/")
    if not slash:
        return Stage(name, text, _values(read_time(text, place)))
    median, high = (read_time(part, place) for part in (p50, p95))
    if median.fixed is None or high.fixed is None or not 0 < median.fixed <= high.fixed:
        raise UserError(
            f"{place}: '{shown(text)}' is no p50/p95: write two times, the lower first, "
            "such as 120ms/300ms"
        )
    sigma = math.log(high.fixed / median.fixed) / _Z95
    if sigma == 0:
        return Stage(name, text, np.array([median.fixed]))
    return Stage(name, text, _values(Seconds(Law("lognormal", (median.fixed, sigma)))))


def read_time(text: str, where: str) -> Seconds:
    """``read_seconds``, but a number alone has to have its unit: of latencies, nobody knows which
    was meant. Raises ``UserError``."""
    try:
        float(text)
    except ValueError:
        pass
    else:
        raise UserError(f"{where}: '{shown(text)}' has no unit: write 150ms or 1.5s")
    try:
        return read_seconds(text, where)
    except UserError:
        if "(" in text:  # a distribution, of which it knows what is wrong
            raise
        raise UserError(f"{where}: '{shown(text)}' is no time; write one such as 150ms") from None


def sampled_stage(name: str, text: str, values_s: Sequence[float]) -> Stage:
    """A stage of which ``values_s`` were measured."""
    return Stage(name, text, np.sort(np.array(values_s, dtype=np.float64)), sampled=True)


def _values(seconds: Seconds) -> Floats:
    if seconds.fixed is not None:
        return np.array([seconds.fixed])
    return np.array([seconds.at((part + 0.5) / GRID) for part in range(GRID)])


# ---- sums


class Sums(NamedTuple):
    """Draws of what the stages take together; ``picks`` has, for every sampled stage, the value
    that each draw took, as an index into its values."""

    total_s: Floats
    picks: list[Ints]

    @property
    def fixed(self) -> bool:
        return len(self.total_s) == 1


def sums(stages: Sequence[Stage], rng: Generator, draws: int = DRAWS) -> Sums:
    """What the stages take together: ``draws`` times, or once where all are fixed.

    Each value of a stage is drawn equally often, as nearly as can be, which leaves less to chance.
    """
    draws = max([draws, *(len(stage.values_s) for stage in stages)])
    if all(stage.fixed for stage in stages):
        draws = 1
    total_s, picks = np.zeros(draws), []
    for stage in stages:
        pick = rng.permutation(np.arange(draws) % len(stage.values_s))
        total_s += stage.values_s[pick]
        if stage.sampled:
            picks.append(pick)
    return Sums(total_s, picks)


def left_s(spent: Sums, budget_s: float, share: float) -> float:
    """The most that the LLM may take in every turn, if a ``share`` of the turns is to be in budget:
    what the stages leave of it; negative where they alone exceed it."""
    return budget_s - stats.quantile(np.sort(spent.total_s), share)


def turns_s(waits_s: Floats, spent: Sums, rng: Generator, draws: int = DRAWS) -> Floats:
    """How long turns take, in ascending order: the LLM's ``waits_s`` (+∞ where it never spoke) and
    draws of what the stages take; the waits themselves where that is fixed."""
    if spent.fixed:
        return np.sort(waits_s + spent.total_s[0])
    draws = max(draws, len(waits_s))
    wait = waits_s[rng.permutation(np.arange(draws) % len(waits_s))]
    return np.sort(wait + spent.total_s[np.arange(draws) % len(spent.total_s)])


# ---- the chance that a turn is in budget


class Chance(NamedTuple):
    """The share of turns that are in budget, with its 95% interval."""

    value: float
    low: float
    high: float


def chance(waits_s: Floats, spent: Sums, budget_s: float, alone: float = 1.0) -> Chance | None:
    """P(stages + wait ≤ budget), where the LLM's ``waits_s`` are a sample, with +∞ for a turn that
    it never answered; ``None`` without a sample. They are worth as many independent ones as the
    share ``alone`` of them.

    With fixed stages a turn is in budget or not. Else each wait has a chance of its own, by the
    draws of the stages: the mean of these varies less than a count of as many turns would, so that
    they are worth more turns than they are (``_worth``). So are the values of a sampled stage. What
    is worth n and what is worth m turns is together worth 1 / (1/n + 1/m), for variances add.
    """
    n = len(waits_s)
    if not n:
        return None
    # how many of the waits, from the least on, are in budget with each draw of the stages
    within = np.searchsorted(np.sort(waits_s), budget_s - spent.total_s, side="right")
    draws = len(within)
    value = float(within.mean()) / n
    by_wait = 1 - np.cumsum(np.bincount(within, minlength=n + 1))[:n] / draws
    parts = [_worth(by_wait, value) * alone]
    for pick in spent.picks:
        by_value = np.bincount(pick, weights=within) / np.bincount(pick) / n
        parts.append(_worth(by_value, value))
    if not spent.fixed:
        parts.append(draws)
    return Chance(value, *share_interval(value, 1 / sum(1 / part for part in parts)))


def _worth(each: Floats, share: float) -> float:
    """How many turns, each in budget or not, tell as much of the ``share`` as the chances ``each``.

    A count of n turns has the variance p(1 − p)/n, and chances with mean p have no greater one. A
    sample cannot show what it did not meet: so that a few equal chances are not taken for
    certainty, two turns that are in budget and two that are not are added to their variance (A.
    Agresti & B. A. Coull, The American Statistician 52, 1998).
    """
    squares = float(((each - share) ** 2).sum()) + PSEUDO * (share**2 + (1 - share) ** 2)
    return max(len(each), share * (1 - share) * len(each) ** 2 / squares)


def share_interval(share: float, n: float) -> tuple[float, float]:
    """The exact 95% interval of a share of ``n`` turns: C. J. Clopper & E. S. Pearson, Biometrika
    26 (1934), with the effective n of E. L. Korn & B. I. Graubard, Survey Methodology 24 (1998).

    It never holds the truth less often than it says, as shorter ones do near 1, and it goes with
    the order statistics of ``measure/statistics``: with 72 turns out of 72, 95% is certain.
    """
    hits, tail = share * n, (1 - stats.CONFIDENCE) / 2
    low = _beta_quantile(tail, hits, n - hits + 1) if hits > 0 else 0.0
    high = _beta_quantile(1 - tail, hits + 1, n - hits) if n - hits > ROUNDING * n else 1.0
    return low, high


def _beta_quantile(p: float, a: float, b: float) -> float:
    """The quantile of the beta distribution, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        if _beta(middle, a, b) < p:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _beta(x: float, a: float, b: float) -> float:
    """The regularized incomplete beta function I_x(a, b), by its continued fraction: NIST Digital
    Library of Mathematical Functions, 8.17.22, from the last term to the first."""
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast on one side only
        return 1 - _beta(1 - x, b, a)
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front += a * math.log(x) + b * math.log1p(-x) if x > 0 else -math.inf
    fraction = 1.0
    for m in range(_TERMS + int(3 * math.sqrt(a + b)), -1, -1):
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)) if m else 1.0
        fraction = 1 + odd / fraction
        fraction = 1 + even / fraction if m else fraction
    return math.exp(front) / (a * fraction)


# ---- the verdict


class Level(NamedTuple):
    """One load of a target and its chance; ``None`` where that is not known."""

    load: float
    chance: Chance | None


class Verdict(Struct, frozen=True, kw_only=True):
    """Up to which load a ``share`` of the turns is in budget: ``sure`` where the interval says so,
    ``probable`` where the estimate does; ``None`` where not even the least load is. ``most`` is the
    most that was measured."""

    share: float
    sure: float | None
    probable: float | None
    most: float


def verdict(levels: Sequence[Level], share: float) -> Verdict:
    """The highest load which, like all lower ones, has a ``share`` of its turns in budget."""
    ordered = sorted(levels, key=lambda level: level.load)
    sure = _highest(
        ordered, [each.chance is not None and each.chance.low >= share for each in ordered]
    )
    probable = _highest(
        ordered, [each.chance is not None and each.chance.value >= share for each in ordered]
    )
    return Verdict(share=share, sure=sure, probable=probable, most=ordered[-1].load)


def _highest(ordered: Sequence[Level], met: Sequence[bool]) -> float | None:
    """The load before the first that did not meet it."""
    kept = met.index(False) if False in met else len(met)
    return ordered[kept - 1].load if kept else None


def generator(seed: int) -> Generator:
    """Where the draws come from: equal seeds, equal figures."""
    return default_rng(seed)
