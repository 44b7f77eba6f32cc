"""The gaps between the events of a cell's replies: ICL, and ITL where each event's tokens show."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from llmbench.measure.statistics import Floats, Ints
from llmbench.records import RequestMetrics

BURST_FRACTION = 0.2
"""A gap shorter than this share of the median gap is part of a burst."""

BURSTY = 0.2
"""A greater share of burst gaps than this says that the stream was held back on its way."""

HEAVY_HEAD = 0.05
"""A greater share of tokens that come with the first event makes a rate after it meaningless."""

SHORT_GAP_S = 0.03

COUNT_TOLERANCE = 0.01
"""How far events and tokens may differ and still pass for one token an event."""


class Gaps(NamedTuple):
    """Pooled gaps in seconds; ``request`` names, for each, the request that it came from."""

    seconds: Floats
    request: Ints

    def of_requests(self) -> Floats:
        """The mean gap of each request that has any, in seconds."""
        sums = np.bincount(self.request, weights=self.seconds)
        counts = np.bincount(self.request)
        return np.asarray(sums[counts > 0] / counts[counts > 0])


class TokenGaps(NamedTuple):
    """ITL: ``gaps`` is ``None`` where tokens per event are unknown, and ``why_not`` says why."""

    gaps: Gaps | None
    imputed_share: float
    why_not: str


def chunk_gaps(good: Sequence[RequestMetrics]) -> Gaps:
    """ICL: the raw gaps between content events."""
    stamps = [np.asarray(metrics.timeline.at_ns, dtype=np.int64) for metrics in good]
    return _pool([np.diff(at_ns) / 1e9 for at_ns in stamps])


def token_gaps(good: Sequence[RequestMetrics], icl: Gaps) -> TokenGaps:
    """ITL: the gap before each token, from the running counts of the server or from its total.

    Where one event brought ``k`` tokens its gap counts ``k`` times as ``gap / k``; those values are
    imputed, for nobody saw when each token was made.
    """
    if good and all(metrics.timeline.running_tokens is not None for metrics in good):
        return _gaps_by_running_count(good)
    events = sum(len(metrics.timeline.at_ns) for metrics in good)
    # A model that stops by itself counts its end token, which has no text and no event.
    ends = sum(metrics.timeline.finish == "stop" for metrics in good)
    tokens = sum(metrics.tokens for metrics in good)
    if "chunks" in {metrics.token_source for metrics in good}:
        return TokenGaps(None, 0.0, "the server does not count its tokens")
    if min(abs(tokens - events), abs(tokens - ends - events)) > COUNT_TOLERANCE * max(tokens, 1):
        return TokenGaps(None, 0.0, f"{tokens:,} tokens came in {events:,} events")
    return TokenGaps(icl, 0.0, "")


def _gaps_by_running_count(good: Sequence[RequestMetrics]) -> TokenGaps:
    gaps: list[Floats] = []
    imputed = total = 0
    for metrics in good:
        at_ns = np.asarray(metrics.timeline.at_ns, dtype=np.int64)
        running: Ints = np.array(metrics.timeline.running_tokens, dtype=np.int64)
        tokens = running[1:] - running[:-1]
        fresh = np.concatenate(([True], tokens > 0))  # an event without a new token has no gap
        tokens = tokens[tokens > 0]
        gaps.append(np.repeat(np.diff(at_ns[fresh]) / 1e9 / tokens, tokens))
        imputed += int(tokens[tokens > 1].sum())
        total += int(tokens.sum())
    return TokenGaps(_pool(gaps), imputed / total if total else 0.0, "")


def _pool(gaps: Sequence[Floats]) -> Gaps:
    if not gaps:
        return Gaps(np.empty(0), np.empty(0, dtype=np.int64))
    sizes = [len(each) for each in gaps]
    return Gaps(np.concatenate(gaps), np.repeat(np.arange(len(gaps)), sizes))


def burst_index(gaps: Floats) -> float:
    """The share of gaps below a fifth of the median of the gaps that are not zero."""
    apart = gaps[gaps > 0]
    if len(apart) == 0:
        return 1.0
    return float((gaps < BURST_FRACTION * np.median(apart)).mean())


def head_share(metrics: RequestMetrics) -> float | None:
    """The share of a reply's tokens, but for the first, that came with its first event."""
    timeline = metrics.timeline
    if metrics.tokens < 2 or not timeline.at_ns:
        return None
    events = sum(at_ns == timeline.at_ns[0] for at_ns in timeline.at_ns)
    if timeline.running_tokens is not None:
        tokens: float = timeline.running_tokens[events - 1]
    else:
        tokens = events * metrics.tokens / len(timeline.at_ns)
    return max(tokens - 1, 0) / (metrics.tokens - 1)


def delayed_ack_share(gaps: Floats) -> float | None:
    """The share of gaps as long as a delayed ACK (38–45 ms), where most are much shorter."""
    if not len(gaps) or np.median(gaps) > SHORT_GAP_S:
        return None
    return float(((gaps >= 0.038) & (gaps <= 0.045)).mean())
