"""The rules of a gate: ``ttft.p95 > +5%`` fails where, beyond chance, it is so.

A rule names a metric, a direction, and a limit: a percentage of the baseline's figure, or a figure
of its own (ms or s for a latency, a number a second for a rate). It fails if the whole 95%
interval lies beyond the limit, which chance alone does in 2.5% of comparisons at most, and passes
if none of it does. Else it is not known, which does not fail.
"""

import re
from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from llmbench.errors import UserError
from llmbench.measure.compare import METRICS, RATES, Compared, Interval, Result

Fate = Literal["passed", "failed", "not known"]

_RULE = re.compile(r"([a-z0-9_.]+)\s*([<>])\s*([+-]?\d+(?:\.\d+)?)\s*(%|ms|s|/s)?")
_TO_MS = {"ms": 1.0, "s": 1e3}
_EXAMPLES = "write METRIC > LIMIT, such as 'ttft.p95 > +5%', 'otps < -5%' or 'ttft.p95 > 500ms'"


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
    if metric not in METRICS:
        raise UserError(
            f"--fail-if '{text}': '{metric}' is no metric; there are ttft, itl, tpot, e2e with "
            f".p50, .p90, .p95, .p99, and {', '.join(RATES)}"
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
    if unit == "%":
        if number <= -100:
            raise UserError(f"--fail-if '{text}': nothing is less than -100%")
        return 1 + number / 100, True
    if metric in RATES:
        if unit not in ("", "/s"):
            raise UserError(f"--fail-if '{text}': {metric} is a number a second, or give a %")
        return number, False
    if unit not in _TO_MS:
        raise UserError(f"--fail-if '{text}': give a limit in %, ms or s")
    return number * _TO_MS[unit], False


def check(rule: Rule, compared: Compared) -> Outcome:
    """``rule`` against what was compared at one load."""
    result = next((each for each in compared.results if each.metric == rule.metric), None)
    if result is None:
        why = compared.left_out.get(rule.metric, "not measured")
        return Outcome(rule=rule.text, fate="not known", words=why)
    low, high = _interval(rule, result)
    if low > rule.limit if rule.above else high < rule.limit:
        fate: Fate = "failed"
    elif high <= rule.limit if rule.above else low >= rule.limit:
        fate = "passed"
    else:
        fate = "not known"
    return Outcome(rule=rule.text, fate=fate, words=_words(rule, result, (low, high)))


def _interval(rule: Rule, result: Result) -> Interval:
    """What the rule is held against. The ruler's own error is in the ratio's interval already."""
    if rule.relative:
        return result.ci95
    low, high = result.other.ci95
    return low * (1 - result.ruler), high * (1 + result.ruler)


def _words(rule: Rule, result: Result, bounds: Interval) -> str:
    if rule.relative:
        value, low, high = ((each - 1) * 100 for each in (result.ratio, *bounds))
        return f"{value:+.1f}% [{low:+.1f}%, {high:+.1f}%]"
    unit = "/s" if rule.metric in RATES else " ms"
    return f"{result.other.value:.4g}{unit} [{bounds[0]:.4g}, {bounds[1]:.4g}]"


def failed(outcomes: Sequence[Outcome]) -> bool:
    return any(each.fate == "failed" for each in outcomes)
