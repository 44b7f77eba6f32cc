"""The rules of a gate: ``ttft.p95 > +5%`` fails where, beyond chance, it is so.

A rule names a metric, a direction, and a limit: a percentage of the baseline's figure, or a figure
of its own (ms or s for a latency, a number a second for a rate). It fails if the whole 95%
interval lies beyond the limit, which chance alone does in 2.5% of comparisons at most, and passes
if none of it does. Else it is not known, which does not fail. ``failed > 1%`` is about the share
of the new run's requests that failed.
"""

import math
import re
from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from llmbench.errors import UserError
from llmbench.measure.compare import METRICS, QUANTILES, RATES, Compared, Interval, Result

Fate = Literal["passed", "failed", "not known"]

_RULE = re.compile(r"([a-z0-9_.]+)\s*([<>])\s*([+-]?\d+(?:\.\d+)?)\s*(%|ms|s|/s)?")
_TO_MS = {"ms": 1.0, "s": 1e3}
_EXAMPLES = (
    "write METRIC > LIMIT, such as 'ttft.p95 > +5%', 'otps < -5%', 'ttft.p95 > 500ms' or "
    "'failed > 1%'"
)
FAILED = "failed"
"""The metric that is no latency and no rate."""


class Rule(Struct, frozen=True, kw_only=True):
    """``limit`` is a ratio to the baseline where ``relative``, else in ms, or a second for a
    rate."""

    text: str
    metric: str
    above: bool
    limit: float
    relative: bool


class Outcome(Struct, frozen=True, kw_only=True):
    """What became of a rule at one load, and why in words."""

    rule: str
    fate: Fate
    words: str


def read_rule(text: str) -> Rule:
    """The rule that ``text`` says. Raises ``UserError`` where it says none."""
    found = _RULE.fullmatch(text.strip())
    if found is None:
        raise UserError(f"--fail-if '{text}': no rule; {_EXAMPLES}")
    metric, sign, number, unit = found[1], found[2], float(found[3]), found[4] or ""
    if metric not in (*METRICS, FAILED):
        raise UserError(
            f"--fail-if '{text}': '{metric}' is no metric; there are ttft, itl, tpot, e2e with "
            f".p50, .p90, .p95, .p99, {', '.join(RATES)}, and {FAILED}"
        )
    limit, relative = _limit(text, metric, number, unit)
    return Rule(
        text=" ".join(text.split()),
        metric=metric,
        above=sign == ">",
        limit=limit,
        relative=relative,
    )


def _limit(text: str, metric: str, number: float, unit: str) -> tuple[float, bool]:
    if metric == FAILED:
        if unit != "%" or not 0 <= number < 100:
            raise UserError(f"--fail-if '{text}': give a share of requests, such as failed > 1%")
        return number / 100, False
    if unit == "%":
        if number <= -100:
            raise UserError(f"--fail-if '{text}': nothing is less than -100%")
        return 1 + number / 100, True
    if number < 0:
        raise UserError(f"--fail-if '{text}': nothing is less than 0; give a %, or a limit above 0")
    if metric in RATES:
        if unit not in ("", "/s"):
            raise UserError(f"--fail-if '{text}': {metric} is a number a second, or give a %")
        return number, False
    if unit not in _TO_MS:
        raise UserError(f"--fail-if '{text}': give a limit in %, ms or s")
    return number * _TO_MS[unit], False


def check(rule: Rule, compared: Compared) -> Outcome:
    """``rule`` against what was compared at one load."""
    if rule.metric == FAILED:
        return _of_failures(rule, compared)
    result = next((each for each in compared.results if each.metric == rule.metric), None)
    if result is None and _endless(rule, compared):
        share = compared.failures[1].share
        return Outcome(rule=rule.text, fate="failed", words=f"∞: {share:.1%} of requests failed")
    if result is None:
        return _of_bounds(rule, compared)
    bounds = _interval(rule, result)
    return Outcome(rule=rule.text, fate=_fate(rule, bounds), words=_words(rule, result, bounds))


def _fate(rule: Rule, bounds: Interval) -> Fate:
    low, high = bounds
    if low > rule.limit if rule.above else high < rule.limit:
        return "failed"
    return "passed" if (high <= rule.limit if rule.above else low >= rule.limit) else "not known"


def _of_bounds(rule: Rule, compared: Compared) -> Outcome:
    """``rule`` against a percentile that too few requests carry: one bound may decide it."""
    why = compared.left_out.get(rule.metric, "not measured")
    if rule.metric not in compared.bounds:
        return Outcome(rule=rule.text, fate="not known", words=why)
    base, (low, high) = compared.bounds[rule.metric]
    if rule.relative:
        low, high = low / base[1], high / base[0] if base[0] else math.inf
    fate = _fate(rule, (low, high))
    if fate == "not known":
        return Outcome(rule=rule.text, fate=fate, words=why)
    bound, end = (low, "at least") if (fate == "failed") == rule.above else (high, "at most")
    words = _percent(bound) if rule.relative else f"{_number(bound)} ms"
    return Outcome(rule=rule.text, fate=fate, words=f"{end} {words} (too few requests to say more)")


def _of_failures(rule: Rule, compared: Compared) -> Outcome:
    before, now = compared.failures
    (low, high), limit = now.ci95, rule.limit
    words = f"{now.failed} of {now.n} [{low:.1%}, {high:.1%}]; before {before.failed} of {before.n}"
    fate = "passed" if now.failed == 0 and limit == 0 else _fate(rule, now.ci95)
    return Outcome(rule=rule.text, fate=fate, words=words)


def _endless(rule: Rule, compared: Compared) -> bool:
    """Whether a percentile that cannot be compared is +∞ beyond doubt, since too many requests
    failed, where the baseline's is not if it is held against that."""
    _, _, p = rule.metric.partition(".")
    if p not in QUANTILES or not rule.above:
        return False
    before, now = compared.failures
    beyond = 1 - QUANTILES[p]
    return now.ci95[0] > beyond and (not rule.relative or before.share <= beyond)


def _interval(rule: Rule, result: Result) -> Interval:
    """What the rule is held against. The ruler's own error is in the ratio's interval already."""
    if rule.relative:
        return result.ci95
    low, high = result.other.ci95
    return low * (1 - result.ruler), high * (1 + result.ruler)


def _words(rule: Rule, result: Result, bounds: Interval) -> str:
    if rule.relative:
        value, low, high = map(_percent, (result.ratio, *bounds))
        return f"{value} [{low}, {high}]"
    unit = "/s" if rule.metric in RATES else " ms"
    value, low, high = map(_number, (result.other.value, *bounds))
    return f"{value}{unit} [{low}, {high}]"


def _percent(ratio: float) -> str:
    return "+∞" if math.isinf(ratio) else f"{(ratio - 1) * 100:+.1f}%"


def _number(value: float) -> str:
    return "∞" if math.isinf(value) else f"{value:.4g}"


def failed(outcomes: Sequence[Outcome]) -> bool:
    return any(each.fate == "failed" for each in outcomes)
