"""When requests are due, against the distributions and integrals that they are drawn from."""

import math
import subprocess
import sys
import tracemalloc
from collections import deque
from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import gamma, kstest

from llmbench.errors import UserError
from llmbench.plan import arrivals as module
from llmbench.plan.arrivals import Arrivals, Rate, due_s, read_arrivals, read_rate, window_s_for


def dues(
    rate: str,
    arrivals: str,
    count: int,
    *,
    window_s: float | None = None,
    seed: int = 1,
    warmup_s: float = 0.0,
) -> list[float]:
    times = due_s(
        read_rate(rate), read_arrivals(arrivals), window_s=window_s, seed=seed, warmup_s=warmup_s
    )
    return list(islice(times, count))


def count_between(times: list[float], low_s: float, high_s: float) -> int:
    assert times[-1] > high_s  # enough were drawn to count
    return sum(low_s < time <= high_s for time in times)


# ---- the grammar of rates


@pytest.mark.parametrize(
    ("text", "rate", "mean", "canonical"),
    [
        ("8", Rate("constant", (8.0,)), 8.0, "8"),
        (" 2.50 ", Rate("constant", (2.5,)), 2.5, "2.5"),
        ("1e3", Rate("constant", (1000.0,)), 1000.0, "1000"),
        ("0.000001", Rate("constant", (1e-6,)), 1e-6, "1e-06"),
        ("ramp(2,32)", Rate("ramp", (2.0, 32.0)), 17.0, "ramp(2,32)"),
        ("ramp( 32 , 0.5 )", Rate("ramp", (32.0, 0.5)), 16.25, "ramp(32,0.5)"),
        ("steps(2,8,32)", Rate("steps", (2.0, 8.0, 32.0)), 14.0, "steps(2,8,32)"),
        ("trace", Rate("trace"), None, "trace"),
    ],
)
def test_rates(text: str, rate: Rate, mean: float | None, canonical: str) -> None:
    read = read_rate(text)
    assert read == rate
    assert read.mean == mean
    assert str(read) == canonical


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "'' is no rate; write requests a second, such as 8"),
        ("fast", "'fast' is no rate"),
        ("8,16", "'8,16' is no rate"),
        ("8/s", "'8/s' is no rate"),
        ("nan", "'nan' is no rate"),
        ("constant(8)", "is no rate"),
        ("trace(2)", "is no rate"),
        ("ramp(2,x)", "is no rate"),
        ("a\nb", "'a?b' is no rate"),
        ("ramp", "ramp takes two rates, such as ramp(2,32)"),
        ("ramp(2)", "ramp takes two rates"),
        ("ramp(2,4,8)", "ramp takes two rates"),
        ("steps(8)", "steps takes two rates or more"),
        ("0", "0 requests a second is out of range; write a rate above 0"),
        ("-3", "-3 requests a second is out of range"),
        ("ramp(0,5)", "0 requests a second is out of range"),
        ("1000001", "from 1e-06 to 1000000"),
        ("1e999", "out of range"),
        ("9" * 5000, "out of range"),
    ],
)
def test_what_is_no_rate(text: str, words: str) -> None:
    with pytest.raises(UserError, match=r"^--request-rate: ") as caught:
        read_rate(text)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_errors_name_their_place() -> None:
    with pytest.raises(UserError, match=r"^sweep\.toml: request_rate: "):
        read_rate("x", "sweep.toml: request_rate")


per_s = st.floats(1e-6, 1e6)


@given(
    st.one_of(
        per_s.map(lambda rate: Rate("constant", (rate,))),
        st.tuples(per_s, per_s).map(lambda ends: Rate("ramp", ends)),
        st.lists(per_s, min_size=2, max_size=9).map(lambda steps: Rate("steps", tuple(steps))),
        st.just(Rate("trace")),
    )
)
def test_rates_read_as_they_are_written(rate: Rate) -> None:
    assert read_rate(str(rate)) == rate


GRAMMAR = st.text("0123456789.,()+-eE abcgmnoprst", max_size=24)


@given(st.one_of(st.text(), GRAMMAR))
def test_garbage_is_a_user_error(text: str) -> None:
    for read in (read_rate, read_arrivals):
        message = ""
        try:
            result = read(text)
            assert read(str(result)) == result
        except UserError as error:
            message = str(error)
        assert len(message.splitlines()) <= 1


# ---- the grammar of arrivals


@pytest.mark.parametrize(
    ("text", "arrivals"),
    [
        ("poisson", Arrivals("poisson", 1.0)),
        ("constant", Arrivals("constant", None)),
        (" gamma( 0.50 )", Arrivals("gamma", 0.5)),
        ("gamma(1)", Arrivals("gamma", 1.0)),
    ],
)
def test_arrivals(text: str, arrivals: Arrivals) -> None:
    assert read_arrivals(text) == arrivals
    assert str(arrivals) == "".join(text.split()).replace("0.50", "0.5")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is no kind of arrivals; write poisson, constant or gamma(B)"),
        ("uniform", "is no kind of arrivals"),
        ("gamma", "is no kind of arrivals"),
        ("gamma(1,2)", "is no kind of arrivals"),
        ("poisson(2)", "is no kind of arrivals"),
        ("8", "is no kind of arrivals"),
        ("gamma(0)", "write a burstiness above 0"),
        ("gamma(-1)", "write a burstiness above 0"),
        ("gamma(1e999)", "from 0.01 to 10000"),
    ],
)
def test_what_are_no_arrivals(text: str, words: str) -> None:
    with pytest.raises(UserError, match=r"^--arrivals: ") as caught:
        read_arrivals(text)
    assert words in str(caught.value)


# ---- due times at a constant rate


@pytest.mark.parametrize("seed", [0, 1, 2**63])
def test_poisson_gaps_are_exponential(seed: int) -> None:
    gaps_s = np.diff([0.0, *dues("50", "poisson", 20_000, seed=seed)])
    assert kstest(gaps_s * 50, "expon").pvalue > 0.01


@pytest.mark.parametrize("shape", [0.25, 0.7, 1.0, 4.0])
def test_gaps_have_the_burstiness_asked_for(shape: float) -> None:
    gaps_s = np.diff([0.0, *dues("50", f"gamma({shape})", 20_000, seed=3)])
    assert kstest(gaps_s * 50, gamma(shape, scale=1 / shape).cdf).pvalue > 0.01


def test_a_burstiness_of_one_is_poisson() -> None:
    assert dues("50", "gamma(1)", 2000) == dues("50", "poisson", 2000)


def test_constant_arrivals_are_even_and_begin_with_a_whole_gap() -> None:
    assert dues("8", "constant", 4) == [0.125, 0.25, 0.375, 0.5]
    assert dues("8", "constant", 3000)[-1] == 375.0


@pytest.mark.parametrize("arrivals", ["poisson", "constant", "gamma(0.5)", "gamma(5)"])
def test_the_rate_is_reached(arrivals: str) -> None:
    latest_s = dues("20", arrivals, 40_000, seed=5)[-1]
    # the mean of 40 000 gaps, whose spread at most √2 of a gap: within four of its errors
    assert 40_000 / latest_s == pytest.approx(20, rel=4 * math.sqrt(2 / 40_000))


# ---- due times at a rate that changes


@pytest.mark.parametrize("ends", [(2, 32), (32, 2), (7, 7)])
def test_a_ramp_follows_its_integral(ends: tuple[int, int]) -> None:
    first, last = ends
    ramp = f"ramp({first},{last})"
    even = dues(ramp, "constant", 40_000, window_s=1000)
    random = dues(ramp, "poisson", 40_000, window_s=1000, seed=11)
    for tenth in range(10):
        low_s, high_s = 100 * tenth, 100 * (tenth + 1)
        expected = 100 * (first + (last - first) * (tenth + 0.5) / 10)
        assert abs(count_between(even, low_s, high_s) - expected) <= 1
        assert abs(count_between(random, low_s, high_s) - expected) < 4 * math.sqrt(expected)


def test_a_ramp_is_poisson_once_time_is_rescaled() -> None:
    times_s = np.array(dues("ramp(2,32)", "poisson", 15_000, window_s=1000, seed=2))
    expected = 2 * times_s + 30 / 1000 * times_s**2 / 2  # ∫ 2 + 30 t / 1000
    inside = expected[times_s < 1000]
    assert kstest(np.diff(inside), "expon").pvalue > 0.01


def test_steps_are_equal_parts_of_the_window() -> None:
    times_s = dues("steps(2,8,32)", "constant", 8000, window_s=300)
    for part, expected in enumerate((200, 800, 3200, 3200)):
        assert abs(count_between(times_s, 100 * part, 100 * part + 100) - expected) <= 1


def test_before_the_window_the_first_rate_and_after_it_the_last() -> None:
    for rate in ("ramp(2,32)", "steps(2,32)"):
        times_s = dues(rate, "constant", 2000, window_s=10, warmup_s=50)
        assert count_between(times_s, 0, 50) == 100
        assert abs(count_between(times_s, 50, 60) - 170) <= 1
        assert abs(count_between(times_s, 60, 70) - 320) <= 1
        assert times_s[-1] - times_s[-2] == pytest.approx(1 / 32)


def test_a_warm_up_does_not_disturb_a_constant_rate() -> None:
    assert dues("8", "poisson", 500, warmup_s=3) == dues("8", "poisson", 500)


# ---- all due times


def test_blocks_leave_no_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    for arrivals in ("poisson", "gamma(0.3)", "gamma(3)", "constant"):
        whole = dues("ramp(5,50)", arrivals, 3000, window_s=60)
        for block in (1, 7, 4096):
            monkeypatch.setattr(module, "_BLOCK", block)
            assert dues("ramp(5,50)", arrivals, 3000, window_s=60) == whole
        monkeypatch.undo()


def test_seeds_tell_sequences_apart() -> None:
    same = [dues("8", "poisson", 100, seed=seed) for seed in (4, 4, 5, -4, 0)]
    assert same[0] == same[1]
    assert len({tuple(times) for times in same}) == 4


def test_every_process_draws_the_same() -> None:
    code = (
        "from itertools import islice\n"
        "from llmbench.plan.arrivals import due_s, read_arrivals, read_rate\n"
        "times = due_s(read_rate('ramp(2,9)'), read_arrivals('gamma(0.5)'), window_s=9, seed=7)\n"
        "print(list(islice(times, 1500)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    expected = dues("ramp(2,9)", "gamma(0.5)", 1500, window_s=9, seed=7)
    assert done.stdout.strip() == str(expected)


@settings(max_examples=60)
@given(
    rate=st.one_of(
        st.tuples(per_s, per_s).map(lambda ends: Rate("ramp", ends)),
        st.lists(per_s, min_size=2, max_size=5).map(lambda steps: Rate("steps", tuple(steps))),
    ),
    arrivals=st.sampled_from(["poisson", "constant", "gamma(0.01)", "gamma(10000)"]),
    window_s=st.floats(0.001, 1e5),
    warmup_s=st.floats(0, 1e4),
    seed=st.integers(-(2**70), 2**70),
)
def test_times_never_go_back(
    rate: Rate, arrivals: str, window_s: float, warmup_s: float, seed: int
) -> None:
    times = due_s(rate, read_arrivals(arrivals), window_s=window_s, seed=seed, warmup_s=warmup_s)
    first = list(islice(times, 1500))
    assert all(earlier <= later for earlier, later in pairwise([0.0, *first]))
    assert all(math.isfinite(time) for time in first)


def test_a_huge_rate() -> None:
    times_s = dues("1000000", "poisson", 200_000)
    assert times_s[-1] == pytest.approx(0.2, rel=0.01)
    assert all(earlier < later for earlier, later in pairwise(times_s))


def test_a_million_due_times_take_constant_memory() -> None:
    times = due_s(read_rate("ramp(2,99)"), read_arrivals("poisson"), window_s=60, seed=1)
    next(times)
    tracemalloc.start()
    try:
        deque(islice(times, 1_000_000), maxlen=0)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1_000_000


# ---- windows


def test_how_long_a_window_holds_the_requests() -> None:
    assert window_s_for(read_rate("8"), 200) == 25.0
    assert window_s_for(read_rate("ramp(2,32)"), 170) == 10.0
    assert window_s_for(read_rate("steps(2,8,32)"), 140) == 10.0


def test_what_a_window_cannot_be_found_for() -> None:
    poisson = read_arrivals("poisson")
    with pytest.raises(ValueError, match="trace"):
        window_s_for(read_rate("trace"), 5)
    with pytest.raises(ValueError, match="trace"):
        due_s(read_rate("trace"), poisson, window_s=5, seed=0)
    for window_s in (None, 0.0):
        with pytest.raises(ValueError, match="needs a window"):
            due_s(read_rate("ramp(2,4)"), poisson, window_s=window_s, seed=0)


@pytest.mark.parametrize("kind", ["poisson", "constant", "gamma(0.3)"])
@pytest.mark.parametrize(("rate", "warmup"), [("8", 80), ("ramp(2,14)", 20), ("steps(4,12)", 40)])
def test_exactly_so_many_fill_warmup_and_window(kind: str, rate: str, warmup: int) -> None:
    times = due_s(
        read_rate(rate),
        read_arrivals(kind),
        window_s=500.0,
        seed=3,
        warmup_s=10.0,
        counts=(warmup, 500 * 8),
    )
    *_, warm_s = islice(times, warmup)
    assert warm_s == pytest.approx(10.0)
    *_, last_s = islice(times, 500 * 8)
    assert last_s == pytest.approx(510.0)
    assert next(times) > last_s
