"""What a cell says of its sessions, its lengths and its cache, worked out by hand."""

from typing import Any

import msgspec
import pytest
from test_summary import MS, asked, cell_of, due, facts_of, request, steady

from llmbench.records import CachedTokens, CellFacts, Content, LengthBin, Range, Trace


def facts_with(concurrency: int = 1, output_tokens: int = 3, **content: Any) -> CellFacts:
    facts = facts_of(concurrency, output_tokens)
    return msgspec.structs.replace(
        facts, load=msgspec.structs.replace(facts.load, content=Content(**content))
    )


def sessions(count: int, think_ms: float = 0) -> list[Trace]:
    """Sessions of three turns of 100 ms, one after the other, with TTFTs of 40, 20 and 10 ms."""
    traces = []
    for session in range(count):
        for turn, (ttft, prompt, cached) in enumerate(
            [(40, 100, 0), (20, 200, 90), (10, 300, 240)]
        ):
            traces.append(
                request(
                    (3 * session + turn) * (100 + think_ms),
                    *(ttft, ttft + 30, 100),
                    prompt=prompt,
                    cached=cached,
                    session=session,
                    turn=turn,
                )
            )
    return traces


# ---- sessions


def test_each_turn_has_its_own_ttft() -> None:
    cell = cell_of(sessions(40), facts_with(turns=3))
    assert cell.ttft_ms is not None
    assert (cell.ttft_ms.n, cell.ttft_ms.p50) == (120, pytest.approx(20))
    assert cell.turns is not None
    assert [
        (each.turn, each.ttft_ms.n, each.ttft_ms.p50, each.cached_share) for each in cell.turns
    ] == [
        (1, 40, pytest.approx(40), 0),
        (2, 40, pytest.approx(20), pytest.approx(90 / 200)),
        (3, 40, pytest.approx(10), pytest.approx(240 / 300)),
    ]
    assert [each.prompt_tokens for each in cell.turns] == [
        Range(100, 100, 100),
        Range(200, 200, 200),
        Range(300, 300, 300),
    ]
    assert (cell.cache_asked, cell.cache, cell.cached_share_source) == ("session", "warm", "usage")
    assert cell.cached_share == pytest.approx(330 / 600)
    assert (cell.verdict, cell.notes, cell.settled) == ("valid", [], True)


def test_a_turn_that_failed_counts_in_its_turn() -> None:
    traces = sessions(10)
    traces[1::3] = [
        msgspec.structs.replace(each, error="reset", body=b"", status=0) for each in traces[1::3]
    ]
    cell = cell_of(traces, facts_with(turns=3))
    assert cell.turns is not None
    assert [each.turn for each in cell.turns] == [1, 3]  # nothing is known of the second
    traces[1] = sessions(1)[1]
    cell = cell_of(traces, facts_with(turns=3))
    assert cell.turns is not None
    second = cell.turns[1].ttft_ms
    assert (second.n, second.p50, second.max) == (10, float("inf"), pytest.approx(20))


def test_single_turns_are_not_listed() -> None:
    assert cell_of(steady(80, 40, 60, 80)).turns is None


@pytest.mark.parametrize(("think_time", "verdict"), [("", "invalid"), ("0.1", "valid")])
def test_while_users_think_nothing_is_in_flight(think_time: str, verdict: str) -> None:
    cell = cell_of(sessions(40, think_ms=100), facts_with(turns=3, think_time=think_time))
    assert cell.in_flight == pytest.approx(0.5, rel=0.01)
    assert cell.verdict == verdict


def test_only_first_turns_tell_whether_a_cell_had_settled() -> None:
    """TTFT falls from turn to turn, and that is no warm-up."""
    traces = [
        msgspec.structs.replace(each, sent_ns=(80 * each.turn + each.session) * 100 * MS)
        for each in sessions(80)
    ]
    cell = cell_of(traces, facts_with(turns=3))
    assert (cell.warmup_removed, cell.ttft_drift, cell.settled) == (0, None, True)


def test_the_window_is_that_of_the_sessions_arrivals() -> None:
    """Turns after the first are due when their users have read the reply before."""
    traces = [due(100 * n, 0, 40, 60, 80) for n in range(10)]
    traces += [due(100 * n + 500, 0, 40, 60, 80, turn=1) for n in range(10)]
    cell = cell_of(traces, asked())
    assert cell.window_s == pytest.approx(0.9)
    assert cell.arrivals_per_s == pytest.approx(10)
    assert cell.ttft_ms is not None
    assert cell.ttft_ms.n == 20


# ---- lengths


def of_length(start: float, tokens: int, pace_ms: float) -> Trace:
    times = [10 + pace_ms * n for n in range(tokens)]
    return request(start, *times, end_ms=1000)


def bins_of(lengths: list[int]) -> list[tuple[Range, int, float | None]] | None:
    """Replies with a pace of as many ms a token as they have tokens."""
    traces = [of_length(1000 * n, length, length) for n, length in enumerate(lengths)]
    cell = cell_of(traces, facts_with(output_lengths="uniform(2,30)"))
    told: list[LengthBin] | None = cell.tpot_by_length
    assert cell.notes == []  # nobody asked for one length
    return told and [(each.output_tokens, each.tpot_ms.n, each.tpot_ms.p50) for each in told]


def test_tpot_by_quartiles_of_the_length() -> None:
    lengths = [5 + 7 * n % 24 for n in range(24)]  # 5 to 28, shuffled
    assert bins_of(lengths) == [
        (Range(5, 7, 10), 6, pytest.approx(7)),
        (Range(11, 13, 16), 6, pytest.approx(13)),
        (Range(17, 19, 22), 6, pytest.approx(19)),
        (Range(23, 25, 28), 6, pytest.approx(25)),
    ]


def test_no_bin_of_less_than_six() -> None:
    # the quartiles begin at the 5th, 10th and 15th of 20: only the second leaves six on each side
    assert bins_of(list(range(5, 25))) == [
        (Range(5, 9, 14), 10, pytest.approx(9)),
        (Range(15, 19, 24), 10, pytest.approx(19)),
    ]
    assert bins_of(list(range(5, 16))) is None


def test_equal_lengths_are_in_one_bin() -> None:
    assert bins_of([5] * 14 + [20] * 10) == [
        (Range(5, 5, 5), 14, pytest.approx(5)),
        (Range(20, 20, 20), 10, pytest.approx(20)),
    ]
    assert bins_of([5] * 21 + [20] * 3) is None


def test_lengths_that_are_alike_are_not_told_apart() -> None:
    assert bins_of([10] * 12 + [12] * 12) is None
    assert bins_of([10] * 12 + [13] * 12) is not None


def test_without_a_tpot_there_is_none_by_length() -> None:
    traces = [request(1000 * n, 10, 20, 30 + n, tokens=None, end_ms=1000) for n in range(40)]
    assert cell_of(traces).tpot_by_length is None


@pytest.mark.parametrize(
    ("content", "noted"),
    [
        ({}, True),
        ({"natural_stops": True}, False),
        ({"output_lengths": "uniform(1,9)"}, False),
        ({"dataset": "chat.jsonl"}, False),
        ({"prompt_lengths": "uniform(1,9)"}, True),
    ],
)
def test_a_length_is_noted_where_one_was_asked_for(content: dict[str, Any], noted: bool) -> None:
    cell = cell_of(steady(80, 40, 80), facts_with(**content))
    assert ["asked for 3" in note for note in cell.notes] == [True] * noted


# ---- what was asked for


def test_what_the_requests_say() -> None:
    cell = cell_of(steady(80, 40, 60, 80))
    told = (cell.text, cell.prompt_lengths, cell.output_lengths, cell.cache_asked)
    assert told == ("lighthouse", None, None, "cold")
    cell = cell_of(
        steady(80, 40, 60, 80),
        facts_with(
            dataset="chat.jsonl", prompt_lengths="normal(9,1)", output_lengths="3", cache="warm"
        ),
    )
    told = (cell.dataset, cell.prompt_lengths, cell.output_lengths, cell.cache_asked)
    assert told == ("chat.jsonl", "normal(9,1)", "3", "warm")
    assert cell_of([], facts_with(turns=2)).cache_asked == "session"


@pytest.mark.parametrize(
    ("content", "cached", "note"),
    [
        ({}, 50, "warm: 50% of the prompt tokens came from a cache"),
        ({}, 1, ""),
        ({"cache": "warm"}, 50, ""),
        ({"cache": "warm"}, 1, ""),
        (
            {"cache": "warm"},
            0,
            "asked for a warm cache, but 0% of the prompt tokens came from it",
        ),
        ({"cache": "warm"}, None, ""),  # nobody knows
        ({"turns": 2}, 50, ""),
        ({"turns": 2}, 0, ""),
        ({"shared_prefix": 0.5}, 50, ""),  # on purpose
    ],
)
def test_a_cache_that_was_not_as_asked(
    content: dict[str, Any], cached: int | None, note: str
) -> None:
    cell = cell_of(steady(80, 40, 60, 80, prompt=100, cached=cached), facts_with(**content))
    assert cell.notes == ([note] if note else [])
    assert cell.cache == (None if cached is None else "warm" if cached > 1 else "cold")
    assert cell.cached_share_source == (None if cached is None else "usage")


def test_a_server_may_tell_of_its_cache_in_its_metrics() -> None:
    facts = msgspec.structs.replace(facts_of(), server_cached=CachedTokens(30, 120))
    cell = cell_of(steady(80, 40, 60, 80), facts)
    assert (cell.cached_share, cell.cached_share_source) == (0.25, "metrics")
    cell = cell_of(steady(80, 40, 60, 80, prompt=100, cached=1), facts)
    assert (cell.cached_share, cell.cached_share_source) == (0.01, "usage")


def test_remarks_are_notes() -> None:
    facts = msgspec.structs.replace(facts_of(), remarks=["3 rows were passed over"])
    assert cell_of(steady(80, 40, 60, 80), facts).notes == ["3 rows were passed over"]
