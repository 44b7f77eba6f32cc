"""Which requests count: the rules of warm-up, window and cool-down, one step at a time."""

import pytest

from llmbench.drive import board as board_module
from llmbench.drive.board import FAILURES_IN_A_ROW, SLOTS, Board, Ticket
from llmbench.records import Load


def load(**fields: float | None) -> Load:
    plain = {"concurrency": 2, "requests": 3, "warmup": 2, "duration_s": None}
    return Load(prompt_tokens=1, output_tokens=1, **(plain | fields))  # type: ignore[arg-type]


def test_the_window_opens_when_all_streams_are_under_way_and_warm() -> None:
    board = Board(load())
    board.start()
    assert board.take() == Ticket(0, "warmup")
    board.ended("warmup", False)
    assert board.take() == Ticket(1, "warmup")
    board.ended("warmup", False)  # warm enough, but one stream has not begun
    assert board.take() == Ticket(2, "warmup")
    board.start()
    assert board.take() == Ticket(3, "measured")


def test_as_many_are_measured_as_were_asked_for_and_the_load_is_kept_up() -> None:
    board = Board(load(warmup=0))
    taken = [board.take() for _ in range(5)]
    assert [ticket and ticket.phase for ticket in taken] == ["measured"] * 3 + ["cooldown"] * 2
    board.ended("cooldown", False)
    board.ended("measured", False)
    board.ended("measured", False)
    assert not board.over
    board.ended("measured", False)
    assert board.over
    assert board.take() is None
    assert board.measured == 3


def test_without_another_taker_the_cell_still_ends() -> None:
    board = Board(load(warmup=0, requests=1, concurrency=1))
    assert board.take() == Ticket(0, "measured")
    board.ended("measured", False)
    assert board.take() is None


def test_a_window_of_a_set_duration_closes_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now_ns = [0]
    monkeypatch.setattr(board_module.time, "monotonic_ns", lambda: now_ns[0])
    board = Board(load(warmup=0, duration_s=2.0, requests=1))
    assert board.take() == Ticket(0, "measured")
    assert board.take() == Ticket(1, "measured")
    now_ns[0] = 2_000_000_000
    assert board.take() == Ticket(2, "cooldown")
    board.ended("measured", False)
    board.ended("measured", False)
    assert board.over


def test_failures_in_a_row_are_hopeless_and_a_success_between_them_is_not() -> None:
    board = Board(load(warmup=0, requests=1000))
    for _ in range(FAILURES_IN_A_ROW - 1):
        assert not board.ended("measured", True)
    assert not board.ended("measured", False)
    for _ in range(FAILURES_IN_A_ROW - 1):
        assert not board.ended("measured", True)
    assert board.ended("measured", True)
    assert board.failed == 2 * FAILURES_IN_A_ROW - 1


def test_boards_on_the_same_slots_are_one() -> None:
    slots = [0] * SLOTS
    one, other = (Board(load(warmup=0), 2, slots) for _ in range(2))
    assert one.take() == Ticket(0, "measured")
    assert other.take() == Ticket(1, "measured")
    one.stop()
    assert other.over
    assert other.take() is None


# ── a budget of time ─────────────────────────────────────────────────────────────────────────────


class Clock:
    """A clock that stands still until it is told how late it is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 0.0
        monkeypatch.setattr(board_module.time, "monotonic_ns", lambda: round(self.now_s * 1e9))


def budget(budget_s: float = 30.0, concurrency: int = 2, **fields: float | None) -> Board:
    known = {"warmup": 0, "requests": 1_000_000, "budget_s": budget_s, "concurrency": concurrency}
    return Board(load(**(known | fields)))


def play(board: Board, clock: Clock, took_s: list[float], ttft_s: list[float]) -> list[float]:
    """Let each stream send its next request as soon as the last has ended, of which request number
    n takes ``took_s[n]``, in turn; when those that were measured were sent."""
    sent: list[float] = []
    busy: list[tuple[float, int, Ticket]] = []

    def send(stream: int) -> None:
        ticket = board.take()
        if ticket is not None:
            sent.extend([clock.now_s] * (ticket.phase == "measured"))
            busy.append((clock.now_s + took_s[ticket.index % len(took_s)], stream, ticket))

    for stream in range(board._load.concurrency):
        send(stream)
    while busy:
        busy.sort()
        clock.now_s, stream, ticket = busy.pop(0)
        number = ticket.index
        took = took_s[number % len(took_s)]
        board.ended(ticket.phase, False, ttft_s[number % len(ttft_s)], round(took * 1e9), 100)
        send(stream)
    return sent


def test_the_last_replies_are_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of replies that take 7 s, on two streams: at 21 s another one would still be in time, 28 s
    after the first was sent; the next at 28 s would not. TTFT varies too much to be enough."""
    clock = Clock(monkeypatch)
    board = budget()
    sent = play(board, clock, [7.0], [0.1, 0.9, 0.5, 0.2, 0.7])
    assert sorted(set(sent)) == [0.0, 7.0, 14.0, 21.0]
    assert board.over


def test_each_stream_has_two_requests_if_twice_the_budget_will_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    assert sorted(play(budget(), clock, [25.0], [1.0])) == [0, 0, 25, 25]
    clock.now_s = 0.0
    # After 60 s nothing more is sent, however few there were.
    assert sorted(play(budget(), clock, [61.0], [1.0])) == [0, 0]


def test_a_window_closes_when_its_figures_are_good_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal replies of 100 ms on two streams: 100 have ended at the first look, after 5 s."""
    clock = Clock(monkeypatch)
    board = budget()
    sent = play(board, clock, [0.1], [0.02])
    assert max(sent) == pytest.approx(4.9, abs=0.11)
    assert board.remark == ""


def test_a_p95_is_waited_for_where_there_is_time_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 600 ms a reply two streams end 72 requests after 21.6 s, and look next at 25 s; of 900 ms
    they end 66 in all, and the 32 that a rate wants after 14.4 s, before the look at 15 s."""
    clock = Clock(monkeypatch)
    assert max(play(budget(), clock, [0.6], [0.02])) == pytest.approx(25, abs=0.7)
    clock.now_s = 0.0
    assert max(play(budget(), clock, [0.9], [0.02])) == pytest.approx(15, abs=1)


def test_rates_that_vary_are_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    wild = [0.01 * (1 + 7 * number % 61) for number in range(61)]
    assert max(play(budget(3.0), clock, wild, [0.02])) > 2.5


def test_an_open_loop_with_a_budget_stops_sending_when_it_is_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    board = budget(rate="20", requests=600)  # type: ignore[arg-type]
    phases = []
    for number in range(600):
        clock.now_s = number / 20
        if (ticket := board.send("measured")) is None:
            break
        phases.append(ticket.phase)
        board.ended(ticket.phase, False, 0.2, 200_000_000, 100)
    assert phases.count("measured") == 101  # at 5 s
    assert board.over


def test_what_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    board = budget(warmup=1)
    board.start()
    board.start()
    ticket = board.take()
    assert ticket is not None
    assert ticket.phase == "warmup"
    assert not board.is_watching
    board.ended("warmup", False, None)
    board.take()
    assert board.is_watching
    assert not Board(load(warmup=0)).is_watching
    assert clock.now_s == 0


def test_a_window_closes_while_nothing_begins_or_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two streams whose replies hang: by the clock, and after the grace the cell is over."""
    for fields, closes_s in (({"duration_s": 3.0}, 3.0), ({"budget_s": 5.0}, 10.0)):
        clock = Clock(monkeypatch)
        board = Board(load(**({"warmup": 0, "requests": 9, "grace_s": 3.0} | fields)))
        for _ in range(2):
            board.start()
            board.take()
        clock.now_s = closes_s - 0.01
        board.tick()
        assert board.phase == "measured"
        clock.now_s = closes_s
        board.tick()
        assert board.phase == "cooldown"
        clock.now_s = closes_s + 3.01
        assert board.grace_is_over()
