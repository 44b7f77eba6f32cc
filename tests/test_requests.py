"""The table of requests: the same as its rows, whatever is done to it, in whatever process."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_metrics import at, measured, running, said
from test_summary import cell_of, facts_of, growing, request

from llmbench import evidence
from llmbench.apis import APIS
from llmbench.config import Sweep
from llmbench.errors import UserError
from llmbench.evidence import measure_file, measure_span, requests_by_cell, spans
from llmbench.measure.gaps import token_gaps
from llmbench.measure.metrics import measure
from llmbench.measure.requests import PACKED, Ragged, Requests
from llmbench.measure.timeline import decode
from llmbench.records import RequestMetrics, Target, Trace
from llmbench.store import RunDirectory, Span, write_traces

ROWS = [
    at(10, 20, 35, tokens=3),
    running((10, 1), (20, 3), (31, 4)),
    running((5, 1), (7, 2)),
    at(100),
    measured(error="refused", status=0, detail="nobody listens"),
    measured((4, said()), (9, said()), phase="warmup", stamps="user", error="cancelled"),
]

picks = st.lists(st.sampled_from(ROWS), max_size=8)


def alike(table: Requests, rows: list[RequestMetrics]) -> None:
    """Every column holds what its row says."""
    assert len(table) == len(rows)
    assert table.failure.tolist() == [each.failure for each in rows]
    assert table.detail.tolist() == [each.detail for each in rows]
    assert table.measured.tolist() == [each.phase == "measured" for each in rows]
    assert table.start_ns.tolist() == [each.start_ns for each in rows]
    for name in ("ttft_s", "e2e_s", "tpot_s"):
        known = [getattr(each, name) for each in rows]
        column = getattr(table, name).tolist()
        assert column == pytest.approx([np.nan if x is None else x for x in known], nan_ok=True)
    for name in ("gaps_s", "lag_ms"):
        parts = [list(each) for each in getattr(table, name).rows()]
        assert parts == [pytest.approx(list(getattr(each, name)), rel=1e-3) for each in rows]
    ones = [each.steps or [1] * len(each.gaps_s) for each in rows]
    if table.steps is not None:
        assert [each.tolist() for each in table.steps.rows()] == [list(each) for each in ones]
    else:
        assert all(each.steps is None for each in rows)


@given(picks, picks, st.data())
def test_parts_of_the_table_are_tables_of_the_parts(
    one: list[RequestMetrics], other: list[RequestMetrics], data: st.DataObject
) -> None:
    rows = [*one, *other]
    table = Requests.joined([Requests.of(one), Requests.of(other)])
    alike(table, rows)
    alike(pickle.loads(pickle.dumps(table)), rows)
    marks = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    kept = np.array(marks, dtype=bool)
    alike(table.where(kept), [each for each, mark in zip(rows, marks, strict=True) if mark])


def test_a_table_is_in_the_order_of_starts() -> None:
    late, early = (measured((10, said()), (20, said()), sent_ns=ns) for ns in (900, 100))
    alike(Requests.of([late, early]), [early, late])
    alike(Requests.joined([Requests.of([late]), Requests.of([early])]), [early, late])


def test_more_rows_than_are_packed_at_once() -> None:
    rows = [ROWS[number % len(ROWS)] for number in range(PACKED + 5)]
    alike(Requests.of(iter(rows)), rows)


def test_what_is_ragged() -> None:
    ragged = Ragged(np.array([1.0, 2.0, 4.0, 8.0]), np.array([0, 3, 0, 1, 0]))
    assert ragged.sums().tolist() == [0, 7, 0, 8, 0]
    assert ragged.firsts.tolist() == [True, False, False, True]
    assert ragged.lasts.tolist() == [False, False, True, True]
    kept = ragged.where(ragged.values > 2)
    assert (kept.values.tolist(), kept.sizes.tolist()) == ([4, 8], [0, 1, 0, 1, 0])


def test_a_step_is_one_token_where_only_others_say_more() -> None:
    rows = [running((5, 1), (7, 2)), running((10, 1), (20, 3))]
    gaps = token_gaps(Requests.of(rows)).gaps
    assert gaps is not None
    assert [each.tolist() for each in gaps.rows()] == [
        pytest.approx([0.002]),
        pytest.approx([0.005, 0.005]),
    ]


def test_a_cell_does_not_depend_on_the_order_of_its_file() -> None:
    traces = [*growing(80, 7), *(broken(n, "cancelled") for n in range(3))]
    turned = cell_of(traces[::-1])
    assert turned.ttft_ms == cell_of(traces).ttft_ms
    assert turned.e2e_ms == cell_of(traces).e2e_ms


# ---- files


def stored(path: Path, traces: list[Trace]) -> Path:
    write_traces(path, traces)
    return path


def traces_of_two_cells() -> list[Trace]:
    return [
        *(request(100 * n, 10 + n, 50, cell=0, index=n) for n in range(3)),
        broken(300, cell=0, index=3),
        *(request(100 * n, 30, 50, cell=2, index=n) for n in range(2)),
    ]


def broken(sent_ms: float, kind: str = "reset", **fields: Any) -> Trace:
    return request(sent_ms, end_ms=10, finish="", error=kind, status=0, **fields)


def test_spans_hold_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"one\ntwo\n\nthree is long\nfour")
    text = path.read_bytes()
    for size in (1, 3, 4, 5, 100):
        parts = [text[start:stop] for start, stop in spans(path, Span(0, len(text)), size)]
        assert b"".join(parts) == text
        assert all(part.endswith(b"\n") for part in parts[:-1])
    tail = Span(text.index(b"three"), len(text))
    assert [text[start:stop] for start, stop in spans(path, tail, 1)] == [
        b"three is long\n",
        b"four",
    ]
    assert list(spans(tmp_path / "none", Span(0, 0))) == []


def test_processes_find_what_one_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traces = traces_of_two_cells()
    path = stored(tmp_path / "requests.jsonl", traces)
    monkeypatch.setattr(evidence, "LONG_BYTES", 0)
    events = APIS["chat"].decode
    rows = [measure(each, decode(each, events)) for each in traces]
    whole = Span(0, path.stat().st_size)
    found = list(measure_file(path, whole, {0: "chat", 2: "chat"}, processes=2, size=100))
    assert [part.cell for part in found] == [0, 0, 0, 0, 2, 2]
    alike(Requests.joined([part.requests for part in found if part.cell == 0]), rows[:4])
    alike(Requests.joined([part.requests for part in found if part.cell == 2]), rows[4:])
    starts, stops = zip(*(part.span for part in found), strict=True)
    assert starts == (0, *stops[:-1])
    assert stops[-1] == whole.stop


def test_each_cell_comes_once(tmp_path: Path) -> None:
    target = Target(spec="http://h", name="h", url="http://h/v1")
    directory = RunDirectory.create(Sweep(out=str(tmp_path / "run")), [target], {})
    traces = traces_of_two_cells()
    for number in (0, 2):
        directory.add_cell(facts_of(cell=number), [each for each in traces if each.cell == number])
    found = {number: len(table) for number, table in requests_by_cell(directory)}
    assert found == {0: 4, 2: 2}


def test_a_damaged_line_and_one_that_was_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stored(tmp_path / "requests.jsonl", traces_of_two_cells())
    with path.open("ab") as file:
        file.write(b'{"request"')
    whole = Span(0, path.stat().st_size)
    both = {0: "chat", 2: "chat"}
    assert [len(part.requests) for part in measure_span(path, whole, both)] == [4, 2]
    assert [len(part.requests) for part in measure_span(path, whole, {2: "chat"})] == [2]
    with path.open("ab") as file:
        file.write(b"\n")
    whole = Span(0, path.stat().st_size)
    with pytest.raises(UserError, match="line 7: "):
        measure_span(path, whole, both)
    monkeypatch.setattr(evidence, "LONG_BYTES", 0)
    with pytest.raises(UserError, match="line 7: "):  # from another process
        list(measure_file(path, whole, both, processes=2, size=100))
