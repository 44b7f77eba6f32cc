"""Percentiles where requests were cut off: published tables, small cases by hand, simulation."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_summary import INF, cell_of, facts_of, request

from llmbench.measure import statistics
from llmbench.measure.blocks import bounded_block
from llmbench.measure.survival import Sample, product_limit, quantile

NONE = np.empty(0)


def sample(known: Any, censored: Any = (), lost: int = 0, unit: int = 1) -> Sample:
    return Sample(np.array(known, dtype=float), np.array(censored, dtype=float), lost, unit)


def quantile_of(its: Sample, p: float) -> tuple[float | None, tuple[float, float] | None]:
    return quantile(its, product_limit(its), p)


# The weeks of remission under 6-MP: E. J. Freireich et al., Blood 21 (1963), the example of most
# textbooks. Greenwood's standard errors as in Kleinbaum & Klein, Survival Analysis, chapter 2.
REMISSION = sample([6, 6, 6, 7, 10, 13, 16, 22, 23], [6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35])


def test_the_textbook_curve() -> None:
    curve = product_limit(REMISSION)
    assert curve.times.tolist() == [6, 7, 10, 13, 16, 22, 23]
    shares = [0.8571, 0.8067, 0.7529, 0.6902, 0.6275, 0.5378, 0.4482]
    assert curve.share.tolist() == pytest.approx(shares, abs=1e-4)
    # At 23: S = 0.4482 with a standard error of 0.1346, so 0.3003 of it. On the log(-log) scale
    # the spread is 1.96 × 0.3003 / 0.8026 = 0.7334: from S^2.082 to S^0.4803.
    assert curve.low[-1] == pytest.approx(0.188, abs=1e-3)
    assert curve.high[-1] == pytest.approx(0.680, abs=1e-3)


def test_the_textbook_median() -> None:
    """23 weeks, from 13 (R's survfit with conf.type="log-log") to more than anybody knows."""
    assert quantile_of(REMISSION, 0.5) == (23, (13, INF))


def test_what_was_lost_is_at_risk_for_ever() -> None:
    # At risk 6, 5, 3 (2.5 was cut off) and 2: 5/6, 4/6, 4/9, 2/9.
    its = sample([1, 2, 3, 4], [2.5], lost=1)
    curve = product_limit(its)
    assert curve.share.tolist() == pytest.approx([5 / 6, 4 / 6, 4 / 9, 2 / 9])
    assert quantile_of(its, 0.5)[0] == 3


def test_a_tie_is_still_at_risk() -> None:
    """What was cut off when another ended had not ended before it."""
    assert product_limit(sample([1, 2], [1, 2])).share.tolist() == pytest.approx([3 / 4, 3 / 8])


def test_failures_that_reach_a_quantile_make_it_infinite() -> None:
    # At 27, S = 71/81 × 43/61 = 0.618 with a Greenwood sum of 1/71 − 1/81 + 1/43 − 1/61: the
    # interval reaches down to 0.495 there, and to 0.510 at 26.
    assert quantile_of(sample(range(30), [9] * 10, lost=41), 0.5) == (INF, (27, INF))
    # 40 of 80: had all that was cut off ended at once, the median would be finite
    value, _ = quantile_of(sample(range(30), [40] * 10, lost=40), 0.5)
    assert value is None


def test_beyond_what_was_seen_is_unknown() -> None:
    assert quantile_of(sample(range(1, 61), [70] * 61), 0.5) == (None, None)
    assert quantile_of(sample(range(1, 61), [70] * 60), 0.5)[0] == 60
    assert sample(range(1, 61), [70] * 60).seen == 70


def test_few_samples_have_no_quantile() -> None:
    assert quantile_of(sample([1, 2, 3, 4], [5]), 0.5) == (None, None)
    assert quantile_of(sample([1, 2, 3, 4, 5], [5]), 0.5)[0] == 3
    assert quantile_of(sample([1, 2, 3, 4, 5], [5], unit=2), 0.5) == (None, None)
    assert quantile_of(sample([], [5] * 9), 0.5) == (None, None)


def test_samples_that_share_their_fate_are_worth_less() -> None:
    pairs = np.repeat(np.arange(40.0), 2)
    _, apart = quantile_of(sample(np.arange(80) / 2, [99]), 0.5)
    _, together = quantile_of(sample(pairs, [99], unit=2), 0.5)
    assert apart is not None
    assert together is not None
    assert together[0] < apart[0]
    assert together[1] > apart[1]


@given(
    st.lists(st.floats(0.001, 10), min_size=6, max_size=60),
    st.integers(0, 20),
    st.floats(0.1, 0.9),
)
def test_where_nothing_was_cut_off_it_is_the_order_statistic(
    known: list[float], lost: int, p: float
) -> None:
    its = sample(known, lost=lost)
    if its.n < statistics.fewest(p):
        return
    ordered = np.sort(np.concatenate((known, np.full(lost, INF))))
    assert quantile_of(its, p)[0] == statistics.quantile(ordered, p)


@pytest.mark.parametrize(("p", "truth"), [(0.5, math.log(2)), (0.75, math.log(4))])
def test_cutting_off_at_random_does_not_bias(p: float, truth: float) -> None:
    """Exponential times of mean 1, of which a third is cut off at exponential times of mean 2. The
    median of those that ended alone would be that of a mean of 2/3, so 0.46 and not 0.69."""
    rng = np.random.default_rng(5)
    trials, n = 600, 150
    values, covered = [], 0
    for _ in range(trials):
        ends, cuts = rng.exponential(size=n), rng.exponential(2.0, size=n)
        its = sample(ends[ends <= cuts], cuts[cuts < ends])
        value, bounds = quantile_of(its, p)
        assert value is not None
        assert bounds is not None
        values.append(value)
        covered += bounds[0] <= truth <= bounds[1]
    assert np.mean(values) == pytest.approx(truth, rel=0.02)
    assert 0.925 <= covered / trials <= 0.98  # 95%, give or take three standard errors


# ---- of a cell


def cut(sent_ms: float, *at_ms: float, end_ms: float) -> Any:
    """A request whose events had come when it was cut off."""
    return request(sent_ms, *at_ms, end_ms=end_ms, finish="", error="cancelled", detail="cut")


def test_a_first_token_that_had_come_is_known() -> None:
    """Ten more requests with a TTFT of 90 ms, cut off at 150 ms."""
    traces = [request(200 * n, 7 * n % 20 + 1, 199, 200) for n in range(20)]
    traces += [cut(4000, 90, 120, end_ms=150) for _ in range(10)]
    cell = cell_of(traces, facts_of(stopped="interrupted"))
    assert (cell.requests.ok, cell.requests.cancelled) == (20, 10)
    ttft, e2e = cell.ttft_ms, cell.e2e_ms
    assert ttft is not None
    assert e2e is not None
    assert (ttft.n, ttft.p50, ttft.max) == pytest.approx((30, 15, 90))
    assert (e2e.n, e2e.p50, e2e.min) == pytest.approx((30, 200, 200))
    assert cell.tpot_ms is not None
    assert cell.tpot_ms.n == 20
    assert [note for note in cell.notes if "beyond" in note] == []


def test_what_was_cut_off_counts_from_when_it_was_due() -> None:
    """Six TTFTs of 20 ms; ten cut off 30 ms after they were due, and 10 ms after they were sent."""
    known = [request(100 * n, 20, 40, due_ns=100_000_000 * n) for n in range(6)]
    late = {"status": 0, "due_ns": 600_000_000}
    cutoff = [request(620, end_ms=10, finish="", error="cancelled", **late) for _ in range(10)]
    facts = facts_of(stopped="interrupted")
    cell = cell_of(known + cutoff, facts)
    (ttft, *_) = (note for note in cell.notes if note.startswith("TTFT"))
    assert ttft == "TTFT p50 is beyond what was seen before the cut: at least 30 ms"
    assert cell.ttft_from_sent_ms is not None
    assert cell.ttft_from_sent_ms.p50 == pytest.approx(20)  # as it saw all of the others end first
    assert cell.ttft_from_sent_ms.n == 16


def test_without_a_cut_nothing_changes() -> None:
    cell = cell_of([request(100 * n, 17 * n % 40 + 1, 50, 100) for n in range(40)])
    assert cell.ttft_ms is not None
    assert cell.ttft_ms.p50 == pytest.approx(20)
    assert cell.ttft_ms.ci95["p50"] == pytest.approx((14, 27))  # the sign test's, n = 40


# ---- where more came than was answered


def test_under_a_growing_load_only_what_is_certain_is_told() -> None:
    """Sixty waited 10 ms, forty were cut off after 5: however long those took, the median is 10,
    but the p90 may be anything from there on."""
    told, beyond = bounded_block(Sample(np.full(60, 10.0), np.full(40, 5.0)))
    assert (told.p50, told.p90) == (10.0, None)
    assert beyond == "p90 is at least 10"
    told, beyond = bounded_block(Sample(np.full(90, 10.0), np.full(10, 15.0)))
    assert (told.p50, told.p90, told.p95) == (10.0, 10.0, None)
    assert beyond == "p95 is at least 15"
