"""The gaps between the events of a cell's replies: ICL, and ITL where each event's tokens show."""

from typing import NamedTuple

import numpy as np

from llmbench.measure.requests import Column, Mask, Ragged, Requests
from llmbench.measure.statistics import Floats, Ints, Reals
from llmbench.records import UNKNOWN_TOKENS

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

FEWEST_AN_EVENT = 1 - COUNT_TOLERANCE
"""Where events bring fewer tokens than this, some bring a part of one."""


class TokenGaps(NamedTuple):
    """ITL: ``gaps`` is ``None`` where tokens per event are unknown, and ``why_not`` says why."""

    gaps: Ragged | None
    imputed_share: float
    why_not: str


def chunk_gaps(good: Requests) -> Ragged:
    """ICL: the raw gaps between content events, in seconds, a row a reply."""
    return good.gaps_s


def token_gaps(good: Requests) -> TokenGaps:
    """ITL: the gap before each token, from the running counts of the server or from its total.

    Where one event brought ``k`` tokens its gap counts ``k`` times as ``gap / k``; those values are
    imputed, for nobody saw when each token was made. The gaps are those of ICL where each event
    is a token.
    """
    if len(good) and good.counted.all():
        if good.steps is None:
            return TokenGaps(good.gaps_s, 0.0, "")
        gaps = _by_running_count(good.gaps_s, good.steps.values)
        several = good.steps.values[good.steps.values > 1]
        imputed = int(several.sum()) / len(gaps.values) if len(gaps.values) else 0.0
        return TokenGaps(gaps, imputed, "")
    if (good.hidden_tokens == UNKNOWN_TOKENS).any():
        return TokenGaps(None, 0.0, "some tokens came in no event")
    events, tokens = int(good.events.sum()), int(good.seen_tokens.sum())
    # A model that stops by itself counts its end token, which has no text and no event.
    ends = int((good.finish == "stop").sum())
    if (good.token_source == "chunks").any():
        return TokenGaps(None, 0.0, "the server does not count its tokens")
    if min(abs(tokens - events), abs(tokens - ends - events)) > COUNT_TOLERANCE * max(tokens, 1):
        return TokenGaps(None, 0.0, f"{tokens:,} tokens came in {events:,} events")
    return TokenGaps(good.gaps_s, 0.0, "")


def _by_running_count(gaps: Ragged, steps: Column) -> Ragged:
    """The gaps before the tokens after the first event's: ``steps`` is how many tokens each event
    brought. One without a new token has none: its time is part of the next one's."""
    brought = steps > 0
    if not brought.all():
        gaps, steps = _merged(gaps, brought), steps[brought]
    sizes = Ragged(steps, gaps.sizes).sums(np.int64)
    return Ragged(np.repeat(gaps.values / steps, steps).astype(np.float32), sizes)


def _merged(gaps: Ragged, kept: Mask) -> Ragged:
    """Each gap that is ``kept`` with those before it in its row that are not; those after the last
    that is kept are gone."""
    until_s = np.cumsum(gaps.values, dtype=np.float64)
    before_s = np.concatenate(([0.0], until_s))[gaps.starts]  # where each row begins
    ends = Ragged(until_s, gaps.sizes).where(kept)
    starts = np.empty(len(ends.values))
    starts[1:] = ends.values[:-1]
    starts[ends.firsts] = before_s[ends.sizes > 0]
    return Ragged(ends.values - starts, ends.sizes)


def at_most(gaps: Ragged, limit: float) -> Ints:
    """How many gaps of each reply are no longer than ``limit``."""
    # The limit in the type of the gaps: for another one numpy would convert all of them.
    return Ragged(gaps.values <= gaps.values.dtype.type(limit), gaps.sizes).sums(np.int64)


def means(gaps: Ragged) -> Floats:
    """The mean gap of each reply; NaN for one without."""
    with np.errstate(invalid="ignore"):
        return np.asarray(gaps.sums() / gaps.sizes)


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
