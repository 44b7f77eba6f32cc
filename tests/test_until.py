"""What ends a cell beside its number of requests: certainty, failures, and the end of the grace."""

import random
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbench.drive import board as board_module
from llmbench.drive.board import SLOTS, Board, samples_wanted
from llmbench.errors import UserError
from llmbench.plan.until import LOOKS, Seen, Until, read_until
from llmbench.records import Load

INF = float("inf")

# ---- the grammar


@pytest.mark.parametrize(
    ("text", "until"),
    [
        ("ci=5%", Until("p50", 0.05)),
        ("ttft.p50=5%", Until("p50", 0.05)),
        ("ttft.p90=10%", Until("p90", 0.1)),
        ("ttft.p95=2.5%", Until("p95", 0.025)),
        (" ttft.p99 = 99.9% ", Until("p99", 0.999)),
    ],
)
def test_rules(text: str, until: Until) -> None:
    assert read_until(text).quantile == until.quantile
    assert read_until(text).share == pytest.approx(until.share)


WRONG = [
    "",
    "5%",
    "ci",
    "ci=",
    "ci=5",
    "ci=%",
    "ci=-5%",
    "ci=5%%",
    "ci=.5%",
    "ci=5 %",
    "CI=5%",
    "ci.p95=5%",
    "ttft=5%",
    "ttft.p42=5%",
    "ttft.95=5%",
    "itl.p50=5%",
    "ci=5%,ttft.p95=5%",
    "ci=nan%",
]


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_rule(text: str) -> None:
    with pytest.raises(UserError) as caught:
        read_until(text, "sweep.toml: until")
    (line,) = str(caught.value).splitlines()
    assert line == (
        f"sweep.toml: until '{text}': write ci=5% (for TTFT p50), or ttft.p95=5%; "
        "of p50, p90, p95, p99"
    )


@pytest.mark.parametrize("text", ["ci=0%", "ci=0.0%", "ci=100%", "ttft.p95=250%"])
def test_widths_that_say_nothing(text: str) -> None:
    with pytest.raises(UserError) as caught:
        read_until(text)
    assert str(caught.value) == f"--until '{text}': the width must lie between 0% and 100%"


@given(st.text())
def test_garbage_is_one_line(text: str) -> None:
    with pytest.raises(UserError) as caught:
        read_until(f"ci{text}")
    assert len(str(caught.value).splitlines()) == 1


def test_a_rule_of_two_lines_is_refused_in_one() -> None:
    with pytest.raises(UserError) as caught:
        read_until("ci=5%\nci=6%")
    assert len(str(caught.value).splitlines()) == 1


# ---- the looks


@pytest.mark.parametrize(
    ("most", "sizes"),
    [
        (1152, [72, 144, 288, 576, 1152]),
        (1600, [100, 200, 400, 800, 1600]),
        (100, [6, 12, 25, 50, 100]),
        (8, [1, 1, 2, 4, 8]),
        (1, [1, 1, 1, 1, 1]),
    ],
)
def test_each_look_is_at_twice_as_many(most: int, sizes: list[int]) -> None:
    assert read_until("ci=5%").sizes(most) == sizes


@given(st.integers(1, 1_000_000))
def test_there_are_five_looks_and_the_last_is_at_the_most(most: int) -> None:
    sizes = read_until("ci=5%").sizes(most)
    assert len(sizes) == LOOKS
    assert sizes == sorted(sizes)
    assert sizes[0] >= 1
    assert sizes[-1] == most


# ---- certainty


@pytest.mark.parametrize(
    ("rule", "fewest"),
    [
        # both ends beyond the quantile by chance: 2 × 0.5⁸ = 0.8%, and 1.6% with seven
        ("ci=0.1%", 8),
        # 0.95¹⁰⁴ = 0.48% and 0.95¹⁰³ = 0.51%, of the 0.5% that a 99% interval has on a side
        ("ttft.p95=0.1%", 104),
    ],
)
def test_equal_samples_are_certain_once_there_is_an_interval(rule: str, fewest: int) -> None:
    until = read_until(rule)
    assert until.certain(Seen([0.2] * fewest))
    assert until.certain(Seen([0.2] * 500))
    assert not until.certain(Seen([0.2] * (fewest - 1)))
    assert not until.certain(Seen([]))


def mixed(values: Iterable[float]) -> list[float]:
    """``values`` in an order without a memory."""
    return random.Random(1).sample(found := list(values), len(found))


def test_the_wider_side_counts() -> None:
    # p50 of 1 to 100 is 50. Of 100 values 37 to 63 lie below a median with 98.9% or more, each
    # tail at most 0.5%: ranks 37 and 64, 13 below and 14 above, 26% and 28% of it.
    samples = mixed(range(1, 101))
    until = read_until("ci=28%")
    width = until.half_width(Seen(samples), 0.99)
    assert width is not None
    assert width == pytest.approx(0.28)
    assert until.certain(Seen(samples))
    assert until.certain(Seen(samples[::-1]))  # in whichever order they came
    assert not read_until("ci=27.9%").certain(Seen(samples))


def test_samples_that_resemble_their_neighbours_are_less_certain() -> None:
    """What holds for a hundred that come in any order does not where one stretch was slow."""
    samples = [1.0 + n // 10 / 100 for n in range(100)]
    until = read_until("ci=5%")
    assert until.certain(Seen(mixed(samples)))
    assert not until.certain(Seen(samples))


def test_more_samples_are_more_certain() -> None:
    until = read_until("ci=15%")
    few = [1.0 + n % 10 for n in range(100)]
    assert not until.certain(Seen(few))
    assert until.certain(Seen([5.0 + n % 10 / 10 for n in range(100)]))


def test_failures_are_infinite_latencies() -> None:
    until = read_until("ci=5%")
    assert until.certain(Seen(mixed([1.0] * 80 + [INF] * 20)))
    assert not until.certain(Seen(mixed([1.0] * 55 + [INF] * 45)))  # rank 64 is a failure
    assert not until.certain(Seen(mixed([1.0] * 40 + [INF] * 60)))  # the median itself is one
    assert not until.certain(Seen([INF] * 100))
    assert not read_until("ttft.p95=50%").certain(Seen(mixed([1.0] * 480 + [INF] * 20)))
    assert read_until("ttft.p95=50%").certain(Seen(mixed([1.0] * 499 + [INF])))


def test_a_latency_of_zero_has_no_share() -> None:
    assert not read_until("ci=5%").certain(Seen([0.0] * 100))


@given(st.lists(st.floats(1e-6, 1e6) | st.just(INF), max_size=300), st.sampled_from([1, 5, 50]))
def test_any_samples_have_an_answer(samples: list[float], share: int) -> None:
    until = read_until(f"ci={share}%")
    assert until.certain(Seen(samples)) in (True, False)
    assert "\n" not in until.remark(Seen(samples), 1, False)


@pytest.mark.parametrize(
    ("rule", "samples", "looked", "certain", "words"),
    [
        ("ci=5%", [0.2] * 72, 1, True, "TTFT p50 within ±5% reached at look 1 of 5: ±0% (99%)"),
        (
            "ttft.p95=2.5%",
            [0.2] * 9,
            5,
            False,
            "TTFT p95 within ±2.5% not reached at look 5 of 5: no interval (99%)",
        ),
        (
            "ci=10%",
            mixed(range(1, 101)),
            5,
            False,
            "TTFT p50 within ±10% not reached at look 5 of 5: ±28% (99%)",
        ),
        ("ci=10%", [], 0, False, "TTFT p50 within ±10% not reached at look 0 of 5: no interval"),
    ],
)
def test_how_it_ended_in_words(
    rule: str, samples: list[float], looked: int, certain: bool, words: str
) -> None:
    said = read_until(rule).remark(Seen(samples), looked, certain)
    assert said.startswith(words)
    assert said.endswith(f" by {len(samples)} requests")


# ---- the board looks when it was declared


def load_of(
    requests: int = 80,
    *,
    rate: str = "",
    until: str = "",
    max_failures: str = "",
    grace_s: float | None = None,
) -> Load:
    return Load(
        concurrency=1,
        prompt_tokens=1,
        output_tokens=1,
        requests=requests,
        duration_s=None,
        warmup=0,
        rate=rate,
        arrivals="constant" if rate else "",
        grace_s=grace_s,
        until=until,
        max_failures=max_failures,
    )


def measured_by(board: Board, *latencies_s: float | None) -> int:
    """How many requests are measured of a closed loop in which they take so long (``None``: they
    fail), the last of them again and again."""
    for number in range(10_000):
        ticket = board.take()
        if ticket is None:
            return board.measured
        latency_s = latencies_s[min(number, len(latencies_s) - 1)]
        board.ended(ticket.phase, latency_s is None, latency_s)
    raise AssertionError("it has no end")


def test_a_cell_ends_at_the_first_look_that_is_certain() -> None:
    # of 80: at 5, 10, 20, 40 and 80; eight equal samples would do, but nobody looks at eight
    board = Board(load_of(80, until="ci=5%"))
    assert measured_by(board, 0.2) == 10
    assert board.remark == "TTFT p50 within ±5% reached at look 2 of 5: ±0% (99%) by 10 requests"


def test_a_cell_that_is_never_certain_runs_to_its_end() -> None:
    board = Board(load_of(80, until="ttft.p95=5%"))
    assert measured_by(board, 0.2) == 80
    assert (
        board.remark
        == "TTFT p95 within ±5% not reached at look 5 of 5: no interval (99%) by 80 requests"
    )


def test_a_look_sees_all_that_came_before() -> None:
    # ten samples that differ; at twenty the ranks of p50 are 4 and 17, all but the ends equal
    board = Board(load_of(80, until="ci=5%"))
    assert measured_by(board, 0.1, 0.1, 0.1, 0.9, 0.9, 0.9, 0.2) == 20


def test_failed_requests_count_as_infinite() -> None:
    board = Board(load_of(80, until="ci=5%"))
    assert measured_by(board, None, 0.2) == 20  # at ten, rank 10 is the failure


def test_a_reply_without_a_first_token_is_infinite_too() -> None:
    board = Board(load_of(80, until="ci=5%"))
    for number in range(10):
        assert board.take() is not None
        board.ended("measured", False, None if number == 4 else 0.2)
    assert board.take() is not None
    assert board.phase == "measured"


def test_without_a_rule_nobody_looks() -> None:
    board = Board(load_of(80))
    assert measured_by(board, 0.2) == 80
    assert board.remark == ""
    assert samples_wanted(load_of(80)) == 0


def test_what_is_in_flight_when_it_is_certain_still_counts() -> None:
    board = Board(load_of(80, until="ci=5%"))
    for _ in range(12):
        board.take()
    for _ in range(10):
        board.ended("measured", False, 0.2)
    ticket = board.take()
    assert ticket is not None
    assert ticket.phase == "cooldown"
    board.ended("measured", False, 0.2)
    assert not board.over
    board.ended("measured", False, 0.2)
    assert board.over
    assert board.measured == 12
    assert board.remark.endswith("at look 2 of 5: ±0% (99%) by 12 requests")


def test_an_open_loop_measures_no_more_once_it_is_certain() -> None:
    board = Board(load_of(80, rate="10", until="ci=5%"))
    for _ in range(10):
        ticket = board.send("measured")
        assert ticket is not None
        assert ticket.phase == "measured"
        board.ended("measured", False, 0.2)
    late = board.send("measured")
    assert late is None or late.phase == "cooldown"
    if late is not None:
        board.ended(late.phase, False, 0.2)
    assert board.over
    assert board.measured == 10


def test_processes_look_at_the_same_samples() -> None:
    load = load_of(80, until="ci=5%")
    slots, samples = [0] * SLOTS, [0.0] * samples_wanted(load)
    boards = [Board(load, 2, slots, samples) for _ in range(2)]
    for number in range(10):
        board = boards[number % 2]
        assert board.take() is not None
        board.ended("measured", False, 0.2)
    assert boards[0].take() is None
    assert {board.measured for board in boards} == {10}
    assert len({board.remark for board in boards}) == 1


# ---- too many failures


def hopeless_after(max_failures: str, ends: str) -> list[str]:
    """What the board says after each end: ``x`` for a failure, ``.`` for a reply."""
    board = Board(load_of(1000, max_failures=max_failures))
    return [board.ended("measured", end == "x") for end in ends]


def test_more_failures_than_a_number() -> None:
    said = hopeless_after("3", "x.xx.x")
    assert said == [""] * 5 + ["after 4 of 6 requests failed, more than --max-failures 3"]
    assert hopeless_after("0", ".x") == [
        "",
        "after 1 of 2 requests failed, more than --max-failures 0",
    ]
    assert not any(hopeless_after("3", "x.x.x" + "." * 50))


def test_more_failures_than_a_share() -> None:
    # of the first twenty 20% are four, whatever number has ended
    said = hopeless_after("20%", "xxx.xx")
    assert said == [""] * 5 + ["after 5 of 6 requests failed, more than --max-failures 20%"]
    # six of thirty are 20%, seven of thirty-one are more
    thirty = "xxxx" + "." * 24 + "xx"
    assert not any(hopeless_after("20%", thirty))
    assert hopeless_after("20%", thirty + "x")[-1].startswith("after 7 of 31 requests failed")
    assert hopeless_after("2.5%", "x")[-1].endswith("more than --max-failures 2.5%")


def test_without_a_limit_only_failures_in_a_row_end_a_cell() -> None:
    assert not any(hopeless_after("", "xxxxxxxxx." * 5))
    assert hopeless_after("", "x" * 10)[-1] == "after 10 failures in a row"
    assert hopeless_after("50%", "x" * 10)[-1] == "after 10 failures in a row"


# ---- grace


def test_replies_are_awaited_for_as_long_as_the_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    now_ns = [1_000]
    monkeypatch.setattr(board_module.time, "monotonic_ns", lambda: now_ns[0])
    board = Board(load_of(2, grace_s=1.5))
    board.take()
    board.take()
    now_ns[0] += 60_000_000_000
    assert not board.grace_is_over()  # the window is still open
    assert board.take() is not None  # the third closes it
    now_ns[0] += 1_500_000_000
    assert not board.grace_is_over()
    now_ns[0] += 1
    assert board.grace_is_over()
    assert not board.over


def test_the_grace_of_an_open_loop_begins_when_the_last_process_closed_the_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_ns = [1_000]
    monkeypatch.setattr(board_module.time, "monotonic_ns", lambda: now_ns[0])
    slots = [0] * SLOTS
    one, other = (Board(load_of(2, rate="10", grace_s=1.0), 2, slots) for _ in range(2))
    one.send("measured")
    one.close_window()
    now_ns[0] += 5_000_000_000
    assert not one.grace_is_over()
    other.send("measured")
    other.close_window()
    assert not one.grace_is_over()
    now_ns[0] += 1_000_000_001
    assert one.grace_is_over()
    assert other.grace_is_over()


def test_the_grace_of_an_open_loop_begins_when_it_is_certain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_ns = [1_000]
    monkeypatch.setattr(board_module.time, "monotonic_ns", lambda: now_ns[0])
    board = Board(load_of(80, rate="10", until="ci=5%", grace_s=1.0))
    for _ in range(11):
        board.send("measured")
    for _ in range(10):
        board.ended("measured", False, 0.2)  # certain, but one reply does not come
    late = board.send("measured")
    assert late is not None
    assert late.phase == "cooldown"
    now_ns[0] += 60_000_000_000
    assert board.grace_is_over()


def test_without_a_grace_replies_are_awaited_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    now_ns = [1_000]
    monkeypatch.setattr(board_module.time, "monotonic_ns", lambda: now_ns[0])
    board = Board(load_of(1))
    board.take()
    board.take()
    now_ns[0] += 10**18
    assert not board.grace_is_over()
