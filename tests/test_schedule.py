"""When sessions are due and which are measured: by hand, in parts, and by the times of a trace."""

from collections.abc import Iterator
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbench.drive.board import SLOTS, Board, Ticket
from llmbench.plan.feed import Feed
from llmbench.plan.scale import Scale
from llmbench.plan.schedule import Due, measured_sessions, schedule
from llmbench.records import Content, Load


def load_of(
    rate: str = "10",
    arrivals: str = "constant",
    *,
    requests: int = 20,
    warmup: int = 0,
    duration_s: float | None = None,
    speed: float = 1.0,
    **content: Any,
) -> Load:
    return Load(
        concurrency=0,
        prompt_tokens=10,
        output_tokens=5,
        requests=requests,
        duration_s=duration_s,
        warmup=warmup,
        rate=rate,
        arrivals=arrivals,
        speed=speed,
        grace_s=30.0,
        content=Content(**content),
    )


def due(load: Load, part: int = 0, parts: int = 1) -> Iterator[Due]:
    return schedule(load, Feed(load, 0, "run", Scale()), part, parts)


def counted(sessions: list[Due]) -> dict[str, int]:
    phases = [each.phase for each in sessions]
    return {phase: phases.count(phase) for phase in dict.fromkeys(phases)}


# ---- a rate


def test_even_arrivals_by_number() -> None:
    sessions = list(islice(due(load_of("10", requests=20, warmup=5)), 30))
    assert [each.number for each in sessions] == list(range(30))
    assert [each.at_ns for each in sessions] == [100_000_000 * n for n in range(1, 31)]
    phases = ["warmup"] * 5 + ["measured"] * 20 + ["cooldown"] * 5
    assert [each.phase for each in sessions] == phases


def test_even_arrivals_by_time() -> None:
    # eight a second for 2 s
    load = load_of("8", requests=3, warmup=5, duration_s=2.0)
    sessions = list(islice(due(load), 30))
    assert counted(sessions) == {"warmup": 5, "measured": 16, "cooldown": 9}
    assert [sessions[number].at_ns for number in (5, 20)] == [750_000_000, 2_625_000_000]


def test_without_a_warmup_all_is_measured_from_the_first() -> None:
    sessions = list(islice(due(load_of(requests=3)), 5))
    assert counted(sessions) == {"measured": 3, "cooldown": 2}


def test_sessions_say_what_the_feed_says() -> None:
    load = load_of(prompt_lengths="uniform(5,50)", turns=2, think_time="exponential(1)")
    feed = Feed(load, 0, "run", Scale())
    for each in islice(due(load), 12):
        assert each.session == feed.session(each.number)


SCATTERED = [
    ("10", "poisson"),
    ("10", "gamma(0.5)"),
    ("10", "constant"),
    ("ramp(5,20)", "poisson"),
    ("steps(5,10,20)", "gamma(3)"),
]


@pytest.mark.parametrize(("rate", "arrivals"), SCATTERED)
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("by_time", [False, True])
def test_the_window_holds_as_many_as_asked_for_in_their_time(
    rate: str, arrivals: str, seed: int, by_time: bool
) -> None:
    mean, first = {"10": (10, 10), "ramp(5,20)": (12.5, 5), "steps(5,10,20)": (35 / 3, 5)}[rate]
    in_30_s = {"10": 300, "ramp(5,20)": 375, "steps(5,10,20)": 350}[rate]
    asked = {"duration_s": 30.0} if by_time else {"requests": 210}
    many = in_30_s if by_time else 210
    load = load_of(rate, arrivals, warmup=20, seed=seed, **asked)
    sessions = list(islice(due(load), 400))
    assert counted(sessions) == {"warmup": 20, "measured": many, "cooldown": 380 - many}
    # the last of them ends it
    assert sessions[19 + many].at_ns / 1e9 == pytest.approx(20 / first + many / mean, abs=1e-6)
    assert measured_sessions(load) == many
    times = [each.at_ns for each in sessions]
    assert times == sorted(times)


def test_a_window_holds_at_least_one() -> None:
    sessions = list(islice(due(load_of("0.1", warmup=1, duration_s=0.5)), 3))
    assert counted(sessions) == {"warmup": 1, "measured": 1, "cooldown": 1}


@pytest.mark.parametrize(("rate", "arrivals"), SCATTERED)
def test_equal_seeds_have_equal_times(rate: str, arrivals: str) -> None:
    def times(seed: int) -> list[int]:
        return [each.at_ns for each in islice(due(load_of(rate, arrivals, seed=seed)), 50)]

    assert times(3) == times(3)
    assert (times(3) == times(4)) == (arrivals == "constant")


@given(
    st.integers(1, 5),
    st.sampled_from(SCATTERED),
    st.integers(0, 7),
    st.sampled_from([None, 1.5]),
)
def test_the_parts_are_the_whole(
    parts: int, scattered: tuple[str, str], warmup: int, duration_s: float | None
) -> None:
    load = load_of(*scattered, warmup=warmup, duration_s=duration_s, output_lengths="uniform(1,9)")
    whole = list(islice(due(load), 60))
    shares = [list(islice(due(load, part, parts), 60)) for part in range(parts)]
    for part, share in enumerate(shares):
        assert share[: -(-(60 - part) // parts)] == whole[part::parts]
    merged = sorted((each for share in shares for each in share), key=lambda each: each.number)
    assert merged[:60] == whole


# ---- a trace


@pytest.fixture
def trace(tmp_path: Path) -> str:
    """Six requests in 4 s, the first of them at second 100 of the file's own clock."""
    path = tmp_path / "trace.csv"
    times = (100, 100.5, 100.5, 102, 103.25, 104)
    rows = "".join(f"{at},{tokens},7\n" for tokens, at in enumerate(times, 11))
    path.write_text(f"at,prompt_tokens,output_tokens\n{rows}", encoding="utf-8")
    return str(path)


def traced(path: str, **fields: Any) -> Load:
    return load_of("trace", **({"requests": 1_000_000, "dataset": path, "format": "csv"} | fields))


@pytest.mark.parametrize(
    ("speed", "times_ms"),
    [
        (1.0, [0, 500, 500, 2000, 3250, 4000]),
        (2.0, [0, 250, 250, 1000, 1625, 2000]),
        (0.5, [0, 1000, 1000, 4000, 6500, 8000]),
    ],
)
def test_a_trace_has_its_own_times(trace: str, speed: float, times_ms: list[int]) -> None:
    sessions = list(due(traced(trace, speed=speed)))
    assert [each.at_ns for each in sessions] == [at * 1_000_000 for at in times_ms]
    assert [each.number for each in sessions] == list(range(6))
    assert counted(sessions) == {"measured": 6}
    assert {each.session.asks[0].output_tokens for each in sessions} == {7}


def test_a_trace_in_part(trace: str) -> None:
    def phases(**fields: Any) -> dict[str, int]:
        return counted(list(due(traced(trace, **fields))))

    assert phases(requests=3, warmup=1) == {"warmup": 1, "measured": 3, "cooldown": 2}
    # from its first row on: 0, 0.5 and 0.5 s come before 1.5 s
    assert phases(duration_s=1.5, warmup=1) == {"warmup": 1, "measured": 2, "cooldown": 3}
    # twice as fast 0, 0.25, 0.25 and 1 s do
    assert phases(duration_s=1.5, speed=2.0) == {"measured": 4, "cooldown": 2}


@pytest.mark.parametrize("parts", [1, 2, 3, 4, 7])
def test_the_parts_of_a_trace_are_the_whole(trace: str, parts: int) -> None:
    whole = list(due(traced(trace, warmup=2)))
    for part in range(parts):
        assert list(due(traced(trace, warmup=2), part, parts)) == whole[part::parts]


def test_a_dataset_with_a_rate_of_its_own_begins_again(trace: str) -> None:
    load = load_of("10", dataset=trace, format="csv", requests=15)
    sessions = list(islice(due(load), 15))
    assert [each.at_ns for each in sessions] == [100_000_000 * n for n in range(1, 16)]
    words = [len(each.session.asks[0].messages[0].content.split()) for each in sessions]
    assert words == (words[:6] * 3)[:15]


# ---- the board of an open loop


def test_an_open_loop_is_over_when_its_window_is_closed_and_all_have_answered() -> None:
    load = load_of(requests=2, warmup=1)
    board = Board(load)
    for number, each in enumerate(takewhile(lambda one: one.phase != "cooldown", due(load))):
        assert board.send(each.phase) == Ticket(number, each.phase)
        assert board.phase == each.phase
    board.close_window()
    assert board.send("cooldown") == Ticket(3, "cooldown")
    for phase in ("warmup", "measured", "cooldown"):
        board.ended(phase, False)
        assert not board.over
    board.ended("measured", False)
    assert board.over
    assert board.send("cooldown") is None
    assert board.measured == 2


def test_an_open_loop_whose_window_closes_last() -> None:
    board = Board(load_of(requests=1))
    board.send("measured")
    board.ended("measured", False)
    assert not board.over
    board.close_window()
    assert board.over


def two_parts(requests: int = 2) -> tuple[Board, Board]:
    slots = [0] * SLOTS
    load = load_of(requests=requests)
    return Board(load, 2, slots), Board(load, 2, slots)


def test_the_window_of_two_processes_is_closed_by_both() -> None:
    one, other = two_parts()
    assert one.send("measured") == Ticket(0, "measured")
    one.ended("measured", False)
    one.close_window()
    assert not one.over
    assert one.phase == "measured"
    assert other.send("measured") == Ticket(1, "measured")
    other.close_window()
    assert other.phase == "cooldown"
    assert not other.over
    other.ended("measured", False)
    assert one.over
    assert other.over
    assert one.measured == other.measured == 2


def test_the_cooldown_of_one_process_does_not_close_the_window_of_another() -> None:
    one, other = two_parts()
    assert one.send("measured") == Ticket(0, "measured")
    one.ended("measured", False)
    one.close_window()
    assert one.send("cooldown") == Ticket(1, "cooldown")
    one.ended("cooldown", False)
    assert not other.over
    assert other.send("measured") == Ticket(2, "measured")  # this process is a little late
