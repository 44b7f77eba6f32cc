"""The requests of a cell apart by what they asked: by turn of their session, by length of reply."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmbench.measure.blocks import MS, block
from llmbench.measure.requests import UNKNOWN, Requests
from llmbench.records import Block, LengthBin, Range, Turn

BINS = 4
FEWEST_IN_A_BIN = 6
UNLIKE = 1.2
"""Replies whose longest is not longer than this many times the shortest are of one length."""


def turns(measured: Requests, ttft_ms: Callable[[Requests], Block | None]) -> list[Turn] | None:
    """The measured requests by turn, where there is a second one."""
    last = int(measured.turn.max(initial=0))
    if not last:
        return None
    told = []
    for turn in range(last + 1):
        its = measured.where(measured.turn == turn)
        good = its.where(its.good)
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


def prompt_range(good: Requests) -> Range | None:
    """The prompt lengths that the server counted."""
    return range_of(good.prompt_tokens[good.prompt_tokens != UNKNOWN])


def cached_share(good: Requests) -> float | None:
    """The share of the prompt tokens that came from a cache, where the server says."""
    told = good.cached_tokens != UNKNOWN
    prompts = int(good.prompt_tokens[good.prompt_tokens != UNKNOWN].sum())
    return float(good.cached_tokens[told].sum()) / prompts if prompts and told.any() else None


def range_of(counts: NDArray[np.integer[Any]]) -> Range | None:
    if not len(counts):
        return None
    ordered = np.sort(counts)
    return Range(int(ordered[0]), int(ordered[(len(ordered) - 1) // 2]), int(ordered[-1]))


def tpot_by_length(good: Requests) -> list[LengthBin] | None:
    """TPOT by the length of the reply: bins between the quartiles of the lengths, each of six
    replies or more, equal lengths in one bin. ``None`` where that makes but one."""
    told = np.flatnonzero(~np.isnan(good.tpot_s))
    told = told[np.argsort(good.tokens[told], kind="stable")]
    lengths = good.tokens[told]
    if not len(told) or lengths[-1] <= UNLIKE * lengths[0]:
        return None
    starts = [0]
    for number in range(1, BINS):
        start = int(np.searchsorted(lengths, lengths[number * len(told) // BINS], side="left"))
        if min(start - starts[-1], len(told) - start) >= FEWEST_IN_A_BIN:
            starts.append(start)
    if len(starts) < 2:
        return None
    bins = []
    for start, stop in zip(starts, [*starts[1:], len(told)], strict=True):
        span = range_of(lengths[start:stop])
        assert span is not None
        in_order = np.sort(told[start:stop])
        bins.append(LengthBin(output_tokens=span, tpot_ms=block(good.tpot_s[in_order] * MS)))
    return bins
