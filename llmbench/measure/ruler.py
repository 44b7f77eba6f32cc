"""What the ruler knows of its own error, from the evidence and from calibration.

From the evidence alone: a request left within its sending call (``Trace.send_ns``); an event that
had a read to itself arrived at its kernel stamp; one that shared a read arrived within the read's
slack before that stamp. So each latency lies between two bounds, and each quantile of the true
latencies between the same quantiles of the bounds, however busy the machine was. Calibration adds
what the same client was off by on this machine against a server with known send times.
"""

from collections.abc import Sequence

import numpy as np

from llmbench.measure.statistics import Floats, Ints, quantile
from llmbench.records import Calibration, Cell, RequestMetrics, Ruler

PROMPT_LAG_NS = 2_000_000
"""A client that is hardly ever later than this has not made events share a read: the server, or
the network, sent them together."""

SHOWN = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
LEAST_ERROR_MS = 0.5
ERROR_SHARE = 0.05
"""A figure may be off by half a millisecond or by this share of itself, whichever is greater."""


def from_evidence(good: Sequence[RequestMetrics]) -> Ruler:
    """The ruler's errors as far as the evidence bounds them, over the good requests of a cell."""
    ruler = Ruler()
    if not good:
        return ruler
    stamps = {each.stamps for each in good}
    ruler.stamps = stamps.pop() if len(stamps) == 1 else "user"
    shared = np.concatenate([_array(each.timeline.slack_ns) for each in good])
    ruler.coalesced_share = float((shared > 0).mean())
    if ruler.stamps != "kernel":
        return ruler
    lag_ns = np.sort(np.concatenate([_array(each.lag_ns) for each in good])).astype(np.float64)
    ruler.read_lag_ms = {name: quantile(lag_ns, p) / 1e6 for name, p in SHOWN.items()}
    prompt = quantile(lag_ns, 0.99) <= PROMPT_LAG_NS
    slack_ns = [_slack(each, prompt) for each in good]
    first = np.array([each.timeline.at_ns[0] for each in good])
    early = first - np.array([each.send_ns for each in good]) - [each[0] for each in slack_ns]
    ruler.ttft_error_ms = _errors(first, early, first)
    gaps = [np.diff(_array(each.timeline.at_ns)) for each in good]
    if any(len(each) for each in gaps):
        measured = np.concatenate(gaps)
        low = measured - np.concatenate([each[1:] for each in slack_ns])
        high = measured + np.concatenate([each[:-1] for each in slack_ns])
        ruler.itl_error_ms = _errors(measured, low, high)
    return ruler


def _slack(metrics: RequestMetrics, prompt: bool) -> Ints:
    """How much older than its stamp each content event can be, in nanoseconds."""
    slack_ns = _array(metrics.timeline.slack_ns)
    if prompt:
        return np.where(_array(metrics.timeline.lag_ns) <= PROMPT_LAG_NS, 0, slack_ns)
    return slack_ns


def _errors(measured: Ints | Floats, low: Ints | Floats, high: Ints | Floats) -> dict[str, float]:
    """The most that each quantile of ``measured`` is off, in ms, given bounds on each value."""
    ordered, lowest, highest = (
        np.sort(values).astype(np.float64) for values in (measured, low, high)
    )
    return {
        name: max(
            quantile(ordered, p) - quantile(lowest, p), quantile(highest, p) - quantile(ordered, p)
        )
        / 1e6
        for name, p in SHOWN.items()
    }


def _array(values: Sequence[int]) -> Ints:
    return np.asarray(values, dtype=np.int64)


def add_calibration(ruler: Ruler, calibration: Calibration) -> None:
    """State the greater of what the evidence and what ``calibration`` says."""
    ruler.calibrated = True
    ruler.ttft_error_ms = _greater(ruler.ttft_error_ms, calibration.ttft_error_ms)
    ruler.itl_error_ms = _greater(ruler.itl_error_ms, calibration.itl_error_ms)


def _greater(one: dict[str, float] | None, other: dict[str, float]) -> dict[str, float]:
    return {name: max((one or other)[name], other[name]) for name in other}


def too_uncertain(cell: Cell) -> str:
    """Which shown figure is less certain than it may be, or nothing.

    aiohttp and openai are there to be seen as an application sees them, their own delay included:
    their error is stated, and no reason to say nothing.
    """
    if cell.client != "wire":
        return ""
    for name, block, errors_ms, shown in (
        ("TTFT", cell.ttft_ms, cell.ruler.ttft_error_ms, ("p50", "p95")),
        ("ITL", cell.itl_ms, cell.ruler.itl_error_ms, ("p50", "p99")),
    ):
        for p in shown:
            value = getattr(block, p, None)
            if value is None or errors_ms is None:
                continue
            if errors_ms[p] > max(LEAST_ERROR_MS, ERROR_SHARE * value):
                return f"{name} {p} can be off by {errors_ms[p]:.2g} ms"
    return ""
