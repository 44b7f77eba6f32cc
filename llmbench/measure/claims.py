"""What is claimed of the ratios of a pair of runs, in words (``compare`` says by which tests)."""

import math
from collections.abc import Sequence

from llmbench.measure.compare import (
    CONFIDENCE,
    MARGIN,
    RATES,
    Interval,
    Result,
    Verdict,
)
from llmbench.measure.statistics import NORMAL, Z, rounded, student

ALPHA = 0.04
"""The level of Holm's test. The bootstrap is a little too sure of small samples: at 4% no more than
5% of pairs of equal runs are called different (``benchmarks/statistics_truth.py``)."""

MOST_RUNS = 1000
AT_LEAST = 0.25
"""So many more of the requests that there are, at least, where more would tell."""


def decide(results: Sequence[Result], margin: float = MARGIN) -> None:
    """Give every result of a pair of runs, those of all loads, its verdict."""
    headline = [each for each in results if each.headline]
    others = [each for each in results if not each.headline]
    differ = holm([each.p_value for each in headline])
    for each, differs in zip(headline, differ, strict=True):
        each.verdict = verdict(each, differs, margin, tests=len(headline))
    theirs = holm([each.p_value for each in others]) if any(differ) else [False] * len(others)
    for each, differs in zip(others, theirs, strict=True):
        each.verdict = verdict(each, differs, margin, tests=len(others))


def holm(p_values: Sequence[float], alpha: float = ALPHA) -> list[bool]:
    """Which of the hypotheses fall, at most ``alpha`` being the chance that a true one does."""
    falls = [False] * len(p_values)
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda each: p_values[each])):
        if p_values[index] > alpha / (len(p_values) - rank):
            break
        falls[index] = True
    return falls


def verdict(result: Result, differs: bool, margin: float, tests: int) -> Verdict:
    """``differs`` is what Holm's test over so many ``tests`` says."""
    low, high = result.ci90
    if 1 - margin <= low and high <= 1 + margin:
        return Verdict(kind="same", words=f"same within {percent(margin)}%")
    if not differs:
        return _unknown(result, margin, tests)
    slower = is_slower(result)
    words = f"{span(result.ci95)} {_word(slower, result.metric in RATES)}"
    return Verdict(kind="slower" if slower else "faster", words=words)


def is_slower(result: Result) -> bool:
    """Whether the ratio goes the bad way: up for a latency, down for a rate."""
    return result.ratio < 1 if result.metric in RATES else result.ratio > 1


def _word(slower: bool, rate: bool) -> str:
    if rate:
        return "less" if slower else "more"
    return "slower" if slower else "faster"


def _unknown(result: Result, margin: float, tests: int) -> Verdict:
    """Say how much more it takes, on each side, for the interval to reach no farther than
    the margin, or half of what was seen to differ, its confidence allowing for ``tests``."""
    ratio, (low, high), a, b = result.ratio, result.ci95, result.baseline, result.other
    if not (low > 0 and math.isfinite(ratio) and math.isfinite(high)):
        return Verdict(kind="unknown", words="can't tell: too many failed")
    target = math.log1p(max(margin, abs(ratio - 1) / 2)) - result.ruler
    if target <= 0:
        words = f"can't tell: the ruler is off by up to {percent(result.ruler)}%"
        return Verdict(kind="unknown", words=words)
    half = max(math.log(high / ratio), math.log(ratio / low)) - result.ruler
    half *= NORMAL.inv_cdf(1 - ALPHA / tests / 2) / Z
    if min(a.runs, b.runs) > 1:
        needs, what = _more_runs(half / target, a.runs, b.runs), "runs"
    else:
        growth = max((half / target) ** 2 - 1, AT_LEAST)
        needs, what = rounded(growth * max(a.n, b.n)), "requests"
    words = f"can't tell, needs ~{needs:,} more {what}"
    return Verdict(kind="unknown", words=words, needs=needs)


def _more_runs(times: float, a: int, b: int) -> int:
    """How many more runs a side make an interval narrower by so many ``times``: errors shrink with
    the root of their number, and Student's t with it."""
    p = (1 + CONFIDENCE) / 2
    now = student(p, a + b - 2) / math.sqrt((a + b) / 2)
    runs = max(a, b) + 1
    while runs < MOST_RUNS and student(p, 2 * runs - 2) / math.sqrt(runs) > now / times:
        runs += 1
    return runs - max(a, b)


def span(ratio: Interval) -> str:
    """How far from 1 the interval of a ratio lies, from near to far: ``8–12%``."""
    near, far = sorted(abs(each - 1) * 100 for each in ratio)
    if math.isinf(near) or not any(ratio):
        return "endlessly"
    if math.isinf(far):
        return f"at least {near:.0f}%"
    digits = 1 if round(near) == round(far) else 0
    low, high = f"{near:.{max(digits, int(near < 1))}f}", f"{far:.{digits}f}"
    return f"{low}%" if low == high else f"{low}–{high}%"


def percent(share: float) -> str:
    """A share in percent, as short as it can be."""
    return f"{100 * share:.2g}" if share < 0.995 else f"{100 * share:.0f}"
