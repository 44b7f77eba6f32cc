"""The ruler's own error: bounds from the evidence, calibration, comparison with a truth log."""

from array import array

import pytest
from conftest import bare_cell

from llmbench.measure.metrics import measure
from llmbench.measure.requests import Requests
from llmbench.measure.ruler import add_calibration, from_evidence, untimed
from llmbench.records import (
    Block,
    Calibration,
    Counts,
    Estimate,
    Reads,
    RequestMetrics,
    Ruler,
    Stamps,
    Timeline,
    Trace,
)
from llmbench.truth.errors import compare
from llmbench.truth.log import Reply

MS = 1_000_000


def request(
    at_ms: list[float],
    slack_ms: list[float] | None = None,
    lag_ms: list[float] | None = None,
    send_ms: float = 0.0,
    stamps: Stamps = "kernel",
    sent_ms: float = 0.0,
    due_ms: float | None = None,
) -> RequestMetrics:
    def column(values: list[float]) -> "array[int]":
        return array("q", [round(value * MS) for value in values])

    lag = column(lag_ms or [0.1] * len(at_ms))
    slack = column(slack_ms or [0] * len(at_ms))
    trace = Trace(
        cell=0,
        index=0,
        stream=0,
        phase="measured",
        sent_ns=round(sent_ms * MS),
        due_ns=None if due_ms is None else round(due_ms * MS),
        end_ns=round(at_ms[-1] * MS),
        send_ns=round(send_ms * MS),
        stamps=stamps,
        reads=Reads(column([1] * len(at_ms)), column(at_ms), lag, slack),
    )
    return measure(trace, Timeline(at_ns=column(at_ms), slack_ns=slack, lag_ns=lag))


def timeline(*at_ms: float) -> Timeline:
    at_ns = array("q", [round(ms * MS) for ms in at_ms])
    return Timeline(at_ns=at_ns, slack_ns=at_ns, lag_ns=at_ns)


def test_a_lone_event_is_known_to_within_the_sending_call() -> None:
    ruler = from_evidence(Requests.of([request([50, 60, 70], send_ms=0.04)]))
    assert ruler.ttft_error_ms == {"p50": 0.04, "p95": 0.04, "p99": 0.04}
    assert ruler.itl_error_ms == {"p50": 0.0, "p95": 0.0, "p99": 0.0}
    assert ruler.coalesced_share == 0


def test_a_late_client_does_not_know_the_events_that_shared_a_read() -> None:
    # The second event came with the third in one read, and may be 8 ms older than its stamp: the
    # gaps 20, 0, 10 are truly between (12, 0, 10) and (20, 8, 10).
    late = request([50, 70, 70, 80], slack_ms=[0, 8, 0, 0], lag_ms=[0.1, 9, 9, 9])
    ruler = from_evidence(Requests.of([late]))
    assert ruler.coalesced_share == 0.25
    # medians (rank 2 of 3): measured (0, 10, 20) → 10; low (0, 10, 12) → 10; high (8, 10, 20) → 10
    # maxima: measured 20; low 12; high 20
    # the slack is kept to 11 bits, rounded up
    assert ruler.itl_error_ms == pytest.approx({"p50": 0, "p95": 8, "p99": 8}, rel=2**-9)
    assert ruler.itl_error_ms["p99"] >= 8


def test_a_prompt_client_takes_shared_reads_for_the_servers_doing() -> None:
    batched = request([50, 70, 70, 80], slack_ms=[0, 8, 0, 0])
    assert from_evidence(Requests.of([batched])).itl_error_ms == {
        "p50": 0.0,
        "p95": 0.0,
        "p99": 0.0,
    }


def test_what_a_request_was_sent_late_by_may_be_too_much() -> None:
    """TTFTs from due are 57 and 90 ms: the first at least 49.5, had it been sent when it was due,
    the second, sent early, known to within its sending call."""
    late = request([50, 60], send_ms=0.5, sent_ms=1_007, due_ms=1_000)
    early = request([100, 110], send_ms=0.25, sent_ms=2_000, due_ms=2_010)
    ruler = from_evidence(Requests.of([late, early]))
    assert ruler.ttft_error_ms == {"p50": 7.5, "p95": 0.25, "p99": 0.25}


def test_user_space_stamps_bound_nothing() -> None:
    ruler = from_evidence(Requests.of([request([50, 60], stamps="user")]))
    assert (ruler.stamps, ruler.ttft_error_ms, ruler.read_lag_ms) == ("user", None, None)


def test_calibration_only_widens() -> None:
    calibration = Calibration(
        client="wire",
        concurrency=1,
        events_per_s=100,
        ttft_error_ms={"p50": 0.1, "p95": 0.2, "p99": 0.2},
        itl_error_ms={"p50": 0.0, "p95": 0.3, "p99": 0.3},
    )
    ruler = Ruler(ttft_error_ms={"p50": 0.02, "p95": 0.5, "p99": 0.6})
    add_calibration(ruler, calibration)
    assert ruler.ttft_error_ms == {"p50": 0.1, "p95": 0.5, "p99": 0.6}
    assert ruler.itl_error_ms == calibration.itl_error_ms
    assert ruler.calibrated


@pytest.mark.parametrize(
    ("p50_ms", "error_ms", "bad"),
    [(10, 0.5, False), (10, 0.51, True), (100, 4.9, False), (100, 5.1, True)],
)
def test_an_error_beyond_half_a_millisecond_and_five_percent_is_too_much(
    p50_ms: float, error_ms: float, bad: bool
) -> None:
    cell = bare_cell(
        requests=Counts(),
        ttft_ms=Block(n=10, p50=p50_ms),
        ruler=Ruler(ttft_error_ms={"p50": error_ms, "p95": 99, "p99": 99}),
    )
    assert untimed(cell) == ({"ttft.p50": error_ms} if bad else {})
    cell.client = "openai"
    assert not untimed(cell)  # it is there to be seen with its own delay


def test_each_figure_stands_or_falls_by_its_own_bound() -> None:
    """30 ms is too much of a median of 100 and of an estimated p95 of 300, and little of a p99 of
    1,000: 5% of it is 50 ms. There is no ITL that could be wrong."""
    ttft = Block(n=200, p50=100.0, p99=1000.0, estimates={"p95": Estimate(300.0, 250.0, None)})
    off = {"p50": 30.0, "p95": 30.0, "p99": 30.0}
    ruler = Ruler(stamps="kernel", ttft_error_ms=off, itl_error_ms=off)
    cell = bare_cell(ttft_ms=ttft, ruler=ruler)
    assert untimed(cell) == {"ttft.p50": 30.0, "ttft.p95": 30.0}


def test_gaps_between_chunks_are_as_uncertain_as_those_between_tokens() -> None:
    gaps = Block(n=900, p50=5.0, p99=9.0)
    ruler = Ruler(stamps="kernel", itl_error_ms={"p50": 0.1, "p99": 1.2})
    cell = bare_cell(itl_ms=gaps, icl_ms=gaps, ruler=ruler)
    assert untimed(cell) == {"itl.p99": 1.2, "icl.p99": 1.2}


def reply(sent_ms: list[float], took_ms: list[float]) -> Reply:
    return Reply(
        number=0,
        request_id="r",
        connection=0,
        path="/",
        status=200,
        stamps="kernel",
        received_ns=0,
        started_ns=0,
        ended_ns=0,
        ended="complete",
        sent_ns=[round(ms * MS) for ms in sent_ms],
        took_ns=[round(ms * MS) for ms in took_ms],
        first_token=0,
        last_token=len(sent_ms) - 1,
        prompt_tokens=1,
        output_tokens=len(sent_ms),
        late_ns=0,
        blocked=0,
    )


def test_an_error_is_the_distance_to_the_interval_of_the_truth() -> None:
    # True: TTFT in [50, 50.5]; gaps in [10 - 0.5, 10 + 0.1] and [10 - 0.1, 10 + 0.2].
    log = {"r": reply([50, 60, 70], [0.5, 0.1, 0.2])}
    errors = compare([("r", timeline(51, 60.2, 71.2))], log)
    assert errors.ttft.error_ms["p50"] == pytest.approx(0.5)  # 51 against at most 50.5
    assert errors.itl.true_ms["p50"] == 10
    assert errors.itl.measured_ms["p99"] == pytest.approx(11.0)
    assert errors.itl.error_ms["p99"] == pytest.approx(0.8)  # 11.0 against at most 10.2
    assert errors.itl.error_ms["p50"] == pytest.approx(0.3)  # 9.2 against at least 9.5


def test_other_events_than_were_sent_are_an_error() -> None:
    with pytest.raises(ValueError, match="2 events came, 3 were sent"):
        compare([("r", timeline(50, 60))], {"r": reply([50, 60, 70], [0, 0, 0])})
