"""How far what was measured is from what was sent. Pure: a truth log against timelines.

The server, too, can be held up between its clock and its socket, so the truth is an interval: an
event left between ``sent_ns`` and ``sent_ns + took_ns``. An error is the distance to it.
"""

from collections.abc import Iterable, Mapping

import numpy as np
from msgspec import Struct

from llmbench.measure.statistics import Floats, quantile
from llmbench.records import Timeline
from llmbench.truth.log import Reply

QUANTILES = {"p50": 0.5, "p99": 0.99, "p999": 0.999}


class Comparison(Struct, frozen=True, kw_only=True):
    """One metric: its true and its measured distribution, and the distribution of the errors, in
    milliseconds at the quantiles of ``QUANTILES``. ``n`` counts values."""

    n: int
    true_ms: dict[str, float]
    measured_ms: dict[str, float]
    error_ms: dict[str, float]


class Errors(Struct, frozen=True, kw_only=True):
    ttft: Comparison
    itl: Comparison


def compare(measured: Iterable[tuple[str, Timeline]], log: Mapping[str, Reply]) -> Errors:
    """Compare timelines with the log's replies; both go by request id.

    Raises ``ValueError`` where a reply and its timeline do not have the same events.
    """
    ttft: list[tuple[float, float, float]] = []
    gaps: list[Floats] = []
    for request_id, timeline in measured:
        reply = log[request_id]
        at_ns = np.asarray(timeline.at_ns, dtype=np.int64)
        sent_ns = np.asarray(reply.token_sent_ns, dtype=np.int64)
        took_ns = np.asarray(reply.token_took_ns, dtype=np.int64)
        if len(at_ns) != len(sent_ns):
            raise ValueError(f"{request_id}: {len(at_ns)} events came, {len(sent_ns)} were sent")
        true_ns = int(sent_ns[0]) - reply.received_ns
        ttft.append((true_ns, int(at_ns[0]), _outside(int(at_ns[0]), true_ns, int(took_ns[0]), 0)))
        true_gaps, measured_gaps = np.diff(sent_ns), np.diff(at_ns)
        late = measured_gaps - true_gaps
        error = np.maximum(np.maximum(late - took_ns[1:], -late - took_ns[:-1]), 0)
        gaps.append(np.stack((true_gaps, measured_gaps, error)))
    return Errors(
        ttft=_comparison(np.array(ttft, dtype=np.float64).T / 1e6),
        itl=_comparison(np.concatenate(gaps, axis=1) / 1e6),
    )


def _outside(value: int, true: int, more: int, less: int) -> int:
    """The distance of ``value`` from the interval ``[true - less, true + more]``."""
    return max(value - true - more, true - less - value, 0)


def _comparison(columns: Floats) -> Comparison:
    true, measured, error = (np.sort(column) for column in columns)
    return Comparison(
        n=len(true),
        true_ms=_quantiles(true),
        measured_ms=_quantiles(measured),
        error_ms=_quantiles(error),
    )


def _quantiles(ordered: Floats) -> dict[str, float]:
    return {name: quantile(ordered, p) for name, p in QUANTILES.items()}
