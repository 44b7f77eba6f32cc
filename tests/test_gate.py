"""The rules of a gate: what they say, and when they fail."""

import math

import pytest

from llmbench.errors import UserError
from llmbench.measure.compare import Compared, Estimate, Result
from llmbench.measure.failures import Failures
from llmbench.measure.gate import check, failed, read_rule
from llmbench.measure.statistics import wilson

INF = math.inf


@pytest.mark.parametrize(
    ("text", "metric", "above", "limit", "relative"),
    [
        ("ttft.p95 > +5%", "ttft.p95", True, 1.05, True),
        ("ttft.p95>5%", "ttft.p95", True, 1.05, True),
        (" otps  <  -5% ", "otps", False, 0.95, True),
        ("itl.p50 > 12.5ms", "itl.p50", True, 12.5, False),
        ("e2e.p99 > 1.5 s", "e2e.p99", True, 1500.0, False),
        ("requests_per_s < 4", "requests_per_s", False, 4.0, False),
        ("otps < 100/s", "otps", False, 100.0, False),
    ],
)
def test_rules(text: str, metric: str, above: bool, limit: float, relative: bool) -> None:
    rule = read_rule(text)
    assert (rule.metric, rule.above, rule.relative) == (metric, above, relative)
    assert rule.limit == pytest.approx(limit)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no rule"),
        ("ttft.p95", "no rule"),
        ("ttft.p95 >= 5%", "no rule"),
        ("ttft.p95 > five%", "no rule"),
        ("ttft.p95 > 5% > 3%", "no rule"),
        ("ttft > 5%", "'ttft' is no metric"),
        ("ttft.p42 > 5%", "'ttft.p42' is no metric"),
        ("ttft.p95 > 5", "in %, ms or s"),
        ("otps < 5ms", "a number a second"),
        ("otps < -100%", "nothing is less"),
        ("ttft.p95 > -5ms", "nothing is less than 0"),
        ("failed > 5", "give a share of requests"),
        ("failed > 100%", "give a share of requests"),
    ],
)
def test_what_is_no_rule(text: str, words: str) -> None:
    with pytest.raises(UserError) as problem:
        read_rule(text)
    assert words in str(problem.value)
    assert "--fail-if" in str(problem.value)
    assert "\n" not in str(problem.value)


def of_100(failed: int) -> Failures:
    return Failures(failed=failed, n=100, ci95=wilson(failed, 100))


NONE_FAILED = of_100(0)


def compared(
    metric: str, ratio: float, low: float, high: float, value: float = 100.0, ruler: float = 0.0
) -> Compared:
    """One metric at A = ``value``, whose ratio is known to within 5% and its interval."""
    sides = [
        Estimate(value=v, ci95=(0.95 * v, 1.05 * v), n=100, worth=100, runs=1)
        for v in (value, ratio * value)
    ]
    result = Result(
        metric=metric,
        baseline=sides[0],
        other=sides[1],
        ratio=ratio,
        ci95=(low, high),
        ci90=(low, high),
        ruler=ruler,
        p_value=0.5,
    )
    return Compared([result], {"ttft.p99": "too few"}, (NONE_FAILED, NONE_FAILED), {})


@pytest.mark.parametrize(
    ("rule", "ratio", "low", "high", "fate"),
    [
        ("ttft.p95 > +5%", 1.10, 1.06, 1.14, "failed"),
        ("ttft.p95 > +5%", 1.10, 1.05, 1.14, "not known"),  # all of it must lie beyond
        ("ttft.p95 > +5%", 1.10, 1.01, 1.20, "not known"),
        ("ttft.p95 > +5%", 1.01, 0.97, 1.05, "passed"),
        ("ttft.p95 > +5%", 0.80, 0.75, 0.85, "passed"),
        ("ttft.p95 < -5%", 0.80, 0.75, 0.85, "failed"),
        ("ttft.p95 > 100ms", 1.10, 0, 9, "failed"),  # 110 ± 5.5
        ("ttft.p95 > 112ms", 1.10, 0, 9, "not known"),
        ("ttft.p95 > 116ms", 1.10, 0, 9, "passed"),
        ("ttft.p95 > 0.1s", 1.10, 0, 9, "failed"),
        ("ttft.p95 > 5%", float("inf"), 1.2, float("inf"), "failed"),
    ],
)
def test_fates(rule: str, ratio: float, low: float, high: float, fate: str) -> None:
    outcome = check(read_rule(rule), compared("ttft.p95", ratio, low, high))
    assert outcome.fate == fate
    assert failed([outcome]) == (fate == "failed")


def test_a_rate_that_falls() -> None:
    outcome = check(read_rule("otps < -5%"), compared("otps", 0.8, 0.75, 0.85))
    assert outcome.fate == "failed"
    assert outcome.words == "-20.0% [-25.0%, -15.0%]"


def test_the_ruler_counts_against_a_limit_of_its_own() -> None:
    measured = compared("ttft.p95", 1.10, 1, 1.2, ruler=0.1)
    assert check(read_rule("ttft.p95 > 100ms"), measured).fate == "not known"


@pytest.mark.parametrize(
    ("rule", "before", "now", "fate"),
    [
        ("failed > 1%", 0, 10, "failed"),  # 10 of 100: 5.5 to 17.4%
        ("failed > 1%", 10, 10, "failed"),
        ("failed > 5.6%", 0, 10, "not known"),
        ("failed > 18%", 0, 10, "passed"),
        ("failed > 1%", 0, 0, "not known"),  # up to 3.7% of a hundred
        ("failed > 0%", 0, 0, "passed"),
        ("failed > 0%", 0, 1, "failed"),
        ("ttft.p99 > 5%", 0, 10, "failed"),  # it is +∞
        ("ttft.p99 > 500ms", 0, 10, "failed"),
        ("ttft.p99 < -5%", 0, 10, "not known"),
        ("ttft.p99 > 5%", 0, 2, "not known"),
        ("ttft.p99 > 5%", 10, 10, "not known"),  # as it was before
    ],
)
def test_what_failed(rule: str, before: int, now: int, fate: str) -> None:
    known = compared("ttft.p95", 1, 1, 1)._replace(failures=(of_100(before), of_100(now)))
    assert check(read_rule(rule), known).fate == fate


def test_what_failed_in_words() -> None:
    known = compared("ttft.p95", 1, 1, 1)._replace(failures=(of_100(0), of_100(10)))
    told = check(read_rule("failed > 1%"), known).words
    assert told == "10 of 100 [5.5%, 17.4%]; before 0 of 100"
    assert check(read_rule("ttft.p99 > 5%"), known).words == "∞: 10.0% of requests failed"
    endless = check(read_rule("ttft.p95 > 5%"), compared("ttft.p95", INF, 1.2, INF))
    assert endless.words == "+∞ [+20.0%, +∞]"


@pytest.mark.parametrize(
    ("rule", "words"), [("ttft.p99 > 5%", "too few"), ("e2e.p50 > 5%", "not measured")]
)
def test_what_was_not_compared_is_not_known(rule: str, words: str) -> None:
    outcome = check(read_rule(rule), compared("ttft.p95", 2, 1.9, 2.1))
    assert (outcome.fate, outcome.words) == ("not known", words)


# ── what too few requests carry ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("rule", "fate", "words"),
    [
        ("ttft.p99 > 2s", "failed", "at least 2290 ms (too few requests to say more)"),
        ("ttft.p99 > 2.3s", "not known", "too few"),
        ("ttft.p99 < 2.3s", "not known", "too few"),
        ("ttft.p99 < 2s", "passed", "at least 2290 ms (too few requests to say more)"),
        ("ttft.p99 > +5%", "failed", "at least +14.5% (too few requests to say more)"),
        ("ttft.p99 > +20%", "not known", "too few"),
        ("e2e.p99 > 2s", "not known", "not measured"),
    ],
)
def test_one_bound_decides_what_it_can(rule: str, fate: str, words: str) -> None:
    """B's p99 is at least 2,290 ms, A's at most 2,000."""
    sides = (1000.0, 2000.0), (2290.0, math.inf)
    known = compared("ttft.p95", 1, 0, 9)._replace(bounds={"ttft.p99": sides})
    outcome = check(read_rule(rule), known)
    assert (outcome.fate, outcome.words) == (fate, words)
