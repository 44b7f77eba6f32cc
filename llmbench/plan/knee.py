"""The load at which a share of requests crosses what is allowed, from a few noisy probes.

The share of requests over a limit rises with the load. Its logarithm of odds is taken for a
straight line in the logarithm of the load, where it is near what is allowed: in an M/M/c queue
log P(W > t) = log C(c, ρ) − (cμ − λ)t is nearly one. The line has two unknowns, the load at which
it crosses (the knee) and how steep it is; both are held as a grid of what is still possible, which
each probe makes less likely or more, by the binomial distribution. This is how a threshold is
found in psychophysics: L. L. Kontsevich & C. W. Tyler, *Bayesian adaptive estimation of
psychometric slope and threshold*, Vision Research 39 (1999), 2729–2737.

Requests of one probe depend on each other: they meet the same queue. By how much, one probe tells
badly, and too hopefully where few of its requests were slow; so every request of all probes is
taken for worth as little as those of the probe that shows it most.
"""

import math
from collections.abc import Sequence

import numpy as np
from msgspec import Struct

from llmbench.measure.statistics import CONFIDENCE, Floats
from llmbench.records import Beyond

NEAR = (0.2, 4.0)
"""The line holds between these multiples of the allowed share; outside the share is only less, or
more: requests that are slow at any load, or an overload that has just begun, do not bend it."""

BEYOND = 4.0
"""The knee may lie by this factor outside the loads that may be tried."""

STEP = 0.0025
"""Between two loads of the grid, as a share."""

SLOPES: Floats = np.geomspace(2.0, 2000.0, 31)
"""How much the logarithm of odds rises as the load is multiplied by e: from latencies that grow
slowly and scatter widely to a server that has just so many slots."""

MOST_WORTH = 1000.0
"""Two probes of one load differ by more than their requests: no probe counts as more than this."""

Tried = tuple[float, Beyond]
"""A load, and what was seen at it."""


class Bounds(Struct, frozen=True):
    """The median of where the knee can be, between the ends of its 95% interval."""

    low: float
    median: float
    high: float


def lowest(limits: Sequence[Sequence[Tried]], least: float, most: float) -> Bounds:
    """Where the lowest knee of several limits is, for every one is to be kept: of each what was
    tried between ``least`` and ``most``."""
    logs = _grid(least, most)
    above = np.prod([_above(tried, logs) for tried in limits], axis=0)
    tail = (1 - CONFIDENCE) / 2
    low, median, high = (
        float(np.exp(logs[min(int(np.argmax(above <= 1 - p)), len(logs) - 1)]))
        for p in (tail, 0.5, 1 - tail)
    )
    return Bounds(low, median, high)


def requests_a_sample(tried: Sequence[Tried]) -> float:
    """How many requests are worth one that depends on no other, as the load comes near the knee:
    by the probe that was not overloaded and where they depend on each other most."""
    calm = [each for _, each in tried if each.share <= _within(NEAR[1], each.allowed)]
    return max((each.n / each.worth for each in calm), default=1.0)


def _grid(least: float, most: float) -> Floats:
    first, last = math.log(least / BEYOND), math.log(most * BEYOND)
    return np.linspace(first, last, math.ceil((last - first) / STEP) + 1)


def _above(tried: Sequence[Tried], logs: Floats) -> Floats:
    """For each of ``logs`` the probability that the knee is not below it."""
    together = requests_a_sample(tried)
    likelihood = np.zeros((len(SLOPES), len(logs)))
    for load, seen in tried:
        odds = math.log(seen.allowed / (1 - seen.allowed))
        least, most = (_within(factor, seen.allowed) for factor in NEAR)
        line = odds + SLOPES[:, None] * (math.log(load) - logs[None, :])
        chance = np.clip(1 / (1 + np.exp(-np.clip(line, -50, 50))), least, most)
        worth = 1 / (together / seen.n + 1 / MOST_WORTH)
        over = seen.share * worth
        likelihood += over * np.log(chance) + (worth - over) * np.log1p(-chance)
    density = np.exp(likelihood - likelihood.max()).sum(axis=0)
    return np.asarray(1 - np.cumsum(density) / density.sum())


def _within(factor: float, allowed: float) -> float:
    """``factor`` times the share ``allowed``, or as many times its odds where that is too much."""
    odds = factor * allowed / (1 - allowed)
    return odds / (1 + odds)
