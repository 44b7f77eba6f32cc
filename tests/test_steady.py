"""Where a cell settles: MSER-5 on series whose answer is known, and on cells."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from test_summary import asked, cell_of, due, facts_of, request

from llmbench.measure.steady import drift, grows, in_flight, mser5, rank_z, warmup_in
from llmbench.records import Cell, Trace

SEEDS = range(100)


def noise(seed: int, count: int, mean: float = 100.0) -> np.ndarray[Any, Any]:
    """A TTFT's skewed scatter."""
    return mean * np.random.default_rng(seed).gamma(16, 1 / 16, count)


def autoregressive(seed: int, count: int, phi: float) -> np.ndarray[Any, Any]:
    """A stationary AR(1) series about 100 with a standard deviation of 15."""
    shocks = np.random.default_rng(seed).normal(size=count)
    values = [shocks[0]]
    for shock in shocks[1:]:
        values.append(phi * values[-1] + np.sqrt(1 - phi**2) * shock)
    return 100 + 15 * np.array(values)


# ---- the point


def by_definition(series: Sequence[float]) -> list[float]:
    """The MSER statistic at each batch, as White, Cobb & Spratt write it."""
    count = len(series) // 5
    means = [sum(series[5 * n : 5 * n + 5]) / 5 for n in range(count)]
    told = []
    for cut in range(count):
        left = means[cut:]
        mean = sum(left) / len(left)
        told.append(sum((each - mean) ** 2 for each in left) / len(left) ** 2)
    return told


@pytest.mark.parametrize("seed", range(5))
def test_the_point_is_where_the_statistic_is_least(seed: int) -> None:
    series = noise(seed, 200)
    series[:30] += 80
    told = by_definition(series.tolist())[:36]  # five batches are left at the end
    point = 5 * told.index(min(told))
    assert mser5(series.tolist()) == (point if point <= 100 else None)


def test_a_series_that_does_not_vary_has_no_warmup() -> None:
    assert mser5([7.0] * 100) == 0
    assert mser5([9.0] * 10 + [7.0] * 90) == 10
    assert mser5([9.0] * 11 + [7.0] * 89) == 15  # the batch that the step is in goes with it


def test_too_few_tell_nothing() -> None:
    assert mser5([]) is None
    assert mser5([9.0] * 10 + [7.0] * 29) is None
    assert mser5([9.0] * 10 + [7.0] * 30) == 10
    assert warmup_in([9.0] * 10 + [7.0] * 29, 0) == 0
    assert warmup_in([], 0) == 0


def test_what_never_settles_is_rejected() -> None:
    assert mser5([float(n) for n in range(200)]) is None
    assert mser5([9.0] * 120 + [7.0] * 80) is None
    assert warmup_in([9.0] * 120 + [7.0] * 80, 0) == 0


# ---- what is removed


@pytest.mark.parametrize("known", [0, 20, 30])
def test_a_step(known: int) -> None:
    """By chance the best point may lie in the second half: then nothing is removed."""
    found = 0
    for seed in SEEDS:
        series = noise(seed, 400)
        series[:40] *= 2
        found += 40 <= known + warmup_in(series.tolist(), known) <= 60
    assert found >= 80


def test_warmup_that_was_enough_is_left_alone() -> None:
    for seed in SEEDS:
        series = noise(seed, 400)
        series[:40] *= 3
        assert warmup_in(series.tolist(), 45) == 0


def test_an_exponential_decay() -> None:
    """Three times the level at first, and half of what is too much gone every 20 requests."""
    decay = 1 + 2 * 0.5 ** (np.arange(600) / 20)
    points = [warmup_in((noise(seed, 600) * decay).tolist(), 0) for seed in SEEDS]
    assert sum(50 <= point <= 150 for point in points) >= 90
    assert decay[50] == pytest.approx(1.354, abs=1e-3)
    assert decay[150] == pytest.approx(1.011, abs=1e-3)


@pytest.mark.parametrize("count", [40, 80, 400, 2000])
@pytest.mark.parametrize("known", [0, 10])
def test_nothing_is_removed_from_noise(count: int, known: int) -> None:
    removals = sum(warmup_in(noise(seed, count).tolist(), known) > 0 for seed in SEEDS)
    assert removals <= 5


@pytest.mark.parametrize("phi", [0.5, 0.8, 0.9])
def test_next_to_nothing_is_removed_from_what_only_wanders(phi: float) -> None:
    """Values that are like those before them are worth fewer: the ranks alone would be sure of
    every tenth of these."""
    removals = sum(warmup_in(autoregressive(seed, 400, phi).tolist(), 0) > 0 for seed in SEEDS)
    assert removals <= 5


def test_a_step_too_small_to_matter() -> None:
    for seed in SEEDS[:20]:
        series = noise(seed, 2000)
        series[:200] *= 1.05
        assert warmup_in(series.tolist(), 0) == 0


def test_the_ranks_of_unequal_samples() -> None:
    # U = 6 of 12 pairs by chance, 12 at most; its variance is 3 × 4 × 8 / 12 = 8.
    assert rank_z(np.array([1.0, 2, 3]), np.array([4.0, 5, 6, 7])) == pytest.approx(6 / 8**0.5)
    assert rank_z(np.array([9.0, 9, 9]), np.array([4.0, 5, 6, 7])) == pytest.approx(-6 / 8**0.5)
    assert rank_z(np.array([5.0] * 3), np.array([5.0] * 4)) == 0


def test_a_drift_is_of_the_halves() -> None:
    assert drift([2.0] * 30 + [1.0] * 30) == 0.5
    assert drift([2.0] * 19 + [1.0] * 19) is None


# ---- of a cell


def cell_with(ttfts_ms: Sequence[float], warmup: int = 0, **facts: Any) -> Cell:
    """One stream, with requests of 400 ms, the first ``warmup`` of which are warm-up."""
    traces = [
        request(400 * n, ttft, (ttft + 400) / 2, 400, phase="warmup" if n < warmup else "measured")
        for n, ttft in enumerate(ttfts_ms)
    ]
    return cell_of(traces, facts_of(**facts))


def test_a_cell_that_begins_too_early() -> None:
    """Ten requests of warm-up, of the 30 that were slow."""
    series = noise(1, 200)
    series[:30] += 90
    cell = cell_with(series.tolist(), warmup=10)
    assert (cell.warmup_removed, cell.requests.sent, cell.settled) == (20, 170, True)
    assert cell.notes == [
        "the first 20 requests (8.0 s) were taken as warm-up: TTFT had not settled (MSER-5)"
    ]
    assert cell.window_s == pytest.approx(170 * 0.4)
    assert cell.ttft_ms is not None
    assert cell.ttft_ms.n == 170
    assert cell.ttft_ms.max == pytest.approx(series[30:].max())
    assert cell.requests_per_s == pytest.approx(1 / 0.4)
    assert cell.verdict == "valid"


def test_a_cell_that_had_settled() -> None:
    series = noise(1, 200)
    series[:30] += 90
    cell = cell_with(series.tolist(), warmup=30)
    assert (cell.warmup_removed, cell.settled, cell.notes) == (0, True, [])
    assert cell_with(noise(2, 30).tolist()).settled is None


def test_a_cell_that_never_settles() -> None:
    cell = cell_with((noise(1, 200) * np.linspace(1, 3, 200)).tolist())
    assert (cell.warmup_removed, cell.settled) == (0, False)
    (note,) = cell.notes
    assert note.startswith("not settled: TTFT p50 of the second half is 1.")


def test_batches_have_no_warmup_but_their_own() -> None:
    series = noise(1, 200)
    series[:30] += 90
    load = facts_of().load
    batches = type(load)(**{name: getattr(load, name) for name in load.__struct_fields__})
    assert cell_with(series.tolist(), load=batches).warmup_removed == 30
    batches = type(load)(
        **{name: getattr(load, name) for name in load.__struct_fields__} | {"batch_size": 1}
    )
    assert cell_with(series.tolist(), load=batches).warmup_removed == 0


# ---- open loops


def served(in_flight: Sequence[float]) -> list[Trace]:
    """100 requests a second with a TTFT of 5 ms, each over when so many more have come."""
    return [due(10 * n, 0, 5, 6, many * 10 - 5) for n, many in enumerate(in_flight)]


def test_an_open_loop_whose_number_in_flight_had_not_settled() -> None:
    """Stays of up to a second: it takes that long until as many are in flight as will be, 50."""
    stays = np.random.default_rng(3).uniform(2, 100, size=2000)
    cell = cell_of(served(stays.tolist()), asked("100"))
    assert 40 <= cell.warmup_removed <= 100
    assert cell.notes[0].endswith(
        "were taken as warm-up: the number in flight had not settled (MSER-5)"
    )
    assert cell.settled is True
    assert cell.in_flight_growth == pytest.approx(1, abs=0.2)
    closed = cell_of(served(stays.tolist()), facts_of(200))
    assert closed.warmup_removed == 0  # as many as were asked for, by construction


def test_an_open_loop_that_is_too_much() -> None:
    """Request n is due at 10 n ms and done at 20 n + 30: 100 come and 50 go in a second."""
    traces = [due(10 * n, 0, 10 * n + 20, 10 * n + 25, 10 * n + 30) for n in range(400)]
    cell = cell_of(traces, asked("100"))
    # at t ms t / 20 are in flight: 25 on average in the first quarter of 4 s, 175 in the last
    assert cell.in_flight_growth == pytest.approx(7, rel=0.05)
    assert cell.settled is False
    (note,) = [each for each in cell.notes if each.startswith("not ")]  # and no drift beside it
    assert cell.ttft_drift is not None
    told = "in flight grew from 26.4 to 176 during the window"
    assert note == (
        f"not steady: {told}: 49.9 a second were answered, 100 came; latencies depend "
        "on how long the window is"
    )
    assert cell.verdict == "valid"


def test_a_ramp_is_meant_to_grow() -> None:
    traces = [due(10 * n, 0, 10 * n + 20, 10 * n + 25, 10 * n + 30) for n in range(400)]
    cell = cell_of(traces, asked("ramp(10,190)"))
    assert cell.in_flight_growth == pytest.approx(7, rel=0.05)
    assert (cell.settled, cell.warmup_removed, cell.notes) == (None, 0, [])


@pytest.mark.parametrize(
    ("quarters", "growing"),
    [
        ([10, 12, 14, 16], True),
        ([10, 12, 14, 15], False),  # not by more than a half
        ([2, 3, 4, 5.9], False),  # by less than four requests
        ([0, 2, 3, 4], True),
        ([10, 20, 15, 30], False),  # not steadily
        ([10, 20, 20, 30], False),
    ],
)
def test_what_grows(quarters: list[float], growing: bool) -> None:
    assert grows(quarters) is growing


def test_the_number_in_flight_by_hand() -> None:
    start_ns, end_ns = np.array([0, 5, 20, 90]), np.array([10, 25, 40, 99])
    assert in_flight(start_ns, end_ns, 0, 10) == 1.5  # all of the first, half of the second
    assert in_flight(start_ns, end_ns, 10, 30) == (15 + 10) / 20
    assert in_flight(start_ns, end_ns, 50, 60) == 0
