"""When the requests of an open loop are due: a rate, constant or changing, and how arrivals
scatter about it.

The arrivals are a renewal process of rate 1, whose times are mapped through the inverse of the
cumulative rate. For exponential gaps that gives the Poisson process with this rate (E. Çinlar,
Introduction to Stochastic Processes, Prentice-Hall 1975, section 4.7: the method of inversion). For
other gaps it gives a process with this rate and the burstiness of the gaps (I. Gerhardt and
B. L. Nelson, Transforming Renewal Processes for Simulation of Nonstationary Arrival Processes,
INFORMS Journal on Computing 21(4), 2009). The process starts at 0 with a gap that is drawn like all
others: no request is due at 0.
"""

from collections.abc import Iterator
from itertools import count

import numpy as np
from msgspec import Struct

from llmbench.errors import UserError
from llmbench.plan.lengths import named, number, shown, term

LEAST_PER_S = 1e-6
MOST_PER_S = 1e6
LEAST_BURSTINESS = 0.01
MOST_BURSTINESS = 10_000.0
_RATE_HINT = "write requests a second, such as 8, ramp(2,32) or steps(2,8,32), or trace"
_ARRIVALS_HINT = "write poisson, constant or gamma(B), such as gamma(0.5)"
_RATES_TAKEN = {
    "ramp": "two rates, such as ramp(2,32)",
    "steps": "two rates or more, such as steps(2,8,32)",
}
_BLOCK = 1024

Floats = np.ndarray[tuple[int], np.dtype[np.float64]]
Ints = np.ndarray[tuple[int], np.dtype[np.int64]]


class Rate(Struct, frozen=True):
    """Requests a second over a window: ``constant``, ``ramp``, ``steps``, or ``trace``, which has
    no values."""

    kind: str
    values: tuple[float, ...] = ()

    def __str__(self) -> str:
        if self.kind == "constant":
            return number(self.values[0])
        return named(self.kind, self.values) if self.values else self.kind

    @property
    def mean(self) -> float | None:
        """Requests a second, on average over the window; ``None`` for those of a trace."""
        return sum(self.values) / len(self.values) if self.values else None


class Arrivals(Struct, frozen=True):
    """How arrivals scatter: ``poisson``, ``constant`` or ``gamma``.

    ``burstiness`` is the shape of the gamma distribution that the gaps are drawn from: below 1 they
    are burstier than a Poisson process, for which it is 1. Constant arrivals have none.
    """

    kind: str
    burstiness: float | None = None

    def __str__(self) -> str:
        if self.kind == "gamma" and self.burstiness is not None:
            return named(self.kind, (self.burstiness,))
        return self.kind


def read_rate(text: str, where: str = "--request-rate") -> Rate:
    """``8``, ``ramp(2,32)``, ``steps(2,8,32)`` or ``trace``."""
    name, values = term(text) or ("?", ())
    if (name, values) == ("trace", ()):
        return Rate("trace")
    if name not in ("", "ramp", "steps"):
        raise UserError(f"{where}: '{shown(text)}' is no rate; {_RATE_HINT}")
    kind = name or "constant"
    if kind in _RATES_TAKEN and (len(values) < 2 or (kind == "ramp" and len(values) > 2)):
        raise UserError(f"{where}: '{shown(text)}': {kind} takes {_RATES_TAKEN[kind]}")
    for value in values:
        if not LEAST_PER_S <= value <= MOST_PER_S:
            raise UserError(
                f"{where}: '{shown(text)}': {number(value)} requests a second is out of range; "
                f"write a rate above 0, from {number(LEAST_PER_S)} to {number(MOST_PER_S)}"
            )
    return Rate(kind, values)


def read_arrivals(text: str, where: str = "--arrivals") -> Arrivals:
    """``poisson``, ``constant`` or ``gamma(0.5)``."""
    name, values = term(text) or ("?", ())
    if name in ("poisson", "constant") and not values:
        return Arrivals(name, 1.0 if name == "poisson" else None)
    if name != "gamma" or len(values) != 1:
        raise UserError(f"{where}: '{shown(text)}' is no kind of arrivals; {_ARRIVALS_HINT}")
    if not LEAST_BURSTINESS <= values[0] <= MOST_BURSTINESS:
        raise UserError(
            f"{where}: '{shown(text)}': write a burstiness above 0, "
            f"from {number(LEAST_BURSTINESS)} to {number(MOST_BURSTINESS)}; 1 is Poisson"
        )
    return Arrivals("gamma", values[0])


def window_s_for(rate: Rate, requests: int) -> float:
    """How long a window is that holds ``requests`` at the mean rate. A trace has no such window."""
    if rate.mean is None:
        raise ValueError("the rate of a trace is that of its file")
    return requests / rate.mean


def due_s(
    rate: Rate,
    arrivals: Arrivals,
    *,
    window_s: float | None,
    seed: int,
    warmup_s: float = 0.0,
    counts: tuple[int, ...] = (),
) -> Iterator[float]:
    """When requests are due, in seconds from 0, one after the other and without end.

    The window comes after ``warmup_s``, in which the rate is the window's first; after the window
    the last one goes on. Only a constant rate needs no window. Equal arguments give equal times in
    every process, as long as numpy keeps its streams.

    Gaps are stretched so that the first ``counts[0]`` requests, the next ``counts[1]`` and so on
    take just the time that so many take on average: the process, given its counts. Chance then
    makes no window's load lighter than another's, or than what was asked for.
    """
    pieces = _pieces(rate, window_s, warmup_s)
    return _due_s(pieces, _stretched(arrivals, seed, counts))


def _stretched(arrivals: Arrivals, seed: int, counts: tuple[int, ...]) -> Iterator[Floats]:
    """The gaps of a renewal process of rate 1 in blocks; each run of ``counts`` sums to its own
    length."""
    bounds = np.cumsum(counts)
    sums = np.zeros(len(counts) + 1)
    blocks = _blocks(arrivals, seed)
    for first in range(0, sum(counts), _BLOCK):
        np.add.at(sums, _runs(bounds, first), next(blocks))
    stretch = np.ones(len(counts) + 1)
    np.divide(counts, sums[:-1], out=stretch[:-1], where=sums[:-1] > 0)
    for first, gaps in zip(count(0, _BLOCK), _blocks(arrivals, seed), strict=False):
        yield gaps * stretch[_runs(bounds, first)]


def _runs(bounds: Ints, first: int) -> Ints:
    """The run that each gap of the block from ``first`` on belongs to."""
    return np.searchsorted(bounds, np.arange(first, first + _BLOCK), side="right")


def _blocks(arrivals: Arrivals, seed: int) -> Iterator[Floats]:
    generator = np.random.Generator(np.random.PCG64(seed % 2**64))
    while True:
        yield _gaps(arrivals, generator)


def _due_s(pieces: "_Pieces", blocks: Iterator[Floats]) -> Iterator[float]:
    expected = latest_s = 0.0
    for gaps in blocks:
        gaps[0] += expected  # so that the sum is the same in blocks of any size
        counts = np.cumsum(gaps)
        expected = float(counts[-1])
        # rounding may put a time before one that is as good as equal to it
        times_s = np.maximum.accumulate(np.maximum(pieces.inverse(counts), latest_s)).tolist()
        latest_s = times_s[-1]
        yield from times_s


def _gaps(arrivals: Arrivals, generator: np.random.Generator) -> Floats:
    """The next gaps of a renewal process of rate 1."""
    if arrivals.burstiness is None:
        return np.ones(_BLOCK)
    if arrivals.burstiness == 1:
        return generator.standard_exponential(_BLOCK)
    return generator.standard_gamma(arrivals.burstiness, _BLOCK) / arrivals.burstiness


class _Pieces(Struct, frozen=True):
    """A rate as pieces in which it is constant or changes in line, the last one without end.

    Each starts at ``start_s``, when ``expected`` requests were due on average, with the rate
    ``per_s`` and its ``slope``, requests a second more each second.
    """

    start_s: Floats
    expected: Floats
    per_s: Floats
    slope: Floats

    def inverse(self, expected: Floats) -> Floats:
        """When so many requests are expected to have been due: the inverse cumulative rate.

        Within a piece the count is per_s t + slope t² / 2. Of the ways to write the root this one
        has no difference of near numbers in it, and holds for a slope of 0 as well.
        """
        piece = np.searchsorted(self.expected, expected, side="right") - 1
        more = expected - self.expected[piece]
        per_s = self.per_s[piece]
        root = np.sqrt(per_s**2 + 2 * self.slope[piece] * more)
        return self.start_s[piece] + 2 * more / (per_s + root)


def _pieces(rate: Rate, window_s: float | None, warmup_s: float) -> _Pieces:
    if rate.kind == "trace":
        raise ValueError("the times of a trace are those of its file")
    if rate.kind == "constant":
        return _joined([], [(rate.values[0], rate.values[0])])
    if window_s is None or window_s <= 0:
        raise ValueError(f"a rate of {rate} needs a window to change in")
    if rate.kind == "ramp":
        first, last = rate.values
        ends = [(first, first), (first, last), (last, last)]
        return _joined([warmup_s, window_s], ends)
    parts = [window_s / len(rate.values)] * len(rate.values)
    levels = [rate.values[0], *rate.values, rate.values[-1]]
    return _joined([warmup_s, *parts], [(level, level) for level in levels])


def _joined(lasts_s: list[float], ends: list[tuple[float, float]]) -> _Pieces:
    """Pieces with the rates at their ``ends``; the last one has no end in time."""
    start_s, expected, slope = [0.0], [0.0], []
    for length_s, (first, last) in zip(lasts_s, ends[:-1], strict=True):
        start_s.append(start_s[-1] + length_s)
        expected.append(expected[-1] + length_s * (first + last) / 2)
        slope.append((last - first) / length_s if length_s else 0.0)
    per_s = [first for first, _ in ends]
    return _Pieces(np.array(start_s), np.array(expected), np.array(per_s), np.array([*slope, 0.0]))
