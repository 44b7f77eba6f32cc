"""What is known of a percentile whose sample carries no interval, worked out by hand."""

import msgspec
import numpy as np
import pytest
from conftest import bare_cell
from hypothesis import given
from hypothesis import strategies as st

from llmbench.measure.blocks import block, bounded_block, censored_block
from llmbench.measure.slo import objectives
from llmbench.measure.statistics import bounds, interval
from llmbench.measure.survival import Sample
from llmbench.records import Block, Estimate

INF = float("inf")


def shuffled(count: int, scale: float = 1.0) -> np.ndarray:
    """``scale``, 2 × ``scale``, …, in an order without dependence."""
    return np.random.default_rng(0).permutation(np.arange(1, count + 1)) * scale


def test_forty_requests_bound_a_p95_from_below() -> None:
    """The 35th of 40 values lies above the p95 with a chance of 1.4%, the 36th with 4.8%: the 35th
    is the lower bound. All 40 lie below it with a chance of 13%: there is no upper one."""
    told = block(shuffled(40, 10.0))
    assert told.p95 is None
    assert "p95" not in told.ci95
    assert told.estimates["p95"] == Estimate(380.0, 350.0, None)
    assert told.p50 == 200.0
    assert "p50" not in told.estimates
    assert told.estimate("p50") == 200.0
    assert told.estimate("p95") == 380.0
    assert told.bounds("p95") == (350.0, None)
    assert told.bounds("p50") == told.ci95["p50"]
    assert told.bounds("max") == (400.0, 400.0)


def test_a_failed_request_may_be_the_estimate() -> None:
    values = shuffled(40)
    values = np.where(values >= 38, INF, values)
    assert block(values).estimates["p95"] == Estimate(INF, 35.0, None)


def test_the_json_has_estimates_beside_the_null() -> None:
    told = msgspec.to_builtins(block(shuffled(40)))
    assert told["p95"] is None
    assert told["estimates"]["p95"] == {"value": 38.0, "at_least": 35.0, "at_most": None}


def test_alike_values_have_their_range_for_an_interval() -> None:
    """As of a server all of whose replies take between 215.0 and 215.9 ms."""
    values = 215.0 + shuffled(40) / 40 * 0.9
    told = block(values)
    assert told.p95 == pytest.approx(215.0 + 38 / 40 * 0.9)
    assert told.ci95["p95"] == pytest.approx((215.0225, 215.9))
    assert told.ci95_is_range == ["p95"]  # for p90 they are enough
    # Of 40 none need be beyond the p99, however alike they are.
    assert told.p99 is None
    assert told.estimates["p99"].value == pytest.approx(215.9)


def test_what_mostly_failed_is_not_alike() -> None:
    values = np.where(np.arange(40) % 3 == 0, 200.0, INF)
    told = block(values)
    assert told.ci95_is_range == []
    assert told.ci95["p90"] == (INF, INF)


@pytest.mark.parametrize(("spread", "alike"), [(0.049, True), (0.06, False)])
def test_a_few_percent_are_alike(spread: float, alike: bool) -> None:
    values = 100.0 * (1 + spread * (shuffled(41) - 21) / 40)
    told = block(values)
    assert (told.p95 is not None) is alike


def test_what_was_cut_off_has_an_estimate_too() -> None:
    known = np.arange(1.0, 31.0)
    told, _ = censored_block(Sample(known, np.array([31.0] * 10)))
    assert told.p95 is None
    # A quarter lasted longer than all that ended: p95 is beyond what was seen.
    assert told.estimates["p95"].value is None
    assert told.estimates["p95"].at_least == 31.0
    told, _ = bounded_block(Sample(known, np.array([31.0] * 10)))
    assert told.estimates["p95"].value is None
    assert told.estimates["p99"].at_most is None


@given(
    st.integers(1, 400),
    st.sampled_from([0.01, 0.05, 0.5, 0.9, 0.95, 0.99]),
    st.floats(0.1, 1.0),
)
def test_the_bounds_are_the_ends_of_the_interval(count: int, p: float, share: float) -> None:
    ordered = np.arange(count, dtype=np.float64)
    low, high = bounds(ordered, p, count * share)
    both = interval(ordered, p, count * share)
    assert both == ((low, high) if low is not None and high is not None else None)
    assert low is None or high is None or low <= high


# ---- what one bound decides


def fate(block: Block, limit_ms: float, untimed: dict[str, float] | None = None) -> bool | None:
    cell = bare_cell(ttft_ms=block, untimed=untimed or {})
    return objectives(cell, {"ttft.p95": limit_ms})["ttft.p95"].met


def test_an_objective_is_missed_by_a_lower_bound_alone() -> None:
    few = Block(n=40, mean=900.0, estimates={"p95": Estimate(2710.0, 2290.0, None)})
    assert fate(few, 2000.0) is False
    assert fate(few, 2300.0) is None
    assert fate(few, 9000.0) is None  # nothing bounds it from above


def test_an_objective_is_met_by_an_upper_bound_alone() -> None:
    few = Block(n=40, mean=900.0, estimates={"p95": Estimate(2710.0, None, 3000.0)})
    assert fate(few, 3000.0) is True
    assert fate(few, 2999.0) is None


def test_how_far_off_a_figure_can_be_counts() -> None:
    known = Block(n=200, p95=500.0, ci95={"p95": (480.0, 520.0)})
    assert (fate(known, 530.0), fate(known, 470.0)) == (True, False)
    off = {"ttft.p95": 25.0}
    assert (fate(known, 530.0, off), fate(known, 470.0, off)) == (None, None)
    assert (fate(known, 545.0, off), fate(known, 454.0, off)) == (True, False)
