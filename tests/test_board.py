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
