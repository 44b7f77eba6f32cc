"""The requests of a cell apart by what they asked: by turn of their session, by length of reply."""

from collections.abc import Callable, Sequence

import numpy as np

from llmbench.measure.blocks import MS, block
from llmbench.records import Block, LengthBin, Range, RequestMetrics, Turn

BINS = 4
FEWEST_IN_A_BIN = 6
UNLIKE = 1.2
"""Replies whose longest is not longer than this many times the shortest are of one length."""


def turns(
    measured: Sequence[RequestMetrics],
    ttft_ms: Callable[[Sequence[RequestMetrics]], Block | None],
) -> list[Turn] | None:
    """The measured requests by turn, where there is a second one."""
    last = max((each.turn for each in measured), default=0)
    if not last:
        return None
    told = []
    for turn in range(last + 1):
        its = [each for each in measured if each.turn == turn]
        good = [each for each in its if not each.failure]
        latency = ttft_ms(its)
        if latency is not None:
            told.append(
                Turn(
                    turn=turn + 1,
                    ttft_ms=latency,
                    prompt_tokens=prompt_range(good),
                    cached_share=cached_share(good),
                )
            )
    return told


def prompt_range(good: Sequence[RequestMetrics]) -> Range | None:
    """The prompt lengths that the server counted."""
    return range_of([each.prompt_tokens for each in good if each.prompt_tokens is not None])


def cached_share(good: Sequence[RequestMetrics]) -> float | None:
    """The share of the prompt tokens that came from a cache, where the server says."""
    prompts = sum(each.prompt_tokens or 0 for each in good)
    if not prompts or all(each.cached_tokens is None for each in good):
        return None
    return sum(each.cached_tokens or 0 for each in good) / prompts


def range_of(counts: Sequence[int]) -> Range | None:
    if not counts:
        return None
    ordered = sorted(counts)
    return Range(ordered[0], ordered[(len(ordered) - 1) // 2], ordered[-1])


def tpot_by_length(good: Sequence[RequestMetrics]) -> list[LengthBin] | None:
    """TPOT by the length of the reply: bins between the quartiles of the lengths, each of six
    replies or more, equal lengths in one bin. ``None`` where that makes but one."""
    told = sorted((each.tokens, each.tpot_s) for each in good if each.tpot_s is not None)
    if not told or told[-1][0] <= UNLIKE * told[0][0]:
        return None
    lengths = np.array([length for length, _ in told])
    starts = [0]
    for number in range(1, BINS):
        start = int(np.searchsorted(lengths, lengths[number * len(told) // BINS], side="left"))
        if min(start - starts[-1], len(told) - start) >= FEWEST_IN_A_BIN:
            starts.append(start)
    if len(starts) < 2:
        return None
    bins = []
    for start, stop in zip(starts, [*starts[1:], len(told)], strict=True):
        span = range_of([length for length, _ in told[start:stop]])
        assert span is not None
        values = np.array([tpot_s for _, tpot_s in told[start:stop]])
        bins.append(LengthBin(output_tokens=span, tpot_ms=block(values * MS)))
    return bins
