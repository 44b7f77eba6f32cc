"""The gaps between the events of a cell's replies: ICL, and ITL where each event's tokens show."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from llmbench.measure.statistics import Floats, Ints, Reals, Singles, pooled
from llmbench.records import RequestMetrics

BURST_FRACTION = 0.2
"""A gap shorter than this share of the median gap is part of a burst."""

BURSTY = 0.2
"""A greater share of burst gaps than this says that the stream was held back on its way."""

HEAVY_HEAD = 0.05
"""A greater share of tokens that come with the first event makes a rate after it meaningless."""

SHORT_GAP_S = 0.03
DELAYED_ACK_S = (0.038, 0.045)

COUNT_TOLERANCE = 0.01
"""How far events and tokens may differ and still pass for one token an event."""


class Gaps:
    """The gaps of replies, in seconds. Those of one reply are made when they are asked for, with
    ``of``; all together are pooled for as long as it takes, for they may be many millions."""

    def __init__(
        self, replies: Sequence[RequestMetrics], of: Callable[[RequestMetrics], Singles]
    ) -> None:
        self._replies = replies
        self._of = of
        self.sizes: Ints = np.array([len(each) for each in self], dtype=np.int64)

    def __iter__(self) -> Iterator[Singles]:
        """The gaps of each reply."""
        return map(self._of, self._replies)

    def __len__(self) -> int:
        return int(self.sizes.sum())

    def pooled(self) -> Singles:
        """All gaps in ascending order."""
        return pooled(self, len(self))

    def at_most(self, thresholds: Sequence[float]) -> Ints:
        """How many gaps of each reply are no longer than each of ``thresholds``: a row for each."""
        counts = np.empty((len(thresholds), len(self._replies)), dtype=np.int64)
        for number, each in enumerate(self):
            counts[:, number] = [np.count_nonzero(each <= limit) for limit in thresholds]
        return counts

    def means(self) -> Floats:
        """The mean gap of each reply that has any."""
        return np.array([each.mean(dtype=np.float64) for each in self if len(each)])


class TokenGaps(NamedTuple):
    """ITL: ``gaps`` is ``None`` where tokens per event are unknown, and ``why_not`` says why."""

    gaps: Gaps | None
    imputed_share: float
    why_not: str


def chunk_gaps(good: Sequence[RequestMetrics]) -> Gaps:
    """ICL: the raw gaps between content events."""
    return Gaps(good, _raw)


def token_gaps(good: Sequence[RequestMetrics], icl: Gaps) -> TokenGaps:
    """ITL: the gap before each token, from the running counts of the server or from its total.

    Where one event brought ``k`` tokens its gap counts ``k`` times as ``gap / k``; those values are
    imputed, for nobody saw when each token was made. The gaps are ``icl`` itself where each event
    is a token.
    """
    if good and all(metrics.counted for metrics in good):
        if all(metrics.steps is None for metrics in good):
            return TokenGaps(icl, 0.0, "")
        gaps = Gaps(good, _by_running_count)
        imputed = sum(_imputed(metrics) for metrics in good)
        return TokenGaps(gaps, imputed / len(gaps) if len(gaps) else 0.0, "")
    events = sum(metrics.events for metrics in good)
    # A model that stops by itself counts its end token, which has no text and no event.
    ends = sum(metrics.finish == "stop" for metrics in good)
    tokens = sum(metrics.tokens for metrics in good)
    if "chunks" in {metrics.token_source for metrics in good}:
        return TokenGaps(None, 0.0, "the server does not count its tokens")
    if min(abs(tokens - events), abs(tokens - ends - events)) > COUNT_TOLERANCE * max(tokens, 1):
        return TokenGaps(None, 0.0, f"{tokens:,} tokens came in {events:,} events")
    return TokenGaps(icl, 0.0, "")


def _raw(metrics: RequestMetrics) -> Singles:
    return np.asarray(metrics.gaps_s, dtype=np.float32)


def _by_running_count(metrics: RequestMetrics) -> Singles:
    """The gaps before the tokens after the first event's. An event without a new token has none:
    its time is part of the next one's."""
    if metrics.steps is None:
        return _raw(metrics)
    steps = metrics.steps
    brought = steps > 0
    if brought.all():
        return np.repeat(_raw(metrics) / steps, steps).astype(np.float32, copy=False)
    until_s = np.cumsum(metrics.gaps_s, dtype=np.float64)[brought]
    gaps_s = np.diff(until_s, prepend=0.0)
    return np.repeat(gaps_s / steps[brought], steps[brought]).astype(np.float32)


def _imputed(metrics: RequestMetrics) -> int:
    """How many tokens came several in an event."""
    return 0 if metrics.steps is None else int(metrics.steps[metrics.steps > 1].sum())


def burst_index(ordered: Reals) -> float:
    """The share of the ascending gaps below a fifth of the median of those that are not zero."""
    apart = ordered[_first_beyond(ordered, 0.0) :]
    if len(apart) == 0:
        return 1.0
    return float(_first_from(ordered, BURST_FRACTION * _median(apart)) / len(ordered))


def delayed_ack_share(ordered: Reals) -> float | None:
    """The share of the ascending gaps as long as a delayed ACK (38–45 ms), where most are much
    shorter."""
    if not len(ordered) or _median(ordered) > SHORT_GAP_S:
        return None
    low, high = DELAYED_ACK_S
    return (_first_beyond(ordered, high) - _first_from(ordered, low)) / len(ordered)


def _median(ordered: Reals) -> float:
    return float(ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def _first_from(ordered: Reals, value: float) -> int:
    # The value in the type of the array: for another one numpy would convert all of the array.
    return int(np.searchsorted(ordered, ordered.dtype.type(value), side="left"))


def _first_beyond(ordered: Reals, value: float) -> int:
    return int(np.searchsorted(ordered, ordered.dtype.type(value), side="right"))
